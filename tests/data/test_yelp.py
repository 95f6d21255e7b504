"""The Yelp Open Dataset."""

import pytest

from nullrec_lib.data import load

REVIEW, BUSINESS = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
REVIEWS = [
    {"review_id": "r1", "user_id": "ann", "business_id": "b1", "stars": 4.0, "date": "2018-07-07 22:09:11"},
    {"review_id": "r2", "user_id": "ann", "business_id": "b2", "stars": 1.0, "date": "2018-07-06"},
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
    assert sequences(got) == {"ann": [("b2", 1530835200.0), ("b1", 1531001351.0)]}
    assert got.items.to_numpy().tolist() == [["b1", "Joe's", "categories: Pizza, Food"],
                                             ["b2", "Café Rouge", "city: Tucson"]]
    assert got.notes == (
        f"Recognised: Yelp Open Dataset ({REVIEW}).",
        f"{REVIEW}: every review is an interaction, whatever its stars.",
        f"{BUSINESS}: 1 items without an interaction are left out of the catalogue.",
    )


def test_a_business_without_a_line_stays(write):
    write(REVIEW, REVIEWS)
    got = load(write(BUSINESS, BUSINESSES[:1]))
    assert got.items["title"].tolist() == ["", "Café Rouge"]
    assert got.notes[-1].startswith(f"{BUSINESS}: 1 of 2 items have no text (1 no line at all)")


@pytest.mark.parametrize(("change", "words"), [
    ({"date": "yesterday"}, "column date: 'yesterday' is neither a finite number nor a date like 2018-07-07 22:09:11."),
    ({"date": []}, "column date: [] is neither a finite number nor a date like 2018-07-07 22:09:11."),
    ({"business_id": None}, "column business_id: None is not an id."),
])
def test_wrong_reviews(write, refused, change, words):
    write(BUSINESS, BUSINESSES)
    assert refused(load, write(REVIEW, [REVIEWS[0], REVIEWS[1] | change])).endswith(f"{REVIEW}, line 2, {words}")


def test_wrong_files(write, refused):
    folder = write(REVIEW, REVIEWS)
    assert refused(load, folder).endswith(f"expected exactly one file {BUSINESS} or {BUSINESS}.gz, found none.")
    write(BUSINESS, [*BUSINESSES, BUSINESSES[0]])
    assert f"{BUSINESS}: 1 lines describe an item again; the first line counts." in load(folder).notes
