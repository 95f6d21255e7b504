"""One-query attention on a CPU: a history's tokens stay in the first-level cache from scores to sums."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from nullrec_lib.kernels.cpu import FAST, compiled, exponentials
from nullrec_lib.kernels.dropout_cpu import halves, keeps


@njit(inline="always")
def _span(mask, b):
    """Whether row b has tokens, and the places from its first to its last one: all of them, where it has none.

    Unsigned: of a signed index that is not plainly from 0 on Numba asks whether it is negative, which here doubles the time.
    """
    L = mask.shape[1]
    first, end = L, 0
    for t in range(L):
        if mask[b, t]:
            first, end = min(first, t), t + 1
    if not end:
        first, end = 0, L
    return mask[b, first], np.uint64(first), np.uint64(end)


@compiled(fastmath=FAST, error_model="numpy")
def forward(queries, x, mask, scale, low, high, limit, factor, pooled, sums, weights):
    """`weights` (B, H, L) are those before dropout."""
    B, H, d = queries.shape
    L = x.shape[1]
    powers, scores = np.empty(H * L, np.int32), np.empty(H * L, np.float32)
    for b in range(B):
        some, first, end = _span(mask, b)
        count = np.int64(end - first)
        for h in range(H):
            q, own, highest = queries[b, h], scores[h * count : h * count + count], np.float32(-1e9)
            for t in range(first, end):
                token, score = x[b, t], np.float32(0)
                for k in range(d):
                    score += q[k] * token[k]
                own[t - first] = score * scale if mask[b, t] else np.float32(-1e9)
                highest = max(highest, own[t - first])
            for j in range(count):
                own[j] -= highest
        if H > 1:
            exponentials(scores[: H * count], powers[: H * count])
        else:  # too few to be many
            for j in range(count):
                scores[j] = np.exp(scores[j])
        for h in range(H):
            w, out, own = weights[b, h], pooled[b, h], scores[h * count : h * count + count]
            w[:], out[:], total, summed = 0, 0, np.float32(0), np.float32(0)
            if some:
                for t in range(first, end):
                    if not mask[b, t]:
                        own[t - first] = 0
            for j in range(count):
                total += own[j]
            share = np.float32(1) / total
            for t in range(first, end):
                a = own[t - first] * share
                w[t] = a
                if limit:
                    a = a * factor if keeps(np.uint32((b * H + h) * L + t), low, high, limit) else np.float32(0)
                summed += a
                token = x[b, t]
                for k in range(d):
                    out[k] += a * token[k]
            sums[b, h] = summed


@compiled(fastmath=FAST, error_model="numpy")
def gradients(queries, x, mask, scale, low, high, limit, factor, weights, of_pooled, of_sums, to_queries, to_x):
    """`to_queries` and `to_x` are overwritten."""
    B, H, d = queries.shape
    L = x.shape[1]
    told, stays = np.empty(L, np.float32), np.empty(L, np.float32)
    for b in range(B):
        some, first, end = _span(mask, b)
        for t in range(L):
            if t < first or t >= end:
                to_x[b, t] = 0
        for h in range(H):
            q, w, g, to_q = queries[b, h], weights[b, h], of_pooled[b, h], to_queries[b, h]
            along = np.float32(0)
            for t in range(first, end):
                stays[t] = factor
                if limit and not keeps(np.uint32((b * H + h) * L + t), low, high, limit):
                    stays[t] = 0
                token, dot = x[b, t], np.float32(0)
                for k in range(d):
                    dot += g[k] * token[k]
                told[t] = (dot + of_sums[b, h]) * stays[t]
                along += w[t] * told[t]
            to_q[:] = 0
            for t in range(first, end):
                # A row without tokens has weights, but they are no function of the scores.
                s = w[t] * (told[t] - along) * scale if some else np.float32(0)
                a, token, to_token = w[t] * stays[t], x[b, t], to_x[b, t]
                for k in range(d):
                    to_q[k] += s * token[k]
                if h:
                    for k in range(d):
                        to_token[k] += a * g[k] + s * q[k]
                else:
                    for k in range(d):
                        to_token[k] = a * g[k] + s * q[k]


class Attend(torch.autograd.Function):
    """See `attend.attend`."""

    @staticmethod
    def forward(ctx, queries: Tensor, x: Tensor, mask: Tensor, scale: float, p: float, seed: int):
        queries, x = queries.contiguous(), x.contiguous()
        pooled, sums = torch.empty_like(queries), torch.empty(queries.shape[:2])
        weights = torch.empty(*queries.shape[:2], x.shape[1])
        ctx.dropping, ctx.scale = halves(p, seed), np.float32(scale)
        forward(queries.detach().numpy(), x.detach().numpy(), mask.numpy(), ctx.scale, *ctx.dropping,
                pooled.numpy(), sums.numpy(), weights.numpy())
        ctx.save_for_backward(queries, x, mask, weights)
        return pooled, sums

    @staticmethod
    def backward(ctx, of_pooled: Tensor, of_sums: Tensor):
        queries, x, mask, weights = ctx.saved_tensors
        to_queries, to_x = torch.empty_like(queries), torch.empty_like(x)
        gradients(queries.detach().numpy(), x.detach().numpy(), mask.numpy(), ctx.scale, *ctx.dropping,
                  weights.numpy(), of_pooled.contiguous().numpy(), of_sums.contiguous().numpy(), to_queries.numpy(),
                  to_x.numpy())
        return to_queries, to_x, None, None, None, None
