"""One-query attention on a CPU: a history's tokens stay in the first-level cache from scores to sums."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nullrec_lib.kernels.cpu import FAST, compiled
from nullrec_lib.kernels.dropout_cpu import halves, keeps


@compiled(fastmath=FAST, error_model="numpy")
def forward(queries, x, mask, scale, low, high, limit, factor, pooled, sums, weights):
    """`weights` (B, H, L) are those before dropout."""
    B, H, d = queries.shape
    L = x.shape[1]
    for b in range(B):
        for h in range(H):
            q, w, out = queries[b, h], weights[b, h], pooled[b, h]
            highest = np.float32(-1e9)
            for t in range(L):
                token, score = x[b, t], np.float32(0)
                for k in range(d):
                    score += q[k] * token[k]
                w[t] = score * scale if mask[b, t] else np.float32(-1e9)
                highest = max(highest, w[t])
            total = np.float32(0)
            for t in range(L):
                w[t] = np.exp(w[t] - highest)
                total += w[t]
            out[:] = 0
            summed = np.float32(0)
            for t in range(L):
                w[t] /= total
                a = w[t]
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
        for h in range(H):
            q, w, g, to_q = queries[b, h], weights[b, h], of_pooled[b, h], to_queries[b, h]
            along = np.float32(0)
            for t in range(L):
                stays[t] = factor
                if limit and not keeps(np.uint32((b * H + h) * L + t), low, high, limit):
                    stays[t] = 0
                token, dot = x[b, t], np.float32(0)
                for k in range(d):
                    dot += g[k] * token[k]
                told[t] = (dot + of_sums[b, h]) * stays[t]
                along += w[t] * told[t]
            to_q[:] = 0
            for t in range(L):
                # A row without tokens has weights, but they are no function of the scores.
                s = w[t] * (told[t] - along) * scale if mask[b, t] else np.float32(0)
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
