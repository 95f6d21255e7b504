"""Who is rare: tail and head, users and items, cold items; and the untouched items of sampled metrics.

All of it follows from the split, so every model is judged on the same groups and the same samples.
"""

from __future__ import annotations

import numpy as np

from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError

TAIL = 0.8
"""The Pareto rule: the least active 80% of users and the least popular 80% of items are the tail."""

SAMPLED = 100
"""Untouched items that a target is ranked with in sampled metrics, as in LLM-ESR."""


def groups(
    split: Split, part: str, tail_user: int | None = None, tail_item: int | None = None
) -> dict[str, np.ndarray]:
    """Which examples of a part belong to which group: name → (n_examples,) bool.

    `tail_user` and `head_user` by the interactions before the target, `tail_item` and `head_item` by the target's
    training interactions, their four combinations (`tail_user_tail_item`, …), and `cold_item`: targets that were
    never trained on. `repeated_item`: targets that the user has had before, and `new_item`: all others.

    Args:
        tail_user: users with fewer interactions are tail; None is the Pareto rule over the part's examples.
        tail_item: items with fewer training interactions are tail; None is the Pareto rule over the catalogue.
            (LLM-ESR's own thresholds are for counts with the held-out interactions in them.)

    Raises:
        InputError: a threshold below 1.
    """
    places = getattr(split, part)
    activity = places - split.offsets[split.user_of(places)]
    counts = split.popularity()
    popularity = counts[split.items[places]]
    limits = thresholds(split, part, tail_user, tail_item)
    user, item = activity < limits["tail_user"], popularity < limits["tail_item"]
    sides = {"tail_user": user, "head_user": ~user, "tail_item": item, "head_item": ~item}
    both = {f"{u}_{i}": sides[u] & sides[i] for u in ("tail_user", "head_user") for i in ("tail_item", "head_item")}
    again = ~split.first_times()[places]
    return sides | both | {"cold_item": popularity == 0, "new_item": ~again, "repeated_item": again}


def thresholds(split: Split, part: str, tail_user: int | None = None, tail_item: int | None = None) -> dict[str, int]:
    """The two numbers below which a user and an item are tail, given or by the Pareto rule.

    Raises:
        InputError: a threshold below 1.
    """
    places = getattr(split, part)
    values = {"tail_user": places - split.offsets[split.user_of(places)], "tail_item": split.popularity()}
    found = {}
    for name, given in (("tail_user", tail_user), ("tail_item", tail_item)):
        if given is not None and given < 1:
            raise InputError(f"{name}: {given} is below 1.")
        found[name] = int(_pareto(values[name]) if given is None else given)
    return found


def _pareto(values: np.ndarray) -> int:
    """Of the values that occur, the threshold whose share of smaller values is nearest to `TAIL`, the smaller of two
    equally near; so somebody is always head.

    Counts come in ties, so a share of exactly 80% is rarely to be had without parting equals by their number.
    """
    candidates = np.unique(values)
    below = np.searchsorted(np.sort(values), candidates) / len(values)
    return candidates[np.argmin(np.abs(below - TAIL).round(12))]


def untouched(split: Split, part: str, count: int = SAMPLED, seed: int = 22) -> np.ndarray:
    """(n_examples, count) int64: for each example distinct items that its user never touches, drawn uniformly.

    Held-out interactions count as touched (LLM-ESR): the sample is for judging, no model reads it. Examples of users
    who leave fewer than `count` items untouched get none, but a row of N: among fewer items a target would rank higher,
    so they have no place in a sampled figure. What others get does not depend on them.
    """
    places = getattr(split, part)
    user, row = np.unique(split.user_of(places), return_inverse=True)
    touched = [np.unique(split.items[split.offsets[u] : split.offsets[u + 1]]) for u in user]
    allowed = split.n_items - np.array([len(items) for items in touched], dtype=np.int64)
    sampled = np.flatnonzero(allowed >= count)
    drawn = np.full((len(user), count), split.n_items)
    rng = np.random.default_rng(seed)
    for start in range(0, len(sampled), 1024):
        block = sampled[start : start + 1024]
        picks = np.empty((len(block), count), dtype=np.int64)
        # Floyd's algorithm for all users at once: the j-th draw is from 0…j, and j itself where that was drawn before.
        for column in range(count):
            last = allowed[block] - count + column
            pick = (rng.random(len(block)) * (last + 1)).astype(np.int64)
            again = (picks[:, :column] == pick[:, None]).any(axis=1)
            picks[:, column] = np.where(again, last, pick)
        for owner, pick in zip(block, picks):
            # Of the untouched items the pick-th has as many touched ones below it as those that it must pass.
            passed = np.searchsorted(touched[owner] - np.arange(len(touched[owner])), pick, side="right")
            drawn[owner] = pick + passed
    return drawn[row.reshape(-1)]


def left_out(split: Split, sampled: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(n_examples,) bool: those that have no sampled items by `untouched`; and the notes on them, if there are any."""
    without = (sampled == split.n_items).any(axis=1)
    if not without.any():
        return without, []
    why = f"fewer than {sampled.shape[1]} of the {split.n_items:,} items untouched; all-item figures count everybody."
    if without.all():
        return without, [f"There are no sampled figures: all {len(without):,} test users leave {why}"]
    return without, [f"Sampled figures leave out {int(without.sum()):,} of {len(without):,} test users, who leave {why}"]
