"""Every text that was written, and which profile it is. One SQLite file: several processes may share it, and a process
that is killed loses the texts in flight and nothing else."""

from __future__ import annotations

import difflib
import hashlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator

from nullrec_lib.errors import InputError

FILE = "profiles.sqlite"
WAIT_S = 60
"""How long a process waits for another one that is writing."""
CHUNK = 500
"""Keys of one query: SQLite limits how many values one may have."""

_TABLES = """
create table if not exists texts (
    key text primary key, text text not null, writer text not null, revision text not null, template text not null,
    prompt text not null, seed integer not null, fallback integer not null
) without rowid;
create table if not exists profiles (
    kind text not null, id text not null, cut integer not null, round integer not null, place integer not null,
    key text not null, primary key (kind, id, cut, round)
) without rowid;
"""
WHOLE = 0
"""The column `cut` of profiles that have none; SQLite's primary keys take no null for equal."""


@dataclass(frozen=True)
class Text:
    """A text with everything that made it."""

    text: str
    writer: str
    revision: str
    template: str
    prompt: str
    seed: int
    fallback: bool = False
    """The writer's answer was no use twice, and the text is the extractive one."""

    @property
    def key(self) -> str:
        """32 hex digits over what the text was made by and from, not over the text."""
        made_by = json.dumps([self.writer, self.revision, self.template, self.prompt, self.seed])
        return hashlib.sha256(made_by.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Profile:
    """Whose text it is."""

    kind: str
    """`user` or `item`."""
    id: str
    """The source's id."""
    cut: int | None
    """Items of the history that it was made from; None for an item and for a training user as a whole."""
    round: int
    text: str
    writer: str
    fallback: bool
    place: int = 0
    """Its row among `Visible`'s users, cuts or subjects."""


class Store:
    """The texts and profiles in one folder."""

    def __init__(self, folder: Path, create: bool = False):
        """Open the store in `folder`, or make it.

        Raises:
            InputError: there is none, and `create` is false.
        """
        path = Path(folder) / FILE
        if not create and not path.is_file():
            raise InputError(f"{folder}: no profiles are stored here; `nullrec profiles build --out` makes some.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
        self._base.execute("pragma journal_mode = wal")  # readers go on while one writes, and a kill leaves it whole
        self._base.executescript(_TABLES)

    def put(self, texts: Iterable[Text]) -> None:
        """Keep texts, all of them or none. A text that is there already stays as it is."""
        rows = [(t.key, t.text, t.writer, t.revision, t.template, t.prompt, t.seed, t.fallback) for t in texts]
        with self._write():
            self._base.executemany(
                "insert into texts values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (key) do nothing", rows)

    def get(self, keys: list[str]) -> dict[str, tuple[str, bool]]:
        """key → (text, fallback) of those that are there."""
        found = {}
        for start in range(0, len(keys), CHUNK):
            some = keys[start : start + CHUNK]
            marks = ", ".join("?" * len(some))
            query = self._base.execute(f"select key, text, fallback from texts where key in ({marks})", some)
            found |= {key: (text, bool(fallback)) for key, text, fallback in query}
        return found

    def name(self, kind: str, ids: list[str], cuts: list[int | None], round: int, keys: list[str]) -> None:
        """Say whose profiles of a round the texts `keys` are, in order."""
        rows = [(kind, one, cut or WHOLE, round, place, key)
                for place, (one, cut, key) in enumerate(zip(ids, cuts, keys))]
        with self._write():
            self._base.executemany("insert or replace into profiles values (?, ?, ?, ?, ?, ?)", rows)

    def profiles(self, kind: str | None = None, id: str | None = None) -> Iterator[Profile]:
        """All profiles, or those of a kind or a subject, by kind, cut, round and place."""
        query = ("select kind, id, cut, round, text, writer, fallback, place from profiles join texts using (key) "
                 "where (?1 is null or kind = ?1) and (?2 is null or id = ?2) "
                 "order by kind, cut > 0, round, place, cut")
        for kind_, id_, cut, round_, text, writer, fallback, place in self._base.execute(query, (kind, id)):
            yield Profile(kind_, id_, cut or None, round_, text, writer, bool(fallback), place)

    def last(self) -> dict[tuple[str, bool], list[tuple[Profile, str]]]:
        """(kind, whether at a cut) → the profiles of its last round with their prompts, by place."""
        query = ("select kind, id, cut, round, text, writer, fallback, place, prompt from profiles join texts using (key) "
                 "order by kind, cut > 0, round desc, place")
        found: dict[tuple[str, bool], list[tuple[Profile, str]]] = {}
        for kind, id_, cut, round_, text, writer, fallback, place, prompt in self._base.execute(query):
            mine = found.setdefault((kind, cut > 0), [])
            if not mine or mine[0][0].round == round_:
                mine.append((Profile(kind, id_, cut or None, round_, text, writer, bool(fallback), place), prompt))
        return found

    def pairs(self) -> list[tuple[str, str]]:
        """(prompt, text) of items and of training users as a whole, each once, in the order of their rounds: examples
        for a writer to learn from. Users at cuts are left out, as held-out users are among them."""
        query = ("select prompt, text from profiles join texts using (key) where cut = 0 "
                 "group by key order by min(round), kind, min(place)")
        return self._base.execute(query).fetchall()

    def close(self) -> None:
        self._base.close()

    def _write(self):
        """A transaction that asks for the right to write at once: one that asks midway may be refused."""
        self._base.execute("begin immediate")
        return self._base


def journey(profiles: list[Profile]) -> str:
    """The profiles of one subject over the rounds, each with what changed: + new words, - words that went."""
    lines, before = [], {}
    for profile in profiles:
        about = f"{profile.kind} {profile.id}" + (f", first {profile.cut} items" if profile.cut else "")
        lines += [f"{about}, round {profile.round}, {profile.writer}{', fallback' if profile.fallback else ''}:",
                  f"  {profile.text}"]
        if (last := before.get(profile.cut)) is not None:
            words = list(difflib.ndiff(last.split(), profile.text.split()))
            for sign in "-+":
                if changed := [word[2:] for word in words if word[0] == sign]:
                    lines.append(f"  {sign} {' '.join(changed)}")
        before[profile.cut] = profile.text
    return "\n".join(lines)
