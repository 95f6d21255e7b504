"""The item lookup on a GPU: one kernel forward, two backward, and the parts that other Triton kernels share.

Kernels address memory as dense row-major arrays; each pointer's shape stands beside it. Widths are compile-time
constants, so a model compiles each kernel once. A tile's number of rows follows from `tile_rows`.

Repeated ids: instead of atomics, whose order of addition changes from run to run, places are sorted by id and one
program adds up all places of one item. The same input gives the same bits.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from nullrec_lib.kernels import dropout

ODD, FIRST, SECOND = tl.constexpr(dropout.ODD), tl.constexpr(dropout.FIRST), tl.constexpr(dropout.SECOND)

TILE = 2048
"""Elements of a tile: 16 for each of the 128 threads of a program, so that a few tiles fit into its registers."""


def tile_rows(columns: int, rows: int) -> int:
    """Rows of a tile with `columns` (a power of two) columns, for data of `rows` rows: a power of two."""
    return max(1, min(TILE // columns, triton.next_power_of_2(rows)))


def on(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Kernels start on the current GPU: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def by_item(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ids (…) with M elements → sorted (M,), the places they stood at (M,), and where each one's run ends (M,)."""
    ordered, places = ids.flatten().sort(stable=True)
    return ordered, places, torch.searchsorted(ordered, ordered, right=True)


def words(seed: int, p: float) -> tuple[int, int, int]:
    """The seed's low and high 32 bits and the threshold, as int32: of one type whatever their values, so that a kernel
    is compiled once. It reads them as uint32 again."""
    sign = 0x80000000
    return tuple(((word & 0xFFFFFFFF) ^ sign) - sign for word in (seed, seed >> 32, dropout.threshold(p)))


@triton.jit
def kept(place, low, high, threshold):
    """`dropout.kept` for elements `place`, in 32-bit arithmetic that wraps by itself."""
    h = (place.to(tl.uint32) * ODD) ^ high.to(tl.uint32)
    h = (h ^ (h >> 16)) * FIRST + low.to(tl.uint32)
    h = (h ^ (h >> 13)) * SECOND
    return (h ^ (h >> 16)) >= threshold.to(tl.uint32)


@triton.jit
def read_rows(
    trained,  # (R, n) float32
    frozen,  # (R, d) float32 or None
    ids,  # a block of int64
    valid,  # a block of bool: which ids to read; the others give zeros
    column,  # a block of columns in 0…d-1; beyond d: zeros
    d: tl.constexpr,
    n: tl.constexpr,
):
    """Rows of a `lookup.Table` as a (ids, column) tile."""
    last = column - (d - n)  # the column's place in the trained part, negative in the frozen one
    inside = valid[:, None] & (last >= 0)[None, :] & (column < d)[None, :]
    rows = tl.load(trained + ids[:, None] * n + last[None, :], mask=inside, other=0.0)
    if frozen is not None:
        inside = valid[:, None] & (column < d)[None, :]
        rows += tl.load(frozen + ids[:, None] * d + column[None, :], mask=inside, other=0.0)
    return rows


@triton.jit(do_not_specialize=["low", "high", "threshold"])
def forward_kernel(
    trained,  # (R, n) float32
    frozen,  # (R, d) float32 or None
    ids,  # (B, L) int64
    positions,  # (P, d) float32
    out,  # (B, L, d) float32
    tokens,  # B·L
    length,  # L
    first,  # P - L
    size,
    low,
    high,
    threshold,
    scale,  # 1 / (1-p)
    d: tl.constexpr,
    n: tl.constexpr,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program writes ROWS tokens. What is not read, all of a padded one, is zero."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    id = tl.load(ids + token, mask=token < tokens, other=size)
    valid = id < size
    inside = valid[:, None] & (column < d)[None, :]
    x = read_rows(trained, frozen, id, valid, column, d, n)
    x += tl.load(positions + (first + token % length)[:, None] * d + column[None, :], mask=inside, other=0.0)
    place = token[:, None] * d + column[None, :]
    if DROP:
        x = tl.where(kept(place, low, high, threshold), x * scale, 0.0)
    tl.store(out + place, x, mask=(token < tokens)[:, None] & (column < d)[None, :])


@triton.jit(do_not_specialize=["low", "high", "threshold"])
def positions_kernel(
    gradient,  # (B, L, d) float32
    ids,  # (B, L) int64
    out,  # (L, d) float32
    batch,  # B
    length,  # L
    size,
    low,
    high,
    threshold,
    scale,
    d: tl.constexpr,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program adds up COLUMNS columns of one position over the batch, ROWS rows at a time."""
    at = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, batch, ROWS):
        row = start + tl.arange(0, ROWS)
        token = row.to(tl.int64) * length + at
        id = tl.load(ids + token, mask=row < batch, other=size)
        place = token[:, None] * d + column[None, :]
        inside = (id < size)[:, None] & (column < d)[None, :]
        g = tl.load(gradient + place, mask=inside, other=0.0)
        if DROP:
            g = tl.where(kept(place, low, high, threshold), g * scale, 0.0)
        total += tl.sum(g, 0)
    tl.store(out + at * d + column, total, mask=column < d)


@triton.jit(do_not_specialize=["low", "high", "threshold"])
def items_kernel(
    gradient,  # (B, L, d) float32
    ordered,  # (B·L,) int64: ids in order
    places,  # (B·L,) int64: where they stood
    ends,  # (B·L,) int64: where each id's run ends
    out,  # (R, n) float32
    size,
    low,
    high,
    threshold,
    scale,
    d: tl.constexpr,
    n: tl.constexpr,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program for each place in the order; the one at an id's first place adds up the whole run."""
    at = tl.program_id(0).to(tl.int64)
    id = tl.load(ordered + at)
    before = tl.load(ordered + at - 1, mask=at > 0, other=-1)
    if (id != before) & (id < size):
        end = tl.load(ends + at)
        column = tl.arange(0, COLUMNS)
        total = tl.zeros((COLUMNS,), tl.float32)
        for start in range(at, end, ROWS):
            k = start + tl.arange(0, ROWS)
            token = tl.load(places + k, mask=k < end, other=0)
            place = token[:, None] * d + (d - n + column)[None, :]
            g = tl.load(gradient + place, mask=(k < end)[:, None] & (column < n)[None, :], other=0.0)
            if DROP:
                g = tl.where(kept(place, low, high, threshold), g * scale, 0.0)
            total += tl.sum(g, 0)
        tl.store(out + id * n + column, total, mask=column < n)


class Lookup(torch.autograd.Function):
    """x = keep·(item + position)/(1-p) where there is a token, with keep the 0/1 mask of the seed. Hence with
    h = keep·g/(1-p) at tokens and 0 at padding: ∂positions[P-L+l] = Σ_b h[b,l], and ∂trained[i] = the last n columns
    of Σ h[b,l] over the places with id i. The mask is drawn again from the seed."""

    @staticmethod
    def forward(
        ctx, trained: Tensor, frozen: Tensor | None, size: int, ids: Tensor, positions: Tensor, p: float, seed: int
    ) -> Tensor:
        trained, ids, positions = trained.contiguous(), ids.contiguous(), positions.contiguous()
        frozen = None if frozen is None else frozen.contiguous()
        d, n = positions.shape[1], trained.shape[1]
        ctx.save_for_backward(ids)
        ctx.shapes = trained.shape, positions.shape
        ctx.size = size
        ctx.dropping, ctx.dropout = p > 0, (*words(seed, p), 1 / (1 - p))
        out = torch.empty(*ids.shape, d, dtype=trained.dtype, device=trained.device)
        columns = triton.next_power_of_2(d)
        rows = tile_rows(columns, ids.numel())
        with on(out):
            forward_kernel[(triton.cdiv(ids.numel(), rows),)](
                trained, frozen, ids, positions, out, ids.numel(), ids.shape[1], len(positions) - ids.shape[1], size,
                *ctx.dropout, d=d, n=n, DROP=ctx.dropping, ROWS=rows, COLUMNS=columns,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (ids,) = ctx.saved_tensors
        (batch, length), (table, positions) = ids.shape, ctx.shapes
        n, d = table[1], positions[1]
        gradient = gradient.contiguous()
        to_trained = to_positions = None
        with on(gradient):
            if ctx.needs_input_grad[4]:
                to_positions = gradient.new_zeros(positions)
                columns = min(triton.next_power_of_2(d), 32)  # narrow: more programs, and still a full line of cache
                positions_kernel[(length, triton.cdiv(d, columns))](
                    gradient, ids, to_positions[positions[0] - length :], batch, length, ctx.size, *ctx.dropout,
                    d=d, DROP=ctx.dropping, ROWS=tile_rows(columns, batch), COLUMNS=columns,
                )  # fmt: skip
            if ctx.needs_input_grad[0]:
                to_trained = gradient.new_zeros(table)
                columns = triton.next_power_of_2(max(n, 1))
                if n:
                    items_kernel[(ids.numel(),)](
                        gradient, *by_item(ids), to_trained, ctx.size, *ctx.dropout,
                        d=d, n=n, DROP=ctx.dropping, ROWS=min(tile_rows(columns, ids.numel()), 16), COLUMNS=columns,
                    )  # fmt: skip
        return to_trained, None, None, None, to_positions, None, None
