"""All readers: one log in every layout gives one data set and the same notes, with the same oddities in it."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from nullrec_lib.cli import app
from nullrec_lib.data import load
from nullrec_lib.errors import InputError
from tests.data.layouts import LAYOUTS, WITH_TEXT, Sample

T = 1_500_000_000
letters = st.text("abcdefgh XYZ", min_size=1, max_size=8).map(lambda text: f"w{text}".strip())
markup = st.sampled_from(["<b>{}</b>", "{}<br/>", "&quot;{}&quot;", "<p>{}</p>", "{} &amp; more", "{}<script>var a;</script>"])
BLANKS = [" ", "  "]


@st.composite
def samples(draw):
    """A log with everything that real ones have: titles with markup or none, items without a line, lines and interactions
    that come again, ids that differ by a blank, sentinels, other units and encodings."""
    known = [f"i{n}" for n in range(draw(st.integers(2, 5)))]
    titles = []
    for _ in known:
        title = draw(letters)
        if draw(st.booleans()):
            title = draw(markup).format(title)
        if draw(st.integers(0, 3)) == 0:
            title = ""
        titles.append(title)
    titles[0] = titles[0] or "first"
    unknown = [f"x{n}" for n in range(draw(st.integers(0, 2)))]
    lines = list(zip(known, titles))
    for place in draw(st.lists(st.integers(0, len(known) - 1), max_size=2)):  # described again, alike or otherwise
        lines.append((known[place], titles[place] if draw(st.booleans()) else "Again"))
    users = ["ann", "ben", "eve"] + (["ann" + draw(st.sampled_from(BLANKS))] if draw(st.booleans()) else [])
    sentinel = draw(st.sampled_from([None, 0, -1, 9_999_999_999]))
    time = lambda: sentinel if sentinel is not None and draw(st.integers(0, 4)) == 0 else T + draw(st.integers(0, 99))
    events = [(draw(st.sampled_from(users)), item, time()) for item in known]  # first each once, in order
    events += [(draw(st.sampled_from(users)), draw(st.sampled_from(known)), time()) for _ in range(draw(st.integers(3, 9)))]
    events += [(draw(st.sampled_from(users)), item, time()) for item in unknown]
    events += events[-1:] * draw(st.integers(0, 2))
    unit = draw(st.sampled_from(["times", "milliseconds", "dates", "offsets", "positions", "years"]))
    match unit:
        case "milliseconds":
            events = [(u, i, t * 1000) for u, i, t in events]
        case "dates" | "offsets":
            zone = "+02:00" if unit == "offsets" else ""
            events = [(u, i, f"2017-07-14 0{n % 9}:40:0{n % 7}{zone}") for n, (u, i, _) in enumerate(events)]
        case "positions":
            events = [(u, i, n // 2) for n, (u, i, _) in enumerate(events)]
        case "years":
            events = [(u, i, 1995 + n % 20) for n, (u, i, _) in enumerate(events)]
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    lines[0] = (lines[0][0], lines[0][1] + " Amélie")
    return Sample(tuple(lines), tuple(events), encoding, draw(st.sampled_from(["\n", "\r\n", "\r"])), draw(st.booleans()))


def notes(dataset) -> list[str]:
    """What was noticed, without files' names and what belongs to one layout."""
    own = ("Recognised: ", "every ", "fields with text")
    plain = [re.sub(r"^\S+\.\S+: ", "", note) for note in dataset.notes]
    units = [re.sub(r"milliseconds|seconds|such as -?[\d.]+( \(as [^)]*\))?", "…", note) for note in plain]
    units = [re.sub(r"from -?\d+ to -?\d+, which is| \(as [^)]*\)", "", note) for note in units]  # a date that there is none of
    return sorted({note for note in units if not note.startswith(own)})


def table(dataset) -> list[tuple]:
    """Every interaction with what its item is called."""
    rows = dataset.interactions
    titles = dataset.items[["item_id", "title", "description"]].itertuples(index=False, name=None)
    titles = list(titles)
    return [(dataset.user_ids[user], *titles[item], round(time, 3)) for user, item, time in rows.itertuples(index=False)]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(samples())
def test_every_layout_gives_the_same_data_set_and_notes(tmp_path_factory, sample):
    folder = tmp_path_factory.mktemp("layouts")
    got = {}
    for name, write in WITH_TEXT.items():
        write(folder / name, sample)
        got[name] = load(folder / name)
    first = got["recbole"]
    assert first.items["title"].str.contains("Amélie").any() and not first.items["title"].str.contains("[<>]").any()
    for name, dataset in got.items():
        assert [row[:-1] for row in table(dataset)] == [row[:-1] for row in table(first)], name
        assert [row[-1] for row in table(dataset)] == pytest.approx([row[-1] for row in table(first)], abs=1e-3), name
        assert list(dataset.items["item_id"]) == list(first.items["item_id"])
        assert dataset.clock == first.clock
        # Numbers that the 2023 release has in milliseconds are another unit in another layout: the note on it is not.
        other = [note for note in notes(dataset) if "read as that" not in note]
        assert other == [note for note in notes(first) if "read as that" not in note], name


SAMPLE = Sample(
    items=tuple((f"i{n}", f"Title {n}") for n in range(6)),
    events=tuple((f"u{n % 4}", f"i{(n * n + n // 4) % 6}", T + 60 * n) for n in range(30)),
)
COUNTS = ("n_users", "n_items", "n_interactions", "density_percent", "sparsity_percent", "mean_length", "shortest", "longest",
          "items_never_seen", "repeated_interactions")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_describe_counts_alike(tmp_path, layout):
    LAYOUTS[layout](tmp_path / layout, SAMPLE)
    LAYOUTS["recbole"](tmp_path / "reference", SAMPLE)
    counts = []
    for name in (layout, "reference"):
        result = CliRunner().invoke(app, ["data", "describe", str(tmp_path / name), "--json"])
        assert result.exit_code == 0, result.output
        described = json.loads(result.stdout.splitlines()[-1])
        counts.append({count: described[count] for count in COUNTS})
    assert counts[0] == counts[1]


@pytest.mark.parametrize("layout", WITH_TEXT)
def test_an_item_without_text_is_refused_where_that_is_asked_for(tmp_path, layout):
    sample = Sample((*SAMPLE.items[:-1], ("i5", " ")), SAMPLE.events)
    WITH_TEXT[layout](tmp_path / "set", sample)
    assert any("1 of 6 items have no text" in note for note in load(tmp_path / "set").notes)
    with pytest.raises(InputError, match="'i5'.*missing_text=refuse"):
        load(tmp_path / "set", missing_text="refuse")


@pytest.mark.parametrize("layout", WITH_TEXT)
def test_markup_stays_where_that_is_asked_for(tmp_path, layout):
    sample = Sample((("i0", "<b>Fish</b> &amp; chips"), *SAMPLE.items[1:]), SAMPLE.events)
    WITH_TEXT[layout](tmp_path / "set", sample)
    assert load(tmp_path / "set").items["title"][0] == "Fish & chips"
    assert load(tmp_path / "set", clean=False).items["title"][0] == "<b>Fish</b> &amp; chips"


@pytest.mark.parametrize("name", ["a[1]", "a b", "ü*?", "[ab]c", "{0}", "%s"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_are_names_and_no_patterns(tmp_path, layout, name):
    LAYOUTS[layout](tmp_path / name, SAMPLE)
    for path in list((tmp_path / name).iterdir()):  # Amazon's categories are part of its files' names
        if "Toys" in path.name:
            path.rename(path.with_name(path.name.replace("Toys", name)))
    assert load(tmp_path / name).n_interactions == 30


@pytest.mark.parametrize("layout", ["movielens_100k", "movielens_1m", "recbole"])
def test_half_an_encoding_is_refused_with_its_line(tmp_path, layout):
    sample = Sample((("i0", "Amélie"), ("i1", "Léon"), *SAMPLE.items[2:]), SAMPLE.events)
    WITH_TEXT[layout](tmp_path / "set", sample)
    path = next(path for path in (tmp_path / "set").iterdir() if "Amélie".encode() in path.read_bytes())
    path.write_bytes(path.read_bytes().replace("Léon".encode(), "Léon".encode("latin-1")))
    with pytest.raises(InputError, match=r"line \d: byte 0xe9 is not UTF-8"):
        load(tmp_path / "set")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("layout", ["recbole", "movielens_100k", "amazon_2018"])
def test_encodings_and_line_ends(tmp_path, layout, encoding, end):
    sample = Sample((("i0", "Amélie"), *SAMPLE.items[1:]), SAMPLE.events, encoding, end)
    WITH_TEXT[layout](tmp_path / "set", sample)
    assert load(tmp_path / "set").items["title"].tolist()[:2] == ["Amélie", "Title 1"]
