"""A folder on its way to a data set: what every reader shares, so that a layout only says where it keeps things.

Interactions, items and embeddings are handed over as they are read. Ids are kept once and rows as numbers, since dumps
have millions of lines. Times are interpreted in `times`, text is decoded in `lines` and cleaned in `texts`; here is
counted what is odd: items without text or without a line, repeated lines and interactions, text that no reader uses.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nullrec_lib.data import lines as text_lines
from nullrec_lib.data.interactions import Dataset, assemble
from nullrec_lib.data.lines import wrong
from nullrec_lib.data.texts import clean, description, holds_text
from nullrec_lib.data.times import CLOCKS, Clock
from nullrec_lib.errors import InputError

MISSING_TEXT = ("mean", "refuse")
"""What becomes of an item without text: its language vector is the mean of the others', or the data are refused."""


@dataclass(frozen=True)
class Reading:
    """How data are read, whatever their layout."""

    clock: str = "auto"
    """`auto`, `time` or `position`: what timestamps are."""
    clean: bool = True
    """Texts lose markup, entities and white space, see `texts.clean`."""
    missing_text: str = "mean"
    """One of `MISSING_TEXT`."""

    def __post_init__(self):
        if self.clock not in CLOCKS:
            raise InputError(f"clock: {self.clock!r} is not one of {', '.join(CLOCKS)}.")
        if self.missing_text not in MISSING_TEXT:
            raise InputError(f"missing_text: {self.missing_text!r} is not one of {', '.join(MISSING_TEXT)}.")


class Source:
    """One folder. A reader calls `event` or `events`, `item`, `note` and the like, and `dataset` puts it together."""

    def __init__(self, folder: Path | str, reading: Reading = Reading()):
        """
        Raises:
            InputError: there is no such folder.
        """
        self.folder, self.reading = Path(folder), reading
        if not self.folder.is_dir():
            there = "a file, give the folder that holds it" if self.folder.exists() else "not there"
            raise InputError(f"{folder}: this is {there}.")
        self.name = self.folder.resolve().name  # a folder given as `.` has no name
        """Of the data set; a layout may know a better one."""
        self.only_met = False
        """The catalogue is the items with an interaction, in order of the first one; others are counted and left out.
        Interactions are then read first."""
        self.clock = Clock()
        self.without_times = False
        """The layout has no times, only an order."""
        self.without_text = False
        """The layout holds no text."""
        self.embeddings: dict[str, np.ndarray] = {}
        self.parts: np.ndarray | None = None
        """See `Dataset.given`."""
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        """Ids that have an interaction, by order of the first one."""
        self._rows = array("q"), array("q"), array("d")
        self._texts: dict[str, tuple[str, str]] = {}
        self._catalogue = ""
        self._left_out = self._again = self._differing = self._cleaned = 0
        self._unread: dict[str, dict[str, None]] = {}
        self._notes: dict[str, None] = {}

    # Files

    def file(self, *patterns: str) -> Path:
        """The only file whose name fits one of `patterns` (`*` stands for anything, other signs for themselves).

        Raises:
            InputError: there is none, or more than one.
        """
        matches = sorted(path for path in self.folder.iterdir() if path.is_file() and fits(path.name, patterns))
        if len(matches) != 1:
            names = ", ".join(path.name for path in matches) or "none"
            raise InputError(f"{self.folder}: expected exactly one file {' or '.join(patterns)}, found {names}.")
        return matches[0]

    def lines(self, path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
        """See `lines.lines`."""
        return text_lines.lines(path, self.note, blank)

    def records(self, path: Path, read: Iterable[str], literal: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
        """See `lines.records`. Fields with text other than `read` go to `unread`."""
        known = set(read)
        for number, record in text_lines.records(path, self.note, literal):
            if new := [name for name in record if name not in known and holds_text(record[name])]:
                known.update(new)
                self.unread(path, new)
            yield number, record

    # What is in them

    def id(self, value: Any, path: Path, number: int, column: str | None = None) -> str:
        """An id: a text that is not blank.

        Raises:
            InputError: it is something else.
        """
        if not isinstance(value, str) or not value.strip():
            raise wrong(path, f"{value!r:.60} is not an id", number, column)
        return value

    def event(self, user: str, item: str, when: Any, path: Path, number: int, column: str | None = None) -> None:
        """One interaction; `when` in the layout's unit, or a date.

        Raises:
            InputError: it is neither.
        """
        time = self.clock.read(when)
        if time != time:
            raise wrong(path, f"{when!r:.60} is neither a finite number nor a date like 2018-07-07 22:09:11", number, column)
        self._rows[0].append(self.users.setdefault(user, len(self.users)))
        self._rows[1].append(self.items.setdefault(item, len(self.items)))
        self._rows[2].append(time)

    def events(self, users: Sequence[str], items: Sequence[str], times: np.ndarray) -> None:
        """Many interactions at once; times are finite numbers."""
        for names, codes, column in ((users, self.users, 0), (items, self.items, 1)):
            place, distinct = pd.factorize(np.asarray(names, dtype=object))
            number = np.array([codes.setdefault(name, len(codes)) for name in distinct], np.int64)
            self._rows[column].frombytes(number[place].tobytes())
        self._rows[2].frombytes(np.asarray(times, np.float64).tobytes())

    def item(self, item_id: str, path: Path, title: str = "", text: str = "", **attributes: str) -> None:
        """One item's line; attributes go in front of the text. The first line of an item counts."""
        self._catalogue = path.name
        if self.only_met and item_id not in self.items:
            self._left_out += 1
            return
        raw = pair = title, description(text, **attributes)
        if self.reading.clean:
            pair = clean(title), description(clean(text), **{name: clean(value) for name, value in attributes.items()})
        if item_id in self._texts:
            self._again += 1
            self._differing += self._texts[item_id] != pair
        else:
            self._texts[item_id] = pair
            # White space alone is not worth a note.
            self._cleaned += any("".join(a.split()) != "".join(b.split()) for a, b in zip(raw, pair) if a != b)

    def unread(self, path: Path, fields: Iterable[str]) -> None:
        """Fields of a file that hold text and are not used."""
        self._unread.setdefault(path.name, {}).update(dict.fromkeys(fields))

    def note(self, sentence: str) -> None:
        """What was recognised, cut or dropped by rule; a sentence that was said is not said again."""
        self._notes[sentence] = None

    # All of it

    def dataset(self) -> Dataset:
        """The data set, with a note on everything that is odd.

        Raises:
            InputError: no interaction, no item of the catalogue has one, an item without text is to be refused, or see
                `assemble`.
        """
        rows = [np.frombuffer(column, column.typecode) for column in self._rows]
        if not len(rows[0]):
            raise InputError(f"{self.folder}: there are no interactions.")
        catalogue = self._ids()
        pairs = [self._texts.get(item, ("", "")) for item in catalogue]
        self._count(catalogue, pairs, rows)
        titles, texts = zip(*pairs)
        items = pd.DataFrame({"item_id": catalogue, "title": titles, "description": texts}, dtype=str)
        users, ids = (np.array(list(known), dtype=object) for known in (self.users, self.items))
        interactions = pd.DataFrame({"user_id": users[rows[0]], "item_id": ids[rows[1]], "timestamp": rows[2]})
        clock = self.reading.clock
        if self.without_times and clock == "auto":
            clock = "position"
            if self.parts is None:
                self.note("The layout holds no times; a cold-start split shuffles users by its seed (clock=time overrides).")
        dataset = assemble(self.name, items, interactions, clock, tuple(self._notes), unit=self.clock.unit)
        return replace(dataset, embeddings=self.embeddings, given=self.parts)

    def _ids(self) -> list[str]:
        if self.only_met:
            return list(self.items)
        unknown = [item for item in self.items if item not in self._texts]
        if unknown and len(unknown) == len(self.items):
            raise InputError(f"{self.folder / self._catalogue}: holds no item that has an interaction, such as "
                             f"{unknown[0]!r:.60}; the two files are of other data, or write ids in other ways.")
        return [*self._texts, *unknown]

    def _count(self, catalogue: list[str], pairs: list[tuple[str, str]], rows: list[np.ndarray]) -> None:
        """Notes, in an order that no layout decides."""
        for sentence in self.clock.notes():
            self.note(sentence)
        if self._left_out:
            self.note(f"{self._catalogue}: {self._left_out:,} items without an interaction are left out of the catalogue.")
        if self._again:
            differ = f", {self._differing:,} of them otherwise" if self._differing else ""
            self.note(f"{self._catalogue}: {self._again:,} lines describe an item again{differ}; the first line counts.")
        if self.without_text:
            given = " or ".join(f"encoder=given:{name}" for name in self.embeddings)
            use = f"{given} stands for their embeddings" + (" and is taken where no encoder is named" if len(
                self.embeddings) == 1 else "") if given else "give an encoder a file of embeddings to read language"
            self.note(f"The layout holds no item texts: {use}.")
        bare = [item for item, pair in zip(catalogue, pairs) if not any(pair)]
        if bare and not self.without_text:
            absent = sum(item not in self._texts for item in bare)
            if self.reading.missing_text == "refuse":
                raise InputError(f"{self.folder / self._catalogue}: {len(bare):,} items have no text, {bare[0]!r:.60} the "
                                 "first of them; add their texts, or leave missing_text=refuse out.")
            means = "their language vector is the mean of the others' (missing_text=refuse refuses them)"
            if len(bare) == len(catalogue):
                means = "what reads language needs embeddings of theirs as encoder"
            self.note(f"{self._catalogue}: {len(bare):,} of {len(catalogue):,} items have no text ({absent:,} no line at "
                      f"all); {means}.")
        if self._cleaned:
            self.note(f"{self._catalogue}: markup or entities were taken out of the texts of {self._cleaned:,} items "
                      "(clean=false keeps them).")
        for name, fields in self._unread.items():
            self.note(f"{name}: fields with text that are not used: {', '.join(fields)}.")
        repeated = len(rows[0]) - len(np.unique(_records(rows)))
        if repeated:
            self.note(f"{repeated:,} interactions are there again, same user, item and time; all are kept.")
        for kind, known in (("user", self.users), ("item", dict.fromkeys([*self._texts, *self.items]))):
            stripped = Counter(name.strip() for name in known)
            if close := [name for name in known if name != name.strip() and stripped[name.strip()] > 1]:
                self.note(f"{len(close):,} {kind} ids differ from another by blanks around them alone, such as "
                          f"{close[0]!r:.60}; they count as different.")


def _records(rows: list[np.ndarray]) -> np.ndarray:
    """Rows as one value each, to find those that are equal."""
    table = np.empty(len(rows[0]), dtype=[("user", "i8"), ("item", "i8"), ("time", "f8")])
    for name, column in zip(table.dtype.names, rows):
        table[name] = column
    return table.view("V24")


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name fits a pattern in which only `*` is special."""
    return any(fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]")) for pattern in patterns)
