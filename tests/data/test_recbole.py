"""The RecBole reader and `load`: what is read, what is refused, and with which words."""

import csv
import io
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullrec_lib import data
from nullrec_lib.data import load
from nullrec_lib.data.formats import recbole
from nullrec_lib.data.source import Reading, Source
from nullrec_lib.data.texts import clean
from nullrec_lib.errors import InputError

INTER = """\
user_id:token	item_id:token	timestamp:float
ann	a	1500000100
ben	b	1500000050
ann	b	1500000101.5
"""
ITEM = """\
item_id:token	title:token_seq	description:token_seq
b	Blue ball	Bounces
a	Red "car"	
"""


@pytest.fixture
def write(tmp_path):
    """Writes a folder `tiny` with the two files (None: leaves the file out) and returns it."""

    def write(inter=INTER, item=ITEM, folder="tiny", name="tiny") -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("inter", inter), ("item", item)):
            if text is not None:
                raw = text if isinstance(text, bytes) else text.encode()
                (path / f"{name}.{suffix}").write_bytes(raw)
        return path

    return write


def message(call, *args) -> str:
    """The message of the InputError that `call` must raise; every one is a single sentence."""
    with pytest.raises(InputError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and not text.endswith("..")
    assert ". " not in text
    return text


def read(folder, **reading):
    """The folder's data set; `load` without its note on the layout."""
    source = Source(folder, Reading(**reading))
    recbole.read(source)
    return source.dataset()


# ---- good input --------------------------------------------------------------------------------------------


def test_reads_both_files(write):
    got = read(write())
    assert (got.name, got.clock, got.notes) == ("tiny", "time", ())
    assert got.user_ids.tolist() == ["ann", "ben"]  # order of first appearance
    # The catalogue keeps the file's order: b is item 0. Quotes are ordinary characters.
    assert got.items.to_numpy().tolist() == [["b", "Blue ball", "Bounces"], ["a", 'Red "car"', ""]]
    assert got.interactions["user"].tolist() == [0, 0, 1]
    assert got.interactions["item"].tolist() == [1, 0, 0]
    assert got.interactions["timestamp"].tolist() == [1500000100.0, 1500000101.5, 1500000050.0]
    assert [str(kind) for kind in got.interactions.dtypes] == ["int64", "int64", "float64"]


def reorder(text: str, order: tuple[int, ...]) -> str:
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    return "".join("\t".join(row[i] for i in order) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("inter", "item"),
    [
        pytest.param(reorder(INTER, (2, 0, 1)), reorder(ITEM, (2, 1, 0)), id="column order"),
        pytest.param("\ufeff" + INTER, "\ufeff" + ITEM, id="BOM"),
        pytest.param(INTER.replace("\n", "\r\n"), ITEM.replace("\n", "\r\n"), id="CRLF"),
        pytest.param(INTER.removesuffix("\n"), ITEM.removesuffix("\n"), id="no last line end"),
        pytest.param(INTER, ITEM.replace("token_seq", "token"), id="texts typed token"),
    ],
)
def test_same_content_written_differently(write, inter, item):
    assert read(write(inter, item)).fingerprint() == read(write(folder="plain")).fingerprint()


@pytest.mark.parametrize(
    "word",
    [
        *("NA", "null", "None", "nan", "007", "1e5", "True", '"', '"open', "'", "#1", "\\t", "  two  "),
        *("日本語 é 🎲", "a\u2028b\x85c\x0cd", "a\rb", "nul\x00"),
    ],
)
def test_words_survive_in_every_text_column(write, word):
    folder = write(INTER + f"{word}\t{word}\t1500000007\n", ITEM + f"{word}\t{word}\t{word}\n")
    for got, texts in ((read(folder, clean=False), word), (read(folder), clean(word))):
        assert got.items.iloc[2].tolist() == [word, texts, texts]
        assert got.user_ids[2] == word
        assert got.interactions["item"].tolist() == [1, 0, 0, 2]


def test_extra_columns_in_inter_are_unread_and_noted(write):
    inter = reorder(INTER, (0, 2, 1, 2)).replace("timestamp", "rating", 1)
    got = read(write(inter))
    assert got.notes == ("tiny.inter: columns left unread: rating:float.",)
    assert got.fingerprint() == read(write(folder="plain")).fingerprint()


def test_extra_text_columns_are_attributes(write):
    item = (
        "brand:token\titem_id:token\tprice:float\tdescription:token_seq\tkinds:token_seq\ttitle:token_seq\n"
        "Lego\ta\t3.5\tA set\ttoys blocks\tBox\n"
        "\tb\t\t \ttoys\t\n"
    )
    got = read(write(item=item))
    assert got.items["title"].tolist() == ["Box", ""]  # text elsewhere is enough
    assert got.items["description"].tolist() == ["brand: Lego. kinds: toys blocks. A set", "kinds: toys"]
    assert got.notes == (
        "tiny.item: columns left unread: price:float.",
        "tiny.item: attributes put in front of the description: brand, kinds.",
    )


def test_description_column_may_be_missing(write):
    assert read(write(item=reorder(ITEM, (0, 1)))).items["description"].tolist() == ["", ""]


def test_item_without_interaction_stays(write):
    got = read(write(item=ITEM + "c\tCold\t\n"))
    assert got.n_items == 3 and got.popularity().tolist() == [2, 1, 0]


def test_folder_of_another_name(write):
    assert read(write(folder="other")).name == "tiny"


def test_own_name_wins_over_other_files(write):
    write(inter="not read", item=None, name="aaa")
    assert read(write()).name == "tiny"


def test_the_current_folder_has_a_name(write, monkeypatch):
    write(name="aaa")
    monkeypatch.chdir(write())
    assert read(Path(".")).name == "tiny"


def test_clock(write):
    positions = INTER.replace("1500000101.5", "1").replace("1500000100", "0").replace("1500000050", "0")
    got = read(write(positions))
    assert got.clock == "position" and "positions" in got.notes[0]
    assert read(write(positions), clock="time").clock == "time"
    assert read(write(INTER), clock="position").clock == "position"


# ---- bad input ---------------------------------------------------------------------------------------------

U, I, T = "user_id:token", "item_id:token", "timestamp:float"
DESCRIPTION = "description:token_seq"
INTER_HEAD, INTER_ROWS = INTER.split("\n", 1)
ITEM_HEAD, ITEM_ROWS = ITEM.split("\n", 1)


def inter(old: str, new: str) -> dict:
    assert INTER.count(old) == 1
    return {"inter": INTER.replace(old, new)}


def item(old: str, new: str) -> dict:
    assert ITEM.count(old) == 1
    return {"item": ITEM.replace(old, new)}


NOT_FINITE = ("", "noon", "nan", "NaN", "inf", "-inf", "1e999", "1_000", "0x10", "1,5", "True", "2020-13-01", "03/04/2020")

# What is broken: how, the place that the message must name (after `tiny.`), and a pattern for the rest of it.
BAD = {
    # files
    "no item": ({"item": None}, "item", r"there is no such file, and tiny\.inter needs it"),
    "empty inter": ({"inter": ""}, "inter", "the file is empty"),
    "only a BOM": ({"item": "\ufeff"}, "item", "the file is empty"),
    "header only": ({"inter": INTER_HEAD + "\n"}, "inter, line 1", "there is no row after the header"),
    "one line": ({"item": ITEM_HEAD}, "item, line 1", "there is no row after the header"),
    "latin-1": (
        {"item": ITEM.replace("Blue", "Bleu é").encode("latin-1") + "c\té\t\n".encode()},
        "item, line 4",
        "is UTF-8, and line 2 is not; save the file as UTF-8",
    ),
    "cut utf-16": ({"inter": INTER.encode("utf-16")[:-3]}, "inter, line 4", "a byte is not utf-16"),
    # header
    "blank header": ({"inter": "\n" + INTER}, "inter, line 1", "the line is blank, delete it"),
    "no header": ({"inter": INTER_ROWS}, "inter, line 1, column 1", "'ann' is not NAME:TYPE"),
    "commas": ({"inter": INTER.replace("\t", ",")}, "inter, line 1, column user_id", "write user_id:token"),
    "no timestamp": (
        {"inter": reorder(INTER, (0, 1))},
        "inter, line 1",
        "no column timestamp:float, only user_id:token, item_id:token; add or rename",
    ),
    "no title": (item("title:", "name:"), "item, line 1", "no column title:token_seq, only .*name:token_seq"),
    "no type": (inter(T, "timestamp"), "inter, line 1, column timestamp", "write timestamp:float"),
    "wrong type of id": (inter(U, "user_id:float"), "inter, line 1, column user_id", "write user_id:token"),
    "type of text": (item("title:token_seq", "title:float"), "item, line 1, column title", "title:token_seq"),
    "unknown type": (item(DESCRIPTION, "size:int"), "item, line 1, column 3", "'size:int' is not NAME:TYPE"),
    "no name": (item(DESCRIPTION, ":token"), "item, line 1, column 3", "':token' is not NAME:TYPE"),
    "tab at the end": (item(ITEM_HEAD, ITEM_HEAD + "\t"), "item, line 1, column 4", "'' is not NAME:TYPE"),
    "column twice": (inter(U, I), "inter, line 1, column item_id", "two columns have this name"),
    "column twice, types differ": (
        item(DESCRIPTION, "title:token"),
        "item, line 1, column title",
        "two columns have this name, title:token_seq and title:token",
    ),
    # rows
    "too few fields": (inter("b\t1500000050", "b"), "inter, line 3", "the row has 2 fields, the header 3"),
    "too many fields": (inter("b\t1500000050", "b\t50\t1"), "inter, line 3", "the row has 4 fields, the header 3"),
    "first row long": (inter("a\t1500000100", "a\t100\t"), "inter, line 2", "the row has 4 fields, the header 3"),
    "one field": (item("b\tBlue ball\tBounces", "b"), "item, line 2", "the row has 1 field, the header 3"),
    "blank line": (inter("ben", "\nben"), "inter, line 3", "the line is blank, delete it"),
    "line of spaces": (item("b\tBlue", " \nb\tBlue"), "item, line 2", "the line is blank, delete it"),
    "blank line at the end": ({"inter": INTER + "\n"}, "inter, line 5", "the line is blank, delete it"),
    # fields
    **{
        f"timestamp {value!r}": (
            inter("\t1500000050", f"\t{value}"),
            "inter, line 3, column timestamp",
            f"^{value!r} is neither a finite number nor a date",
        )
        for value in NOT_FINITE
    },
    "several timestamps": (
        {"inter": INTER.replace("\t15000001", "\tx15000001")},
        "inter, line 2, column timestamp",
        r"'x1500000100' is neither a finite number .* \(the first of 2 such lines\)",
    ),
    "empty user": (inter("ben", ""), "inter, line 3, column user_id", "the id is empty"),
    "blank user": (inter("ben", "  "), "inter, line 3, column user_id", "the id is empty"),
    "empty item of a user": (inter("ann\ta", "ann\t"), "inter, line 2, column item_id", "the id is empty"),
    "empty item": (item("b\tBlue", "\tBlue"), "item, line 2, column item_id", "the id is empty"),
    "no known item": (
        {"inter": INTER.replace("\ta\t", "\tzebra\t").replace("\tb\t", "\tyak\t")},
        "item",
        "holds no item that has an interaction, such as 'zebra'",
    ),
}


@pytest.mark.parametrize(("broken", "place", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input(write, broken, place, words):
    named, _, rest = message(read, write(**broken)).partition(": ")
    assert named.endswith(f"/tiny.{place}")  # only the folder goes before it
    assert re.search(words, rest)


def test_bad_folders(write, tmp_path):
    assert "this is not there" in message(read, tmp_path / "absent")
    folder = write(name="one", folder="many")
    assert "this is a file, give the folder" in message(read, folder / "one.inter")
    assert "exactly one other *.inter, found no *.inter" in message(read, write(inter=None))
    write(name="two", folder="many")
    assert "exactly one other *.inter, found one.inter, two.inter" in message(read, folder)


def test_braces_in_a_name_do_no_harm(write):
    bad = inter("1500000050", "soon")["inter"]
    assert "{0}.inter, line 3" in message(read, write(bad, name="{0}"))


# ---- quoting -----------------------------------------------------------------------------------------------

TITLES = ['He said "hi"', "tab\there", "line\nbreak", "two\n\nbreaks", '"Quoted"', "Plain"]


@pytest.mark.parametrize("options", [
    {}, {"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_NONNUMERIC}, {"lineterminator": "\r\n"}, {"encoding": "utf-16"},
    {"doublequote": False, "escapechar": "\\"}], ids=str)
def test_what_pandas_quoted_is_unquoted_and_said(write, options):
    items = pd.DataFrame({"item_id:token": [f"i{n}" for n in range(6)], "title:token_seq": TITLES})
    folder = write(INTER.replace("\ta\t", "\ti0\t").replace("\tb\t", "\ti1\t"))
    items.to_csv(folder / "tiny.item", sep="\t", index=False, **options)
    got = read(folder)
    assert got.items["title"].tolist() == [" ".join(title.split()) for title in TITLES]
    assert any("quoted as in CSV" in note for note in got.notes)


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_columns_that_are_quoted_under_a_plain_header_are_unquoted(write, quoting):
    rows = pd.read_csv(io.StringIO(INTER), sep="\t")
    items = pd.read_csv(io.StringIO(ITEM), sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
    body = [frame.to_csv(sep="\t", index=False, header=False, quoting=quoting) for frame in (rows, items)]
    got, plain = read(write(f"{INTER_HEAD}\n{body[0]}", f"{ITEM_HEAD}\n{body[1]}")), read(write(folder="plain"))
    assert got.fingerprint() == plain.fingerprint() and got.user_ids.tolist() == plain.user_ids.tolist()


# ---- round trip --------------------------------------------------------------------------------------------

# Everything that is neither a tab nor a line end; surrogates are no text.
words = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1, max_size=8)
words = words.filter(lambda word: word.strip() and '""' not in word)  # which CSV would unquote


@st.composite
def frames(draw):
    ids = draw(st.lists(words, min_size=1, max_size=6, unique=True))
    texts = [(item_id, draw(words), draw(words | st.just(""))) for item_id in ids]
    items = pd.DataFrame(texts, columns=["item_id", "title", "description"])
    times = st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 3).map(float)
    rows = draw(st.lists(st.tuples(words, st.sampled_from(ids), times), min_size=1, max_size=12))
    return items, pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


@settings(max_examples=60, deadline=None)
@given(frames())
def test_round_trip(tmp_path_factory, frames):
    items, rows = frames
    folder = tmp_path_factory.mktemp("round")
    head = {"user_id": U, "item_id": I, "timestamp": T}
    for suffix, frame, names in (
        ("inter", rows, head),
        ("item", items, {"item_id": I, "title": "title:token_seq", "description": DESCRIPTION}),
    ):
        lines = [[names[column] for column in frame], *frame.astype(object).to_numpy().tolist()]
        text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
        (folder / f"set.{suffix}").write_bytes(text.encode())
    got = read(folder, clean=False, clock="position")
    assert got.items.to_numpy().tolist() == items.to_numpy().tolist()
    # The rows come back grouped by user and in time order, with ties as they were: Python's own stable sort.
    users = list(dict.fromkeys(rows["user_id"]))
    want = sorted(rows.itertuples(index=False, name=None), key=lambda row: (users.index(row[0]), row[2]))
    frame = got.interactions
    ids = got.user_ids[frame["user"]], got.items["item_id"].iloc[frame["item"]]
    assert list(zip(*ids, frame["timestamp"], strict=True)) == want


# ---- load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("shop", {}),
        ("shop-tiny", {"size": "tiny"}),
        ("shop-visible0", {"visible": 0.0}),
        ("shop-tiny-visible1", {"size": "tiny", "visible": 1.0}),
    ],
)
def test_load_generates(write, monkeypatch, name, want):
    made = read(write())
    monkeypatch.setattr("nullrec_lib.data.shop.generate", lambda **given: made if given == want else None)
    assert load(name) is made
    assert load(name, clock="position").clock == "position"


def test_load_finds_folders(write, tmp_path, monkeypatch):
    monkeypatch.delenv("NULLREC_DATA", raising=False)
    folder = write()
    assert load(folder).name == load(str(folder)).name == "tiny"
    assert "'tiny'" in message(load, "tiny") and "NULLREC_DATA, which" in message(load, "tiny")
    monkeypatch.setenv("NULLREC_DATA", str(tmp_path))
    assert load("tiny", clock="position").clock == "position"
    # A folder that is there wins over one under NULLREC_DATA.
    monkeypatch.chdir(write(INTER.replace("ann", "eve"), folder="here/tiny").parent)
    assert "eve" in load("tiny").user_ids


def test_load_says_what_there_is(write, tmp_path, monkeypatch):
    monkeypatch.setenv("NULLREC_DATA", str(tmp_path))
    write()
    (tmp_path / "notes").mkdir()
    text = message(load, "tinny")
    assert text.endswith("there is tiny; the closest name is tiny.") and "shop-tiny-visible0" in text
    assert message(load, "shop_tiny").endswith("the closest name is shop-tiny.")
    assert message(load, "xyz").endswith("there is tiny.")
    assert message(load, "").endswith("there is tiny.")
    text = message(load, "notes")
    assert "notes: no reader knows this folder, it has none of *.inter (RecBole atomic files), " in text
    assert "this is a file" in message(load, tmp_path / "tiny" / "tiny.inter")
    assert message(load, "tiny", "sundial") == "clock: 'sundial' is not one of auto, time, position."
    monkeypatch.setenv("NULLREC_DATA", str(tmp_path / "absent"))
    assert message(load, "xyz").endswith("absent there is no data set.")


def test_a_new_format_is_one_line(tmp_path, monkeypatch):
    def mine(source):
        for number, line in source.lines(source.file("one.set")):
            user, item, when = line.split()
            source.item(item, source.folder / "one.set", title=f"Title of {item}")
            source.event(user, item, when, source.folder / "one.set", number)

    (tmp_path / "one.set").write_text("u a 2001-02-03\nu b 2001-02-04T05:00:00+05:00\n")
    monkeypatch.setitem(data.FORMATS, "My layout", (("*.set",), mine))
    got = load(tmp_path)
    assert got.notes[0] == "Recognised: My layout (one.set)." and got.clock == "time"
    assert np.diff(got.interactions["timestamp"]).tolist() == [86_400.0]


# ---- the real sets, where there are any --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts", "lengths", "described", "clock"),
    [
        ("ml-100k", (943, 1682, 100_000), (20, 737), 1682, "time"),
        ("toys", (19_412, 11_924, 167_597), (5, 550), 0, "position"),
        ("yelp", (30_431, 20_033, 316_354), (5, 350), 20_032, "position"),
        ("office", (3_231, 3_317, 22_447), (5, 30), 3_091, "position"),
    ],
)
def test_real_sets(name, counts, lengths, described, clock):
    folder = Path(os.environ.get("NULLREC_DATA") or "absent") / name
    if not folder.is_dir():
        pytest.skip(f"NULLREC_DATA names no folder with {name}")
    got = load(folder)
    told = got.describe()
    assert (got.n_users, got.n_items, got.n_interactions) == counts
    assert (told["shortest"], told["longest"]) == lengths
    assert (told["items_with_title"], told["items_with_description"]) == (counts[1], described)
    assert (told["items_never_seen"], got.clock) == (0, clock)
    assert np.isfinite(got.interactions["timestamp"]).all()
    assert got.notes[0] == f"Recognised: RecBole atomic files ({name}.inter)."
