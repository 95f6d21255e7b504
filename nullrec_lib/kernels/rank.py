"""Ranks of targets among all items, and the best items, without the (users, items) matrix of scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.dispatch import choose

NAIVE_SCORES, TOP_SCORES, SOME_FLOATS = 2**25, 2**21, 2**18
"""Most that is in hand at once: scores of the naive ranking, scores of `top_k`, gathered floats of `score_some`."""


class Ranks(NamedTuple):
    """(B,) int64 each, from 1; the fields are named as the scoring protocols of `evaluation.PROTOCOLS`."""

    authors: Tensor
    """By raw dot product, nothing hidden."""
    consistent: Tensor
    """By dot product · factor + summand; hidden items do not compete."""


def target_ranks(scores: Tensor, target: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Rank of each target among all items, (B,) int64 from 1; ties count against the model.

    rank = 1 + #greater + #equal others, so a constant scorer ranks every target last.

    Args:
        scores: (B, N).
        target: (B,) int64.
        hidden: (B, W) item ids that do not compete, padding id N allowed; never hides the target itself.

    Raises:
        FloatingPointError: a NaN score. NaN has no rank.
    """
    # A NaN compares false with everything: unnoticed, a NaN target would have nothing ahead of it.
    stop_at_nan(scores.isnan().any(dim=1))
    ahead = scores >= scores.gather(1, target[:, None])
    if hidden is not None:
        # Hidden ids are written one column too wide, so that the padding id lands outside of the items.
        wide = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
        wide.scatter_(1, hidden, True).scatter_(1, target[:, None], False)
        ahead &= ~wide[:, :-1]
    return ahead.sum(dim=1)


def stop_at_nan(rows: Tensor) -> None:
    """Raise FloatingPointError if any of (B,) bool `rows` is set: that row's scores hold a NaN."""
    if bool(rows.any()):
        row = int(rows.nonzero()[0])
        raise FloatingPointError(f"row {row} of the scores holds NaN: the model has diverged or its input is broken.")


def rank_scores(
    scores: Tensor, target: Tensor, similarity: tuple[Tensor, Tensor] | None = None, hidden: Tensor | None = None
) -> Ranks:
    """`target_ranks` under both protocols, of scores (B, N) that are ready; scales them in place.

    Args:
        similarity: factor and summand, each (N,) or (B, N).
    """
    authors = target_ranks(scores, target)
    if similarity is not None:
        scores.mul_(similarity[0]).add_(similarity[1])
    return Ranks(authors, target_ranks(scores, target, hidden))


def rank_naive(
    queries: Tensor, items: Tensor, target: Tensor, similarity: tuple[Tensor, Tensor] | None = None,
    hidden: Tensor | None = None,
) -> Ranks:
    """The reference of `rank`: all scores first."""
    return rank_scores(queries @ items.T, target, similarity, hidden)


@torch.no_grad()
def rank(
    queries: Tensor,
    items: Tensor,
    target: Tensor,
    similarity: tuple[Tensor, Tensor] | None = None,
    hidden: Tensor | None = None,
    impl: str = "auto",
) -> Ranks:
    """Ranks of the targets among all items under both protocols, in one pass over scores that are never stored.

    Beside its arguments it needs a few MB and the hidden ids twice more, however many items there are. A target's score
    is the one that its own column of the product has; equal item vectors tie exactly. Implementations sum products in
    different orders: their ranks differ only by items whose score is the target's within d·2⁻²⁴·‖query‖·‖item‖ of
    either, and not at all where every sum is exact (whole numbers, say).

    Args:
        queries: (B, d) float32.
        items: (N, d) float32, N ≥ 1.
        target: (B,) int64 in 0…N-1.
        similarity: factor and summand per item, (N,) float32 each; None where raw scores are the similarity.
        hidden: (B, W) int64 in 0…N, N is padding, repeats allowed: do not compete under `consistent`. A target among
            them competes all the same.
        impl: see `dispatch.choose`.

    Raises:
        InputError: shapes, types or ids other than these.
        FloatingPointError: a NaN score; it names the row.
    """
    _check(queries, items, similarity, hidden)
    if target.shape != queries.shape[:1] or not _within(target, len(items)):
        raise InputError(f"target: expected one id below {len(items)} for each of {len(queries)} queries.")
    impl = choose(impl, queries)
    if impl == "naive":
        rows = max(1, NAIVE_SCORES // len(items))
        parts = [
            rank_naive(queries[i : i + rows], items, target[i : i + rows], similarity,
                       None if hidden is None else hidden[i : i + rows])
            for i in range(0, max(len(queries), 1), rows)
        ]
        return Ranks(*(torch.cat(part) for part in zip(*parts)))
    if impl == "cpu":
        from nullrec_lib.kernels.rank_cpu import count
    else:
        from nullrec_lib.kernels.rank_gpu import count
    # Without similarity and hidden items: a product with one, a sum with nothing, one column of padding.
    factor, summand = similarity or (items.new_ones(len(items)), items.new_zeros(len(items)))
    hidden = target.new_full((len(target), 1), len(items)) if hidden is None else hidden
    # Sorted, so that a pass over the items meets them in turn; the target is no longer among them.
    hidden = hidden.masked_fill(hidden == target[:, None], len(items)).sort(dim=1).values
    authors, consistent, nan = count(queries, items, target, factor.contiguous(), summand.contiguous(), hidden)
    stop_at_nan(nan)
    return Ranks(authors + 1, consistent + 1)


@torch.no_grad()
def score_some(queries: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Dot products of queries (B, d) with the items ids (B, n) int64 of each → (B, n).

    Every product is summed alike wherever it stands in its row, so that equal item vectors tie exactly; a matrix
    product does not promise that at its edges.
    """
    rows = max(1, SOME_FLOATS // max(1, ids.shape[1] * items.shape[1]))
    scores = queries.new_empty(ids.shape)
    for i in range(0, len(ids), rows):
        torch.sum(items[ids[i : i + rows]].mul_(queries[i : i + rows, None]), dim=-1, out=scores[i : i + rows])
    return scores


@torch.no_grad()
def top_k(
    queries: Tensor,
    items: Tensor,
    k: int,
    similarity: tuple[Tensor, Tensor] | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of each query, best first, ties by the smaller id; the items are passed over in tiles.

    Args:
        queries, items, similarity, hidden: as in `rank`; hidden items are left out.
        k: at least 1; more than N counts as N.

    Returns: ids (B, k) int64 and scores (B, k) float32; where fewer than k items are left, id N and -inf.

    Raises:
        InputError, FloatingPointError: as `rank`.
    """
    _check(queries, items, similarity, hidden)
    if k < 1:
        raise InputError(f"k: {k} is below 1.")
    n, tile = len(items), max(1024, TOP_SCORES // max(len(queries), 1))
    nothing = torch.iinfo(torch.int64).min  # below the key of any score
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for begin in range(0, n, tile):
        scores = queries @ items[begin : begin + tile].T
        if similarity is not None:
            scores.mul_(similarity[0][begin : begin + tile]).add_(similarity[1][begin : begin + tile])
        stop_at_nan(scores.isnan().any(dim=1))
        ids = torch.arange(begin, begin + scores.shape[1], device=queries.device)
        gone = None
        if hidden is not None:  # with a column for those that are not in this tile
            inside = (hidden >= begin) & (hidden < begin + len(ids))
            gone = scores.new_zeros(len(scores), len(ids) + 1, dtype=torch.bool)
            gone = gone.scatter_(1, torch.where(inside, hidden - begin, len(ids)), True)[:, :-1]
        shown = scores if gone is None else scores.masked_fill(gone, float("-inf"))
        values, place = shown.topk(min(k, len(ids)), dim=1)
        keys = _keys(values, ids[place])
        # Of equal scores at the end topk takes any, and a hidden item looks like one that scores -inf.
        unsure = ((shown >= values[:, -1:]).sum(dim=1) > keys.shape[1]) | values[:, -1].isneginf()
        if bool(unsure.any()):
            every = _keys(scores[unsure], ids.expand(int(unsure.sum()), -1))
            every = every if gone is None else every.masked_fill(gone[unsure], nothing)
            keys[unsure] = every.topk(keys.shape[1], dim=1).values
        best = torch.cat([best, keys], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    order = (best >> 32).int()
    scores = torch.where(order < 0, order ^ 0x7FFFFFFF, order).view(torch.float32)
    left = best > nothing
    return torch.where(left, 0xFFFFFFFF - (best & 0xFFFFFFFF), n), scores.masked_fill(~left, float("-inf"))


def _keys(scores: Tensor, ids: Tensor) -> Tensor:
    """One int64 for each score, that orders by score, then by smaller id. Bits of positive floats order as integers,
    those of negative ones the other way round; adding 0 makes -0 the 0 that it equals."""
    bits = (scores + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32 | 0xFFFFFFFF - ids


def _check(queries: Tensor, items: Tensor, similarity: tuple[Tensor, Tensor] | None, hidden: Tensor | None) -> None:
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1] or not len(items):
        raise InputError(f"queries and items: expected (B, d) and (N, d), not {tuple(queries.shape)} and "
                         f"{tuple(items.shape)}.")
    if {t.dtype for t in (queries, items, *(similarity or ()))} != {torch.float32}:
        raise InputError("queries, items and similarity: expected float32.")
    if similarity is not None and any(t.shape != items.shape[:1] for t in similarity):
        raise InputError(f"similarity: expected a factor and a summand for each of {len(items)} items.")
    if hidden is not None and (hidden.ndim != 2 or len(hidden) != len(queries) or not _within(hidden, len(items) + 1)):
        raise InputError(f"hidden: expected rows of ids up to {len(items)}, one for each of {len(queries)} queries.")


def _within(ids: Tensor, end: int) -> bool:
    """int64 ids that are all in 0…end-1."""
    return ids.dtype == torch.int64 and bool(((ids >= 0) & (ids < end)).all())
