"""Hash dropout on a CPU: one pass, mask made on the fly, and again in the backward pass."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from nullrec_lib.kernels.cpu import compiled
from nullrec_lib.kernels.dropout import FIRST, ODD, SECOND, threshold

_ODD, _FIRST, _SECOND = np.uint32(ODD), np.uint32(FIRST), np.uint32(SECOND)


@njit(inline="always")
def keeps(place, low, high, limit):
    """Whether element `place` (an integer, of which the low 32 bits count) stays; the others uint32. See `dropout.kept`."""
    h = np.uint32(np.uint32(np.uint32(place) * _ODD) ^ high)
    h = np.uint32(np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * _FIRST) + low)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(13))) * _SECOND)
    return np.uint32(h ^ (h >> np.uint32(16))) >= limit


def halves(p: float, seed: int) -> tuple[np.uint32, np.uint32, np.uint32, np.float32]:
    """What a kernel needs to drop with probability p: the seed's low and high half, the limit, 1/(1-p)."""
    word = 0xFFFFFFFF
    return np.uint32(seed & word), np.uint32(seed >> 32 & word), np.uint32(threshold(p)), np.float32(1 / (1 - p))


@compiled()
def _masked(x, low, high, limit, scale, out):
    for i in range(x.size):
        out[i] = x[i] * scale if keeps(i, low, high, limit) else np.float32(0)


class Dropout(torch.autograd.Function):
    """x, p, seed → dropped x; see `dropout.dropout`."""

    @staticmethod
    def forward(ctx, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.parameters = halves(p, seed)
        return _apply(x, *ctx.parameters)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _apply(gradient, *ctx.parameters), None, None


def _apply(x: Tensor, *parameters) -> Tensor:
    x = x.detach().contiguous()
    out = torch.empty_like(x)
    _masked(x.view(-1).numpy(), *parameters, out.view(-1).numpy())
    return out
