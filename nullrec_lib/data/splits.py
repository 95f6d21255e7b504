"""Which interactions train, validate and test: cold-start users, leave-one-out, or the split that data bring.

A split is three lists of *targets*, each a place in one flat sequence of items. What an example may see is
everything of the same user before its target, so a split holds no histories and cannot leak one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from nullrec_lib.data.interactions import Dataset
from nullrec_lib.errors import InputError

OF_USERS = ("cold-start", "leave-one-out")
PROTOCOLS = (*OF_USERS, "given")


@dataclass(frozen=True, eq=False)
class Split:
    """Targets of the three parts, as places in the users' concatenated sequences."""

    protocol: str
    n_items: int
    items: np.ndarray
    """(n,) int64: every user's items in time order, users one after the other."""
    offsets: np.ndarray
    """(U+1,) int64: user u owns places offsets[u] … offsets[u+1]-1."""
    train: np.ndarray
    """(n_train,) int64 places of training targets, ascending; `valid` and `test` likewise."""
    valid: np.ndarray
    test: np.ndarray
    owned: np.ndarray
    """(n,) bool: interactions of the training part, the only ones that popularity, neighbourhoods and the
    like may count."""
    notes: tuple[str, ...] = ()

    def user_of(self, places: np.ndarray) -> np.ndarray:
        """User ids of places in `items`."""
        return np.searchsorted(self.offsets, places, side="right") - 1

    def first_times(self) -> np.ndarray:
        """(n,) bool: interactions with an item that the same user has not had before."""
        pairs = self.user_of(np.arange(len(self.items))) * self.n_items + self.items
        first = np.zeros(len(pairs), bool)
        first[np.unique(pairs, return_index=True)[1]] = True
        return first

    def training_interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """(users, items), both (n_owned,) int64, each user's in time order."""
        places = np.flatnonzero(self.owned)
        return self.user_of(places), self.items[places]

    def popularity(self) -> np.ndarray:
        """(N,) int64: interactions per item in the training part."""
        return np.bincount(self.items[self.owned], minlength=self.n_items)

    def fingerprint(self) -> str:
        """16 hex digits over the sequences and the three parts."""
        digest = hashlib.sha256(self.protocol.encode())
        for array in (self.items, self.offsets, self.train, self.valid, self.test, self.owned):
            # The shape too: it says where one array ends and the next begins.
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """Examples per part, training interactions, and items that are never trained on."""
        return {
            "train_examples": len(self.train),
            "valid_examples": len(self.valid),
            "test_examples": len(self.test),
            "train_interactions": int(self.owned.sum()),
            "cold_items": int((self.popularity() == 0).sum()),
        }


def split(dataset: Dataset, protocol: str, min_history: int = 1, seed: int = 22) -> Split:
    """Split a data set by one of `PROTOCOLS`.

    Args:
        protocol: data that bring their own split take `given`, and nothing else: their rows name no users, so
            there are no users to split.
        min_history: items in the shortest history of an example; 0 makes each user's first item a target too.
            Not read by `given`, whose rows say which examples there are.
        seed: of the user shuffle that replaces time where the data set has positions only (cold-start).

    Raises:
        InputError: unknown protocol, or not one for these data; min_history below 0, a part that would have no
            example, or a catalogue of one item.
    """
    if min_history < 0:
        raise InputError(f"min_history: {min_history} is below 0.")
    if dataset.n_items < 2:
        raise InputError(f"split: {dataset.name} has only {dataset.n_items} item, so there is nothing to rank; give data of "
                         "two items or more.")
    if protocol in PROTOCOLS and (protocol == "given") != (dataset.given is not None):
        have = "bring no split of their own" if protocol == "given" else "bring their own split and name no users"
        use = " or ".join(OF_USERS) if protocol == "given" else "given"
        raise InputError(f"split: {dataset.name} cannot be split by {protocol}, its files {have}; use {use}.")
    lengths = dataset.lengths()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if protocol == "cold-start":
        parts = _cold_start(dataset, offsets, min_history, seed)
    elif protocol == "leave-one-out":
        parts = _leave_one_out(offsets, min_history)
    elif protocol == "given":
        parts = _given(dataset.given, offsets)
    else:
        raise InputError(f"split: {protocol!r} is not one of {', '.join(PROTOCOLS)}.")
    train, valid, test, owned, notes = parts
    for name, places in (("training", train), ("validation", valid), ("test", test)):
        if len(places) == 0:
            raise InputError(
                f"split: {dataset.name} leaves the {name} part of {protocol} without an example: "
                f"{dataset.n_users} users with {lengths.min()} to {lengths.max()} interactions are too few or too "
                "short; give more data or another split."
            )
    items = dataset.interactions["item"].to_numpy(np.int64, copy=True)  # pandas hands out read-only views
    return Split(protocol, dataset.n_items, items, offsets, train, valid, test, owned, tuple(notes))


def _cold_start(dataset: Dataset, offsets: np.ndarray, min_history: int, seed: int):
    """Users in order of their last interaction: oldest 80% train, next 10% validation, newest 10% test."""
    lengths = np.diff(offsets)
    users = np.flatnonzero(lengths > 0)
    notes = []
    if dataset.clock == "time":
        last = dataset.interactions["timestamp"].to_numpy()[offsets[users + 1] - 1]
        order = users[np.argsort(last, kind="stable")]
    else:
        order = np.random.default_rng(seed).permutation(users)
        notes.append(f"Users were split by a shuffle with seed {seed}: the data set has no times.")
    first, second = int(0.8 * len(order)), int(0.9 * len(order))
    group = np.full(len(lengths), -1)
    for index, members in enumerate((order[:first], order[first:second], order[second:])):
        group[members] = index

    short = int((lengths[users] <= min_history).sum())
    if short:
        notes.append(f"{short:,} users are too short for an example with min_history={min_history}.")
    place = np.arange(offsets[-1])
    owner = np.repeat(group, lengths)
    eligible = place - np.repeat(offsets[:-1], lengths) >= min_history
    parts = [place[eligible & (owner == index)] for index in range(3)]
    return *parts, owner == 0, notes


def _leave_one_out(offsets: np.ndarray, min_history: int):
    """Last item test, the one before validation, the rest training."""
    lengths = np.diff(offsets)
    notes = []
    # Two held-out items, and before them at least one that trains and is the validation example's history.
    long_enough = lengths >= 2 + max(min_history, 1)
    short = int((~long_enough & (lengths > 0)).sum())
    if short:
        notes.append(f"{short:,} users are too short for leave-one-out: all of their items train, none is a test.")
    held_out = np.where(long_enough, 2, 0)
    place = np.arange(offsets[-1])
    owned = place < np.repeat(offsets[1:] - held_out, lengths)
    train = place[owned & (place - np.repeat(offsets[:-1], lengths) >= min_history)]
    last = offsets[1:][long_enough] - 1
    return train, last - 1, last, owned, notes


def _given(role: np.ndarray, offsets: np.ndarray):
    """As the files have it: every run of examples belongs to one part, and those of training own what they hold."""
    part = np.maximum.reduceat(role, offsets[:-1])
    return *(np.flatnonzero(role == index) for index in (1, 2, 3)), np.repeat(part == 1, np.diff(offsets)), []
