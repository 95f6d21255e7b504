"""Full softmax on a GPU: tiles of logits are made, used and forgotten, forward and backward.

Rules for language models assume thousands of columns and a vocabulary of 10⁵; here d is about 100 and N may be
millions. So a batch is a few blocks of rows, and parallelism has to come from the items: the forward pass splits them
into chunks, whose sums are joined afterwards; the backward pass gives a program a block of items and all rows.
Neither needs atomics. Products are of float32 numbers, not rounded to TF32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.kernels.infonce_gpu import EPSILON, inverse, through_norm
from nullrec_lib.kernels.lookup import Table, gather
from nullrec_lib.kernels.lookup_gpu import on, read_rows

BLOCK = 32
"""Rows, and items, of a tile of logits (fewer where there are fewer): with 64 and float32 products, registers spill."""
STEP = 16
"""Columns that a tile's product reads at a time; the least that `tl.dot` takes."""
WARPS = 8
"""Of 32 threads, for each program."""
PROGRAMS = 512
"""About how many programs the forward pass has: four for each multiprocessor of an H100."""


def block(count: int) -> int:
    """Rows of a block for data of `count` rows."""
    return max(STEP, min(BLOCK, triton.next_power_of_2(count)))


@triton.jit
def cosine_tile(
    units,  # (B, d) float32
    trained,  # (R, n) float32
    frozen,  # (R, d) float32 or None
    row,  # (ROWS,) int64
    item,  # (ITEMS,) int64
    batch,
    size,
    d: tl.constexpr,
    n: tl.constexpr,
    STEP: tl.constexpr,
):
    """Cosines (ROWS, ITEMS) and the items' norms (ITEMS,), STEP columns at a time."""
    dots = tl.zeros((row.shape[0], item.shape[0]), tl.float32)
    squares = tl.zeros((item.shape[0],), tl.float32)
    for start in range(0, d, STEP):
        column = start + tl.arange(0, STEP)
        inside = (row < batch)[:, None] & (column < d)[None, :]
        q = tl.load(units + row[:, None] * d + column[None, :], mask=inside, other=0.0)
        c = read_rows(trained, frozen, item, item < size, column, d, n)
        dots = tl.dot(q, tl.trans(c), dots, input_precision="ieee")
        squares += tl.sum(c * c, 1)
    norm = tl.sqrt(squares)
    return dots * inverse(norm)[None, :], norm


@triton.jit
def forward_kernel(
    trained,  # (R, n) float32
    frozen,  # (R, d) float32 or None
    units,  # (B, d) float32: q̂
    targets,  # (B,) int64
    correct,  # (B,) float32: the target's logit
    peaks,  # (chunks, B) float32: the largest logit of the chunk
    sums,  # (chunks, B) float32: Σ exp(logit - peak) over the chunk
    weighted,  # (chunks, B, d) float32: Σ exp(logit - peak)·ĉ over the chunk
    batch,  # B
    size,
    chunk,  # items of a chunk: a multiple of ITEMS
    temperature,
    d: tl.constexpr,
    n: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """A program for each block of rows and chunk of items."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1).to(tl.int64) * chunk
    column = tl.arange(0, COLUMNS)
    target = tl.load(targets + row, mask=row < batch, other=-1)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    vectors = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, tl.minimum(begin + chunk, size), ITEMS):
        item = start + tl.arange(0, ITEMS)
        cos, norm = cosine_tile(units, trained, frozen, row, item, batch, size, d, n, STEP)
        logit = tl.where((item < size)[None, :], cos / temperature, float("-inf"))
        is_target = target[:, None] == item[None, :]
        inside = (target >= start) & (target < start + ITEMS) & (target < size)
        tl.store(correct + row, tl.sum(tl.where(is_target, logit, 0.0), 1), mask=inside)
        higher = tl.maximum(peak, tl.max(logit, 1))
        share, shrink = tl.exp(logit - higher[:, None]), tl.exp(peak - higher)
        total = total * shrink + tl.sum(share, 1)
        c = read_rows(trained, frozen, item, item < size, column, d, n) * inverse(norm)[:, None]
        vectors = tl.dot(share, c, vectors * shrink[:, None], input_precision="ieee")
        peak = higher
    at = tl.program_id(1).to(tl.int64) * batch + row
    tl.store(peaks + at, peak, mask=row < batch)
    tl.store(sums + at, total, mask=row < batch)
    inside = (row < batch)[:, None] & (column < d)[None, :]
    tl.store(weighted + at[:, None] * d + column[None, :], vectors, mask=inside)


@triton.jit
def items_kernel(
    trained,  # (R, n) float32
    frozen,  # (R, d) float32 or None
    units,  # (B, d) float32
    targets,  # (B,) int64
    peaks,  # (B,) float32
    sums,  # (B,) float32
    upstream,  # () float32
    out,  # (R, n) float32
    batch,  # B
    size,
    temperature,
    d: tl.constexpr,
    n: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """A program for each block of items; it adds up g·q̂ and g·cos over all rows, for the trained columns only.
    A row beyond the batch has q̂ = 0 and cos = 0, and so adds nothing."""
    item = tl.program_id(0).to(tl.int64) * ITEMS + tl.arange(0, ITEMS)
    column = d - n + tl.arange(0, COLUMNS)
    weight = tl.load(upstream) / (temperature * batch)
    total = tl.zeros((ITEMS, COLUMNS), tl.float32)
    along = tl.zeros((ITEMS,), tl.float32)
    norm = tl.zeros((ITEMS,), tl.float32)
    for start in range(0, batch, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        cos, norm = cosine_tile(units, trained, frozen, row, item, batch, size, d, n, STEP)
        peak = tl.load(peaks + row, mask=row < batch, other=0.0)
        share = tl.exp(cos / temperature - peak[:, None]) / tl.load(sums + row, mask=row < batch, other=1.0)[:, None]
        target = tl.load(targets + row, mask=row < batch, other=-1)
        g = weight * (share - tl.where(target[:, None] == item[None, :], 1.0, 0.0))
        along += tl.sum(g * cos, 0)
        inside = (row < batch)[:, None] & (column < d)[None, :]
        q = tl.load(units + row[:, None] * d + column[None, :], mask=inside, other=0.0)
        total = tl.dot(tl.trans(g), q, total, input_precision="ieee")
    unit = read_rows(trained, frozen, item, item < size, column, d, n) * inverse(norm)[:, None]
    inside = (item < size)[:, None] & (column < d)[None, :]
    at = item[:, None] * n + (column - (d - n))[None, :]
    tl.store(out + at, through_norm(total, unit, norm, along), mask=inside)


class FullSoftmax(torch.autograd.Function):
    """loss = −log p_target with p = softmax(cos/τ) over all items, cos = ĉ·q̂. With g = (p − [target])/(τB):
    ∂/∂q̂ = Σ g·ĉ = (Σ p·ĉ − ĉ_target)/(τB), which the forward pass adds up on its way (as attention does), and
    ∂/∂c = (Σ g·q̂ − Σ g·cos·ĉ)/‖c‖, both sums over the batch; backward makes the cosines again."""

    @staticmethod
    def forward(
        ctx, trained: Tensor, frozen: Tensor | None, size: int, states: Tensor, target: Tensor, temperature: float
    ) -> Tensor:
        trained, target = trained.contiguous(), target.contiguous()
        frozen = None if frozen is None else frozen.contiguous()
        (batch, d), n = states.shape, trained.shape[1]
        norm = torch.linalg.vector_norm(states, dim=1, keepdim=True)
        units = (states / norm.clamp(min=EPSILON.value)).contiguous()
        rows, items = block(batch), block(size)
        row_blocks, item_blocks = triton.cdiv(batch, rows), triton.cdiv(size, items)
        chunk = items * triton.cdiv(item_blocks, max(1, PROGRAMS // max(1, row_blocks)))
        chunks = triton.cdiv(size, chunk)
        correct = torch.full_like(norm[:, 0], torch.nan)  # stays so for a target that is no item
        peaks, sums = states.new_empty(chunks, batch), states.new_empty(chunks, batch)
        weighted = states.new_empty(chunks, batch, d)
        with on(states):
            forward_kernel[(row_blocks, chunks)](
                trained, frozen, units, target, correct, peaks, sums, weighted, batch, size, chunk, temperature,
                d=d, n=n, ROWS=rows, ITEMS=items, COLUMNS=max(STEP, triton.next_power_of_2(d)), STEP=STEP,
                num_warps=WARPS,
            )  # fmt: skip
        peak = peaks.amax(0)
        scale = (peaks - peak).exp_()
        total = sums.mul_(scale).sum(0)
        mean = weighted.mul_(scale[..., None]).sum(0) / total[:, None]
        answers = gather(Table(trained, frozen, size), target.clamp(min=0))
        answers = F.normalize(answers, dim=1, eps=EPSILON.value)
        to_unit = (mean - answers) / (temperature * batch)
        along = (to_unit * units).sum(1, keepdim=True) * (norm >= EPSILON.value)
        to_states = (to_unit - along * units) / norm.clamp(min=EPSILON.value)
        ctx.size, ctx.temperature = size, temperature
        ctx.save_for_backward(trained, frozen, units, target, peak, total, to_states)
        return (total.log() - (correct - peak)).mean()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        trained, frozen, units, target, peak, total, to_states = ctx.saved_tensors
        (batch, d), n = units.shape, trained.shape[1]
        to_trained = None
        if ctx.needs_input_grad[0]:
            to_trained = torch.zeros_like(trained)
            rows, items = block(batch), block(ctx.size)
            if n:
                with on(trained):
                    items_kernel[(triton.cdiv(ctx.size, items),)](
                        trained, frozen, units, target, peak, total, gradient.contiguous(), to_trained, batch,
                        ctx.size, ctx.temperature, d=d, n=n, ROWS=rows, ITEMS=items,
                        COLUMNS=max(STEP, triton.next_power_of_2(n)), STEP=STEP, num_warps=WARPS,
                    )  # fmt: skip
        return to_trained, None, None, to_states * gradient, None, None
