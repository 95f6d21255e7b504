"""One small log written in every layout that is read: what the readers' common tests and the fuzzer start from."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nullrec_lib.data.formats.movielens import GENRES
from nullrec_lib.data.formats.yelp import BUSINESSES, REVIEWS


@dataclass(frozen=True)
class Sample:
    """What a shop knows: lines of its catalogue, and who had what when."""

    items: tuple[tuple[str, str], ...]
    """Item id and title, one line each; an id may come again, a title may be empty."""
    events: tuple[tuple[str, str, object], ...]
    """User id, item id, and Unix seconds (or whatever else stands there)."""
    encoding: str = "utf-8"
    end: str = "\n"
    zipped: bool = False


def put(folder: Path, name: str, rows: list[str], sample: Sample) -> None:
    """Write lines in the sample's encoding, with its line ends, gzipped if it is."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = "".join(row + sample.end for row in rows).encode(sample.encoding)
    (folder / name).write_bytes(gzip.compress(raw) if sample.zipped else raw)


def recbole(folder: Path, sample: Sample) -> None:
    events = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, event)) for event in sample.events)]
    put(folder, f"{folder.name}.inter", events, sample)
    put(folder, f"{folder.name}.item", ["item_id:token\ttitle:token_seq", *map("\t".join, sample.items)], sample)


def _json(folder: Path, sample: Sample, names: tuple[str, str], fields: tuple[str, str, str, str], per_second: int = 1) -> None:
    user, item, time, title = fields
    scaled = lambda value: value * per_second if isinstance(value, (int, float)) and 10**9 < value < 2 * 10**9 else value
    dump = lambda record: json.dumps(record, ensure_ascii=False)
    put(folder, names[0], [dump({user: u, item: i, time: scaled(t)}) for u, i, t in sample.events], sample)
    put(folder, names[1], [dump({item: i, title: text}) for i, text in sample.items], sample)


def amazon_2014(folder: Path, sample: Sample) -> None:
    _json(folder, sample, ("reviews_Toys.json", "meta_Toys.json"), ("reviewerID", "asin", "unixReviewTime", "title"))


def amazon_2018(folder: Path, sample: Sample) -> None:
    _json(folder, sample, ("Toys_5.json", "meta_Toys.json"), ("reviewerID", "asin", "unixReviewTime", "title"))


def amazon_2023(folder: Path, sample: Sample) -> None:
    _json(folder, sample, ("Toys.jsonl", "meta_Toys.jsonl"), ("user_id", "parent_asin", "timestamp", "title"), 1000)


def yelp(folder: Path, sample: Sample) -> None:
    _json(folder, sample, (REVIEWS, BUSINESSES), ("user_id", "business_id", "date", "name"))


def movielens_100k(folder: Path, sample: Sample) -> None:
    flags = "|".join("0" * len(GENRES))
    put(folder, "u.data", [f"{u}\t{i}\t3\t{t}" for u, i, t in sample.events], sample)
    put(folder, "u.item", [f"{i}|{title}|||http://x|{flags}" for i, title in sample.items], sample)


def movielens_1m(folder: Path, sample: Sample) -> None:
    put(folder, "ratings.dat", [f"{u}::{i}::3::{t}" for u, i, t in sample.events], sample)
    put(folder, "movies.dat", [f"{i}::{title}::" for i, title in sample.items], sample)


def movielens_csv(folder: Path, sample: Sample) -> None:
    def row(*cells) -> str:
        csv.writer(text := io.StringIO(), lineterminator="").writerow(cells)
        return text.getvalue()

    events = ["userId,movieId,rating,timestamp", *(row(u, i, 3, t) for u, i, t in sample.events)]
    put(folder, "ratings.csv", events, sample)
    none = "(no genres listed)"
    put(folder, "movies.csv", ["movieId,title,genres", *(row(i, title, none) for i, title in sample.items)], sample)


WITH_TEXT = {write.__name__: write for write in (
    recbole, amazon_2014, amazon_2018, amazon_2023, yelp, movielens_100k, movielens_1m, movielens_csv)}
"""Layouts that hold ids, times and texts."""


def sequences(sample: Sample) -> list[list[int]]:
    """Each user's items in order, numbered from 0 as in the sample's catalogue."""
    number = {item: place for place, item in enumerate(dict.fromkeys(item for item, _ in sample.items))}
    users: dict[str, list[tuple]] = {}
    for user, item, time in sample.events:
        users.setdefault(user, []).append((time, number[item]))
    return [[item for _, item in sorted(events, key=lambda event: event[0])] for events in users.values()]


def vectors(n: int) -> np.ndarray:
    """(n, 3) float32, another row for each item."""
    return np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)


def llmesr(folder: Path, sample: Sample) -> None:
    rows = [f"{user} {item + 1}" for user, items in enumerate(sequences(sample), 1) for item in items]
    put(folder, "inter.txt", rows, sample)
    (folder / "itm_emb_np.pkl").write_bytes(pickle.dumps(vectors(len(dict(sample.items)))))


def alphafuse(folder: Path, sample: Sample) -> None:
    """Users in turn train, validate and test; each history of one is an example."""
    folder.mkdir(parents=True, exist_ok=True)
    every, n = sequences(sample), len(dict(sample.items))
    width = max(map(len, every))
    frames: list[list[dict]] = [[], [], []]
    for user, items in enumerate(every):
        for cut in range(1, len(items)):
            history = items[:cut] + [n] * (width - cut)
            frames[user % 3].append({"seq": history, "len_seq": cut, "next": items[cut]})
    for name, rows in zip(("train_data.df", "val_data.df", "test_data.df"), frames):
        (folder / name).write_bytes(pickle.dumps(pd.DataFrame(rows, columns=["seq", "len_seq", "next"])))
    (folder / "data_statis.df").write_bytes(pickle.dumps(pd.DataFrame({"seq_size": [width], "item_num": [n]})))
    (folder / "x_emb.pickle").write_bytes(pickle.dumps(vectors(n)))


WITHOUT_TEXT = {write.__name__: write for write in (llmesr, alphafuse)}
"""Layouts of numbered items with embeddings."""
LAYOUTS = WITH_TEXT | WITHOUT_TEXT
