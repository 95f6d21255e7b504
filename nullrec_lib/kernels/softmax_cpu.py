"""Full softmax on a CPU: tiles of logits that fit into its cache, made by matrix products and forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nullrec_lib.kernels.infonce import EPSILON

TILE = 2**18
"""Logits of a tile: 1 MiB, which stays in a core's second-level cache from its product to its last use."""
LEAST = 256
"""Items of a tile at least: fewer make a product of matrices slow."""


def tile_items(batch: int) -> int:
    """Items in a tile of logits, so that with `batch` states it stays in the cache."""
    return max(LEAST, TILE // batch)


def tiles(trained: Tensor, frozen: Tensor | None, size: int, step: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """→ (start, stop, unit rows (stop - start, d), their norms (stop - start, 1)) of `step` items at a time."""
    n = trained.shape[1]
    for start in range(0, size, step):
        stop = min(start + step, size)
        rows = trained[start:stop]
        if frozen is not None:
            rows = frozen[start:stop].clone()
            rows[:, rows.shape[1] - n :] += trained[start:stop]
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        yield start, stop, rows / norms.clamp(min=EPSILON), norms


class FullSoftmax(torch.autograd.Function):
    """loss = −log p_target with p = softmax(cos/τ) over all items, cos = ĉ·q̂, ĉ = c/‖c‖, q̂ = q/‖q‖.

    Forward keeps the running maximum and Σ exp(logit − maximum) of each row. Backward makes each tile again: with
    g = (p − [target])/(τB), ∂/∂q̂ = Σ g·ĉ over items and ∂/∂ĉ = Σ g·q̂ over the batch; through a norm,
    ∂/∂c = (∂/∂ĉ − (ĉ·∂/∂ĉ)·ĉ)/‖c‖, and likewise for q. A norm below EPSILON is a constant: no second term.
    """

    @staticmethod
    def forward(
        ctx, trained: Tensor, frozen: Tensor | None, size: int, states: Tensor, target: Tensor, temperature: float
    ) -> Tensor:
        if len(target) and not 0 <= int(target.min()) <= int(target.max()) < size:
            raise IndexError(f"target: must be in 0…{size - 1}, is in {int(target.min())}…{int(target.max())}.")
        norm = torch.linalg.vector_norm(states, dim=1, keepdim=True)
        units = states / norm.clamp(min=EPSILON)
        scaled = units / temperature
        step = tile_items(max(1, len(states)))
        buffer = states.new_empty(len(states), min(step, size))
        peak, total = states.new_full((len(states),), -torch.inf), states.new_zeros(len(states))
        correct = torch.empty_like(total)
        for start, stop, rows, _ in tiles(trained, frozen, size, step):
            logits = torch.mm(scaled, rows.T, out=buffer[:, : stop - start])
            here = ((target >= start) & (target < stop)).nonzero()[:, 0]
            correct[here] = logits[here, target[here] - start]
            higher = torch.maximum(peak, logits.amax(1))
            total.mul_(peak.sub_(higher).exp_()).add_(logits.sub_(higher[:, None]).exp_().sum(1))
            peak = higher
        ctx.size, ctx.temperature = size, temperature
        ctx.save_for_backward(trained, frozen, units, norm, target, peak, total)
        return (total.log() - (correct - peak)).mean()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        trained, frozen, units, norm, target, peak, total = ctx.saved_tensors
        batch, n = len(units), trained.shape[1]
        last = units.shape[1] - n
        weight = gradient / (ctx.temperature * batch) / total[:, None]  # (B, 1), with the softmax's denominator
        scaled, weighted = units / ctx.temperature, units * weight
        step = tile_items(max(1, batch))
        buffer = units.new_empty(batch, min(step, ctx.size))
        to_unit = torch.zeros_like(units)
        to_trained = torch.zeros_like(trained) if ctx.needs_input_grad[0] else None
        for start, stop, rows, norms in tiles(trained, frozen, ctx.size, step):
            g = torch.mm(scaled, rows.T, out=buffer[:, : stop - start]).sub_(peak[:, None]).exp_()
            here = ((target >= start) & (target < stop)).nonzero()[:, 0]
            g[here, target[here] - start] -= total[here]
            to_unit.addmm_(g, rows)
            if to_trained is not None and n:
                to_rows = g.T @ weighted
                along = (to_rows * rows).sum(1, keepdim=True) * (norms >= EPSILON)
                part = to_rows[:, last:].addcmul_(along, rows[:, last:], value=-1)
                torch.div(part, norms.clamp(min=EPSILON), out=to_trained[start:stop])
        to_unit *= weight
        along = (to_unit * units).sum(1, keepdim=True) * (norm >= EPSILON)
        to_states = (to_unit - along * units) / norm.clamp(min=EPSILON)
        return to_trained, None, None, to_states, None, None
