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

KINDS = ("alphafuse", "base", "morec")
"""Methods that this reference has."""


class Reference(nn.Module):
    """AlphaFuse, Base or MoRec on a one-block, one-head SASRec with InfoNCE on cosine similarity."""

    def __init__(self, kind: str, language: Tensor | None, n_items: int, width: int, length: int, dropout: float,
                 temperature: float, id_width: int = 0):
        """Set the shape.

        Args:
            kind: one of `KINDS`.
            language: (N+1, d_l) frozen rows, the padding's last; for alphafuse d_l = width. None for base.
            id_width: trained columns of an item vector: the null space of alphafuse, all of base.
        """
        super().__init__()
        self.kind, self.n_items, self.temperature = kind, n_items, temperature
        if language is not None:
            self.language = nn.Embedding.from_pretrained(language, freeze=True, padding_idx=n_items)
        if id_width:
            self.id = nn.Embedding(n_items + 1, id_width, padding_idx=n_items)
        if kind == "morec":
            self.adaptor = nn.Sequential(nn.Linear(language.shape[1], width), nn.GELU())
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
        if self.kind == "morec":
            return self.adaptor(language) * (ids != self.n_items).unsqueeze(-1)
        learned = self.id(ids)
        fixed = language.shape[-1] - learned.shape[-1]
        return torch.cat([language[..., :fixed], language[..., fixed:] + learned], dim=-1)

    def states(self, history: Tensor) -> Tensor:
        """(B, L) left-padded → (B, d), the state at the last position."""
        mask = (history != self.n_items).unsqueeze(-1)
        x = self.drop_input(self.items(history) + self.positions) * mask
        length, width = x.shape[1:]
        normed = self.norm_query(x)
        scores = self.query(normed) @ self.key(x).transpose(1, 2) / math.sqrt(width)
        causal = torch.tril(torch.ones(length, length, dtype=torch.bool, device=x.device))
        scores = scores.masked_fill(~(causal & mask.transpose(1, 2)), -1e9)
        attended = normed + self.drop_weights(torch.softmax(scores, dim=-1)) @ self.value(x)
        normed = self.norm_inner(attended)
        x = normed + self.drop_outer(self.outer(self.drop_inner(F.relu(self.inner(normed)))))
        return self.norm(x)[:, -1]

    def loss(self, history: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
        """InfoNCE: history (B, L), target (B,), negatives (B, n) → scalar."""
        candidates = F.normalize(self.items(torch.cat([target.unsqueeze(1), negatives], dim=1)), dim=-1)
        states = F.normalize(self.states(history), dim=-1)
        logits = (candidates * states.unsqueeze(1)).sum(-1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(target), dtype=torch.int64, device=logits.device))


def like(model) -> Reference:
    """The reference of a `Recommender` of one of `KINDS` on a SASRec of one block and one head, with its weights.

    All that is known here about the inner names of our model.
    """
    method, backbone = model.method, model.backbone
    kind, block = type(method).__name__.lower(), backbone.blocks[0]
    language = getattr(method, "language", None)
    table = method.id.weight.detach() if kind != "morec" else None
    made = Reference(kind, language, method.n_items, method.widths[0], len(backbone.positions), backbone.dropout,
                     backbone.temperature, 0 if table is None else table.shape[1])
    with torch.no_grad():
        made.positions.copy_(backbone.positions)
        if table is not None:
            made.id.weight[: len(table)].copy_(table)
        else:
            made.adaptor.load_state_dict(method.adaptor.state_dict())
        made.norm.load_state_dict(backbone.norm.state_dict())
        for name in ("norm_query", "norm_inner", "query", "key", "value", "inner", "outer"):
            getattr(made, name).load_state_dict(getattr(block, name).state_dict())
    return made.to(backbone.positions.device)


def as_lists(examples: Examples) -> list[tuple[list[int], int]]:
    """(left-padded history, target) of every example, as Python numbers."""
    batch = examples.batch(torch.arange(len(examples)))
    return list(zip(batch.history.tolist(), batch.target.tolist()))


class Trainer:
    """Steps over shuffled examples, epoch after epoch, with Adam as `torch.optim` has it by default."""

    def __init__(self, model: Reference, examples: list[tuple[list[int], int]], batch_size: int, negatives: int,
                 lr: float, seed: int = 0):
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
        for _, target in rows:
            drawn = self.random.integers(0, self.model.n_items - 1, self.negatives)
            negatives.append(np.where(drawn >= target, drawn + 1, drawn).tolist())
        tensor = lambda lists: torch.tensor(lists, dtype=torch.int64, device=self.device)
        self.model.train()
        loss = self.model.loss(tensor([history for history, _ in rows]), tensor([target for _, target in rows]),
                               tensor(negatives))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


@torch.no_grad()
def evaluate(model: Reference, examples: list[tuple[list[int], int]], batch_size: int = 256) -> dict[str, float]:
    """R@K and N@K for K 10 and 20 from fully sorted rows of raw scores."""
    model.eval()
    device = model.positions.device
    table = model.items(torch.arange(model.n_items, device=device))
    totals = {"R@10": 0.0, "N@10": 0.0, "R@20": 0.0, "N@20": 0.0}
    for start in range(0, len(examples), batch_size):
        rows = examples[start : start + batch_size]
        scores = model.states(torch.tensor([history for history, _ in rows], device=device)) @ table.T
        order = scores.argsort(dim=1, descending=True).cpu().numpy()
        for (_, target), ranking in zip(rows, order):
            rank = int(np.where(ranking == target)[0][0]) + 1
            for k in (10, 20):
                if rank <= k:
                    totals[f"R@{k}"] += 1
                    totals[f"N@{k}"] += 1 / math.log2(rank + 1)
    return {name: total / len(examples) for name, total in totals.items()}
