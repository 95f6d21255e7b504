"""SASRec training as research scripts usually write it: the yardstick for the engine.

Nothing here is clever on purpose: attention at every position, a (B, 1+negatives, d) tensor of normalised candidates,
negatives drawn example by example, batches put together from Python lists, metrics counted row by row.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Examples

KINDS = ("alphafuse", "base", "morec", "unisrec", "llm-esr")
"""Methods that this reference has."""

SLOW = ("unisrec", "llm-esr")
"""Those of which one step takes about a second."""


class Experts(nn.Module):
    """UniSRec's adaptor, (…, d_l) → (…, width): each expert drops, shifts and turns e, behind a noisy gate."""

    def __init__(self, language: int, width: int, experts: int, dropout: float):
        super().__init__()
        self.weights = nn.Parameter(torch.empty(experts, language, width))
        self.biases = nn.Parameter(torch.empty(experts, language))
        self.gate, self.gate_noise = (nn.Parameter(torch.empty(language, experts)) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, e: Tensor) -> Tensor:
        logits = e @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(e @ self.gate_noise) + 1e-2)
        made = [(self.drop(e) - bias) @ weight for bias, weight in zip(self.biases, self.weights)]
        return (torch.softmax(logits, dim=-1).unsqueeze(-1) * torch.stack(made, dim=-2)).sum(-2)


class Cross(nn.Module):
    """LLM-ESR's attention between its views, two heads: all four projections of every token."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, asking: Tensor, told: Tensor, mask: Tensor) -> Tensor:
        heads = lambda x: x.unflatten(-1, (2, -1)).transpose(1, 2)
        q, k, v = heads(self.query(asking)), heads(self.key(told)), heads(self.value(told))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask[:, None, None], -1e9)
        return self.output((torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)) * mask.unsqueeze(-1)


class Reference(nn.Module):
    """A method of `KINDS` on a one-block, one-head SASRec with InfoNCE on cosine similarity."""

    def __init__(self, kind: str, language: Tensor | None, n_items: int, width: int, length: int, dropout: float,
                 temperature: float, id_width: int = 0, experts: tuple[int, float] = (0, 0.0),
                 teachers: tuple[Tensor | None, float, float, float] = (None, 0.0, 0.0, 1.0)):
        """Set the shape.

        Args:
            kind: one of `KINDS`.
            language: (N+1, d_l) frozen rows, the padding's last; for alphafuse d_l = width. None for base.
            width: of a view: llm-esr has two.
            id_width: trained columns of an item vector: the null space of alphafuse, all of base, half of llm-esr.
            experts: of unisrec: how many, and the dropout of each.
            teachers: of llm-esr: histories (U, L) of training users, weights α and β, the item loss's temperature.
        """
        super().__init__()
        self.kind, self.n_items, self.temperature = kind, n_items, temperature
        if language is not None:
            self.language = nn.Embedding.from_pretrained(language, freeze=True, padding_idx=n_items)
        if id_width:
            self.id = nn.Embedding(n_items + 1, id_width, padding_idx=n_items)
        if kind == "morec":
            self.adaptor = nn.Sequential(nn.Linear(language.shape[1], width), nn.GELU())
        elif kind == "unisrec":
            self.adaptor = Experts(language.shape[1], width, *experts)
        elif kind == "llm-esr":
            middle = language.shape[1] // 2
            self.adaptor = nn.Sequential(nn.Linear(language.shape[1], middle), nn.Linear(middle, width))
            self.to_id, self.to_language = Cross(width), Cross(width)
            self.histories, self.alpha, self.beta, self.align_temperature = teachers
        self.positions = nn.Parameter(torch.randn(length, width))
        self.norm_query, self.norm_inner, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.drop_input, self.drop_weights, self.drop_inner, self.drop_outer = (nn.Dropout(dropout) for _ in range(4))

    def items(self, ids: Tensor) -> Tensor:
        """ids (…) int64 → vectors (…, d), made anew for every occurrence."""
        if self.kind == "base":
            return self.id(ids)
        language = self.language(ids)
        if self.kind != "alphafuse":
            adapted = self.adaptor(language) * (ids != self.n_items).unsqueeze(-1)
            return torch.cat([self.id(ids), adapted], dim=-1) if self.kind == "llm-esr" else adapted
        learned = self.id(ids)
        fixed = language.shape[-1] - learned.shape[-1]
        return torch.cat([language[..., :fixed], language[..., fixed:] + learned], dim=-1)

    def states(self, history: Tensor) -> Tensor:
        """(B, L) left-padded → (B, d), the state at the last position."""
        mask, x = history != self.n_items, self.items(history)
        if self.kind != "llm-esr":
            return self.encode(x, mask.unsqueeze(-1))
        identity, language = x.chunk(2, dim=-1)
        views = self.to_id(language, identity, mask), self.to_language(identity, language, mask)
        return torch.cat([self.encode(view, mask.unsqueeze(-1)) for view in views], dim=-1)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Item vectors (B, L, d) and their mask (B, L, 1) → (B, d)."""
        x = self.drop_input(x + self.positions) * mask
        length, width = x.shape[1:]
        normed = self.norm_query(x)
        scores = self.query(normed) @ self.key(x).transpose(1, 2) / math.sqrt(width)
        causal = torch.tril(torch.ones(length, length, dtype=torch.bool, device=x.device))
        scores = scores.masked_fill(~(causal & mask.transpose(1, 2)), -1e9)
        attended = normed + self.drop_weights(torch.softmax(scores, dim=-1)) @ self.value(x)
        normed = self.norm_inner(attended)
        x = normed + self.drop_outer(self.outer(self.drop_inner(F.relu(self.inner(normed)))))
        return self.norm(x)[:, -1]

    def loss(self, history: Tensor, target: Tensor, negatives: Tensor, similar: Tensor) -> Tensor:
        """InfoNCE and llm-esr's own losses: history (B, L), target (B,), negatives (B, n), rows of similar users (B, k)
        → scalar."""
        candidates = F.normalize(self.items(torch.cat([target.unsqueeze(1), negatives], dim=1)), dim=-1)
        states = self.states(history)
        logits = (candidates * F.normalize(states, dim=-1).unsqueeze(1)).sum(-1) / self.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(target), dtype=torch.int64, device=logits.device))
        if self.kind != "llm-esr":
            return loss
        ids = torch.cat([history.flatten(), target]).unique()
        identity, language = (F.normalize(part, dim=-1) for part in self.items(ids[ids < self.n_items]).chunk(2, dim=-1))
        logits, own = identity @ language.T / self.align_temperature, torch.arange(len(identity), device=ids.device)
        loss = loss + self.beta * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        with torch.no_grad():
            taught = self.states(self.histories[similar].flatten(0, 1)).unflatten(0, similar.shape).mean(1)
        return loss + self.alpha * F.mse_loss(states, taught)


def like(model, kind: str) -> Reference:
    """The reference of a `Recommender` of one of `KINDS` on a SASRec of one block and one head, with its weights.

    All that is known here about the inner names of our model.
    """
    method, backbone = model.method, model.backbone
    block, language = backbone.blocks[0], getattr(method, "language", None)
    table = method.id.weight.detach() if kind in ("alphafuse", "base", "llm-esr") else None
    more = {}
    if kind == "unisrec":
        more["experts"] = len(method.adaptor.weights), method.adaptor.dropout
    elif kind == "llm-esr":
        more["teachers"] = method.histories, method.alpha, method.beta, method.temperature
    made = Reference(kind, language, method.n_items, method.widths[0], len(backbone.positions), backbone.dropout,
                     backbone.temperature, 0 if table is None else table.shape[1], **more)
    with torch.no_grad():
        made.positions.copy_(backbone.positions)
        if table is not None:
            made.id.weight[: len(table)].copy_(table)
        if kind == "llm-esr":
            made.adaptor.load_state_dict(method.adapter.state_dict())
            for name in ("to_id", "to_language"):
                getattr(made, name).load_state_dict(getattr(method, name).state_dict())
        elif kind in ("morec", "unisrec"):
            made.adaptor.load_state_dict(method.adaptor.state_dict())
        made.norm.load_state_dict(backbone.norm.state_dict())
        for name in ("norm_query", "norm_inner", "query", "key", "value", "inner", "outer"):
            getattr(made, name).load_state_dict(getattr(block, name).state_dict())
    return made.to(backbone.positions.device)


Example = tuple[list[int], int, list[int]]
"""Left-padded history, target, and rows of similar users, if any."""


def as_lists(examples: Examples) -> list[Example]:
    """Every example, as Python numbers."""
    batch = examples.batch(torch.arange(len(examples)))
    similar = batch.context.get("similar", batch.target.new_zeros(len(examples), 0))
    return list(zip(batch.history.tolist(), batch.target.tolist(), similar.tolist()))


class Trainer:
    """Steps over shuffled examples, epoch after epoch, with Adam as `torch.optim` has it by default."""

    def __init__(self, model: Reference, examples: list[Example], batch_size: int, negatives: int, lr: float,
                 seed: int = 0):
        self.model, self.examples, self.batch_size, self.negatives = model, examples, batch_size, negatives
        self.device = model.positions.device
        self.random = np.random.default_rng(seed)
        self.optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
        self.order: list[int] = []

    def step(self) -> None:
        """One batch."""
        if not self.order:
            self.order = self.random.permutation(len(self.examples)).tolist()
        rows = [self.examples[index] for index in self.order[: self.batch_size]]
        del self.order[: self.batch_size]
        negatives = []
        for _, target, _ in rows:
            drawn = self.random.integers(0, self.model.n_items - 1, self.negatives)
            negatives.append(np.where(drawn >= target, drawn + 1, drawn).tolist())
        tensor = lambda lists: torch.tensor(lists, dtype=torch.int64, device=self.device)
        self.model.train()
        histories, targets, similar = zip(*rows)
        loss = self.model.loss(tensor(histories), tensor(targets), tensor(negatives), tensor(similar))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


@torch.no_grad()
def evaluate(model: Reference, examples: list[Example], batch_size: int = 256) -> dict[str, float]:
    """R@K and N@K for K 10 and 20 from fully sorted rows of raw scores."""
    model.eval()
    device = model.positions.device
    table = model.items(torch.arange(model.n_items, device=device))
    totals = {"R@10": 0.0, "N@10": 0.0, "R@20": 0.0, "N@20": 0.0}
    for start in range(0, len(examples), batch_size):
        rows = examples[start : start + batch_size]
        scores = model.states(torch.tensor([history for history, _, _ in rows], device=device)) @ table.T
        order = scores.argsort(dim=1, descending=True).cpu().numpy()
        for (_, target, _), ranking in zip(rows, order):
            rank = int(np.where(ranking == target)[0][0]) + 1
            for k in (10, 20):
                if rank <= k:
                    totals[f"R@{k}"] += 1
                    totals[f"N@{k}"] += 1 / math.log2(rank + 1)
    return {name: total / len(examples) for name, total in totals.items()}
