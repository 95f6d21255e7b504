"""Profiles as a recommender reads them: item vectors in place of the texts', user vectors beside histories."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, read_tensors, write_tensors
from nullrec_lib.language.encoder import embed_texts
from nullrec_lib.profiles.build import read_asked
from nullrec_lib.profiles.loop import finished
from nullrec_lib.profiles.store import Store

VECTORS = "vectors.safetensors"


@dataclass(frozen=True, eq=False)
class Vectors:
    """Unit-norm embeddings of profiles, float32, by the source's ids."""

    item_ids: list[str]
    items: np.ndarray
    """(M, d) of the items that have a profile."""
    user_ids: list[str]
    cuts: np.ndarray
    """(C,) int64: items of the history that a user's profile was made from."""
    users: np.ndarray
    """(C, d)."""
    about: dict
    """What made them; `split_fingerprint` and `encoder` among it."""


@dataclass(frozen=True, eq=False)
class UserProfiles:
    """What a method may put beside histories: profiles of users at cuts, ascending by user and cut."""

    cuts: Tensor
    """(C, 2) int64: user and cut."""
    rows: Tensor
    """(C, d) float32 unit norm."""


def identity(folder: Path) -> str:
    """SHA-256 of what a folder of profiles gives a recommender.

    Raises:
        InputError: see `load`.
    """
    path = Path(folder) / VECTORS
    if path.is_file():
        return _sha256(path, path.stat().st_mtime_ns)
    if finished(folder) is None:
        raise InputError(f"profiles: in {folder} no build has finished; `nullrec profiles build --out` makes one.")
    base = Path(folder) / "profiles.sqlite"
    return _texts_sha256(base, (Path(folder) / "build.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache(maxsize=8)
def _texts_sha256(base: Path, changed: int) -> str:
    asked = read_asked(base.parent)
    said = [(one.kind, one.id, one.cut, one.text) for some in Store(base.parent).last().values() for one, _ in some]
    return hashlib.sha256(json.dumps([asked["encoder"], sorted(said, key=str)]).encode()).hexdigest()


def load(folder: Path) -> Vectors:
    """The vectors in a folder: those that were stored as such, or the embeddings of a build's last profiles.

    Raises:
        InputError: there are none, or they are damaged.
    """
    path = Path(folder) / VECTORS
    if path.is_file():
        return _read(path)
    identity(folder)
    asked = read_asked(folder)
    said = Store(folder).last()
    items, cuts = ([one for one, _ in said.get(key, [])] for key in (("item", False), ("user", True)))
    if not items and not cuts:
        raise InputError(f"profiles: {folder} holds none of items and none of users at cuts.")
    rows = embed_texts([one.text for one in [*items, *cuts]], asked["encoder"])
    return Vectors([one.id for one in items], rows[: len(items)], [one.id for one in cuts],
                   np.array([one.cut for one in cuts], np.int64), rows[len(items) :], asked)


def store(folder: Path, vectors: Vectors) -> None:
    """Write vectors into a folder, with what made them."""
    tensors = {"items": vectors.items, "users": vectors.users, "cuts": vectors.cuts}
    about = vectors.about | {"item_ids": vectors.item_ids, "user_ids": vectors.user_ids}
    write_tensors(Path(folder) / VECTORS, {name: torch.from_numpy(rows) for name, rows in tensors.items()}, about)


def _read(path: Path) -> Vectors:
    tensors, about = read_tensors(path, ("items", "users", "cuts"), ("item_ids", "user_ids", "encoder", "split_fingerprint"),
                                  "remove it, and the same `nullrec profiles best` makes it again")
    items, users, cuts = (tensors[name].numpy() for name in ("items", "users", "cuts"))
    read = Vectors(about.pop("item_ids"), items, about.pop("user_ids"), cuts, users, about)
    if len(read.item_ids) != len(items) or not len(read.user_ids) == len(users) == len(cuts):
        raise DamagedFile(f"{path}: holds more vectors than ids, or fewer; make it again.")
    return read


def item_rows(vectors: Vectors, item_ids: list[str], texts: np.ndarray) -> np.ndarray:
    """(N, d) the items' vectors; an item without a profile has its text's, of `texts` (N, d).

    Raises:
        InputError: profiles of items that are not among `item_ids`, or vectors of another width than the texts'.
    """
    number = {name: row for row, name in enumerate(item_ids)}
    if unknown := [name for name in vectors.item_ids if name not in number]:
        raise InputError(f"profiles: they are of other items than these data have, such as {unknown[0]!r:.60}; build profiles "
                         "of these data.")
    if len(vectors.items) and vectors.items.shape[1] != texts.shape[1]:
        raise InputError(f"profiles: their vectors have {vectors.items.shape[1]} dimensions and those of the texts "
                         f"{texts.shape[1]}; embed both by one encoder.")
    rows = texts.copy()
    if len(vectors.items):
        rows[[number[name] for name in vectors.item_ids]] = vectors.items
    return rows


def beside_histories(vectors: Vectors, user_ids: list[str], trained: np.ndarray, validates: np.ndarray,
                     shuffled: int | None = None) -> UserProfiles | None:
    """The users' vectors by user number; None where there are none.

    Args:
        trained: (U,) training interactions of each user.
        validates: (U,) whether what a user holds out is for validation alone.
        shuffled: a seed: the control in which users have each other's vectors, see `_shuffled`.
    """
    if not len(vectors.users):
        return None
    number = {name: row for row, name in enumerate(user_ids)}
    cuts = np.stack([[number[name] for name in vectors.user_ids], vectors.cuts], axis=1).astype(np.int64)
    order = np.lexsort((cuts[:, 1], cuts[:, 0]))
    cuts, rows = cuts[order], vectors.users[order]
    if shuffled is not None:
        part = np.where(cuts[:, 1] <= trained[cuts[:, 0]], 0, np.where(validates[cuts[:, 0]], 1, 2))
        taken = _shuffled(cuts, part, shuffled)
        cuts, rows = cuts[taken >= 0], rows[taken[taken >= 0]]
        if not len(cuts):
            return None
    return UserProfiles(torch.from_numpy(cuts), torch.from_numpy(rows))


def _shuffled(cuts: np.ndarray, part: np.ndarray, seed: int) -> np.ndarray:
    """(C,) the row whose vector each row of `cuts` (user and cut) gets: another user's, of the same cut or the nearest
    ones; -1 for who is left with a vector of its own, since nobody else has one there. What is made of training
    interactions alone, of validation users' and of the others' (`part` 0, 1, 2) goes to its like: no training example may
    read what somebody holds out, and no validation example what is there to test."""
    taken = np.arange(len(cuts))
    for some in (np.flatnonzero(part == number) for number in range(3)):
        # Around a ring by cut, in a drawn order within each, by the fewest steps that bring everybody another's.
        ring = some[np.lexsort((np.random.default_rng(seed).permutation(len(some)), cuts[some, 1]))]
        turns = [np.roll(ring, steps) for steps in range(1, min(len(ring), 100))]
        if turns:
            taken[ring] = min(turns, key=lambda turned: int((cuts[turned, 0] == cuts[ring, 0]).sum()))
    return np.where(cuts[taken, 0] == cuts[:, 0], -1, taken)
