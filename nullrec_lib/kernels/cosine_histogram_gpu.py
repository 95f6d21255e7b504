"""`cosine_histogram` on a GPU: one program per tile of pairs, which counts its cosines before they leave the chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nullrec_lib.kernels.lookup_gpu import on

TILE, DEPTH = 64, 32
"""Rows and columns of a program's tile, and how many dimensions are multiplied at a time."""
GRID = 65_535
"""Most programs that a launch may have along its second axis."""


def count(unit: Tensor, bins: int, tile: int = TILE, grid: int = GRID) -> Tensor:
    """Unit rows (N, d) float32 → counts (bins,) int64, see `cosine_histogram.cosine_histogram`."""
    n, d = unit.shape
    counts = torch.zeros(bins, dtype=torch.int64, device=unit.device)
    tiles = triton.cdiv(n, tile)
    room = max(triton.next_power_of_2(bins + 1), 64)  # one place more than bins at least: for what is not a pair
    with on(unit):
        for first in range(0, tiles, grid):
            _count[(tiles, min(grid, tiles - first))](unit, counts, n, d, bins, first, TILE=tile, DEPTH=DEPTH, ROOM=room)
    return counts


@triton.jit
def _count(unit, counts, n, d, bins, first, TILE: tl.constexpr, DEPTH: tl.constexpr, ROOM: tl.constexpr):
    row_tile, column_tile = tl.program_id(0), first + tl.program_id(1)
    if column_tile < row_tile:  # the same pairs again
        return
    row = row_tile * TILE + tl.arange(0, TILE)
    column = column_tile * TILE + tl.arange(0, TILE)
    row_start = row.to(tl.int64)[:, None] * d
    column_start = column.to(tl.int64)[None, :] * d
    cosines = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, d, DEPTH):
        k = start + tl.arange(0, DEPTH)
        left = tl.load(unit + row_start + k[None, :], mask=(row < n)[:, None] & (k < d)[None, :], other=0.0)
        right = tl.load(unit + column_start + k[:, None], mask=(k < d)[:, None] & (column < n)[None, :], other=0.0)
        cosines = tl.dot(left, right, cosines, input_precision="ieee")  # TF32 is wrong in the fourth digit
    half = bins * 0.5
    place = (cosines * half + half).to(tl.int32)
    place = tl.minimum(tl.maximum(place, 0), bins - 1)
    place = tl.where((row[:, None] < column[None, :]) & (column < n)[None, :], place, ROOM - 1)
    found = tl.histogram(tl.reshape(place, (TILE * TILE,)), ROOM)
    place = tl.arange(0, ROOM)
    tl.atomic_add(counts + place, found.to(tl.int64), mask=(place < bins) & (found > 0), sem="relaxed")
