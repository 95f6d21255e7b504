"""Fused item lookup on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nullrec_lib.kernels.cpu import AHEAD, compiled, prefetch
from nullrec_lib.kernels.dropout_cpu import halves, keeps

EMPTY = np.zeros((0, 0), np.float32)
"""Stands for a frozen part that is not there."""


@compiled()
def _forward(trained, frozen, size, ids, positions, low, high, limit, scale, out):
    B, L, d = out.shape
    n = trained.shape[1]
    flat = ids.ravel()
    for b in range(B):
        for t in range(L):
            ahead = flat[min(b * L + t + AHEAD, flat.size - 1)]
            if ahead < size:
                prefetch(trained, ahead)
                if len(frozen):
                    prefetch(frozen, ahead)
            if ids[b, t] >= size:
                for k in range(d):
                    out[b, t, k] = 0
                continue
            if ids[b, t] < 0:
                raise IndexError("ids: a negative number is no row of the table.")
            i = np.uint64(ids[b, t])
            if len(frozen):
                for k in range(d):
                    out[b, t, k] = frozen[i, k] + positions[t, k]
                for k in range(n):
                    out[b, t, np.uint64(d - n + k)] += trained[i, k]
            else:
                for k in range(d):
                    out[b, t, k] = trained[i, k] + positions[t, k]
            if limit:
                place = (b * L + t) * d
                for k in range(d):
                    out[b, t, k] = out[b, t, k] * scale if keeps(place + k, low, high, limit) else np.float32(0)


@compiled()
def _backward(gradient, size, ids, low, high, limit, scale, to_trained, to_positions):
    B, L, d = gradient.shape
    n = to_trained.shape[1]
    flat, row = ids.ravel(), np.empty(d, np.float32)
    for b in range(B):
        for t in range(L):
            ahead = flat[min(b * L + t + AHEAD, flat.size - 1)]
            if ahead < size:
                prefetch(to_trained, ahead)
            if ids[b, t] >= size:
                continue
            i = np.uint64(ids[b, t])
            if limit:
                place = (b * L + t) * d
                for k in range(d):
                    row[k] = gradient[b, t, k] * scale if keeps(place + k, low, high, limit) else np.float32(0)
            else:
                for k in range(d):
                    row[k] = gradient[b, t, k]
            for k in range(d):
                to_positions[t, k] += row[k]
            for k in range(n):
                to_trained[i, k] += row[np.uint64(d - n + k)]


class Lookup(torch.autograd.Function):
    """See `lookup.lookup`."""

    @staticmethod
    def forward(ctx, trained: Tensor, frozen: Tensor | None, size: int, ids: Tensor, positions: Tensor, p: float,
                seed: int) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.dropping, ctx.size, ctx.shapes = halves(p, seed), size, (trained.shape, positions.shape)
        ids, out = ids.contiguous(), torch.empty(*ids.shape, positions.shape[1])
        newest = positions.detach()[len(positions) - ids.shape[1] :]
        _forward(trained.detach().numpy(), EMPTY if frozen is None else frozen.numpy(), size, ids.numpy(),
                 newest.numpy(), *ctx.dropping, out.numpy())
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (ids,) = ctx.saved_tensors
        (rows, n), positions = ctx.shapes
        # Without columns where nothing of the table is trained: a gradient of all of it would be made for nobody.
        to_trained = torch.zeros(rows, n if ctx.needs_input_grad[0] else 0)
        to_positions = torch.zeros(positions)
        newest = to_positions[len(to_positions) - ids.shape[1] :]
        _backward(gradient.contiguous().numpy(), ctx.size, ids.contiguous().numpy(), *ctx.dropping,
                  to_trained.numpy(), newest.numpy())
        return to_trained if ctx.needs_input_grad[0] else None, None, None, None, to_positions, None, None
