"""A finished build as material for rewards: each subject with its prompt, what is around it and who is near."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.overlap import overlap
from nullrec_lib.profiles.build import resume
from nullrec_lib.profiles.loop import NEIGHBOURS, USERS, Loop, finished
from nullrec_lib.profiles.rewards import Reward
from nullrec_lib.profiles.visible import Visible


@dataclass(frozen=True, eq=False)
class Side:
    """S subjects of one kind, in the order of `Visible`."""

    kind: str
    """`user` (training users as a whole), `item`, or `cut` (users at cuts)."""
    ids: list[str]
    cuts: list[int | None]
    prompts: list[str]
    """What the last round asked."""
    texts: list[str]
    """What it answered."""
    reward: Reward


def open_build(folder: Path) -> tuple[Loop, Visible]:
    """The loop of a finished build and what it may see; embeds nothing.

    Raises:
        InputError: no finished build, or see `build.resume`.
    """
    if finished(folder) is None:
        raise InputError(f"{folder}: no build has finished here; `nullrec profiles build --out` makes one.")
    return resume(folder)


def sides(folder: Path, lambda_collab: float = 1.0, lambda_dist: float = 0.5) -> tuple[Loop, dict[str, Side]]:
    """The sides of a finished build, and its loop, to write more with.

    Around a user are the texts of the items of its training history, at a cut those of the first `cut` items; around an
    item the profiles of the users that it was made from, or where users have none the texts of the items in these
    users' training histories. Near a user are the training users of Eq. 5, near an item the items that share the largest
    part of its users. Nothing but `Visible` is looked at.

    Raises:
        InputError: no finished build, or one of other items than it would be of now.
    """
    loop, seen = open_build(folder)
    encode, said = loop.encode, loop.store.last()
    if (items := said.get(("item", False))) and [one.id for one, _ in items] != [loop.item_ids[n] for n in seen.subjects]:
        raise InputError(f"{folder}: its profiles are of other items than a build of these data would be of; build in "
                         "another folder.")
    made = {}
    make = lambda about, near, now: Reward(about, near, now, encode, lambda_collab, lambda_dist)
    whole = said.get(("user", False), [])
    users = encode([one.text for one, _ in whole]) if whole else None
    if whole:
        histories = [seen.history(user) for user in seen.users]
        made["user"] = _side("user", whole, make(_around(loop, histories), _near(loop, histories, seen.users), users))
    if cuts := said.get(("user", True)):
        histories = [seen.cut_history(place) for place in range(len(seen.cuts))]
        near = _near(loop, histories, seen.cuts[:, 0])
        # Neighbours are training users as a whole: rows of `user`.
        made["cut"] = _side("cut", cuts, make(_around(loop, histories), near, users))
    if items:
        now = encode([one.text for one, _ in items])
        of = [np.searchsorted(seen.users, ids) for ids in seen.users_of(USERS)]
        of_users = users if whole else _around(loop, [seen.history(user) for user in seen.users])
        made["item"] = _side("item", items, make(_means(of_users, of), _near_items(seen), now))
    return loop, made


def others(
    folder: Path, histories: list[np.ndarray], users: np.ndarray, lambda_collab: float, lambda_dist: float
) -> tuple[Loop, Side]:
    """A side like `cut` of `sides`, of histories that the build did not know; its `texts` are the extractive writer's.

    Raises:
        InputError: no finished build, or one without profiles of users.
    """
    loop, seen = resume(folder)
    said = loop.store.last()
    if ("user", False) not in said:
        raise InputError(f"{folder}: holds no profiles of users.")
    now = loop.encode([one.text for one, _ in said["user", False]])
    asked = loop.readers(histories, users, loop.told_last())
    reward = Reward(_around(loop, histories), _near(loop, histories, users), now, loop.encode, lambda_collab, lambda_dist)
    ids, lengths = [loop.user_ids[user] for user in users], [len(history) for history in histories]
    texts = loop.spare.write(asked, loop.seed)
    return loop, Side("cut", ids, lengths, [prompt.text for prompt in asked], texts, reward)


def _side(kind: str, said: list, reward: Reward) -> Side:
    return Side(kind, [one.id for one, _ in said], [one.cut for one, _ in said], [prompt for _, prompt in said],
                [one.text for one, _ in said], reward)


def _around(loop: Loop, histories: list[np.ndarray]) -> np.ndarray:
    """(S, d) mean embeddings of the texts of the items in each history; no other text is embedded."""
    items, place = np.unique(np.concatenate(histories), return_inverse=True)
    ends = np.cumsum([len(history) for history in histories])[:-1]
    return _means(loop.encode([loop.visible.texts[item] for item in items]), np.split(place, ends))


def _means(rows: np.ndarray, of: list[np.ndarray]) -> np.ndarray:
    """(S, d) means of rows over each list of row numbers; 0 for an empty one."""
    return np.stack([rows[some].mean(axis=0, dtype=np.float64) if len(some) else np.zeros(rows.shape[1]) for some in of])


def _near(loop: Loop, histories: list[np.ndarray], users: np.ndarray) -> np.ndarray:
    """(S, k) rows of `Visible.users` nearest to histories; -1 for nobody, and for users without a profile."""
    return _rows(loop.visible.users, loop.neighbours(histories, users).ids.numpy())


def _near_items(seen: Visible) -> np.ndarray:
    """(M, k) rows of `Visible.subjects` that share the largest part of each one's training users."""
    owner = torch.from_numpy(np.repeat(np.arange(len(seen.offsets) - 1), np.diff(seen.offsets)))
    ids = overlap(torch.from_numpy(seen.items), owner, NEIGHBOURS).ids.numpy()
    none = np.full((max(0, len(seen.texts) - len(ids)), NEIGHBOURS), -1)  # items after the last that is ever bought
    return _rows(seen.subjects, np.concatenate([ids, none])[seen.subjects])


def _rows(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Ids → places in the ascending `known`, -1 where they are not there."""
    if not len(known):
        return np.full(ids.shape, -1)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, place, -1)
