"""Ranking on a GPU: each program counts a block of users against its share of the items, tile after tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nullrec_lib.kernels.lookup_gpu import on

BLOCK, WIDE = 64, 32
"""Users, and items, of a product; columns of it in hand at once."""

PROGRAMS = 512
"""Shares of the items are made until there are about this many programs: a GPU runs a few on each processor."""


def count(
    queries: Tensor, items: Tensor, target: Tensor, factor: Tensor, summand: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `rank_cpu.count`."""
    queries, items, target, hidden = (t.contiguous() for t in (queries, items, target, hidden))
    B, n = len(queries), len(items)
    blocks, tiles = triton.cdiv(B, BLOCK), triton.cdiv(n, BLOCK)
    share = triton.cdiv(tiles, max(1, min(tiles, PROGRAMS // max(blocks, 1)))) * BLOCK
    starts = torch.arange(0, n, share, device=items.device)
    place = torch.searchsorted(hidden, starts.expand(B, -1).contiguous())  # each row's first hidden item of a share
    found = torch.zeros(3, B, len(starts), dtype=torch.int32, device=items.device)
    if B:
        # Product and sum are rounded one by one, as torch does: no fused multiply-add of factor and summand.
        with on(items):
            _count[blocks, len(starts)](
                queries, items, target, factor, summand, hidden, place, found, B, n, hidden.shape[1], queries.shape[1],
                share, BLOCK=BLOCK, WIDE=WIDE, enable_fp_fusion=False,
            )
    authors, consistent, nan = found.sum(dim=2)
    return authors, consistent, nan > 0


@triton.jit
def _product(queries, items, rows, ids, B, n, D, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """(BLOCK, BLOCK) float32 scores of `rows` with `ids`. The target's scores and all others come from here, so that
    equal item vectors score the same to the last bit."""
    columns = tl.arange(0, WIDE)
    row, item = queries + rows.to(tl.int64)[:, None] * D, items + ids.to(tl.int64)[None, :] * D
    scores = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, D, WIDE):
        inside = k + columns < D
        q = tl.load(row + (k + columns)[None, :], mask=(rows < B)[:, None] & inside[None, :], other=0.0)
        c = tl.load(item + (k + columns)[:, None], mask=(ids < n)[None, :] & inside[:, None], other=0.0)
        scores = tl.dot(q, c, scores, input_precision="ieee")
    return scores


@triton.jit
def _count(
    queries, items, target, factor, summand, hidden, place, found, B, n, W, D, share,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):
    """`found` (3, B, shares) int32: items of a share ahead of the target raw, the same consistent, and NaN."""
    part, parts = tl.program_id(1), tl.num_programs(1)
    lane = tl.arange(0, BLOCK)
    rows = tl.program_id(0) * BLOCK + lane
    real = rows < B
    t = tl.load(target + rows, mask=real, other=0)
    # Each row's own target stands on the diagonal of the product with all targets of the block.
    diagonal = lane[:, None] == lane[None, :]
    own = tl.sum(tl.where(diagonal, _product(queries, items, rows, t, B, n, D, BLOCK, WIDE), 0.0), axis=1)
    own_scaled = own * tl.load(factor + t) + tl.load(summand + t)
    authors = tl.zeros((BLOCK,), tl.int32)
    consistent = tl.zeros((BLOCK,), tl.int32)
    broken = tl.zeros((BLOCK,), tl.int32)

    p = tl.load(place + rows * parts + part, mask=real, other=W)
    mine = hidden + rows.to(tl.int64) * W
    h = tl.load(mine + p, mask=real & (p < W), other=n)
    for start in range(part * share, min(part * share + share, n), BLOCK):
        end = min(start + BLOCK, n)
        ids = start + lane
        inside = (ids < n)[None, :]
        score = _product(queries, items, rows, ids, B, n, D, BLOCK, WIDE)
        f = tl.load(factor + ids, mask=ids < n, other=0.0)
        value = score * f[None, :] + tl.load(summand + ids, mask=ids < n, other=0.0)[None, :]
        broken += tl.sum((inside & (value != value)).to(tl.int32), axis=1)
        competes = inside & (ids[None, :] != t[:, None])
        authors += tl.sum((competes & (score >= own[:, None])).to(tl.int32), axis=1)
        while tl.min(h, axis=0) < end:  # some row has another hidden item in this tile
            competes = competes & (ids[None, :] != h[:, None])
            p += (h < end).to(p.dtype)
            h = tl.load(mine + p, mask=real & (p < W), other=n)
        consistent += tl.sum((competes & (value >= own_scaled[:, None])).to(tl.int32), axis=1)
    to = found + rows * parts + part
    tl.store(to, authors, mask=real)
    tl.store(to + B * parts, consistent, mask=real)
    tl.store(to + 2 * B * parts, broken, mask=real)
