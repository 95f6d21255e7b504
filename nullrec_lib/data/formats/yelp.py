"""The Yelp Open Dataset: `yelp_academic_dataset_review.json` and `yelp_academic_dataset_business.json`.

One JSON object a line. Reviews: `user_id`, `business_id`, `date` ("2018-07-07 22:09:11"; the day alone in old
editions), read as UTC. Businesses: `business_id`, `name`, `categories` (one text), `city`. The catalogue is the
businesses with a review. Every review counts, whatever its stars.
"""

from __future__ import annotations

from nullrec_lib.data.lines import wrong
from nullrec_lib.data.source import Source
from nullrec_lib.data.texts import words

REVIEWS, BUSINESSES = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
FIELDS = ("user_id", "business_id", "date")


def read(source: Source) -> None:
    """Read the two files (also `.gz`).

    Raises:
        InputError: a file is missing, or a line is malformed (file, line, field).
    """
    reviews, businesses = (source.file(name, f"{name}.gz") for name in (REVIEWS, BUSINESSES))
    source.only_met = True
    source.note(f"{reviews.name}: every review is an interaction, whatever its stars.")
    for number, record in source.records(reviews, (*FIELDS, "review_id")):
        for name in FIELDS:
            if name not in record:
                raise wrong(reviews, "the field is missing", number, name)
        user, item = (source.id(record[name], reviews, number, name) for name in FIELDS[:2])
        source.event(user, item, record["date"], reviews, number, "date")
    for number, record in source.records(businesses, ("business_id", "name", "categories", "city")):
        item = source.id(record.get("business_id"), businesses, number, "business_id")
        source.item(item, businesses, words(record.get("name")), categories=words(record.get("categories")),
                    city=words(record.get("city")))
