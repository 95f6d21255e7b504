"""Every text that was written, and which profile it is. One SQLite file: several processes may share it, and a process
that is killed loses the texts in flight and nothing else."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator

from nullrec_lib.databases import Database, crc32
from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, read_json, sweep

FILE, BUILT = "profiles.sqlite", "build.json"
AGAIN = "run the same `nullrec profiles build` again, which writes anew what is missing; if it says so too, remove the file"
CHUNK = 500
"""Keys of one query: SQLite limits how many values one may have."""

_TABLES = """
create table if not exists texts (
    key text primary key, text text not null, writer text not null, revision text not null, template text not null,
    prompt text not null, seed integer not null, fallback integer not null, crc32 integer not null
) without rowid;
create table if not exists profiles (
    kind text not null, id text not null, cut integer not null, round integer not null, place integer not null,
    key text not null, crc32 integer not null, primary key (kind, id, cut, round)
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
            InputError: there is none, and `create` is false; or it is damaged (here, and in every method).
        """
        self.folder, path = Path(folder), Path(folder) / FILE
        if not create and not path.is_file():
            raise InputError(f"{folder}: no profiles are stored here; `nullrec profiles build --out` makes some.")
        sweep(self.folder)
        self._db = Database(path, _TABLES, AGAIN)
        if not create:
            self.check()

    def check(self) -> None:
        """
        Raises:
            DamagedFile: a build that has finished here stored more profiles than are there.
        """
        if not (self.folder / BUILT).is_file():
            return
        rounds = read_json(self.folder / BUILT, ["rounds"])["rounds"]
        query = "select kind, cut > 0, round, count(*) from profiles join texts using (key) group by 1, 2, 3"
        there = {(kind, bool(at_cut), round_): count for kind, at_cut, round_, count in self._db.rows(query)}
        for done in rounds:
            place = "item" if done["side"] == "item" else "user", done["side"] == "cut", done["round"]
            if (count := there.get(place, 0)) < done["profiles"]:
                raise self._db.damaged(f"of {done['profiles']:,} {done['side']} profiles of round {done['round']} "
                                       f"{count:,} are there")

    def whole(self) -> bool:
        """Whether all that a finished build stored is there, as it was written."""
        try:
            self.check()
            return all(self.profiles())
        except DamagedFile:
            return False

    def put(self, texts: Iterable[Text]) -> None:
        """Keep texts, all of them or none. A text that is there already stays as it is, unless it is damaged."""
        rows = [(t.key, t.text, t.writer, t.revision, t.template, t.prompt, t.seed, int(t.fallback)) for t in texts]
        with self._db.transaction() as base:
            there = self.get([row[0] for row in rows])
            base.executemany("insert or replace into texts values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                             [(*row, crc32(*row)) for row in rows if row[0] not in there])

    def get(self, keys: list[str]) -> dict[str, tuple[str, bool]]:
        """key → (text, fallback) of those that are there and whole."""
        found = {}
        for start in range(0, len(keys), CHUNK):
            some = keys[start : start + CHUNK]
            marks = ", ".join("?" * len(some))
            for *row, crc in self._db.rows(f"select * from texts where key in ({marks})", some):
                if crc == crc32(*row):
                    found[row[0]] = row[1], bool(row[-1])
        return found

    def name(self, kind: str, ids: list[str], cuts: list[int | None], round: int, keys: list[str]) -> None:
        """Say whose profiles of a round the texts `keys` are, in order."""
        rows = [(kind, one, int(cut or WHOLE), round, place, key)
                for place, (one, cut, key) in enumerate(zip(ids, cuts, keys))]
        with self._db.transaction() as base:
            base.executemany("insert or replace into profiles values (?, ?, ?, ?, ?, ?, ?)",
                             [(*row, crc32(*row)) for row in rows])

    def unname(self) -> None:
        """Forget whose the texts are; they stay."""
        with self._db.transaction() as base:
            base.execute("delete from profiles")

    def profiles(self, kind: str | None = None, id: str | None = None) -> Iterator[Profile]:
        """All profiles, or those of a kind or a subject, by kind, cut, round and place."""
        where = "(?1 is null or kind = ?1) and (?2 is null or id = ?2)"
        return (profile for profile, _ in self._joined(f"where {where} order by kind, cut > 0, round, place, cut", kind, id))

    def last(self) -> dict[tuple[str, bool], list[tuple[Profile, str]]]:
        """(kind, whether at a cut) → the profiles of its last round with their prompts, by place."""
        found: dict[tuple[str, bool], list[tuple[Profile, str]]] = {}
        for profile, prompt in self._joined("order by kind, cut > 0, round desc, place"):
            mine = found.setdefault((profile.kind, profile.cut is not None), [])
            if not mine or mine[0][0].round == profile.round:
                mine.append((profile, prompt))
        return found

    def pairs(self) -> list[tuple[str, str]]:
        """(prompt, text) of items and of training users as a whole, each once, in the order of their rounds: examples
        for a writer to learn from. Users at cuts are left out, as held-out users are among them."""
        return [(prompt, profile.text) for profile, prompt in
                self._joined("where cut = 0 group by key order by min(round), kind, min(place)")]

    def close(self) -> None:
        self._db.close()

    def _joined(self, rest: str, *values: str | None) -> Iterator[tuple[Profile, str]]:
        """Profiles and their prompts, in the order that `rest` of the query gives.

        Raises:
            DamagedFile: at the first that is not as it was written.
        """
        query = ("select kind, id, cut, round, place, p.key, p.crc32, t.key, text, writer, revision, template, prompt, seed, "
                 f"fallback, t.crc32 from profiles p join texts t using (key) {rest}")
        for row in self._db.rows(query, values):
            (kind, id_, cut, round_, place, _), (_, text, writer, *_, prompt, _, fallback) = row[:6], row[7:15]
            if (row[6], row[15]) != (crc32(*row[:6]), crc32(*row[7:15])):
                raise self._db.damaged(f"the profile of {kind} {id_!r:.60} in round {round_} is not what was written")
            yield Profile(kind, id_, cut or None, round_, text, writer, bool(fallback), place), prompt


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
