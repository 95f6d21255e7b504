"""Who shares whose interests: the other users with the largest part of a user's items."""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from nullrec_lib.errors import InputError


class Neighbours(NamedTuple):
    """The users nearest to each of Q item sets, nearest first."""

    ids: Tensor
    """(Q, k) int64 user ids; -1 where fewer than k users share an item."""
    score: Tensor
    """(Q, k) float64: share of the query's items that the neighbour has, in (0, 1]; 0 where there is no neighbour."""


class Queries(NamedTuple):
    """Q item sets to find neighbours of, such as the visible histories of examples; repeated items count once."""

    offsets: Tensor
    """(Q+1,) int64, not descending, from 0: query q owns items[offsets[q] : offsets[q+1]]."""
    items: Tensor
    """(offsets[-1],) int64, not negative; an item that no user has counts in the set's size."""
    own: Tensor | None = None
    """(Q,) int64: a user that is no neighbour of query q, as the query is of that user; -1 for none."""


def overlap_naive(users: Tensor, items: Tensor, k: int, queries: Queries | None = None) -> Neighbours:
    """The reference of `overlap`, with Python's sets."""
    sets = [set() for _ in range(max(users.tolist(), default=-1) + 1)]
    for user, item in zip(users.tolist(), items.tolist()):
        sets[user].add(item)
    asked, own = sets, range(len(sets))
    if queries is not None:
        ends, own = queries.offsets.tolist(), [-1] * (len(queries.offsets) - 1) if queries.own is None else queries.own
        asked = [set(queries.items[first:last].tolist()) for first, last in zip(ends, ends[1:])]
    ids = torch.full((len(asked), k), -1)
    score = torch.zeros(len(asked), k, dtype=torch.float64)
    for q, wanted in enumerate(asked):
        shared = sorted((-len(wanted & has), user) for user, has in enumerate(sets) if wanted & has and user != own[q])
        for rank, (count, user) in enumerate(shared[:k]):
            ids[q, rank], score[q, rank] = user, -count / len(wanted)
    return Neighbours(ids, score)


def overlap(users: Tensor, items: Tensor, k: int, queries: Queries | None = None) -> Neighbours:
    """The k users u' with the largest s(u, u') = |V_u ∩ V_u'| / |V_u| for every user or query u; V is a set of items.

    Intersections are counted in whole numbers, so the order is exact; ties go to the smaller user id, and a user
    without a shared item is no neighbour. Counted from lists of each item's users: no users × users matrix.

    Args:
        users, items: (n,) integers, not negative: who has what, in any order; a repeated pair counts once. User ids are
            0…U-1 with U = the largest + 1 (a user without items has, and is, no neighbour); scratch memory grows with
            the largest user and item id.
        k: neighbours of each, at least 1.
        queries: the sets to find neighbours of; by default every user's own, with the user left out.

    Returns: neighbours of the U users, or of the queries, on the device of `users`. The work is done on the CPU
        wherever the input lies: once per data set, in whole numbers and with scattered reads, it gains little from a
        GPU.

    Raises:
        InputError: ids that are not whole, negative or of unlike number, k below 1, or queries that do not fit.
    """
    if not isinstance(k, Integral) or k < 1:
        raise InputError(f"k: {k!r} is not a whole number of at least 1.")
    users, device = _ids("users", users), users.device
    items = _ids("items", items)
    if len(users) != len(items):
        raise InputError(f"users and items: {len(users)} and {len(items)} ids are not pairs.")
    if queries is not None:
        queries = _checked(queries)

    from nullrec_lib.kernels.overlap_cpu import neighbours  # compiles when first used

    ids, score = neighbours(users, items, k, queries)
    return Neighbours(torch.from_numpy(ids).to(device), torch.from_numpy(score).to(device))


def _ids(name: str, ids: Tensor, least: int = 0) -> Tensor:
    """(n,) int64 on the CPU, contiguous."""
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"{name}: {ids.dtype} of shape {tuple(ids.shape)} is not (n,) integers.")
    ids = ids.detach().cpu().long().contiguous()
    if len(ids) and int(ids.min()) < least:
        raise InputError(f"{name}: row {int((ids < least).int().argmax())} is {int(ids[ids < least][0])}, not an id.")
    return ids


def _checked(queries: Queries) -> Queries:
    offsets, items = _ids("queries.offsets", queries.offsets), _ids("queries.items", queries.items)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items) or (offsets.diff() < 0).any():
        raise InputError(f"queries.offsets: they do not go up from 0 to the {len(items)} items.")
    count = len(offsets) - 1
    own = torch.full((count,), -1) if queries.own is None else _ids("queries.own", queries.own, least=-1)
    if len(own) != count:
        raise InputError(f"queries.own: {len(own)} ids are not one for each of the {count} queries.")
    return Queries(offsets, items, own)
