"""`cosine_histogram` on a CPU: tiles of products from the library, counted while they are in the cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nullrec_lib.kernels.cpu import compiled

TILE = 512
"""Rows and columns of a tile: 1 MiB of cosines."""
LANES = 4
"""Histograms that neighbouring cosines go to in turn: two in a row often share a bin, and would wait for each other."""


def count(unit: Tensor, bins: int) -> Tensor:
    """Unit rows (N, d) float32 → counts (bins,) int64, see `cosine_histogram.cosine_histogram`."""
    n = len(unit)
    side = min(TILE, n)
    buffer = torch.empty(side * side)
    places = np.empty(side, np.int32)
    counts = np.zeros((LANES, bins), np.int64)
    for top in range(0, n, side):
        rows = unit[top : top + side]
        for left in range(top, n, side):  # tiles below the diagonal hold the same pairs again
            columns = unit[left : left + side]
            tile = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=tile)
            _count(tile.numpy(), left == top, places, counts)
    return torch.from_numpy(counts.sum(axis=0))


@compiled()
def _count(tile, diagonal, places, counts):
    """Add the cosines of a tile (m, n) to counts (LANES, bins); of one on the diagonal only those above it."""
    height, width = tile.shape
    last = np.int32(counts.shape[1] - 1)
    half = np.float32(counts.shape[1] / 2)
    for i in range(height):
        for j in range(width):  # without branches or scattered writes, so that it becomes vector instructions
            place = np.int32(tile[i, j] * half + half)
            places[j] = min(max(place, np.int32(0)), last)
        j = i + 1 if diagonal else 0
        while j + 4 <= width:
            counts[0, places[j]] += 1
            counts[1, places[j + 1]] += 1
            counts[2, places[j + 2]] += 1
            counts[3, places[j + 3]] += 1
            j += 4
        while j < width:
            counts[0, places[j]] += 1
            j += 1
