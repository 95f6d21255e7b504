"""All that profiles may know. What is built from it cannot leak what is not in it.

Three kinds of subject have a profile. An *item*. A training user as a *whole*, all of whose interactions train: these
profiles make those of the items, and are neighbours. And a user at a *cut*: the first `cut` items of the sequence,
for examples whose history has at least as many. Only the last kind may stand beside an example's history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nullrec_lib.data.interactions import Dataset
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.language.encoder import item_texts


@dataclass(frozen=True, eq=False)
class Visible:
    """Item texts, the training users' training interactions, and histories up to cuts. No target is among them but
    those that train."""

    titles: tuple[str, ...]
    """(N,) what an item is called; its text where it has no title."""
    texts: tuple[str, ...]
    """(N,) title and description."""
    users: np.ndarray
    """(W,) int64: training users that get a profile as a whole, ascending."""
    offsets: np.ndarray
    """(U+1,) int64: training history of user u is `items[offsets[u] : offsets[u + 1]]`, empty for others."""
    items: np.ndarray
    """(n,) int64: training interactions, every user's in time order."""
    cuts: np.ndarray
    """(C, 2) int64: user and cut of the profiles that stand beside histories, ascending."""
    cut_offsets: np.ndarray
    """(C+1,) int64: the history of cut c is `cut_items[cut_offsets[c] : cut_offsets[c + 1]]`, oldest first."""
    cut_items: np.ndarray
    """int64."""
    subjects: np.ndarray
    """(M,) int64: items that get a profile, ascending."""

    def history(self, user: int) -> np.ndarray:
        """(h,) int64: the training history of a user."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def cut_history(self, place: int) -> np.ndarray:
        """(cut,) int64: the history of row `place` of `cuts`."""
        return self.cut_items[self.cut_offsets[place] : self.cut_offsets[place + 1]]

    def users_of(self, most: int) -> list[np.ndarray]:
        """For each of `subjects` the users among `users` who have it, at most `most`: those first of whose history it
        is the largest part, ties by id."""
        lengths = np.diff(self.offsets)
        user = np.repeat(np.arange(len(lengths)), lengths)
        pairs = np.unique(np.stack([self.items, lengths[user], user], axis=1), axis=0)
        pairs = pairs[np.isin(pairs[:, 2], self.users)]
        first, last = (np.searchsorted(pairs[:, 0], self.subjects, side) for side in ("left", "right"))
        return [pairs[a : min(b, a + most), 2] for a, b in zip(first, last)]


def visible(
    dataset: Dataset, split: Split, cuts: tuple[int, ...] = (1, 3, 10), limit_users: int | None = None,
    seed: int = 22, template: str | None = None,
) -> Visible:
    """What may be seen under a split.

    An example with h items before its target is served by the largest of `cuts` that is not above h: of the user's
    items, its profile is told those of the history alone. (From the second round on it is told of them by profiles of
    items, and these are made of all training interactions, like a trained item table.) Under leave-one-out, where a user
    has one validation and one test example, these two have cuts of their own, as long as their histories.

    Args:
        cuts: lengths of history, ascending.
        limit_users: profiles of so many users only, drawn with `seed` from all, and of the items that those of them who
            train have in training; None is everybody. Neighbours are sought among all training users all the same.
        template: of the item texts, see `encoder.item_texts`.

    Raises:
        InputError: cuts that do not go up from at least 1, `limit_users` below 1, or no drawn user trains.
    """
    if not cuts or min(cuts) < 1 or list(cuts) != sorted(set(cuts)):
        raise InputError(f"cuts: {cuts} are not lengths of history that go up from at least 1.")
    if limit_users is not None and limit_users < 1:
        raise InputError(f"limit_users: {limit_users} is below 1.")
    count = len(split.offsets) - 1
    owner, items = split.training_interactions()
    lengths = np.bincount(owner, minlength=count)
    chosen = np.ones(count, bool)
    if limit_users is not None and limit_users < count:
        chosen[:] = False
        # Not the very draw by which a split without times parts its users: its first ones all train.
        chosen[np.random.default_rng([seed, 1]).permutation(count)[:limit_users]] = True

    asked = [_cuts(split, places, np.array(cuts)) for places in (split.train, split.valid, split.test)]
    if split.protocol == "leave-one-out":
        asked += [_before(split, places) for places in (split.valid, split.test)]
    pairs = np.unique(np.concatenate(asked), axis=0)
    pairs = pairs[chosen[pairs[:, 0]]]
    seen = [split.items[split.offsets[user] : split.offsets[user] + cut] for user, cut in pairs]
    cut_items = np.concatenate([*seen, np.zeros(0, np.int64)])

    users = np.flatnonzero(chosen & (lengths > 0))
    subjects = np.arange(split.n_items)
    if limit_users is not None:
        # Those of training interactions alone: which items have a profile must not tell what is held out.
        subjects = np.unique(items[chosen[owner]])
        if not len(users):
            raise InputError(f"limit_users: none of the {limit_users} drawn users trains; draw more, or by another seed.")
    texts = item_texts(dataset.items, template)
    if not any(texts):
        raise InputError(f"{dataset.name}: the items have no text, so there is nothing that profiles could be written from.")
    # Among others a prompt names an item without text by its id; that says as little of it as is known.
    texts = tuple(text or item_id for text, item_id in zip(texts, dataset.items["item_id"]))
    titles = tuple(title or text for title, text in zip(dataset.items["title"], texts))
    ends = lambda sizes: np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Visible(titles, texts, users, ends(lengths), items, pairs, ends([len(one) for one in seen]), cut_items,
                   subjects)


def served_by(split: Split, places: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """`served` of the examples with these targets."""
    return served(_before(split, places), cuts)


def served(examples: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """(n,) int64: row of `cuts` (see `Visible.cuts`) whose profile may stand beside each example (n, 2), user and items
    before the target: the longest that its history allows; -1 where there is none."""
    wide = int(max(examples[:, 1].max(initial=0), cuts[:, 1].max(initial=0))) + 1
    key = cuts[:, 0] * wide + cuts[:, 1]
    row = np.searchsorted(key, examples[:, 0] * wide + examples[:, 1], side="right") - 1
    return np.where((row >= 0) & (cuts[row, 0] == examples[:, 0]), row, -1)


def _before(split: Split, places: np.ndarray) -> np.ndarray:
    """(n, 2): user and number of items before each target."""
    user = split.user_of(places)
    return np.stack([user, places - split.offsets[user]], axis=1)


def _cuts(split: Split, places: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """(n, 2): user and cut that serve examples, without those that are too short for any."""
    example = _before(split, places)
    row = np.searchsorted(cuts, example[:, 1], side="right") - 1
    return np.stack([example[:, 0], cuts[row]], axis=1)[row >= 0]
