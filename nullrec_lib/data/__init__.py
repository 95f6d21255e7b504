"""What happened: catalogues, interactions, splits, examples. Imports nothing further down the line."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path

from nullrec_lib.data.formats import alphafuse, amazon, llmesr, movielens, recbole, yelp
from nullrec_lib.data.interactions import CLOCKS, Dataset, assemble, core, cut
from nullrec_lib.errors import InputError

__all__ = ["CLOCKS", "FORMATS", "SHOPS", "Dataset", "assemble", "core", "cut", "load", "locate"]

# A further format is one file under formats/ and one line here: its name, the files that no other layout has, and
# its reader `read(folder, clock) -> Dataset`. The first layout with a match reads the folder.
FORMATS = {
    "RecBole atomic files": ("*.inter", recbole.read),
    "AlphaFuse examples": ("train_data.df", alphafuse.read),
    "LLM-ESR sequences": ("inter.txt", llmesr.read),
    "Amazon Reviews 2023": ("meta_*.jsonl*", amazon.read_2023),
    "Amazon Reviews 2014": ("reviews_*.json*", amazon.read_2014),
    "Yelp Open Dataset": (yelp.REVIEWS, yelp.read),
    "MovieLens 100K": ("u.data", movielens.read_100k),
    "MovieLens 1M or 10M": ("ratings.dat", movielens.read_1m),
    "MovieLens 20M or later": ("ratings.csv", movielens.read_csv),
}

# Generated sets, by name: the arguments of `shop.generate`.
SHOPS = {
    "shop": {},
    "shop-visible0": {"visible": 0.0},
    "shop-visible1": {"visible": 1.0},
    "shop-small": {"size": "small"},
    "shop-tiny": {"size": "tiny"},
    "shop-tiny-visible0": {"size": "tiny", "visible": 0.0},
    "shop-tiny-visible1": {"size": "tiny", "visible": 1.0},
}


def load(data: str | Path, clock: str = "auto") -> Dataset:
    """The data set called `data`: a generated one, a folder, or a folder of that name under $NULLREC_DATA.

    Args:
        data: looked up in that order; write `./shop` for a folder that has a generated set's name.
        clock: `auto`, `time` or `position`, see `assemble`.

    Raises:
        InputError: there is no such data set (says where it was looked for and what there is), no reader
            knows the folder or it is a file, its files are wrong (file, line, column), or the clock is unknown.
    """
    if clock not in CLOCKS:
        raise InputError(f"clock: {clock!r} is not one of {', '.join(CLOCKS)}.")
    if data in SHOPS:
        from nullrec_lib.data import shop  # here, since reading files needs no generator

        dataset = shop.generate(**SHOPS[data])
        return dataset if clock == "auto" else replace(dataset, clock=clock)

    folder = locate(data)
    if folder.is_file():
        raise InputError(f"{folder}: this is a file, give the folder that holds it.")
    for layout, (pattern, read) in FORMATS.items():
        if found := sorted(path.name for path in folder.glob(pattern)):
            dataset = read(folder, clock)
            return replace(dataset, notes=(f"Recognised: {layout} ({', '.join(found)}).", *dataset.notes))
    known = ", ".join(f"{pattern} ({layout})" for layout, (pattern, _) in FORMATS.items())
    raise InputError(f"{folder}: no reader knows this folder, it has none of {known}.")


def locate(data: str | Path) -> Path:
    """The folder that `load` reads for a name that is not a generated set's.

    Raises:
        InputError: there is none.
    """
    home = os.environ.get("NULLREC_DATA", "")
    folder = Path(data).expanduser()
    if home and not folder.exists():
        folder = Path(home).expanduser() / data
    if not str(data) or not folder.exists():  # an empty name would be the current folder
        raise InputError(_not_found(str(data), home))
    return folder


def _not_found(data: str, home: str) -> str:
    """One sentence: where `data` was looked for, what there is, and what may have been meant."""
    if not home:
        under, there = "NULLREC_DATA, which may name a folder of data sets, is not set", []
    else:
        folders = Path(home).expanduser().glob("*/")
        there = sorted(path.name for path in folders if any(any(path.glob(known)) for known, _ in FORMATS.values()))
        under = f"under NULLREC_DATA={home} there is {', '.join(there) or 'no data set'}"
    close = difflib.get_close_matches(data, [*SHOPS, *there], n=1)
    hint = f"; the closest name is {close[0]}" if close else ""
    return f"data: {data!r} is neither a folder nor a generated set ({', '.join(SHOPS)}), and {under}{hint}."
