"""What the readers of large dumps share: lines with their numbers, one record a line, interactions kept small."""

from __future__ import annotations

import ast
import gzip
import json
import math
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nullrec_lib.data.interactions import Dataset, assemble
from nullrec_lib.errors import InputError
from nullrec_lib.progress import bar

Texts = dict[str, tuple[str, str]]
"""item id → title, description."""


def wrong(path: Path, what: str, line: int | None = None, column: str | None = None) -> InputError:
    """The error as one sentence that begins with the place."""
    place = (f"line {line}" if line else "", f"column {column}" if column else "")
    return InputError(f"{', '.join([str(path), *filter(None, place)])}: {what}.")


def one(folder: Path, *patterns: str) -> Path:
    """The only file of `folder` that matches one of `patterns`.

    Raises:
        InputError: there is none, or more than one.
    """
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{folder}: expected exactly one file {' or '.join(patterns)}, found {names}.")
    return found[0]


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number, text) of each line of a plain or gzipped file, as it is read, with a bar over its bytes.

    Raises:
        InputError: the file is empty, a line is blank or not in this encoding, or the gzip stream is damaged.
    """
    number = 0
    with path.open("rb") as raw, bar(
        what=f"reading {path.name}", total=path.stat().st_size, unit="B", unit_scale=True
    ) as progress:
        try:
            for number, line in enumerate(gzip.open(raw) if path.suffix == ".gz" else raw, 1):
                if number % 8192 == 0:
                    progress.update(raw.tell() - progress.n)
                try:
                    text = line.decode(encoding).strip("\r\n")
                except UnicodeDecodeError as error:
                    what = f"byte 0x{line[error.start]:02x} is not {encoding}, save the file as {encoding}"
                    raise wrong(path, what, number) from None
                if not text.strip():
                    raise wrong(path, "the line is blank, delete it", number)
                yield number, text.removeprefix("\ufeff")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise wrong(path, f"the gzip stream is damaged or breaks off ({error})", number + 1) from None
    if not number:
        raise wrong(path, "the file is empty")


def records(path: Path, literal: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of each line: a JSON object or, with `literal`, also the same as a Python literal. Halves of
    surrogate pairs become question marks.

    Raises:
        InputError: a line is neither.
    """
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            try:  # literal_eval reads constants and containers of them, and runs nothing
                record = ast.literal_eval(line) if literal else None
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                record = None
        if not isinstance(record, dict):
            raise wrong(path, f"{line!r:.40} is not a whole JSON object", number)
        if "\\ud" in line.lower():  # half a pair, as where a text was cut within an emoji, is no character
            record = json.loads(json.dumps(record, ensure_ascii=False).encode(errors="replace"))
        yield number, record


def text_of(record: dict[str, Any], name: str, path: Path, number: int) -> str:
    """The id in a field of a record: a text that is not empty.

    Raises:
        InputError: it is missing or something else.
    """
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise wrong(path, f"{value!r:.60} is not an id" if name in record else "the field is missing", number, name)
    return value


def time_of(value: Any, name: str, path: Path, number: int) -> float:
    """A number, or a text that is one, as float.

    Raises:
        InputError: it is not, or not finite.
    """
    try:
        time = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        time = math.nan
    if not math.isfinite(time):
        raise wrong(path, f"{value!r:.60} is not a finite number", number, name)
    return time


def words(value: Any, separator: str = ", ") -> str:
    """A text, or the distinct texts of nested lists, on one line; nothing else is a text."""
    return separator.join(dict.fromkeys(_texts(value)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str) and (text := " ".join(value.split())):
        yield text


def description(text: str = "", **attributes: str) -> str:
    """`name: value` of each attribute that is not empty, and then the text: item texts have attributes in front."""
    return ". ".join([f"{name}: {value}" for name, value in attributes.items() if value] + ([text] if text else []))


class Log:
    """Interactions as they are read. Ids are kept once and rows as numbers: dumps have millions of lines."""

    def __init__(self):
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self._rows = array("q"), array("q"), array("d")

    def add(self, user: str, item: str, time: float) -> None:
        """Append one interaction; Unix seconds, or a position."""
        self._rows[0].append(self.users.setdefault(user, len(self.users)))
        self._rows[1].append(self.items.setdefault(item, len(self.items)))
        self._rows[2].append(time)

    def dataset(
        self, name: str, catalogue: Iterable[str], texts: Texts | None, source: str, clock: str,
        notes: tuple[str, ...] = (),
    ) -> Dataset:
        """The data set over `catalogue`. An item without any text gets its id as title, and `source` a note; with
        `texts` None there are none, and titles stay empty.

        Raises:
            InputError: see `assemble`.
        """
        catalogue = list(catalogue)
        pairs = [("", "") if texts is None else texts.get(i, ("", "")) for i in catalogue]
        if texts is not None and (bare := sum(not any(pair) for pair in pairs)):
            absent = sum(i not in texts for i in catalogue)
            notes += (f"{source}: {bare:,} items have no text ({absent:,} no line at all), their id is their title.",)
            pairs = [pair if any(pair) else (i, "") for i, pair in zip(catalogue, pairs, strict=True)]
        user, item, time = (np.frombuffer(column, column.typecode) for column in self._rows)
        again = int(pd.DataFrame({"user": user, "item": item, "time": time}).duplicated().sum())
        if again:
            notes += (f"{again:,} interactions stand there again, same user, item and time; all are kept.",)
        titles, about = zip(*pairs, strict=True) if pairs else ((), ())
        items = pd.DataFrame({"item_id": catalogue, "title": titles, "description": about}, dtype=str)
        users, ids = (np.array(list(known), dtype=object) for known in (self.users, self.items))
        interactions = pd.DataFrame({"user_id": users[user], "item_id": ids[item], "timestamp": time})
        return assemble(name, items, interactions, clock, notes)
