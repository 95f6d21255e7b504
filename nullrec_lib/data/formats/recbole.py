"""RecBole's atomic files: a folder NAME with NAME.inter (who, what, when) and NAME.item (the catalogue).

Tab separated, one header line of typed names such as `user_id:token`, no quoting (what pandas quoted is unquoted, and a
note says so). Columns stand in any order and further ones may stand beside them:

- NAME.inter: `user_id:token`, `item_id:token`, `timestamp:float` (numbers, or dates).
- NAME.item: `item_id:token`, `title:token_seq` and, where there is one, `description:token_seq` (RecBole's
  own files type some texts `token`; both are read). Every other `token` or `token_seq` column is an
  attribute: it goes in front of the description as `name: value`.

Further columns of NAME.inter and columns of numbers are left unread, and a note says so. A file is read whole or not at
all: no row is skipped or repaired.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from nullrec_lib.data.lines import wrong
from nullrec_lib.data.source import Source
from nullrec_lib.errors import InputError

TYPES = ("token", "token_seq", "float", "float_seq")
TEXT = ("token_seq", "token")
INTER = {"user_id": ("token",), "item_id": ("token",), "timestamp": ("float", "token")}
ITEM = {"item_id": ("token",), "title": TEXT, "description": TEXT}  # description may be missing

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
"""A whole cell as CSV quotes it."""


def read(source: Source) -> None:
    """Read NAME.inter and NAME.item; items keep the order of NAME.item, ties in time that of NAME.inter. NAME is the
    folder's name or, where no file has that name, that of its only *.inter.

    Raises:
        InputError: anything is missing, malformed or contradictory; names file, line (the header is line 1)
            and column, and where several rows share the fault, the first of them and how many there are.
    """
    inter_path, item_path = _files(source)
    source.name = inter_path.stem
    _items(source, item_path)
    table, types, numbers = _table(source, inter_path, INTER)
    for column in ("user_id", "item_id"):
        _reject(inter_path, table[column].str.strip() == "", column, "the id is empty", numbers)
    text = table["timestamp"]
    # A timestamp such as `nan`, `inf` or 1e999 would sort somewhere without a complaint.
    time = pd.to_numeric(text, errors="coerce").to_numpy(np.float64, copy=True)
    time[~np.isfinite(time)] = [source.clock.read(value) for value in text[~np.isfinite(time)]]
    what = "{} is neither a finite number nor a date like 2018-07-07 22:09:11"
    _reject(inter_path, pd.Series(np.isnan(time)), "timestamp", what, numbers, text)
    source.events(table["user_id"].to_numpy(object), table["item_id"].to_numpy(object), time)
    _note_unread(source, inter_path, {name: kind for name, kind in types.items() if name not in INTER})


def _files(source: Source) -> tuple[Path, Path]:
    """The pair of files, both there."""
    folder = source.folder
    inter = folder / f"{source.name}.inter"
    if not inter.is_file():
        names = sorted(path for path in folder.iterdir() if path.suffix == ".inter" and path.is_file())
        if len(names) != 1:
            there = ", ".join(path.name for path in names) or "no *.inter"
            raise InputError(f"{folder}: expected {inter.name} or exactly one other *.inter, found {there}.")
        inter = names[0]
    item = inter.with_suffix(".item")
    if not item.is_file():
        raise InputError(f"{item}: there is no such file, and {inter.name} needs it beside itself.")
    return inter, item


def _items(source: Source, path: Path) -> None:
    table, types, numbers = _table(source, path, ITEM)
    _reject(path, table["item_id"].str.strip() == "", "item_id", "the id is empty", numbers)
    attributes = [name for name, kind in types.items() if name not in ITEM and kind in TEXT]
    if "description" not in table:
        table["description"] = ""
    for item_id, title, text, *values in table[["item_id", "title", "description", *attributes]].itertuples(False, None):
        named = {name: value for name, value in zip(attributes, values, strict=True) if value.strip()}
        source.item(item_id, path, title, text if text.strip() else "", **named)
    _note_unread(source, path, {name: kind for name, kind in types.items() if name not in ITEM and kind not in TEXT})
    if attributes:
        source.note(f"{path.name}: attributes put in front of the description: {', '.join(attributes)}.")


def _table(
    source: Source, path: Path, known: dict[str, tuple[str, ...]]
) -> tuple[pd.DataFrame, dict[str, str], np.ndarray]:
    """Every column as str, named without its type; types by name, in file order; and each row's line number (n,)."""
    lines = [line for _, line in source.lines(path, blank=True)]  # a quoted cell may hold some
    header, rows, numbers = _unquoted(source, path, lines) or (lines[0].split("\t"), None, np.arange(2, len(lines) + 1))
    if rows is None and (empty := next((number for number, line in enumerate(lines, 1) if not line.strip()), None)):
        raise wrong(path, "the line is blank, delete it", empty)
    types: dict[str, str] = {}
    for number, cell in enumerate(header, 1):
        name, _, kind = cell.partition(":")
        if name in types:
            raise wrong(path, f"two columns have this name, {name}:{types[name]} and {cell}", 1, name)
        if name in known and kind not in known[name]:
            raise wrong(path, f"the header has {cell!r:.60}, write {name}:{known[name][0]}", 1, name)
        if not name or kind not in TYPES:
            wanted = f"NAME:TYPE with TYPE one of {', '.join(TYPES)} (tabs separate columns)"
            raise wrong(path, f"{cell!r:.60} is not {wanted}", 1, str(number))
        types[name] = kind
    for name, kinds in known.items():
        if name not in types and name != "description":
            what = f"there is no column {name}:{kinds[0]}, only {', '.join(header):.200}; add or rename one"
            raise wrong(path, what, 1)
    if not len(numbers):
        raise wrong(path, "there is no row after the header", 1)
    # Counted here, since pandas fills short rows up without a word.
    widths = (line.count("\t") + 1 for line in lines[1:]) if rows is None else map(len, rows)
    for width, number in zip(widths, numbers):
        if width != len(types):
            count = f"the row has {width} field{'s' * (width > 1)}, the header {len(types)}"
            raise wrong(path, count, int(number))
    if rows is None:
        table = pd.read_csv(
            io.StringIO("\n".join(lines)), sep="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, skip_blank_lines=False,
            header=0, names=list(types), dtype=str, keep_default_na=False, na_filter=False,
        )  # fmt: skip
    else:
        table = pd.DataFrame(rows, columns=list(types), dtype=str)
    return table, types, numbers


def _unquoted(
    source: Source, path: Path, lines: list[str]
) -> tuple[list[str], list[list[str]], np.ndarray] | None:
    """Header, rows and the number of the line that each row begins in, where cells are quoted as in CSV; else None.

    A cell that begins and ends with a quote may be a title. CSV's own are those that must be quoted, as they hold a
    quote (doubled), a tab or a line break; or all of a column, or all of them with the header's.
    """
    if not any('"' in line for line in lines):
        return None
    header, *rows = (line.split("\t") for line in lines)
    if all(map(_QUOTED.fullmatch, header)) or any(len(row) != len(header) for row in rows):
        try:
            parsed = list(_csv(lines))
        except csv.Error:
            return None
        if any(len(row) != len(parsed[0][1]) for _, row in parsed):
            return None
        source.note(f"{path.name}: cells are quoted as in CSV and were unquoted.")
        return parsed[0][1], [row for _, row in parsed[1:]], np.array([number for number, _ in parsed[1:]], int)
    count = 0
    whole = [len(rows) > 1 and all(map(_QUOTED.fullmatch, column)) for column in zip(*rows)]
    for row in rows:
        for place, cell in enumerate(row):
            if whole[place] or '""' in cell and len(cell) > 3 and _QUOTED.fullmatch(cell):
                row[place] = cell[1:-1].replace('""', '"')
                count += 1
    if not count:
        return None
    source.note(f"{path.name}: cells are quoted as in CSV and were unquoted.")
    return header, rows, np.arange(2, len(lines) + 1)


def _csv(lines: list[str]):
    """(number of the line that it begins in, cells) of each row, by CSV's quoting."""
    escaped = {"escapechar": "\\", "doublequote": False} if any('\\"' in line for line in lines) else {}
    reader = csv.reader((line + "\n" for line in lines), delimiter="\t", strict=True, **escaped)
    begin = 1
    for row in reader:
        yield begin, row
        begin = reader.line_num + 1


def _note_unread(source: Source, path: Path, columns: dict[str, str]) -> None:
    if columns:
        names = ", ".join(f"{name}:{kind}" for name, kind in columns.items())
        source.note(f"{path.name}: columns left unread: {names}.")


def _reject(
    path: Path, bad: pd.Series, column: str, what: str, numbers: np.ndarray, values: pd.Series | None = None
) -> None:
    """Raise for the first row where `bad` (rows,) bool holds; `{}` in `what` stands for its value."""
    if bad.any():
        row = int(np.argmax(bad))
        if values is not None:
            what = what.replace("{}", f"{values.iloc[row]!r:.60}", 1)
        if bad.sum() > 1:
            what += f" (the first of {bad.sum():,} such lines)"
        raise wrong(path, what, int(numbers[row]), column)
