"""Amazon Reviews, one record a line, plain or gzipped: the releases of 2014, 2018 and 2023.

- 2014 and 2018: `reviews_X.json`, `X.json` or `X_5.json` (`reviewerID`, `asin`, `unixReviewTime` in seconds) and
  `meta_X.json` (`asin`, `title`, `brand`, `categories` or `category`, `feature`, `description`), whose lines are Python
  literals in the original of 2014 and JSON in later copies.
- 2023: `X.jsonl` (`user_id`, `parent_asin`, `timestamp` in milliseconds) and `meta_X.jsonl` (`parent_asin`, `title`,
  `store`, `main_category`, `categories`, `features`, `description`).

The metadata describe millions of products: the catalogue is those with a review. Every review counts, whatever its rating.
"""

from __future__ import annotations

from pathlib import Path

from nullrec_lib.data.lines import wrong
from nullrec_lib.data.source import Source
from nullrec_lib.data.texts import words

ATTRIBUTES = ("brand", "store", "main_category", "categories", "category", "features", "feature")
"""Of an item, in the order of its text; each release has some of them."""


def read_2014(source: Source) -> None:
    """Read the one `meta_X.json` and its reviews (both also `.gz`).

    Raises:
        InputError: a file is missing or there are several, or a line is malformed (file, line, field).
    """
    meta = source.file("meta_*.json", "meta_*.json.gz")
    name = _name(meta)
    own = [f"{stem}.json{zipped}" for stem in (name, f"{name}_5") for zipped in ("", ".gz")]
    reviews = source.file("reviews_*.json", "reviews_*.json.gz", *own)
    _read(source, reviews, meta, ("reviewerID", "asin", "unixReviewTime"), "seconds")


def read_2023(source: Source) -> None:
    """Read the one `meta_X.jsonl` and its `X.jsonl` (both also `.gz`).

    Raises:
        InputError: as `read_2014`.
    """
    meta = source.file("meta_*.jsonl", "meta_*.jsonl.gz")
    name = f"{_name(meta)}.jsonl"
    _read(source, source.file(name, f"{name}.gz"), meta, ("user_id", "parent_asin", "timestamp"), "milliseconds")


def _name(meta: Path) -> str:
    return meta.name.removeprefix("meta_").removesuffix(".gz").rpartition(".")[0]


def _read(source: Source, reviews: Path, meta: Path, fields: tuple[str, str, str], unit: str) -> None:
    user, item, time = fields
    source.name, source.only_met, source.clock.unit = _name(meta), True, unit
    source.note(f"{reviews.name}: every review is an interaction, whatever its rating.")
    for number, record in source.records(reviews, fields):
        for name in fields:
            if name not in record:
                raise wrong(reviews, "the field is missing", number, name)
        who, what = (source.id(record[name], reviews, number, name) for name in (user, item))
        source.event(who, what, record[time], reviews, number, time)
    for number, record in source.records(meta, (item, "title", "description", *ATTRIBUTES), literal=True):
        if item not in record:
            raise wrong(meta, "the field is missing", number, item)
        attributes = {name.replace("_", " "): words(record.get(name)) for name in ATTRIBUTES}
        source.item(source.id(record[item], meta, number, item), meta, words(record.get("title")),
                    words(record.get("description"), " "), **attributes)
