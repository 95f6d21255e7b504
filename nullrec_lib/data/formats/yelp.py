"""The Yelp Open Dataset: `yelp_academic_dataset_review.json` and `yelp_academic_dataset_business.json`.

One JSON object a line. Reviews: `user_id`, `business_id`, `date` ("2018-07-07 22:09:11"; the day alone in old
editions), read as UTC. Businesses: `business_id`, `name`, `categories` (one text), `city`. The catalogue is the
businesses with a review, in order of the first one. Stars are left unread: every review counts.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from nullrec_lib.data.formats.lines import Log, Texts, description, one, records, text_of, words, wrong
from nullrec_lib.data.interactions import Dataset

REVIEWS, BUSINESSES = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"


def read(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read a folder with the two files.

    Raises:
        InputError: a file is missing, or a line is malformed (file, line, field).
    """
    folder = Path(folder)
    reviews, businesses = one(folder, REVIEWS), one(folder, BUSINESSES)
    log = Log()
    for number, record in records(reviews):
        date = text_of(record, "date", reviews, number)
        try:
            time = datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise wrong(reviews, f"{date!r:.60} is not a date like 2018-07-07 22:09:11", number, "date") from None
        user, item = (text_of(record, name, reviews, number) for name in ("user_id", "business_id"))
        log.add(user, item, time)

    texts: Texts = {}
    unread = 0
    for number, record in records(businesses):
        item = text_of(record, "business_id", businesses, number)
        if item not in log.items:
            unread += 1
        elif item in texts:
            raise wrong(businesses, f"business {item!r:.60} has a line already", number)
        else:
            about = description(categories=words(record.get("categories")), city=words(record.get("city")))
            texts[item] = words(record.get("name")), about
    notes = (f"{reviews.name}: every review is an interaction, whatever its stars.",)
    if unread:
        notes += (f"{businesses.name}: {unread:,} businesses without a review are left out of the catalogue.",)
    return log.dataset(folder.resolve().name, log.items, texts, businesses.name, clock, notes)
