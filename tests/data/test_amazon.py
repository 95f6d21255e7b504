"""Amazon's two releases: what is read, what a note says, what is refused and with which words."""

import gzip
import json

import pytest

from nullrec_lib.data import load

REVIEWS = [
    {"reviewerID": "ann", "asin": "B1", "overall": 5.0, "unixReviewTime": 1500000300, "reviewText": "Nice\nball"},
    {"reviewerID": "ben", "asin": "B2", "overall": 1.0, "unixReviewTime": 1500000200},
    {"reviewerID": "ann", "asin": "B3", "overall": 3.0, "unixReviewTime": 1500000100},
    {"reviewerID": "ann", "asin": "B1", "overall": 4.0, "unixReviewTime": 1500000300},
]
META = [
    # The original's lines are Python, not JSON.
    "{'asin': 'B1', 'title': \"A kid's  ball\", 'brand': 'Acme', 'price': 1.5, "
    "'categories': [['Toys & Games', 'Balls'], ['Toys & Games', 'Outdoor']], 'description': 'It\\nbounces.'}",
    {"asin": "B9", "title": "Nobody has it"},
    {"asin": "B2", "description": "No title here", "related": None},
    {"asin": "B1", "title": "The same again"},
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_2014(write, sequences, suffix):
    write(f"reviews_Toys_5.json{suffix}", REVIEWS)
    got = load(write(f"meta_Toys.json{suffix}", META))
    assert (got.name, got.clock, got.user_ids.tolist()) == ("Toys", "time", ["ann", "ben"])
    assert sequences(got) == {"ann": [("B3", 1500000100), ("B1", 1500000300), ("B1", 1500000300)],
                              "ben": [("B2", 1500000200)]}
    assert got.items.to_numpy().tolist() == [
        ["B1", "A kid's ball", "brand: Acme. categories: Toys & Games, Balls, Outdoor. It bounces."],
        ["B2", "", "No title here"],
        ["B3", "", ""],
    ]
    assert got.notes == (
        f"Recognised: Amazon Reviews 2014 or 2018 (meta_Toys.json{suffix}, reviews_Toys_5.json{suffix}).",
        f"reviews_Toys_5.json{suffix}: every review is an interaction, whatever its rating.",
        f"meta_Toys.json{suffix}: 1 items without an interaction are left out of the catalogue.",
        f"meta_Toys.json{suffix}: 1 lines describe an item again, 1 of them otherwise; the first line counts.",
        f"meta_Toys.json{suffix}: 1 of 3 items have no text (1 no line at all); their language vector is the mean of the "
        "others' (missing_text=refuse refuses them).",
        f"reviews_Toys_5.json{suffix}: fields with text that are not used: reviewText.",
        "1 interactions are there again, same user, item and time; all are kept.",
    )


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_2023(write, sequences, suffix):
    write(f"Toys.jsonl{suffix}", [
        {"user_id": "ann", "parent_asin": "B1", "asin": "V1", "rating": 5.0, "timestamp": 1588687728923},
        {"user_id": "ann", "parent_asin": "B2", "rating": 5.0, "timestamp": 1588687728922},
    ])
    got = load(write(f"meta_Toys.jsonl{suffix}", [
        {"parent_asin": "B2", "title": "Car", "main_category": "Toys", "store": None, "categories": [],
         "features": ["Red", "Fast"], "description": ["One.", "Two."]},
        {"parent_asin": "B1", "title": "Ball", "store": "Acme", "features": [], "description": []},
    ]))
    assert (got.name, got.clock) == ("Toys", "time")
    assert sequences(got) == {"ann": [("B2", 1588687728.922), ("B1", 1588687728.923)]}
    assert got.items.to_numpy().tolist() == [
        ["B1", "Ball", "store: Acme"], ["B2", "Car", "main category: Toys. features: Red, Fast. One. Two."]]
    assert got.notes == (
        f"Recognised: Amazon Reviews 2023 (meta_Toys.jsonl{suffix}).",
        f"Toys.jsonl{suffix}: every review is an interaction, whatever its rating.",
        f"Toys.jsonl{suffix}: fields with text that are not used: asin.")


def test_half_an_emoji_is_a_question_mark(write):
    write("reviews_T.json", REVIEWS)
    folder = write("meta_T.json", '{"asin": "%s", "title": "nice \\ud83d ball"}\n' % REVIEWS[1]["asin"])
    assert "nice ? ball" in load(folder).items["title"].tolist()


def changed(**fields) -> dict:
    return {name: value for name, value in (REVIEWS[1] | fields).items() if value is not ...}


@pytest.mark.parametrize(("line", "words"), [
    (changed(asin=...), "column asin: the field is missing."),
    (changed(asin=""), "column asin: '' is not an id."),
    (changed(reviewerID=7), "column reviewerID: 7 is not an id."),
    (changed(unixReviewTime=...), "column unixReviewTime: the field is missing."),
    (changed(unixReviewTime="soon"), "column unixReviewTime: 'soon' is neither a finite number nor a date like 2018-07-07 22:09:11."),
    (changed(unixReviewTime=None), "column unixReviewTime: None is neither a finite number nor a date like 2018-07-07 22:09:11."),
    (changed(unixReviewTime=True), "column unixReviewTime: True is neither a finite number nor a date like 2018-07-07 22:09:11."),
    (changed(unixReviewTime=float("nan")), "column unixReviewTime: nan is neither a finite number nor a date like 2018-07-07 22:09:11."),
    ('{"reviewerID": "ann", "asin"', """: '{"reviewerID": "ann", "asin"' is not a whole JSON object."""),
    ("[1]", ": '[1]' is not a whole JSON object."),
    ("{'reviewerID': 'ann'}", """: "{'reviewerID': 'ann'}" is not a whole JSON object."""),  # JSON alone, in reviews
    ("", ": the line is blank, delete it."),
    ("[" * 100_000, " is not a whole JSON object."),
])
def test_wrong_reviews(write, refused, line, words):
    folder = write("meta_A.json", META)
    write("reviews_A.json", [REVIEWS[0], line, *REVIEWS[1:]])
    text = refused(load, folder)
    assert text.startswith(f"{folder}/reviews_A.json, line 2") and text.endswith(words)


@pytest.mark.parametrize("line", ["__import__('os').system('echo')", "{'asin': open('x')}", "(" * 100_000, "{'asin'"])
def test_python_lines_are_constants_only(write, refused, line):
    folder = write("reviews_A.json", REVIEWS)
    write("meta_A.json", [META[0], line])
    text = refused(load, folder)
    assert text.startswith(f"{folder}/meta_A.json, line 2: ") and text.endswith(" is not a whole JSON object.")


def test_wrong_files(write, refused):
    folder = write("reviews_A.json", REVIEWS)
    assert refused(load, folder).endswith("exactly one file meta_*.json or meta_*.json.gz, found none.")
    write("meta_A.json", "")
    assert refused(load, folder).endswith("meta_A.json: the file is empty.")
    write("meta_A.json", META)
    write("reviews_B.json.gz", REVIEWS)
    assert refused(load, folder).endswith("found reviews_A.json, reviews_B.json.gz.")
    assert refused(load, write("meta_A.jsonl", META, folder.parent / "new")).endswith(
        "exactly one file A.jsonl or A.jsonl.gz, found none.")


def test_a_broken_gzip_stream_is_named(write, refused):
    folder = write("meta_A.json", META)
    whole = gzip.compress(("\n".join(['{"reviewerID": "ann", "asin": "B1", "unixReviewTime": 1}'] * 9)).encode())
    bent = whole[:30] + b"\0\0" + whole[32:]
    for raw, place in ((whole[:-12], "line"), (bent, "line")):
        (folder / "reviews_A.json.gz").write_bytes(raw)
        text = refused(load, folder)
        assert text.startswith(f"{folder}/reviews_A.json.gz, {place}")
        assert "the gzip stream is damaged or breaks off" in text
    (folder / "reviews_A.json.gz").write_bytes(json.dumps(REVIEWS[0]).encode())  # unpacked, and still called .gz
    assert load(folder).n_interactions == 1


def test_reading_keeps_no_more_than_it_needs(write):
    """Memory grows with interactions by numbers, not by records: a record's text is gone when the next is read."""
    import tracemalloc

    text = "x" * 2000
    rows = [{"reviewerID": f"u{i % 50}", "asin": f"B{i % 40}", "unixReviewTime": 1_500_000_000 + i, "reviewText": text}
            for i in range(4000)]
    write("reviews_A.json.gz", rows)
    folder = write("meta_A.json", [{"asin": f"C{i}", "title": text} for i in range(2000)])
    stored = len(json.dumps(rows))
    del rows
    tracemalloc.start()
    got = load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (got.n_interactions, got.n_users, got.n_items) == (4000, 50, 40)
    assert peak < 4_000_000 < stored
