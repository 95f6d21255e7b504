"""Amazon Reviews, one record a line, plain or gzipped: the releases of 2014 and of 2023.

- 2014: `reviews_X.json` (`reviewerID`, `asin`, `unixReviewTime` in seconds) and `meta_X.json` (`asin`, `title`,
  `brand`, `categories`, `description`), whose lines are Python literals in the original and JSON in later copies.
- 2023: `X.jsonl` (`user_id`, `parent_asin`, `timestamp` in milliseconds) and `meta_X.jsonl` (`parent_asin`, `title`,
  `store`, `main_category`, `categories`, `features`, `description`).

A `_5` before the suffix of a 5-core is part of X for the reviews alone. The metadata describe millions of products:
the catalogue is those with a review, in order of their first one. Ratings are left unread: every review counts.
"""

from __future__ import annotations

from pathlib import Path

from nullrec_lib.data.formats.lines import Log, Texts, description, one, records, text_of, time_of, words
from nullrec_lib.data.interactions import Dataset
from nullrec_lib.errors import InputError


def read_2014(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read a folder with one `reviews_*.json` and one `meta_*.json` (both also `.gz`).

    Raises:
        InputError: a file is missing or there are several, or a line is malformed (file, line, field).
    """
    folder = Path(folder)
    reviews = one(folder, "reviews_*.json", "reviews_*.json.gz")
    meta = one(folder, "meta_*.json", "meta_*.json.gz")
    return _read(reviews, meta, ("reviewerID", "asin", "unixReviewTime", 1), ("brand", "categories"), clock)


def read_2023(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read a folder with one `meta_X.jsonl` and its `X.jsonl` (both also `.gz`).

    Raises:
        InputError: as `read_2014`.
    """
    folder = Path(folder)
    meta = one(folder, "meta_*.jsonl", "meta_*.jsonl.gz")
    name = meta.name.removeprefix("meta_").removesuffix(".gz")
    attributes = ("store", "main_category", "categories", "features")
    fields = ("user_id", "parent_asin", "timestamp", 1000)
    return _read(one(folder, name, f"{name}.gz"), meta, fields, attributes, clock)


def _read(reviews: Path, meta: Path, fields: tuple[str, str, str, int], attributes: tuple[str, ...], clock: str):
    user, item, time, per_second = fields
    log = Log()
    for number, record in records(reviews):
        if time not in record:
            raise InputError(f"{reviews}, line {number}, column {time}: the field is missing.")
        seconds = time_of(record[time], time, reviews, number) / per_second
        log.add(text_of(record, user, reviews, number), text_of(record, item, reviews, number), seconds)

    texts: Texts = {}
    unread = again = 0
    for number, record in records(meta, literal=True):
        item_id = text_of(record, item, meta, number)
        if item_id not in log.items:
            unread += 1
        elif item_id in texts:
            again += 1
        else:
            named = {name.replace("_", " "): words(record.get(name)) for name in attributes}
            texts[item_id] = words(record.get("title")), description(words(record.get("description"), " "), **named)
    notes = (f"{reviews.name}: every review is an interaction, whatever its rating.",)
    if unread:
        notes += (f"{meta.name}: {unread:,} items without a review are left out of the catalogue.",)
    if again:
        notes += (f"{meta.name}: {again:,} lines describe an item again, the first counts.",)
    return log.dataset(meta.name.split(".")[0].removeprefix("meta_"), log.items, texts, meta.name, clock, notes)
