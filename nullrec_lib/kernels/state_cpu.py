"""The state of a history on a CPU: the last block at the last position and the norm after it.

At the size of a training step the products take about half of the time, the many small operations around them the
other half, forward and back. Here those between two products are one pass each.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from nullrec_lib.kernels import attend_cpu
from nullrec_lib.kernels.cpu import FAST, compiled
from nullrec_lib.kernels.dropout_cpu import halves, keeps

_EPSILON = np.float32(1e-5)
"""Of torch's LayerNorm."""


@njit(inline="always")
def _norm(row, hat, gain, bias, out):
    """hat = (row - mean) / deviation, out = hat · gain + bias; 1 / deviation."""
    d = len(row)
    mean, square = np.float32(0), np.float32(0)
    for k in range(d):
        mean += row[k]
    mean /= np.float32(d)
    for k in range(d):
        square += (row[k] - mean) * (row[k] - mean)
    inverse = np.float32(1) / np.sqrt(square / np.float32(d) + _EPSILON)
    for k in range(d):
        hat[k] = (row[k] - mean) * inverse
        out[k] = hat[k] * gain[k] + bias[k]
    return inverse


@njit(inline="always")
def _norm_gradient(told, hat, gain, inverse, to_gain, to_bias, to_row):
    """Gradients of `_norm`: added to those of gain and bias, set for the row."""
    d = len(told)
    mean, along = np.float32(0), np.float32(0)
    for k in range(d):
        to_gain[k] += told[k] * hat[k]
        to_bias[k] += told[k]
        to_row[k] = told[k] * gain[k]
    for k in range(d):
        mean += to_row[k]
        along += to_row[k] * hat[k]
    mean, along = mean / np.float32(d), along / np.float32(d)
    for k in range(d):
        to_row[k] = (to_row[k] - mean - hat[k] * along) * inverse


@compiled(fastmath=FAST)
def _query(x, gain, bias, hat, inverse, out):
    """out = norm of the newest token."""
    for b in range(len(x)):
        inverse[b] = _norm(x[b, -1], hat[b], gain, bias, out[b])


@compiled(fastmath=FAST)
def _inner(normed, attended, sums, offset, gain, bias, hat, inverse, out):
    """out = norm of the normed query + what it attended to, whose values' bias comes in with the weights' sums."""
    B, d = normed.shape
    size, row = d // sums.shape[1], np.empty(d, np.float32)
    for b in range(B):
        for h in range(sums.shape[1]):
            part = slice(h * size, h * size + size)  # loops over views from 0 are what a compiler makes fast
            own, before, told, shift, weight = row[part], normed[b, part], attended[b, part], offset[part], sums[b, h]
            for k in range(size):
                own[k] = before[k] + told[k] + weight * shift[k]
        inverse[b] = _norm(row, hat[b], gain, bias, out[b])


@compiled(fastmath=FAST)
def _relu(z, low, high, limit, scale):
    """In place: dropout(relu(z))."""
    B, d = z.shape
    for b in range(B):
        row, place = z[b], b * d
        for k in range(d):
            row[k] = max(row[k], np.float32(0)) * scale
        if limit:
            for k in range(d):
                row[k] = row[k] if keeps(place + k, low, high, limit) else np.float32(0)


@compiled(fastmath=FAST)
def _outer(normed, z, low, high, limit, scale, gain, bias, hat, inverse, out):
    """out = norm of normed + dropout(z)."""
    B, d = normed.shape
    row = np.empty(d, np.float32)
    for b in range(B):
        place, own, before = b * d, z[b], normed[b]
        for k in range(d):
            row[k] = own[k] * scale
        if limit:
            for k in range(d):
                row[k] = row[k] if keeps(place + k, low, high, limit) else np.float32(0)
        for k in range(d):
            row[k] += before[k]
        inverse[b] = _norm(row, hat[b], gain, bias, out[b])


@compiled(fastmath=FAST)
def _outer_gradients(told, hat, inverse, gain, low, high, limit, scale, to_gain, to_bias, to_normed, to_z, to_offset):
    B, d = told.shape
    for b in range(B):
        of_row, of_z, place = to_normed[b], to_z[b], b * d
        _norm_gradient(told[b], hat[b], gain, inverse[b], to_gain, to_bias, of_row)
        for k in range(d):
            of_z[k] = of_row[k] * scale
        if limit:
            for k in range(d):
                of_z[k] = of_z[k] if keeps(place + k, low, high, limit) else np.float32(0)
        for k in range(d):
            to_offset[k] += of_z[k]


@compiled(fastmath=FAST)
def _relu_gradients(told, z, scale, to_offset):
    """In place in `told`: what `_relu` kept is above zero."""
    for b in range(len(told)):
        row, kept = told[b], z[b]
        for k in range(len(row)):
            row[k] = row[k] * scale if kept[k] > 0 else np.float32(0)
            to_offset[k] += row[k]


@compiled(fastmath=FAST)
def _inner_gradients(told, hat, inverse, sums, offset, gain, to_gain, to_bias, to_row, to_sums, to_offset):
    B, d = told.shape
    size = d // sums.shape[1]
    for b in range(B):
        row = to_row[b]
        _norm_gradient(told[b], hat[b], gain, inverse[b], to_gain, to_bias, row)
        for h in range(sums.shape[1]):
            part = slice(h * size, h * size + size)
            own, shift, to_shift, weight, along = row[part], offset[part], to_offset[part], sums[b, h], np.float32(0)
            for k in range(size):
                along += own[k] * shift[k]
            for k in range(size):
                to_shift[k] += own[k] * weight
            to_sums[b, h] = along


@compiled(fastmath=FAST)
def _query_gradients(told, hat, inverse, gain, to_gain, to_bias, to_x):
    """Added to the gradient of the newest token."""
    B, d = told.shape
    row = np.empty(d, np.float32)
    for b in range(B):
        _norm_gradient(told[b], hat[b], gain, inverse[b], to_gain, to_bias, row)
        newest = to_x[b, -1]
        for k in range(d):
            newest[k] += row[k]


class State(torch.autograd.Function):
    """norm(block.last(x, mask)), see `backbones.sasrec.Block`: x (B, L, d) float32, mask (B, L) bool → (B, d).

    Three seeds: of the attention weights' dropout, and of the two layers'. Weights, float32 and as `torch.nn` has them:
    gain and bias of the query's norm, the query's layer, keys' and values' matrices and the values' bias, the norm, the
    inner and the outer layer of the feed-forward, the norm after all. The keys' bias is not among them: it shifts all
    scores of a query alike.
    """

    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, heads: int, p: float, seeds: list[int], *weights: Tensor) -> Tensor:
        x = x.contiguous()
        B, L, d = x.shape
        (query_gain, query_bias, query, query_offset, key, value, value_offset, inner_gain, inner_bias, inner,
         inner_offset, outer, outer_offset, gain, bias) = (weight.detach() for weight in weights)
        seen, dropping = x.detach().numpy(), [halves(p, seed) for seed in seeds]
        normed, query_hat, hidden, inner_hat, out, hat = (torch.empty(B, d) for _ in range(6))
        inverses = np.empty((3, B), np.float32)
        _query(seen, query_gain.numpy(), query_bias.numpy(), query_hat.numpy(), inverses[0], normed.numpy())
        # What lies between normed and what is asked: of one head QᵀK, if that is smaller than the batch; else the queries.
        ctx.joined = heads == 1 and d < B
        if ctx.joined:
            between = query.t() @ key
            asked = torch.addmm(query_offset @ key, normed, between)[:, None]
        else:
            between = torch.addmm(query_offset, normed, query.t())
            asked = torch.bmm(_by_head(between, heads), key.view(heads, -1, d)).transpose(0, 1).contiguous()
        pooled, sums, weighed = torch.empty(B, heads, d), torch.empty(B, heads), torch.empty(B, heads, L)
        scale = np.float32((d // heads) ** -0.5)
        attend_cpu.forward(asked.numpy(), seen, mask.numpy(), scale, *dropping[0], pooled.numpy(), sums.numpy(),
                           weighed.numpy())
        attended = torch.bmm(pooled.transpose(0, 1), value.view(heads, -1, d).transpose(1, 2))
        _inner(normed.numpy(), attended.transpose(0, 1).reshape(B, d).numpy(), sums.numpy(), value_offset.numpy(),
               inner_gain.numpy(), inner_bias.numpy(), inner_hat.numpy(), inverses[1], hidden.numpy())
        z = torch.addmm(inner_offset, hidden, inner.t())
        _relu(z.numpy(), *dropping[1])
        _outer(hidden.numpy(), torch.addmm(outer_offset, z, outer.t()).numpy(), *dropping[2], gain.numpy(), bias.numpy(),
               hat.numpy(), inverses[2], out.numpy())
        ctx.heads, ctx.scale, ctx.dropping, ctx.inverses = heads, scale, dropping, inverses
        ctx.save_for_backward(x, mask, *weights, normed, query_hat, between, asked, pooled, sums, weighed, hidden,
                              inner_hat, z, hat)
        return out

    @staticmethod
    def backward(ctx, told: Tensor):
        x, mask, *saved = ctx.saved_tensors
        (query_gain, query_bias, query, query_offset, key, value, value_offset, inner_gain, inner_bias, inner,
         inner_offset, outer, outer_offset, gain, bias, normed, query_hat, between, asked, pooled, sums, weighed, hidden,
         inner_hat, z, hat) = (tensor.detach() for tensor in saved)
        B, L, d = x.shape
        heads, inverses, (of_weights, of_inner, of_outer) = ctx.heads, ctx.inverses, ctx.dropping
        (to_query_gain, to_query_bias, to_value_offset, to_inner_gain, to_inner_bias, to_inner_offset, to_outer_offset,
         to_gain, to_bias) = torch.zeros(9, d)
        to_hidden, to_outer_out, to_normed = torch.empty(3, B, d)
        _outer_gradients(told.contiguous().numpy(), hat.numpy(), inverses[2], gain.numpy(), *of_outer, to_gain.numpy(),
                         to_bias.numpy(), to_hidden.numpy(), to_outer_out.numpy(), to_outer_offset.numpy())
        to_z = to_outer_out @ outer
        _relu_gradients(to_z.numpy(), z.numpy(), of_inner[3], to_inner_offset.numpy())
        to_hidden = torch.addmm(to_hidden, to_z, inner)
        to_sums = torch.empty_like(sums)
        _inner_gradients(to_hidden.numpy(), inner_hat.numpy(), inverses[1], sums.numpy(), value_offset.numpy(),
                         inner_gain.numpy(), to_inner_gain.numpy(), to_inner_bias.numpy(), to_normed.numpy(),
                         to_sums.numpy(), to_value_offset.numpy())
        of_attended = _by_head(to_normed, heads)
        to_value = torch.bmm(of_attended.transpose(1, 2), pooled.transpose(0, 1)).view(d, d)
        to_pooled = torch.bmm(of_attended, value.view(heads, -1, d)).transpose(0, 1).contiguous()
        to_asked, to_x = torch.empty_like(asked), torch.empty_like(x)
        attend_cpu.gradients(asked.numpy(), x.detach().numpy(), mask.numpy(), ctx.scale, *of_weights, weighed.numpy(),
                             to_pooled.numpy(), to_sums.numpy(), to_asked.numpy(), to_x.numpy())
        if ctx.joined:
            of_asked = to_asked[:, 0]
            total, to_joined = of_asked.sum(0), normed.t() @ of_asked
            to_key, to_query = torch.addmm(torch.outer(query_offset, total), query, to_joined), key @ to_joined.t()
            to_query_offset, to_normed = key @ total, torch.addmm(to_normed, of_asked, between.t())
        else:
            of_asked = to_asked.transpose(0, 1)
            to_key = torch.bmm(_by_head(between, heads).transpose(1, 2), of_asked).view(d, d)
            to_q = torch.bmm(of_asked, key.view(heads, -1, d).transpose(1, 2)).transpose(0, 1).reshape(B, d)
            to_query, to_query_offset, to_normed = to_q.t() @ normed, to_q.sum(0), torch.addmm(to_normed, to_q, query)
        _query_gradients(to_normed.numpy(), query_hat.numpy(), inverses[0], query_gain.numpy(), to_query_gain.numpy(),
                         to_query_bias.numpy(), to_x.numpy())
        return (to_x, None, None, None, None, to_query_gain, to_query_bias, to_query, to_query_offset, to_key, to_value,
                to_value_offset, to_inner_gain, to_inner_bias, to_z.t() @ hidden, to_inner_offset,
                to_outer_out.t() @ z, to_outer_offset, to_gain, to_bias)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, d) → (heads, B, d / heads), a view."""
    return x.view(len(x), heads, -1).transpose(0, 1)
