"""What happened: the catalogue and who interacted with what, as two plain frames."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from nullrec_lib.data.times import interpret
from nullrec_lib.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue of N items and the interactions of U users.

    Item ids are 0…N-1 in catalogue order, user ids 0…U-1 in order of first appearance. An item without
    interactions stays in the catalogue: it is ranked like any other (a cold item).
    """

    name: str
    items: pd.DataFrame
    """One row per item, row i = item id i; columns `item_id`, `title`, `description`, all str. Both texts are empty
    where the source holds none, as with data that bring embeddings instead."""
    interactions: pd.DataFrame
    """Columns `user` (int64), `item` (int64), `timestamp` (float64, Unix seconds or positions).
    Sorted by user, then timestamp; equal timestamps stay in source order."""
    user_ids: np.ndarray
    """(U,) the source's user ids, str."""
    clock: str
    """`time`: timestamps are comparable across users. `position`: they only order one user's sequence."""
    notes: tuple[str, ...] = ()
    """What was recognised, cut or dropped by rule, one sentence each; printed, never silent."""
    truth: Any = field(default=None, repr=False)
    """The generating factors, where the data set is generated."""
    embeddings: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Item embeddings that came with the data, by name: (N, d) float32 each, as they came."""
    given: np.ndarray | None = field(default=None, repr=False)
    """(n_interactions,) int8, where the data bring their own split: 1, 2, 3 for a target of training, validation
    and test, 0 for what is only history. A "user" is then a run of examples of one part."""

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def n_interactions(self) -> int:
        return len(self.interactions)

    def lengths(self) -> np.ndarray:
        """(U,) int64: interactions per user; 0 where every interaction of the user was cut away."""
        return np.bincount(self.interactions["user"], minlength=self.n_users)

    def popularity(self) -> np.ndarray:
        """(N,) int64: interactions per item over the *whole* set. For description only: what a model reads
        must come from the training part (`splits.Split.popularity`)."""
        return np.bincount(self.interactions["item"], minlength=self.n_items)

    def fingerprint(self) -> str:
        """16 hex digits over everything a run can read: item texts, ids, interactions, clock, and the embeddings
        and split that came with them."""
        # As JSON, since texts joined by a separator read the same when one moves into the next column.
        texts = self.items[["item_id", "title", "description"]].to_numpy(object).tolist()
        digest = hashlib.sha256(json.dumps([self.clock, texts]).encode())
        for column in ("user", "item", "timestamp"):
            digest.update(np.ascontiguousarray(self.interactions[column].to_numpy()).tobytes())
        came = self.embeddings if self.given is None else self.embeddings | {"": self.given}
        for name, rows in came.items():
            digest.update(json.dumps([name, rows.shape]).encode() + np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()[:16]

    def items_fingerprint(self) -> str:
        """16 hex digits over the items' ids and texts in their order: what profiles and embeddings of items are made of."""
        texts = self.items[["item_id", "title", "description"]].to_numpy(object).tolist()
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def has_text(self) -> np.ndarray:
        """(N,) bool: items with a title or a description."""
        return ((self.items["title"] != "") | (self.items["description"] != "")).to_numpy()

    def ids_fingerprint(self) -> str:
        """16 hex digits over the users' ids in their order, which no run reads but profiles are found by."""
        return hashlib.sha256(json.dumps(list(map(str, self.user_ids))).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Counts for a table or a JSON line; density in percent of users × items, sparsity what is left of 100."""
        lengths = self.lengths()
        text = self.items["title"].str.len() > 0
        density = 100 * self.n_interactions / (self.n_users * self.n_items)
        return {
            "name": self.name,
            "n_users": self.n_users,
            "n_items": self.n_items,
            "n_interactions": self.n_interactions,
            "density_percent": round(density, 4),
            "sparsity_percent": round(100 - density, 4),
            "mean_length": round(float(lengths.mean()), 2),
            "shortest": int(lengths.min()),
            "longest": int(lengths.max()),
            "items_never_seen": int((self.popularity() == 0).sum()),
            "repeated_interactions": int(self.interactions.duplicated(["user", "item"]).sum()),
            "items_with_title": int(text.sum()),
            "items_with_description": int((self.items["description"].str.len() > 0).sum()),
            **{f"embeddings {name}": "{} x {}".format(*rows.shape) for name, rows in self.embeddings.items()},
            "clock": self.clock,
            "first_timestamp": float(self.interactions["timestamp"].min()),
            "last_timestamp": float(self.interactions["timestamp"].max()),
            "fingerprint": self.fingerprint(),
            "notes": list(self.notes),
        }


def assemble(
    name: str,
    items: pd.DataFrame,
    interactions: pd.DataFrame,
    clock: str = "auto",
    notes: tuple[str, ...] = (),
    truth: Any = None,
    unit: str = "seconds",
) -> Dataset:
    """Build a `Dataset` from frames that still carry the source's ids.

    Args:
        items: columns `item_id`, `title`, `description` (str, unique `item_id`).
        interactions: columns `user_id`, `item_id` (str) and `timestamp` (float, finite), in source order.
        clock: `time` or `position`, or `auto`: see `times.interpret`.
        unit: of timestamps by the source's layout, one of `times.UNITS`.

    Raises:
        InputError: unknown clock, no rows, an item twice in the catalogue or missing from it, or a timestamp
            that is not finite.
            Readers check the same with file and line; this is the last line of defence.
    """
    if items.empty or interactions.empty:
        raise InputError(f"{name}: there are no {'items' if items.empty else 'interactions'}.")
    if (again := items["item_id"].duplicated()).any():
        raise InputError(f"{name}: item {items['item_id'][again].iloc[0]!r} is in the catalogue twice.")
    values = interactions["timestamp"].to_numpy(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name}: a timestamp is not a finite number.")
    item_code = pd.Index(items["item_id"]).get_indexer(interactions["item_id"])
    if (item_code < 0).any():
        missing = interactions["item_id"].iloc[int(np.argmax(item_code < 0))]
        raise InputError(f"{name}: item {missing!r} has an interaction but is not in the catalogue.")
    user_code, user_ids = pd.factorize(interactions["user_id"])
    values, clock, more = interpret(values, user_code, unit, clock)
    frame = pd.DataFrame({
        "user": user_code.astype(np.int64), "item": item_code.astype(np.int64), "timestamp": values,
    }).sort_values(["user", "timestamp"], kind="stable", ignore_index=True)
    return Dataset(
        name=name,
        items=items[["item_id", "title", "description"]].reset_index(drop=True),
        interactions=frame,
        user_ids=np.asarray(user_ids, dtype=object),
        clock=clock,
        notes=(*notes, *more),
        truth=truth,
    )


def core(dataset: Dataset, n: int | None) -> Dataset:
    """The n-core: users and items with fewer than n interactions go, over and over, until none is left to go.

    Items go from the catalogue too, so none of the rest is cold; repeated interactions count each time. Ids are
    counted anew, in the same order. None keeps all.

    Raises:
        InputError: n is below 1, nothing is left, or the data bring their own split.
    """
    if n is None:
        return dataset
    if n < 1:
        raise InputError(f"core: {n} is below 1.")
    _has_users(dataset, f"core={n}")
    user, item = dataset.interactions["user"].to_numpy(), dataset.interactions["item"].to_numpy()
    kept = np.arange(len(user))
    while True:
        stays = (np.bincount(user[kept])[user[kept]] >= n) & (np.bincount(item[kept])[item[kept]] >= n)
        if stays.all():
            break
        kept = kept[stays]
        if not len(kept):
            raise InputError(f"core: nothing of {dataset.name} is left with core={n}; give a smaller one.")
    users, user_code = np.unique(user[kept], return_inverse=True)
    items, item_code = np.unique(item[kept], return_inverse=True)
    frame = dataset.interactions.iloc[kept].reset_index(drop=True).assign(user=user_code, item=item_code)
    left = (f"{len(users):,} of {dataset.n_users:,} users, {len(items):,} of {dataset.n_items:,} items and "
            f"{len(kept):,} of {dataset.n_interactions:,} interactions")
    return replace(
        dataset,
        items=dataset.items.iloc[items].reset_index(drop=True),
        interactions=frame,
        user_ids=dataset.user_ids[users],
        notes=(*dataset.notes, f"core={n} left {left}."),
        truth=None,
        embeddings={name: rows[items] for name, rows in dataset.embeddings.items()},
    )


def cut(dataset: Dataset, keep: str | None) -> Dataset:
    """Keep each user's first or last interactions: `first:N`, `last:N`, or None for all.

    The catalogue is untouched, so items that lose every interaction become cold.

    Raises:
        InputError: `keep` is not `first:N` or `last:N` with N ≥ 1, or the data bring their own split.
    """
    if keep is None:
        return dataset
    side, _, count = str(keep).partition(":")
    if side not in ("first", "last") or not count.isdecimal() or int(count) < 1:
        raise InputError(f"keep: {keep!r} is not first:N or last:N with N of at least 1.")
    _has_users(dataset, f"keep={keep}")
    by_user = dataset.interactions.groupby("user", sort=False)
    rank = by_user.cumcount(ascending=side == "first")
    kept = dataset.interactions[rank < int(count)].reset_index(drop=True)
    note = f"keep={keep} left {len(kept):,} of {dataset.n_interactions:,} interactions."
    return replace(dataset, interactions=kept, notes=dataset.notes + (note,))


def _has_users(dataset: Dataset, wish: str) -> None:
    if dataset.given is not None:
        raise InputError(f"{dataset.name}: {wish} needs whole users, these data are examples of a split; leave it out.")
