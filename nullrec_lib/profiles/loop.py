"""The bidirectional loop: user profiles make item profiles, which make user profiles, until both settle.

    p_u^(0)   = M(items of u, items of its neighbours)          (Eq. 6)
    p_v^(t)   = M(profiles p_u^(t) of v's users, text of v)     (Eq. 7)
    p_u^(t+1) = M(items of u, each with its profile p_v^(t))    (Eq. 8)

The loop runs over training users as a whole and over items. When it ends, the users at their cuts get a profile as the
whole users got their last one. Run again, it asks the store first and goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, read_json, write_json
from nullrec_lib.kernels.overlap import Neighbours, Queries, overlap
from nullrec_lib.language.writers import Prompt, Writer
from nullrec_lib.language.writers.extractive import Extractive
from nullrec_lib.profiles import prompts
from nullrec_lib.profiles.convergence import Rate, distances, geometric_rate, mean_cosine
from nullrec_lib.profiles.store import BUILT, Store, Text
from nullrec_lib.profiles.visible import Visible
from nullrec_lib.progress import bar

MODES = ("full", "single-pass", "user-only", "item-only")
"""All of the loop; its first pass; users from items alone; items from their users' histories, without user profiles."""
NEIGHBOURS, THEIR_ITEMS, USERS = 10, 5, 50
"""Neighbours of a user, items told of each (the newest that the user has not), and users told of an item."""
COMPARED = 500
"""Subjects per side, at most, whose profiles are embedded to see how far they moved: a seeded sample."""

AGAIN = 100
"""Prompts of the last round, at most, that are answered under a second seed."""

Encode = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class Round:
    """What one side did in one round."""

    side: str
    """`user`, `item` or `cut` (users at cuts, once, at the end)."""
    round: int
    profiles: int
    written: int
    """Of them in this call; the others were stored, or asked for twice."""
    fallbacks: int
    """Profiles whose text is the extractive one, because the writer's was no use twice."""
    seconds: float
    distance: float | None = None
    """Mean √(2 − 2cos) to the round before, over the sample."""
    cosine_distance: float | None = None
    """Mean 1 − cos to the round before: what the loop stops by."""
    homogenisation: float | None = None
    """Mean cosine over pairs of the sample's profiles."""


@dataclass
class Built:
    """What a build did; stored as `build.json`, with what was asked for."""

    asked: dict[str, Any]
    rounds: list[Round] = field(default_factory=list)
    converged: bool = False
    rates: dict[str, Rate | None] = field(default_factory=dict)
    """Side → geometric rate of its distances."""
    floor: float | None = None
    """Mean distance between two texts of one prompt under two seeds: what chance alone moves. Rounds share a seed, so that
    where nothing changes any more their distance is 0 all the same."""
    usage: dict[str, float] = field(default_factory=dict)
    """What the writer spent in this call: prompts, tokens, seconds."""
    neighbour_overlap: list[list[float]] = field(default_factory=list)
    """(users compared, NEIGHBOURS) share of a training user's items that its neighbours have (Eq. 5), nearest first."""


def finished(folder: Path) -> Built | None:
    """The record of the build in a folder, if it has finished.

    Raises:
        DamagedFile: it is not whole.
    """
    path = Path(folder) / BUILT
    if not path.exists():
        return None
    told = read_json(path, ["asked", "rounds", "rates"], "remove it, and `nullrec profiles build` as before makes it again")
    try:
        told["rounds"] = [Round(**done) for done in told["rounds"]]
        told["rates"] = {side: rate and Rate(**rate) for side, rate in told["rates"].items()}
        return Built(**told)
    except (TypeError, AttributeError):
        raise DamagedFile(f"{path}: is no record of a build; remove it, and the same command makes it again.") from None


def plan(visible: Visible, mode: str, rounds: int) -> dict[str, int]:
    """How many texts a build writes at most, by side and in all: what it may cost, before anything is written. `again`
    are those under a second seed, see `Built.floor`.

    Raises:
        InputError: an unknown mode, or rounds below 1.
    """
    if mode not in MODES:
        raise InputError(f"mode: {mode!r} is not one of {', '.join(MODES)}.")
    if rounds < 1:
        raise InputError(f"rounds: {rounds} is below 1.")
    passes = rounds if mode == "full" else 1
    sides = {"user": 0 if mode == "item-only" else len(visible.users) * passes,
             "item": 0 if mode == "user-only" else len(visible.subjects) * passes,
             "cut": 0 if mode == "item-only" else len(visible.cuts),
             "again": min(AGAIN, len(visible.subjects if mode == "item-only" else visible.users))}
    return sides | {"all": sum(sides.values())}


class Loop:
    """One build of profiles into one folder."""

    def __init__(self, visible: Visible, ids: tuple[Sequence[str], Sequence[str]], writer: Writer, folder: Path,
                 encode: Encode | None, seed: int = 22):
        """
        Args:
            visible: all that may be known.
            ids: the source's ids of users and items, by number.
            writer: who writes. Where its answer is no use twice, the extractive writer's stands in.
            folder: of the store.
            encode: texts → (n, d) float32 of unit norm, to see how far profiles moved; None does not look, and the
                loop then takes all its rounds.
            seed: of the writer, and of the sample of subjects that are compared.
        """
        self.visible, self.writer, self.seed, self.encode = visible, writer, seed, encode
        self.user_ids, self.item_ids = ids
        self.folder, self.store = Path(folder), Store(folder, create=True)
        self.spare = Extractive(visible.texts)

    def run(self, mode: str = "full", rounds: int = 3, epsilon: float = 0.01, asked: dict | None = None) -> Built:
        """Run the loop.

        Args:
            rounds: T, user and item profiles are written at most so often.
            epsilon: the loop ends when both sides moved less: mean cosine distance to the round before.
            asked: stored with the result.

        Raises:
            InputError: see `plan`, and `prompts.make`.
            WriterError: the writer cannot go on; what is written stays.
        """
        plan(self.visible, mode, rounds)
        built = Built(dict(asked or {}))
        moved: dict[str, list[np.ndarray]] = {"user": [], "item": []}
        last: dict[str, np.ndarray] = {}
        users = items = previous = None
        for t in range(rounds if mode == "full" else 1):
            if mode != "item-only":
                of_users = self._user_prompts(items)
                users = self._side("user", t, of_users, built, last, moved)
            if mode != "user-only":
                of_items = self._item_prompts(users)
                previous, items = items, self._side("item", t, of_items, built, last, moved)
            sides = [done for done in built.rounds if done.round == t]
            if t and self.encode and all(done.cosine_distance < epsilon for done in sides):
                built.converged = True
                break
        if mode != "item-only":  # as the whole users of the last round were made
            self._side("cut", t, self._cut_prompts(previous), built, last, moved)
        built.floor = self._floor("item", of_items) if mode == "item-only" else self._floor("user", of_users)
        built.rates = {side: geometric_rate(np.array(steps), self.seed) for side, steps in moved.items() if steps}
        built.usage = asdict(self.writer.usage)
        some = self.visible.users[self._sample(len(self.visible.users))]
        built.neighbour_overlap = self.neighbours([self.visible.history(user) for user in some], some).score.tolist()
        write_json(self.folder / BUILT, asdict(built))
        return built

    # What is asked

    def opening(self, mode: str) -> list[Prompt]:
        """The prompts that a build begins with: known before anything is written."""
        return self._item_prompts(None) if mode == "item-only" else self._user_prompts(None)

    def _user_prompts(self, items: list[str] | None) -> list[Prompt]:
        v = self.visible
        return self.readers([v.history(user) for user in v.users], v.users, items)

    def _cut_prompts(self, items: list[str] | None) -> list[Prompt]:
        v = self.visible
        return self.readers([v.cut_history(place) for place in range(len(v.cuts))], v.cuts[:, 0], items)

    def told_last(self) -> list[str] | None:
        """The item profiles that the last users' were made from, in a build that has finished; None where they were
        made without."""
        rounds = [done.round for done in finished(self.folder).rounds if done.side == "item"]
        return [one.text for one in self.store.profiles("item") if one.round == rounds[-2]] if len(rounds) > 1 else None

    def readers(self, histories: list[np.ndarray], users: np.ndarray, items: list[str] | None) -> list[Prompt]:
        """Prompts of users: without item profiles from items and neighbours (Eq. 6), with them from these (Eq. 8)."""
        v = self.visible
        if items is not None:
            said = dict(zip(v.subjects.tolist(), items))
            return [prompts.make("user", [self._with(item, said) for item in history], [], self.writer)
                    for history in histories]
        made = []
        for history, ids in zip(histories, self.neighbours(histories, users).ids.tolist()):
            has, ids = set(history.tolist()), [user for user in ids if user >= 0]
            theirs = ([item for item in reversed(v.history(user).tolist()) if item not in has] for user in ids)
            told = dict.fromkeys(item for items_of in theirs for item in items_of[:THEIR_ITEMS])
            made.append(prompts.make("user", [v.texts[item] for item in history], [v.titles[item] for item in told],
                                     self.writer))
        return made

    def _with(self, item: int, said: dict[int, str]) -> str:
        """An item in a history: its profile if it has one, which begins with its name or is preceded by it."""
        title, profile = self.visible.titles[item], said.get(item)
        if profile is None:
            return self.visible.texts[item]
        return profile if profile.startswith(prompts.clean(title)) else f"{title}: {profile}"

    def neighbours(self, histories: list[np.ndarray], users: np.ndarray) -> Neighbours:
        """The training users nearest to each history (Eq. 5), nearest first; never the user itself."""
        v = self.visible
        lengths = np.diff(v.offsets)
        queries = Queries(
            torch.from_numpy(np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)),
            torch.from_numpy(np.concatenate([*histories, np.zeros(0, np.int64)]).astype(np.int64)),
            torch.from_numpy(np.asarray(users, np.int64)))
        owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        return overlap(owner, torch.from_numpy(v.items), NEIGHBOURS, queries)

    def _item_prompts(self, users: list[str] | None) -> list[Prompt]:
        """Prompts of items from their users' profiles (Eq. 7), or from these users' other items if they have none."""
        v = self.visible
        said = None if users is None else dict(zip(v.users.tolist(), users))
        return [self._item_prompt(item, ids.tolist(), said) for item, ids in zip(v.subjects.tolist(), v.users_of(USERS))]

    def _item_prompt(self, item: int, ids: list[int], said: dict[int, str] | None) -> Prompt:
        v = self.visible
        if said is not None:
            others = [said[user] for user in ids]
        else:
            others = [v.titles[other] for user in ids for other in v.history(user).tolist() if other != item]
        return prompts.make("item", [v.texts[item]], list(dict.fromkeys(others)), self.writer, v.titles[item])

    def without_own(self, users: list[str], most: int) -> tuple[np.ndarray, list[str]]:
        """Items' profiles without one of the users that they were made from: what such a profile owes to the user whom
        a model is trained to recommend the item to.

        Args:
            users: the profiles of `Visible.users` that the items' were made from.
            most: pairs, drawn with the loop's seed.

        → (pairs, 2) user and item, and the profiles.
        """
        v, said = self.visible, dict(zip(self.visible.users.tolist(), users))
        of = [(item, ids.tolist()) for item, ids in zip(v.subjects.tolist(), v.users_of(USERS))]
        pairs = [(user, item, [other for other in ids if other != user]) for item, ids in of for user in ids]
        some = [pairs[place] for place in np.random.default_rng(self.seed).permutation(len(pairs))[:most]]
        answers, _, _ = self.write("item", [self._item_prompt(item, ids, said) for _, item, ids in some],
                                   "items without a user")
        return np.array([pair[:2] for pair in some], np.int64).reshape(-1, 2), [text for text, _ in answers]

    # What is done with it

    def _side(self, side: str, t: int, asked: list[Prompt], built: Built, last: dict, moved: dict) -> list[str]:
        """Write one side's profiles of a round, name them, and see how far they moved."""
        started, v = time.perf_counter(), self.visible
        answers, written, keys = self.write("item" if side == "item" else "user", asked, f"{side} profiles, round {t}")
        if side == "item":
            self.store.name("item", [self.item_ids[item] for item in v.subjects], [None] * len(v.subjects), t, keys)
        else:
            rows = v.cuts if side == "cut" else np.stack([v.users, np.zeros_like(v.users)], axis=1)
            ids, cuts = [self.user_ids[user] for user in rows[:, 0]], rows[:, 1].tolist()
            self.store.name("user", ids, cuts, t, keys)
        texts = [text for text, _ in answers]
        done = dict(side=side, round=t, profiles=len(texts), written=written,
                    fallbacks=sum(fallback for _, fallback in answers), seconds=time.perf_counter() - started)
        if side != "cut" and self.encode:
            now = self.encode([texts[place] for place in self._sample(len(texts))])
            done["homogenisation"] = mean_cosine(now) if len(now) > 1 else None
            if (before := last.get(side)) is not None:
                steps = distances(before, now)
                moved[side].append(steps)
                done |= {"distance": float(steps.mean()), "cosine_distance": float((steps**2).mean() / 2)}
            last[side] = now
        built.rounds.append(Round(**done))
        return texts

    def _floor(self, kind: str, asked: list[Prompt]) -> float | None:
        """See `Built.floor`."""
        if not self.encode:
            return None
        some = [asked[place] for place in self._sample(len(asked))[:AGAIN]]
        once, twice = (self.encode([text for text, _ in self.write(kind, some, "under a second seed", seed)[0]])
                       for seed in (self.seed, self.seed + 2))  # the next seed is for what was no use
        return float(distances(once, twice).mean())

    def _sample(self, count: int) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(count)[:COMPARED]

    def write(
        self, kind: str, asked: list[Prompt], what: str, seed: int | None = None
    ) -> tuple[list[tuple[str, bool]], int, list[str]]:
        """Texts of prompts, each with whether it is a fallback; what is stored stays, and is asked for again only to share
        the batch of one that is missing.

        → answers, how many were written now, and their keys. `seed` is another than the loop's.
        """
        seed = self.seed if seed is None else seed
        wording = prompts.template(kind)
        made_by = self.writer.name, self.writer.revision, f"{wording.name} {wording.sha256}"
        blank = [Text("", *made_by, prompt.text, seed) for prompt in asked]
        keys = [text.key for text in blank]
        distinct = {key: place for place, key in enumerate(keys)}
        # Prompts of like length share a batch, since a model reads all of a batch as far as its longest.
        order, written = sorted(distinct, key=lambda key: len(asked[distinct[key]].text)), 0
        with bar(what=what, total=len(order), unit="profile") as progress:
            # Batches are cut from all prompts and not from those that are missing: a model's answer may depend on who
            # shares its batch, and a build that was killed must end as one that was not.
            for start in range(0, len(order), self.writer.batch):
                batch = order[start : start + self.writer.batch]
                have = self.store.get(batch)
                missing = [key for key in batch if key not in have]
                if missing:
                    # The whole batch, for the same reason, unless each prompt is answered by itself.
                    places = [distinct[key] for key in (missing if hasattr(self.writer, "stream") else batch)]
                    self._batch([asked[place] for place in places], [blank[place] for place in places], seed)
                    written += len(missing)
                progress.update(len(batch))
        found = self.store.get(order)
        return [found[key] for key in keys], written, keys

    def _batch(self, asked: list[Prompt], blank: list[Text], seed: int) -> None:
        """Write a batch and store it: what is no use is asked for once more, then the extractive writer stands in.

        All in one transaction, so that a build that goes on finds a batch whole or not at all. A writer that streams
        answers each prompt by itself: there every text is stored when it comes, as it may have been paid for.
        """
        stream, made = getattr(self.writer, "stream", None), {}

        def useless(places: list[int], seed: int, wording: Callable[[Prompt], Prompt]) -> list[int]:
            some, bad = [wording(asked[place]) for place in places], []
            for index, answer in stream(some, seed) if stream else enumerate(self.writer.write(some, seed)):
                place = places[index]
                if prompts.degenerate(answer := prompts.answered(answer)):
                    bad.append(place)
                    continue
                made[place] = replace(blank[place], text=" ".join(answer.split()))
                if stream:
                    self.store.put([made[place]])
            return sorted(bad)

        bad = useless(list(range(len(asked))), seed, lambda prompt: prompt)
        if bad and self.writer.name != self.spare.name:
            bad = useless(bad, seed + 1, prompts.again)
        for place, text in zip(bad, self.spare.write([asked[place] for place in bad], seed)):
            made[place] = replace(blank[place], text=text, fallback=self.writer.name != self.spare.name)
        self.store.put(made.values())
