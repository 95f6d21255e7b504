"""Ranking on a CPU: a matrix product for each block of users and tile of items, counted while it is in the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.kernels.cpu import compiled

ROWS = TILE = 512
"""Users and items of a product: its 1 MB of scores stay in the second-level cache until they are counted."""

LEAST = 64
"""Products are padded to a multiple of this both ways. Of smaller ones the matrix library sums some columns in another
order than the rest, so that equal item vectors would score unequal."""


def count(
    queries: Tensor, items: Tensor, target: Tensor, factor: Tensor, summand: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How many items stand ahead of each target, raw and consistent (B,) int64, and (B,) bool: a NaN among its scores.

    Args:
        queries, items, target, factor, summand: of `rank.rank`.
        hidden: (B, W), sorted, without the target.
    """
    n, width = len(items), items.shape[1]
    rows, tile = (min(most, max(1, -(-size // LEAST)) * LEAST) for most, size in ((ROWS, len(queries)), (TILE, n)))
    # Zeros below the items where they fill less than one tile; otherwise the last tile overlaps the one before.
    items = F.pad(items, (0, 0, 0, tile - n)) if n < tile else items
    ahead, nan = torch.zeros(2, len(queries), dtype=torch.int64), torch.zeros(len(queries), dtype=torch.bool)
    similarity = factor.numpy(), summand.numpy()

    def count_block(start: int) -> None:
        part = slice(start, min(start + rows, len(queries)))
        size = part.stop - part.start
        block, scores = torch.empty(rows, width), torch.empty(rows, tile)
        block[:size] = queries[part]
        # A target's score is needed before its tile comes: it is taken from a product with all targets of the block.
        # Should its tile disagree in the last bit, the block is counted again against what the tile said.
        against, own = provisional(block, items, target[part]), torch.empty(size)
        for _ in range(2):
            ahead[:, part] = 0
            place = np.zeros(size, np.int64)
            for begin in range(0, n, tile):
                first = min(begin, len(items) - tile)
                torch.mm(block, items[first : first + tile].T, out=scores)
                _count_tile(
                    scores.numpy(), first, begin, min(begin + tile, n), *similarity, target[part].numpy(),
                    against.numpy(), own.numpy(), hidden[part].numpy(), place, *ahead[:, part].numpy(),
                    nan[part].numpy(),
                )
            if torch.equal(own, against):
                break
            against = own.clone()

    starts, threads = range(0, len(queries), rows), torch.get_num_threads()
    if min(threads, len(starts)) < 2:
        for start in starts:
            count_block(start)
        return *ahead, nan
    # Each thread its own blocks, rather than all threads every product: products are too short to wait for one another.
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(torch.no_grad()(count_block), starts))
    finally:
        torch.set_num_threads(threads)  # of threads yet to come; those of the pool had set it to one
    return *ahead, nan


def provisional(block: Tensor, items: Tensor, target: Tensor) -> Tensor:
    """(size,) scores of the targets, from a product of the same form as those of the tiles."""
    wanted = F.pad(items[target], (0, 0, 0, len(block) - len(target)))
    return (block @ wanted.T).diagonal()[: len(target)].contiguous()


@compiled()
def _count_tile(
    scores, first, begin, end, factor, summand, target, against, own, hidden, place, authors, consistent, nan
):
    """Count one tile, whose scores (rows, tile) are of the items from `first` on, over its items `begin` to `end`.

    Adds to `authors` and `consistent`, sets `own` where a target is in the tile, and moves `place`, each row's first
    hidden item that is not yet passed.
    """
    f, g = factor[begin:end], summand[begin:end]
    for b in range(len(target)):
        row, t = scores[b, begin - first : end - first], target[b]
        raw, scaled = against[b], against[b] * factor[t] + summand[t]
        # No fast mathematics: NaN must compare false, and product and sum be rounded one by one, as torch does.
        above = above_scaled = broken = np.int32(0)
        for j in range(end - begin):
            score = row[j]
            value = score * f[j] + g[j]
            above = np.int32(above + (score >= raw))
            above_scaled = np.int32(above_scaled + (value >= scaled))
            broken = np.int32(broken + (value != value))  # which it is too where the raw score is a NaN
        authors[b] += above
        consistent[b] += above_scaled
        nan[b] |= broken > 0
        if begin <= t < end:  # the target is no competitor of its own
            score = row[t - begin]
            own[b] = score
            authors[b] -= score >= raw
            consistent[b] -= score * factor[t] + summand[t] >= scaled
        p, ids = place[b], hidden[b]
        while p < len(ids) and ids[p] < end:
            if p == 0 or ids[p] != ids[p - 1]:  # a repeat hides once
                j = ids[p] - begin
                consistent[b] -= row[j] * f[j] + g[j] >= scaled
            p += 1
        place[b] = p
