"""InfoNCE on a GPU: the candidates are gathered and normalised inside the kernels, never written to memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nullrec_lib.kernels import infonce
from nullrec_lib.kernels.lookup_gpu import by_item, on, read_rows, tile_rows

EPSILON = tl.constexpr(infonce.EPSILON)


@triton.jit
def inverse(norm):
    """1/‖x‖ with norms below EPSILON counted as it."""
    return 1.0 / tl.maximum(norm, EPSILON)


@triton.jit
def through_norm(to_unit, unit, norm, along):
    """The gradient to x from the one to x/‖x‖ and along = their product: the part along x goes, unless the norm is
    clamped and hence constant. Tiles (rows, columns), norms and products (rows,)."""
    kept = tl.where(norm >= EPSILON, along, 0.0)
    return (to_unit - kept[:, None] * unit) * inverse(norm)[:, None]


@triton.jit
def forward_kernel(
    trained,  # (R, n) float32
    frozen,  # (R, d) float32 or None
    states,  # (B, d) float32
    ids,  # (B, C) int64
    loss,  # (B,) float32
    to_states,  # (B, d) float32
    units,  # (B, n) float32: the last n columns of q̂
    cosines,  # (B, C) float32
    norms,  # (B, C) float32: ‖c‖
    peaks,  # (B,) float32: the largest logit
    sums,  # (B,) float32: Σ exp(logit - peak)
    count,  # C
    temperature,
    d: tl.constexpr,
    n: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program reads one row's candidates once, ROWS at a time, and keeps Σ exp(logit - peak)·ĉ beside the sum."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    q = tl.load(states + row * d + column, mask=column < d, other=0.0)
    q_norm = tl.sqrt(tl.sum(q * q, 0))
    q *= inverse(q_norm)

    weighted = tl.zeros((COLUMNS,), tl.float32)
    peak, total, first = tl.full((), float("-inf"), tl.float32), q_norm * 0.0, q_norm * 0.0
    for start in range(0, count, ROWS):
        k = start + tl.arange(0, ROWS)
        valid = k < count
        c = read_rows(trained, frozen, tl.load(ids + row * count + k, mask=valid, other=0), valid, column, d, n)
        norm = tl.sqrt(tl.sum(c * c, 1))
        c *= inverse(norm)[:, None]
        cos = tl.sum(c * q[None, :], 1)
        tl.store(cosines + row * count + k, cos, mask=valid)
        tl.store(norms + row * count + k, norm, mask=valid)
        logit = tl.where(valid, cos / temperature, float("-inf"))
        first += tl.sum(tl.where(k == 0, logit, 0.0), 0)
        higher = tl.maximum(peak, tl.max(logit, 0))
        share, shrink = tl.exp(logit - higher), tl.exp(peak - higher)
        total = total * shrink + tl.sum(share, 0)
        weighted = weighted * shrink + tl.sum(share[:, None] * c, 0)
        peak = higher

    zero = tl.zeros((1,), tl.int64)
    target = read_rows(trained, frozen, tl.load(ids + row * count + zero), zero == 0, column, d, n)
    target *= inverse(tl.sqrt(tl.sum(target * target, 1)))[:, None]
    tl.store(loss + row, tl.log(total) - (first - peak))
    tl.store(peaks + row, peak)
    tl.store(sums + row, total)
    to_unit = (weighted / total - tl.sum(target, 0)) / (temperature * tl.num_programs(0))
    gradient = through_norm(to_unit[None, :], q[None, :], q_norm[None], tl.sum(to_unit * q, 0)[None])
    tl.store(to_states + row * d + column[None, :], gradient, mask=(column < d)[None, :])
    last = column - (d - n)
    tl.store(units + row * n + last, q, mask=(last >= 0) & (column < d))


@triton.jit
def items_kernel(
    trained,  # (R, n) float32
    frozen,  # (R, d) float32 or None
    units,  # (B, n) float32
    cosines,  # (B, C) float32
    norms,  # (B, C) float32
    peaks,  # (B,) float32
    sums,  # (B,) float32
    upstream,  # () float32
    ordered,  # (B·C,) int64: ids in order
    places,  # (B·C,) int64: where they stood
    ends,  # (B·C,) int64: where each id's run ends
    out,  # (R, n) float32
    batch,  # B
    count,  # C
    temperature,
    d: tl.constexpr,
    n: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program for each place in the order; the one at an id's first place adds up the whole run: Σ g·q̂, Σ g·cos."""
    at = tl.program_id(0).to(tl.int64)
    id = tl.load(ordered + at)
    before = tl.load(ordered + at - 1, mask=at > 0, other=-1)
    if id != before:
        end = tl.load(ends + at)
        column = tl.arange(0, COLUMNS)
        weight = tl.load(upstream) / (temperature * batch)
        total = tl.zeros((COLUMNS,), tl.float32)
        along = weight * 0.0
        for start in range(at, end, ROWS):
            k = start + tl.arange(0, ROWS)
            inside = k < end
            place = tl.load(places + k, mask=inside, other=0)
            row = place // count
            cos = tl.load(cosines + place, mask=inside, other=0.0)
            share = tl.exp(cos / temperature - tl.load(peaks + row)) / tl.load(sums + row)
            g = tl.where(inside, weight * (share - tl.where(place % count == 0, 1.0, 0.0)), 0.0)
            both = inside[:, None] & (column < n)[None, :]
            q = tl.load(units + row[:, None] * n + column[None, :], mask=both, other=0.0)
            total += tl.sum(g[:, None] * q, 0)
            along += tl.sum(g * cos, 0)
        norm = tl.load(norms + tl.load(places + at))
        c = tl.load(trained + id * n + column, mask=column < n, other=0.0)
        if frozen is not None:
            c += tl.load(frozen + id * d + d - n + column, mask=column < n, other=0.0)
        unit = (c * inverse(norm))[None, :]
        gradient = through_norm(total[None, :], unit, norm[None], along[None])
        tl.store(out + id * n + column[None, :], gradient, mask=(column < n)[None, :])


class InfoNCE(torch.autograd.Function):
    """loss = −log p₀ with p = softmax(cos/τ), cos = ĉ·q̂, ĉ = c/‖c‖, q̂ = q/‖q‖. With g = (p − [k = 0])/(τB):
    ∂/∂q̂ = Σ g·ĉ, which the forward pass can add up as it goes, and ∂/∂c = (g·q̂ − g·cos·ĉ)/‖c‖, for which it keeps
    the (B, C) cosines and norms."""

    @staticmethod
    def forward(
        ctx, trained: Tensor, frozen: Tensor | None, states: Tensor, ids: Tensor, temperature: float
    ) -> Tensor:
        trained, states, ids = trained.contiguous(), states.contiguous(), ids.contiguous()
        frozen = None if frozen is None else frozen.contiguous()
        (batch, d), n, count = states.shape, trained.shape[1], ids.shape[1]
        loss, peaks, sums = (states.new_empty(batch) for _ in range(3))
        cosines, norms = states.new_empty(ids.shape), states.new_empty(ids.shape)
        to_states, units = torch.empty_like(states), states.new_empty(batch, n)
        columns = triton.next_power_of_2(d)
        with on(states):
            forward_kernel[(batch,)](
                trained, frozen, states, ids, loss, to_states, units, cosines, norms, peaks, sums, count, temperature,
                d=d, n=n, ROWS=tile_rows(columns, count), COLUMNS=columns,
            )  # fmt: skip
        ctx.temperature = temperature
        ctx.save_for_backward(trained, frozen, ids, to_states, units, cosines, norms, peaks, sums)
        return loss.mean()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        trained, frozen, ids, to_states, units, cosines, norms, peaks, sums = ctx.saved_tensors
        n, columns = trained.shape[1], triton.next_power_of_2(max(trained.shape[1], 1))
        to_trained = None
        if ctx.needs_input_grad[0]:
            to_trained = torch.zeros_like(trained)
            if n:
                with on(trained):
                    items_kernel[(ids.numel(),)](
                        trained, frozen, units, cosines, norms, peaks, sums, gradient.contiguous(), *by_item(ids),
                        to_trained, *ids.shape, ctx.temperature, d=to_states.shape[1], n=n,
                        ROWS=min(tile_rows(columns, ids.numel()), 16), COLUMNS=columns,
                    )  # fmt: skip
        return to_trained, None, to_states * gradient, None, None
