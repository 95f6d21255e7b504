"""RecBole's atomic files: a folder NAME with NAME.inter (who, what, when) and NAME.item (the catalogue).

UTF-8, tab separated, one header line of typed names such as `user_id:token`, no quoting. Columns stand in any
order and further ones may stand beside them:

- NAME.inter: `user_id:token`, `item_id:token`, `timestamp:float`. Every other column is left unread, and a
  note says so.
- NAME.item: `item_id:token`, `title:token_seq` and, where there is one, `description:token_seq` (RecBole's
  own files type some texts `token`; both are read). Every other `token` or `token_seq` column is an
  attribute: it goes in front of the description as `name: value`. Columns of numbers are left unread, and a
  note says so.

A file is read whole or not at all: no row is skipped or repaired.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from nullrec_lib.data.formats.lines import wrong
from nullrec_lib.data.interactions import Dataset, assemble
from nullrec_lib.errors import InputError

TYPES = ("token", "token_seq", "float", "float_seq")
TEXT = ("token_seq", "token")
INTER = {"user_id": ("token",), "item_id": ("token",), "timestamp": ("float",)}
ITEM = {"item_id": ("token",), "title": TEXT, "description": TEXT}  # description may be missing


def read(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read `folder` as a `Dataset`; items keep the order of NAME.item, ties in time that of NAME.inter.

    Args:
        folder: holds NAME.inter and NAME.item, NAME being the folder's name or, where no file has that name,
            that of its only *.inter.
        clock: see `assemble`.

    Raises:
        InputError: anything is missing, malformed or contradictory; names file, line (the header is line 1)
            and column, and where several rows share the fault, the first of them and how many there are.
    """
    inter_path, item_path = _files(Path(folder))
    items, notes = _items(item_path)
    interactions, unread = _table(inter_path, INTER)
    for column in ("user_id", "item_id"):
        _reject(inter_path, interactions[column].str.strip() == "", column, "the id is empty")
    text = interactions["timestamp"]
    # A timestamp such as `nan`, `inf` or 1e999 would sort somewhere without a complaint.
    time = pd.to_numeric(text, errors="coerce").astype(np.float64)
    _reject(inter_path, ~np.isfinite(time), "timestamp", "{} is not a finite number", text)
    ids = interactions["item_id"]
    unknown = ~ids.isin(items["item_id"])
    _reject(inter_path, unknown, "item_id", f"{{}} is not an item of {item_path.name}", ids)
    notes += _unread(inter_path, unread)
    return assemble(inter_path.stem, items, interactions.assign(timestamp=time), clock, notes)


def _files(folder: Path) -> tuple[Path, Path]:
    """The pair of files in `folder`, both there."""
    if not folder.is_dir():
        wrong = "a file" if folder.exists() else "not there"
        raise InputError(f"{folder}: this is {wrong}, give a folder that holds NAME.inter and NAME.item.")
    inter = folder / f"{folder.resolve().name}.inter"  # resolve: a folder given as `.` has no name
    if not inter.is_file():
        found = sorted(path for path in folder.glob("*.inter") if path.is_file())
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "no *.inter"
            raise InputError(f"{folder}: expected {inter.name} or exactly one other *.inter, found {names}.")
        inter = found[0]
    item = inter.with_suffix(".item")
    if not item.is_file():
        raise InputError(f"{item}: there is no such file, and {inter.name} needs it beside itself.")
    return inter, item


def _items(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The catalogue, (N, 3) str: `item_id`, `title`, `description`; and what was done with other columns."""
    table, other = _table(path, ITEM)
    _reject(path, table["item_id"].str.strip() == "", "item_id", "the id is empty")
    again = table["item_id"].duplicated()
    if again.any():
        row = int(np.argmax(again))
        item_id = table["item_id"].iloc[row]
        first = int(np.argmax(table["item_id"] == item_id))
        raise wrong(path, f"item {item_id!r:.60} is already in line {first + 2}", row + 2, "item_id")

    attributes = [name for name, kind in other.items() if kind in TEXT]
    if "description" not in table:
        table["description"] = ""
    # Item text is title + attributes + description, so the attributes come first.
    labels = [*(f"{name}: " for name in attributes), ""]
    described = [
        ". ".join(label + value for label, value in zip(labels, values, strict=True) if value.strip())
        for values in table[[*attributes, "description"]].itertuples(index=False, name=None)
    ]
    items = table[["item_id", "title"]].assign(description=pd.Series(described, index=table.index, dtype=str))
    no_text = (items["title"].str.strip() == "") & (items["description"] == "")
    _reject(path, no_text, "title", "the item has no text, neither here nor in another text column")

    notes = _unread(path, {name: kind for name, kind in other.items() if kind not in TEXT})
    if attributes:
        notes += (f"{path.name}: attributes put in front of the description: {', '.join(attributes)}.",)
    return items, notes


def _table(path: Path, known: dict[str, tuple[str, ...]]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Every column of `path` as str, named without its type, row i = line i + 2; and the types of the columns
    that are not in `known`, in file order."""
    text = _text(path)
    header, *lines = text.split("\n")  # not splitlines: U+2028 and its like may stand in a title
    types: dict[str, str] = {}
    for number, cell in enumerate(header.split("\t"), 1):
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
            there = header.replace("\t", ", ")
            what = f"there is no column {name}:{kinds[0]}, only {there:.200}; add or rename one"
            raise wrong(path, what, 1)
    if not lines:
        raise wrong(path, "there is no row after the header", 1)

    # Counted here, since pandas fills short rows up without a word.
    for number, line in enumerate(lines, 2):
        if (fields := line.count("\t") + 1) != len(types):
            count = f"the row has {fields} field{'s' * (fields > 1)}, the header {len(types)}"
            raise wrong(path, count if line.strip() else "the line is blank, delete it", number)
    table = pd.read_csv(
        io.StringIO(text), sep="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, skip_blank_lines=False,
        header=0, names=list(types), dtype=str, keep_default_na=False, na_filter=False,
    )  # fmt: skip
    return table, {name: kind for name, kind in types.items() if name not in known}


def _text(path: Path) -> str:
    """The file's text without a BOM, lines parted by a line feed alone, none after the last line."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8, save the file as UTF-8"
        raise wrong(path, what, raw.count(b"\n", 0, error.start) + 1) from None
    if not text:
        raise wrong(path, "the file is empty")
    return text.removesuffix("\n")


def _unread(path: Path, columns: dict[str, str]) -> tuple[str, ...]:
    """The note on columns that are there and left unread."""
    names = ", ".join(f"{name}:{kind}" for name, kind in columns.items())
    return (f"{path.name}: columns left unread: {names}.",) if names else ()


def _reject(path: Path, bad: pd.Series, column: str, what: str, values: pd.Series | None = None) -> None:
    """Raise for the first row where `bad` (rows,) bool holds; `{}` in `what` stands for its value."""
    if bad.any():
        row = int(np.argmax(bad))
        if values is not None:
            what = what.replace("{}", f"{values.iloc[row]!r:.60}", 1)
        if bad.sum() > 1:
            what += f" (the first of {bad.sum():,} such lines)"
        raise wrong(path, what, row + 2, column)
