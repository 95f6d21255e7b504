"""What happened: catalogues, interactions, splits, examples. Imports nothing further down the line."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path

from nullrec_lib.data.formats import alphafuse, amazon, llmesr, movielens, recbole, yelp
from nullrec_lib.data.interactions import Dataset, assemble, core, cut
from nullrec_lib.data.source import MISSING_TEXT, Reading, Source, fits
from nullrec_lib.data.times import CLOCKS
from nullrec_lib.errors import InputError

__all__ = ["CLOCKS", "FORMATS", "MISSING_TEXT", "SHOPS", "Dataset", "Reading", "around", "assemble", "core", "cut", "load",
           "locate", "places"]

# A further format is one file under formats/ and one line here: its name, the files that no other layout has (`*` stands
# for anything), and its reader `read(source)`, which hands over what it finds. The first layout with a match reads.
FORMATS = {
    "RecBole atomic files": (("*.inter",), recbole.read),
    "AlphaFuse examples": (("train_data.df",), alphafuse.read),
    "LLM-ESR sequences": (("inter.txt",), llmesr.read),
    "Amazon Reviews 2023": (("meta_*.jsonl", "meta_*.jsonl.gz"), amazon.read_2023),
    "Amazon Reviews 2014 or 2018": (
        ("meta_*.json", "meta_*.json.gz", "reviews_*.json", "reviews_*.json.gz"), amazon.read_2014),
    "Yelp Open Dataset": ((yelp.REVIEWS, f"{yelp.REVIEWS}.gz"), yelp.read),
    "MovieLens 100K": (("u.data",), movielens.read_100k),
    "MovieLens 1M or 10M": (("ratings.dat",), movielens.read_1m),
    "MovieLens 20M or later": (("ratings.csv",), movielens.read_csv),
}  # fmt: skip

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


def load(data: str | Path, clock: str = "auto", clean: bool = True, missing_text: str = "mean") -> Dataset:
    """The data set called `data`: a generated one, a folder, or a folder of that name under $NULLREC_DATA.

    Args:
        data: looked up in that order; write `./shop` for a folder that has a generated set's name.
        clock, clean, missing_text: see `source.Reading`; generated sets read the clock alone.

    Raises:
        InputError: there is no such data set (says where it was looked for and what there is), no reader
            knows the folder or it is a file, its files are wrong (file, line, column), or an argument is.
    """
    reading = Reading(clock, clean, missing_text)
    if data in SHOPS:
        from nullrec_lib.data import shop  # here, since reading files needs no generator

        dataset = shop.generate(**SHOPS[data])
        return dataset if clock == "auto" else replace(dataset, clock=clock)

    source = Source(locate(data), reading)
    layout, names = _layout(source.folder)
    if layout is None:
        known = ", ".join(f"{patterns[0]} ({name})" for name, (patterns, _) in FORMATS.items())
        raise InputError(f"{source.folder}: no reader knows this folder, it has none of {known}.")
    source.note(f"Recognised: {layout} ({', '.join(names)}).")
    FORMATS[layout][1](source)
    return source.dataset()


def _layout(folder: Path) -> tuple[str | None, list[str]]:
    """The layout of a folder, and the files that it is recognised by."""
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    for layout, (patterns, _) in FORMATS.items():
        if names := [name for name in there if fits(name, patterns)]:
            return layout, names
    return None, []


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


def places(data: str, folder: Path) -> list[str]:
    """Where the data that a stored folder was made from may lie now: as they were named, from one of the folders around it,
    or under $NULLREC_DATA. Those that are there; whether they are the same data, their fingerprint says."""
    home, plain = os.environ.get("NULLREC_DATA", ""), Path(data).name
    near = around(data, folder) + ([str(Path(home).expanduser() / plain)] if home and plain else [])
    return [place for place in dict.fromkeys([data, *near]) if place in SHOPS or Path(place).expanduser().is_dir()]


def around(path: str, folder: Path) -> list[str]:
    """Where a relative path leads from the folders around a stored one; only what is there."""
    if not path or Path(path).is_absolute():
        return []
    return [str(parent / path) for parent in Path(folder).resolve().parents if (parent / path).exists()]


def _not_found(data: str, home: str) -> str:
    """One sentence: where `data` was looked for, what there is, and what may have been meant."""
    if not home:
        under, there = "NULLREC_DATA, which may name a folder of data sets, is not set", []
    else:
        home_folder = Path(home).expanduser()
        folders = [path for path in home_folder.iterdir() if path.is_dir()] if home_folder.is_dir() else []
        there = sorted(path.name for path in folders if _layout(path)[0])
        under = f"under NULLREC_DATA={home} there is {', '.join(there) or 'no data set'}"
    close = difflib.get_close_matches(data, [*SHOPS, *there], n=1)
    hint = f"; the closest name is {close[0]}" if close else ""
    return f"data: {data!r} is neither a folder nor a generated set ({', '.join(SHOPS)}), and {under}{hint}."
