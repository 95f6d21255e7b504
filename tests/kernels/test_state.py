"""The state of a history in few passes: against the same in torch's operations and double precision."""

import copy

import pytest
import torch
from torch import nn

from nullrec_lib.backbones.sasrec import Block


def made(d: int, heads: int, p: float, seed: int = 0) -> tuple[Block, nn.LayerNorm]:
    """A block and the norm after it, whose gains and biases would show if they were missing."""
    torch.manual_seed(seed)
    block, norm = Block(d, heads, p), nn.LayerNorm(d)
    with torch.no_grad():
        for layer in (block.norm_query, block.norm_inner, norm):
            layer.weight.copy_(torch.rand(d) + 0.5)
            layer.bias.copy_(torch.randn(d))
    return block, norm


def inputs(B: int, L: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, masks from no token at all to a full history, and a gradient of the states."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(L) >= L - (torch.arange(B) % (L + 1))[:, None]
    return (torch.randn(B, L, d, generator=generator) * mask[..., None], mask,
            torch.randn(B, d, generator=generator))


def worked(impl: str, block: Block, norm: nn.LayerNorm, x, mask, upstream, dtype=torch.float32) -> dict:
    """The states, and every gradient."""
    block, norm = (copy.deepcopy(layer).to(dtype) for layer in (block, norm))
    x = x.to(dtype).requires_grad_()
    wanted = {"x": x, **dict(block.named_parameters()), **{f"norm.{n}": t for n, t in norm.named_parameters()}}
    torch.manual_seed(3)  # the seeds of dropout
    states = block.state(x, mask, norm, impl)
    told = torch.autograd.grad(states, [*wanted.values()], upstream.to(dtype), allow_unused=True)
    return {"states": states.detach(), **dict(zip(wanted, told))}


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("heads, d", [(1, 1), (1, 3), (2, 6), (4, 128), (3, 129), (1, 257)])
@pytest.mark.parametrize("B, L", [(1, 1), (23, 2), (40, 10), (260, 3)])
def test_as_near_to_the_truth_as_torch_is(B, L, heads, d, p):
    given = (*made(d, heads, p), *inputs(B, L, d))
    truth, fast, naive = worked("naive", *given, torch.float64), worked("cpu", *given), worked("naive", *given)
    assert truth.keys() == fast.keys()
    for name, true in truth.items():
        if name == "key.bias":  # it shifts all scores of a query alike
            assert true is fast[name] is None
            continue
        assert fast[name].shape == true.shape and fast[name].dtype == torch.float32
        allowed = 4 * (naive[name] - true).abs().max() + 1e-5 * true.abs().max() + 1e-6
        assert (fast[name] - true).abs().max() <= allowed, name


def test_parts_of_the_gradient_that_nobody_asks_for_do_not_change_the_others():
    given = (*made(8, 2, 0.2), *inputs(9, 4, 8))
    whole = worked("cpu", *given)
    block, norm, x, mask, upstream = given
    torch.manual_seed(3)
    (told,) = torch.autograd.grad(block.state(x, mask, norm), [block.inner.weight], upstream)
    assert torch.equal(told, whole["inner.weight"])


def test_what_it_reads_stays_as_it_was():
    block, norm, x, mask, upstream = *made(8, 2, 0.2), *inputs(9, 4, 8)
    before = [tensor.clone() for tensor in (x, mask, upstream, *block.parameters(), *norm.parameters())]
    x.requires_grad_()
    block.state(x, mask, norm).backward(upstream)
    assert all(map(torch.equal, before, (x.detach(), mask, upstream, *block.parameters(), *norm.parameters())))


def test_views_are_read_as_what_they_show():
    block, norm, x, mask, _ = *made(8, 2, 0.0), *inputs(9, 4, 8)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous() and torch.equal(block.state(strided, mask, norm), block.state(x, mask, norm))


@pytest.mark.parametrize("layer", ["query", "inner", "outer"])
def test_what_is_not_a_number_stays_so(layer):
    """A training that goes wrong must be seen to."""
    block, norm, x, mask, _ = *made(8, 1, 0.0), *inputs(9, 4, 8)
    with torch.no_grad():
        getattr(block, layer).bias[3] = torch.nan
    for impl in ("cpu", "naive"):
        assert block.state(x, mask, norm, impl)[mask.any(dim=1)].isnan().all(), impl


def test_products_in_low_precision_take_the_naive_form():
    block, norm, x, mask, _ = *made(8, 2, 0.0), *inputs(9, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.state(x, mask, norm), norm(block.last(x, mask)))
