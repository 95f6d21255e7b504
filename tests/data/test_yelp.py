"""The Yelp Open Dataset."""

import pytest

from nullrec_lib.data import load

REVIEW, BUSINESS = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
REVIEWS = [
    {"review_id": "r1", "user_id": "ann", "business_id": "b1", "stars": 4.0, "date": "2018-07-07 22:09:11"},
    {"review_id": "r2", "user_id": "ann", "business_id": "b2", "stars": 1.0, "date": "1970-01-02"},
]
BUSINESSES = [
    {"business_id": "b2", "name": "Café Rouge", "city": "Tucson", "categories": None},
    {"business_id": "b1", "name": "Joe's", "city": "", "categories": "Pizza,  Food"},
    {"business_id": "b3", "name": "Empty", "city": "Reno", "categories": "Bars"},
]


def test_reads(write, sequences):
    write(REVIEW, REVIEWS)
    got = load(write(BUSINESS, BUSINESSES))
    assert (got.name, got.clock) == ("set", "time")
    assert sequences(got) == {"ann": [("b2", 86400.0), ("b1", 1531001351.0)]}
    assert got.items.to_numpy().tolist() == [["b1", "Joe's", "categories: Pizza, Food"],
                                             ["b2", "Café Rouge", "city: Tucson"]]
    assert got.notes == (
        f"Recognised: Yelp Open Dataset ({REVIEW}).",
        f"{REVIEW}: every review is an interaction, whatever its stars.",
        f"{BUSINESS}: 1 businesses without a review are left out of the catalogue.",
    )


def test_a_business_without_a_line_keeps_its_id(write):
    write(REVIEW, REVIEWS)
    got = load(write(BUSINESS, BUSINESSES[:1]))
    assert got.items["title"].tolist() == ["b1", "Café Rouge"]
    assert got.notes[-1] == f"{BUSINESS}: 1 items have no text (1 no line at all), their id is their title."


@pytest.mark.parametrize(("change", "words"), [
    ({"date": "yesterday"}, "column date: 'yesterday' is not a date like 2018-07-07 22:09:11."),
    ({"date": 12}, "column date: 12 is not an id."),
    ({"business_id": None}, "column business_id: None is not an id."),
])
def test_wrong_reviews(write, refused, change, words):
    write(BUSINESS, BUSINESSES)
    assert refused(load, write(REVIEW, [REVIEWS[0], REVIEWS[1] | change])).endswith(f"{REVIEW}, line 2, {words}")


def test_wrong_files(write, refused):
    folder = write(REVIEW, REVIEWS)
    assert refused(load, folder).endswith(f"expected exactly one file {BUSINESS}, found none.")
    write(BUSINESS, [*BUSINESSES, BUSINESSES[0]])
    assert refused(load, folder).endswith(f"{BUSINESS}, line 4: business 'b2' has a line already.")
