"""The folder `handled/` that LLM-ESR trains on (Liu et al., NeurIPS 2024): sequences and embeddings, no texts.

- `inter.txt`: lines `user item`, ids from 1, each user's in time order.
- `itm_emb_np.pkl`: a numpy array (N, d), row i = item i+1. `pca64_itm_emb_np.pkl`, its own projection, is left unread.
- `id_map.json`, optional: `id2item`, the source's item ids by number.

There are as many items as `id2item` has entries or, without that file, as the largest id says; without embeddings too,
the items are those that occur. LLM-ESR holds out each user's last two items: split=leave-one-out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from nullrec_lib.data import pickles
from nullrec_lib.data.lines import wrong
from nullrec_lib.data.source import Source

EMBEDDINGS, IDS = "itm_emb_np.pkl", "id_map.json"
DIGITS = 18
"""Longest number of a user or item."""
_HALF = re.compile("[\ud800-\udfff]")
"""Half a character, which no file can hold."""


def read(source: Source) -> None:
    """Read `inter.txt` and, where they are there, the two other files.

    Raises:
        InputError: a line is malformed or names an item beyond the others (file, line), a pickle holds anything but
            a row for each item, or `id_map.json` anything but an id for each.
    """
    folder, path = source.folder, source.file("inter.txt")
    pairs = _pairs(source, path)
    largest = max(item for _, item in pairs)
    names = _ids(folder / IDS) if (folder / IDS).is_file() else None
    if names is not None and largest > len(names):
        raise _beyond(path, pairs, len(names), f"entry in {IDS}, whose id2item ends with item")
    if (folder / EMBEDDINGS).is_file():
        rows = pickles.matrix(folder / EMBEDDINGS)
        if len(rows) < largest:
            raise _beyond(path, pairs, len(rows), f"row in {EMBEDDINGS}, which ends with item")
        counted = f"the largest id in {path.name}" if names is None else f"what id2item in {IDS} counts"
        source.embeddings[Path(EMBEDDINGS).stem] = _aligned(source, rows, names or range(largest), counted)
        numbers = range(1, (len(names) if names else largest) + 1)
    elif names is not None:
        numbers = range(1, len(names) + 1)
    else:
        numbers = sorted({item for _, item in pairs})
        if gaps := largest - len(numbers):
            source.note(f"{path.name}: {gaps:,} of the numbers 1 to {largest:,} do not occur and are no items; {IDS} "
                        "with an id2item for each would make them items.")

    if source.name == "handled":
        source.name = folder.resolve().parent.name
    source.without_text = source.without_times = True
    name_of = {number: names[number - 1] if names else str(number) for number in numbers}
    for item_id in name_of.values():
        source.item(item_id, path)
    lengths: dict[int, int] = {}
    for number, (user, item) in enumerate(pairs, 1):
        lengths[user] = lengths.get(user, 0) + 1
        source.event(str(user), name_of[item], lengths[user] - 1, path, number)


def _pairs(source: Source, path: Path) -> list[tuple[int, int]]:
    """(user, item) of each line."""
    pairs = []
    for number, line in source.lines(path):
        pair = line.split()
        if len(pair) != 2 or not all(map(_is_id, pair)):
            raise wrong(path, f"{line[:40]!r:.40} is not `user item` with ids from 1", number)
        pairs.append((int(pair[0]), int(pair[1])))
    return pairs


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < len(text.lstrip("0")) <= DIGITS


def _beyond(path: Path, pairs: list[tuple[int, int]], count: int, what: str):
    """The error for the first line that names an item beyond `count`."""
    number, item = next((number, item) for number, (_, item) in enumerate(pairs, 1) if item > count)
    return wrong(path, f"item {item} has no {what} {count}; the two files must be of the same data", number)


def _aligned(source: Source, rows: np.ndarray, items: Any, counted: str) -> np.ndarray:
    """(N, d) float32: row i is the item numbered i+1. A row of zeros before or behind all of them is padding."""
    if len(rows) == len(items):
        return rows
    first, last = (not rows[end].any() for end in (0, -1))
    if len(rows) == len(items) + 1 and first != last:
        where = "first" if first else "last"
        source.note(f"{EMBEDDINGS}: its {where} row is zeros, padding for no item, and was left out; row i of the "
                    "others is item i, counted from 1.")
        return rows[1:] if first else rows[:-1]
    raise wrong(source.folder / EMBEDDINGS, f"holds {len(rows):,} rows, but there are {len(items):,} items "
                f"({counted}); leave out the rows of no item, or add the items to id2item in {IDS}")


def _ids(path: Path) -> list[str]:
    """The ids of items 1 to N."""
    try:
        known = json.loads(path.read_bytes(), object_pairs_hook=_object)["id2item"]
        if not isinstance(known, dict) or not known:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        what = "expected a JSON object whose id2item is an object too, with each item's id by its number from 1"
        raise wrong(path, f"{what}, each number once") from None
    ids = []
    for item in range(1, len(known) + 1):
        if str(item) not in known:
            raise wrong(path, f"id2item has {len(known):,} entries but none for item {item}, number them from 1")
        item_id = known[str(item)]
        if type(item_id) not in (str, int) or not str(item_id).strip() or _HALF.search(str(item_id)):
            kind = f"{item_id[:40]!r:.40}" if isinstance(item_id, str) else type(item_id).__name__
            raise wrong(path, f"id2item has {kind} for item {item}, give it a text or a whole number")
        ids.append(str(item_id))
    if len(set(ids)) != len(ids):
        again = Counter(ids).most_common(1)[0][0]
        raise wrong(path, f"id2item has {again[:40]!r:.40} for two items, give each an id of its own")
    return ids


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names come once each."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)
