"""Inputs and variants of the cases. Of a kernel x: `x_inputs` makes what all variants read, `x` calls the kernel with
the implementation asked for, and `x_plain` is the usual way to write it in PyTorch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import nullrec_lib.kernels.attend
import nullrec_lib.kernels.cosine_histogram
import nullrec_lib.kernels.covariance
import nullrec_lib.kernels.dropout
import nullrec_lib.kernels.infonce
import nullrec_lib.kernels.lookup
import nullrec_lib.kernels.overlap
import nullrec_lib.kernels.rank
import nullrec_lib.kernels.softmax
from nullrec_lib import kernels
from nullrec_lib.backbones import DreamRec
from nullrec_lib.backbones.sasrec import Block
from nullrec_lib.data.examples import Batch

P, TEMPERATURE, SEED = 0.1, 0.07, 123
"""Dropout's probability, InfoNCE's temperature (the defaults of a spec), and the seed of dropout."""
NEAREST, BINS = 20, 100


def dropout_inputs(device: str, B: int, L: int, d: int) -> SimpleNamespace:
    r = _Random(device)
    return SimpleNamespace(x=r.normal(B, L, d).requires_grad_(), upstream=r.normal(B, L, d))


def dropout(i: SimpleNamespace, impl: str) -> Any:
    return _both(kernels.dropout.dropout(i.x, P, SEED, impl=impl), [i.x], i.upstream)


def dropout_plain(i: SimpleNamespace) -> Any:
    return _both(F.dropout(i.x, P), [i.x], i.upstream)


def attend_inputs(device: str, B: int, L: int, d: int) -> SimpleNamespace:
    r = _Random(device)
    mask = torch.arange(L, device=device) >= r.ids(L, B)[:, None]  # left-padded, at least one token
    return SimpleNamespace(q=r.normal(B, 1, d).requires_grad_(), x=r.normal(B, L, d).requires_grad_(), mask=mask,
                           upstream=(r.normal(B, 1, d), r.normal(B, 1)), scale=d**-0.5)


def attend(i: SimpleNamespace, impl: str) -> Any:
    return _both(kernels.attend.attend(i.q, i.x, i.mask, i.scale, P, SEED, impl=impl), [i.q, i.x], i.upstream)


def attend_plain(i: SimpleNamespace) -> Any:
    scores = torch.matmul(i.q, i.x.transpose(1, 2)) * i.scale
    weights = F.dropout(scores.masked_fill(~i.mask[:, None], -1e9).softmax(-1), P)
    return _both((weights @ i.x, weights.sum(-1)), [i.q, i.x], i.upstream)


def state_inputs(device: str, B: int, L: int, d: int) -> SimpleNamespace:
    i = attend_inputs(device, B, L, d)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        i.block, i.norm = Block(d, 1, P).to(device), torch.nn.LayerNorm(d, device=device)
        i.seeds = torch.random.get_rng_state()  # the block draws those of dropout
    i.upstream = i.upstream[0][:, 0]
    # The bias of the keys is never read: all scores of a query shift alike.
    i.read = [i.x, *(p for name, p in i.block.named_parameters() if name != "key.bias"), *i.norm.parameters()]
    return i


def state(i: SimpleNamespace, impl: str) -> Any:
    torch.random.set_rng_state(i.seeds)
    return _both(i.block.state(i.x, i.mask, i.norm, impl), i.read, i.upstream)


def state_plain(i: SimpleNamespace) -> Any:
    return _both(i.norm(i.block(i.x, i.mask)[:, -1]), i.read, i.upstream)


def lookup_inputs(device: str, N: int, B: int, L: int, d: int) -> SimpleNamespace:
    r = _Random(device)
    ids = r.ids(N, B, L).masked_fill(torch.arange(L, device=device) < r.ids(L, B)[:, None], N)
    return SimpleNamespace(table=_table(r, N, d, device), ids=ids, positions=r.normal(L, d).requires_grad_(),
                           upstream=r.normal(B, L, d))


def lookup(i: SimpleNamespace, impl: str) -> Any:
    x = kernels.lookup.lookup(i.table, i.ids, i.positions, P, SEED, impl=impl)
    return _both(x, [i.table.trained, i.positions], i.upstream)


def lookup_plain(i: SimpleNamespace) -> Any:
    x = F.dropout(_rows(i.table, i.ids) + i.positions, P) * (i.ids < i.table.size)[..., None]
    return _both(x, [i.table.trained, i.positions], i.upstream)


def infonce_inputs(device: str, N: int, B: int, C: int, d: int) -> SimpleNamespace:
    r = _Random(device)
    return SimpleNamespace(table=_table(r, N, d, device), states=r.normal(B, d).requires_grad_(), ids=r.ids(N, B, C))


def infonce(i: SimpleNamespace, impl: str) -> Any:
    return _both(kernels.infonce.infonce(i.table, i.states, i.ids, TEMPERATURE, impl=impl), [i.table.trained, i.states])


def infonce_plain(i: SimpleNamespace) -> Any:
    candidates = F.normalize(_rows(i.table, i.ids), dim=-1)
    cosines = torch.bmm(candidates, F.normalize(i.states, dim=-1)[:, :, None])[..., 0]
    loss = F.cross_entropy(cosines / TEMPERATURE, torch.zeros_like(i.ids[:, 0]))
    return _both(loss, [i.table.trained, i.states])


def full_softmax_inputs(device: str, N: int, B: int, d: int) -> SimpleNamespace:
    r = _Random(device)
    return SimpleNamespace(table=_table(r, N, d, device), states=r.normal(B, d).requires_grad_(), target=r.ids(N, B))


def full_softmax(i: SimpleNamespace, impl: str) -> Any:
    loss = kernels.softmax.full_softmax(i.table, i.states, i.target, TEMPERATURE, impl=impl)
    return _both(loss, [i.table.trained, i.states])


def full_softmax_plain(i: SimpleNamespace) -> Any:
    items = F.normalize(_rows(i.table, torch.arange(i.table.size, device=i.target.device)), dim=-1)
    logits = F.normalize(i.states, dim=-1) @ items.T / TEMPERATURE
    return _both(F.cross_entropy(logits, i.target), [i.table.trained, i.states])


def rank_inputs(device: str, N: int, B: int, d: int) -> SimpleNamespace:
    r = _Random(device)
    items, queries, target = r.normal(N, d), r.normal(B, d), r.ids(N, B)
    seen = r.ids(N, B, 30).masked_fill(torch.arange(30, device=device) < r.ids(30, B)[:, None], N)
    return SimpleNamespace(items=items, queries=queries, target=target, seen=seen, factor=1 / items.norm(dim=1),
                           summand=torch.zeros(N, device=device))


def rank(i: SimpleNamespace, impl: str) -> Any:
    """Ranks under both protocols."""
    return kernels.rank.rank(i.queries, i.items, i.target, (i.factor, i.summand), i.seen, impl=impl)


def rank_plain(i: SimpleNamespace) -> Any:
    scores = i.queries @ i.items.T
    places = []
    for hidden in (None, i.seen):
        if hidden is not None:
            scores = scores * i.factor + i.summand
        own = scores.gather(1, i.target[:, None])
        if hidden is not None:
            wide = F.pad(scores, (0, 1)).scatter(1, hidden, -torch.inf)
            scores = wide.scatter(1, i.target[:, None], own)[:, :-1]
        places.append((scores >= own).sum(1))
    return tuple(places)


def product(i: SimpleNamespace) -> Any:
    """The bare scores: what ranking costs at least when they are made as a whole."""
    if not hasattr(i, "scores"):  # a place for them is made once: what is timed is the arithmetic
        i.scores = i.queries.new_empty(len(i.queries), len(i.items))
    return torch.mm(i.queries, i.items.T, out=i.scores)


def near_ranks(found: Any, expected: Any) -> str | None:
    """Ranks may differ where two scores differ by rounding only: by 2, and by one in ten thousand far down."""
    for one, other in zip(found, expected, strict=True):
        off = (one - other).abs() > 2 + 1e-4 * other
        if off.any():
            return f"{int(off.sum())} of {len(other)} ranks are off by more than rounding can explain"
    return None


def top_k(i: SimpleNamespace, impl: str) -> Any:
    """Scores of the best items, best first: which of two equal ones comes first is left open."""
    return kernels.rank.top_k(i.queries, i.items, NEAREST)[1]


def top_k_naive(i: SimpleNamespace) -> Any:
    return (i.queries @ i.items.T).topk(NEAREST, dim=1).values


def rows_inputs(device: str, N: int, d: int) -> SimpleNamespace:
    return SimpleNamespace(rows=_Random(device).normal(N, d) + 0.3)


def cosine_histogram(i: SimpleNamespace, impl: str) -> Any:
    return kernels.cosine_histogram.cosine_histogram(i.rows, BINS, impl=impl)


def cosine_histogram_plain(i: SimpleNamespace) -> Any:
    unit = F.normalize(i.rows, dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return torch.histc((unit @ unit.T)[first, second], BINS, -1, 1)


def near_counts(found: Any, expected: Any) -> str | None:
    """Counts may move to a neighbouring bin by rounding: one in ten thousand."""
    moved = float((found.double() - expected.double()).abs().sum() / 2 / expected.sum())
    return None if moved <= 1e-4 else f"a share of {moved:.2g} of all pairs is in another bin"


def covariance(i: SimpleNamespace, impl: str) -> Any:
    if impl == "naive":
        return kernels.covariance.covariance_naive(i.rows.cpu())
    return kernels.covariance.covariance(i.rows)


def covariance_plain(i: SimpleNamespace) -> Any:
    rows = i.rows.double()
    return rows.mean(0), torch.cov(rows.T, correction=0)


def overlap_inputs(device: str, N: int, items: int, each: int) -> SimpleNamespace:
    users = torch.arange(N).repeat_interleave(each)
    pairs = torch.stack([users, _Random("cpu").ids(items, N * each)], dim=1).unique(dim=0)
    return SimpleNamespace(users=pairs[:, 0], items=pairs[:, 1], counts=(N, items))


def overlap(i: SimpleNamespace, impl: str) -> Any:
    return (kernels.overlap.overlap_naive if impl == "naive" else kernels.overlap.overlap)(i.users, i.items, NEAREST)


def overlap_plain(i: SimpleNamespace) -> Any:
    has = torch.zeros(i.counts)
    has[i.users, i.items] = 1
    shared = (has @ has.T).fill_diagonal_(0)
    return tuple((shared / has.sum(1, keepdim=True)).topk(NEAREST, dim=1))


def ddim_inputs(device: str, B: int, d: int) -> SimpleNamespace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DreamRec((d,), 10, 1, 1, 0.0, 2000, 20, 5.0, 0.1, False)
        for parameter in model.denoiser.parameters():
            parameter.data *= 0.1  # a guided but untrained denoiser would blow rounding up
    model = model.to(device).requires_grad_(False).eval()
    none = torch.empty(0, device=device)
    return SimpleNamespace(model=model, states=_Random(device).normal(B, d),
                           batch=Batch(none, none, none, torch.arange(B, device=device)))


def _both(result: Any, wrt: list[Tensor], upstream: Any = None) -> tuple:
    """A result and the gradients of its sum weighted by `upstream`: forward and backward pass."""
    outputs = result if isinstance(result, tuple) else (result,)
    upstream = upstream if isinstance(upstream, tuple) or upstream is None else (upstream,)
    return outputs, torch.autograd.grad(outputs, wrt, upstream)


class _Random:
    """Seeded numbers, drawn where they are needed."""

    def __init__(self, device: str):
        self.options = {"device": device, "generator": torch.Generator(device).manual_seed(0)}

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, **self.options)

    def ids(self, below: int, *size: int) -> Tensor:
        return torch.randint(below, size, **self.options)


def _table(r: _Random, N: int, d: int, device: str) -> Any:
    """As AlphaFuse's: language, and an ID part in the later half of its columns."""
    return kernels.lookup.Table(r.normal(N + 1, d // 2).requires_grad_(), r.normal(N + 1, d), N)


def _rows(table: Any, ids: Tensor) -> Tensor:
    """Vectors by id as a PyTorch module would look them up."""
    row, null = F.embedding(ids, table.frozen).split([table.width - table.trained.shape[1], table.trained.shape[1]], -1)
    return torch.cat([row, null + F.embedding(ids, table.trained)], dim=-1)
