"""The data model: grouping, order, the clock, cuts, the fingerprint."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nullrec_lib.data.interactions import assemble, core, cut
from nullrec_lib.errors import InputError


def catalogue(ids="abcd") -> pd.DataFrame:
    titles = [f"Title {i}" for i in ids]
    return pd.DataFrame({"item_id": list(ids), "title": titles, "description": ""}, dtype=str)


def log(*rows: tuple[str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


# Users alternate, u's times run backwards, v has a tie (c before a).
T = 1_500_000_000.0
ROWS = [("u", "a", T + 30), ("v", "c", T + 10), ("u", "b", T + 20)]
ROWS += [("v", "a", T + 10), ("u", "c", T + 10), ("v", "b", T + 5)]


@pytest.fixture
def small():
    return assemble("small", catalogue(), log(*ROWS))


def sequences(dataset) -> dict[str, str]:
    """Each user's items in order, as a word."""
    frame = dataset.interactions
    letters = dataset.items["item_id"].to_numpy()[frame["item"]]
    groups = frame.groupby("user").indices
    return {dataset.user_ids[user]: "".join(letters[rows]) for user, rows in groups.items()}


def test_rows_of_a_user_are_grouped_and_in_time_order(small):
    assert sequences(small) == {"u": "cba", "v": "bca"}
    assert small.interactions["user"].tolist() == [0, 0, 0, 1, 1, 1]
    assert list(small.user_ids) == ["u", "v"]
    assert [str(kind) for kind in small.interactions.dtypes] == ["int64", "int64", "float64"]


def test_ties_stay_in_source_order():
    # Many ties, so that an unstable sort cannot pass by luck.
    random = np.random.default_rng(3)
    times, picks = random.integers(0, 5, 2000), random.integers(0, 4, 2000)
    users = random.integers(0, 3, 2000)
    rows = [(f"u{u}", "abcd"[i], float(t)) for u, i, t in zip(users, picks, times, strict=True)]
    got = assemble("ties", catalogue(), log(*rows))
    for user, word in sequences(got).items():
        own = [row for row in rows if row[0] == user]
        assert word == "".join(item for _, item, _ in sorted(own, key=lambda row: row[2]))


def test_counts(small):
    assert (small.n_users, small.n_items, small.n_interactions) == (2, 4, 6)
    assert small.lengths().tolist() == [3, 3]
    assert small.popularity().tolist() == [2, 2, 2, 0]  # d is cold and stays
    told = small.describe()
    assert (told["density_percent"], told["sparsity_percent"]) == (75.0, 25.0)
    assert told["items_never_seen"] == 1
    assert told["mean_length"] == 3.0 and (told["shortest"], told["longest"]) == (3, 3)
    assert (told["items_with_title"], told["items_with_description"]) == (4, 0)
    assert (told["first_timestamp"], told["last_timestamp"]) == (T + 5, T + 30)
    assert told["repeated_interactions"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clock": "sundial"}, "clock: 'sundial' is not one of auto, time, position."),
        ({"items": catalogue("")}, "bad: there are no items."),
        ({"interactions": log()}, "bad: there are no interactions."),
        ({"items": catalogue("abca")}, "bad: item 'a' is in the catalogue twice."),
        ({"items": catalogue("ab")}, "bad: item 'c' has an interaction but is not in the catalogue."),
        ({"interactions": log(("u", "a", float("nan")))}, "bad: a timestamp is not a finite number."),
        ({"interactions": log(("u", "a", float("inf")))}, "bad: a timestamp is not a finite number."),
    ],
)
def test_assemble_refuses(change, words):
    with pytest.raises(InputError) as caught:
        assemble(**{"name": "bad", "items": catalogue(), "interactions": log(*ROWS)} | change)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("keep", "want"),
    [
        (None, {"u": "cba", "v": "bca"}),
        ("first:1", {"u": "c", "v": "b"}),
        ("first:2", {"u": "cb", "v": "bc"}),
        ("last:1", {"u": "a", "v": "a"}),
        ("last:2", {"u": "ba", "v": "ca"}),
        ("last:50", {"u": "cba", "v": "bca"}),
    ],
)
def test_cut(small, keep, want):
    got = cut(small, keep)
    assert sequences(got) == want
    assert got.items.equals(small.items) and list(got.user_ids) == list(small.user_ids)
    assert got.interactions.index.tolist() == list(range(got.n_interactions))
    left = sum(map(len, want.values()))
    assert got.notes == (() if keep is None else (f"keep={keep} left {left} of 6 interactions.",))
    assert small.n_interactions == 6  # the original is untouched


@pytest.mark.parametrize(
    "keep",
    ["", "3", 3, "first", "last:", "last:0", "last:-1", "last:1.5", "last:x", "mid:3", "last:1:2", " last:1"],
)
def test_cut_refuses(small, keep):
    with pytest.raises(InputError, match=r"^keep: .* is not first:N or last:N with N of at least 1\.$"):
        cut(small, keep)


def test_a_cut_keeps_the_clock():
    rows = log(*((user, item, float(time)) for user in "uv" for time, item in enumerate("abc")))
    assert cut(assemble("clock", catalogue(), rows), "last:2").clock == "position"


# u, v, w form a 2-core over a and b; c hangs on x, and x hangs on c: one goes, then the other.
HANGING = ["ua", "ub", "va", "vb", "wa", "wb", "xc", "xa", "yc", "yd"]


@pytest.mark.parametrize(
    ("n", "want", "items"),
    [
        (None, {"u": "ab", "v": "ab", "w": "ab", "x": "ca", "y": "cd"}, "abcde"),
        (1, {"u": "ab", "v": "ab", "w": "ab", "x": "ca", "y": "cd"}, "abcd"),  # e was never seen
        (2, {"u": "ab", "v": "ab", "w": "ab"}, "ab"),
    ],
)
def test_core(n, want, items):
    rows = [(user, item, T + t) for t, (user, item) in enumerate(HANGING)]
    whole = assemble("core", catalogue("abcde"), log(*rows))
    whole = replace(whole, embeddings={"e": np.arange(5.0)[:, None]}, truth="factors")
    got = core(whole, n)
    assert sequences(got) == want and "".join(got.items["item_id"]) == items
    assert got.embeddings["e"][:, 0].tolist() == list(range(len(items)))  # rows go with their items
    assert list(got.user_ids) == list(want) and got.truth == ("factors" if n is None else None)
    if n is not None:
        left = sum(map(len, want.values()))
        assert got.notes == (f"core={n} left {len(want)} of 5 users, {len(items)} of 5 items and {left} of 10 "
                             "interactions.",)
        assert core(got, n).interactions.equals(got.interactions)  # nothing is left to go
        assert min(got.lengths().min(), got.popularity().min()) >= n
    with pytest.raises(InputError, match="core: nothing of core is left with core=4; give a smaller one"):
        core(whole, 4)
    with pytest.raises(InputError, match="core: 0 is below 1"):
        core(whole, 0)


def test_core_counts_repeats_and_is_the_largest():
    """Against a slow reference: take any user or item below n away, one at a time."""
    random = np.random.default_rng(5)
    pairs = list(zip(random.integers(0, 30, 160), random.integers(0, 25, 160), strict=True))
    whole = assemble("random", catalogue([f"i{i}" for i in range(25)]),
                     log(*((f"u{user}", f"i{item}", float(t)) for t, (user, item) in enumerate(pairs))))
    left = [(f"u{user}", f"i{item}") for user, item in pairs]
    while True:
        low = [x for side in (0, 1) for x in {pair[side] for pair in left} if sum(p[side] == x for p in left) < 4]
        if not low:
            break
        left = [pair for pair in left if low[0] not in pair]
    got = core(whole, 4)
    ids = got.user_ids[got.interactions["user"]], got.items["item_id"].to_numpy()[got.interactions["item"]]
    assert 0 < len(left) < 160 and sorted(zip(*ids, strict=True)) == sorted(left)


def changed(**cells) -> pd.DataFrame:
    """The catalogue with single cells replaced, `title=(row, text)`."""
    items = catalogue()
    for column, (row, text) in cells.items():
        items.loc[row, column] = text
    return items


LATER = [ROWS[0][:2] + (T + 30.5,), *ROWS[1:]]
OTHER_ITEM = [("u", "d", T + 30), *ROWS[1:]]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"items": changed(title=(2, "Another"))}, id="title"),
        pytest.param({"items": changed(description=(3, "New"))}, id="description"),
        pytest.param({"items": changed(item_id=(3, "e"))}, id="item id"),
        pytest.param({"items": catalogue("bacd")}, id="order of items"),
        pytest.param({"items": catalogue("abcde")}, id="one more item"),
        pytest.param({"interactions": log(*LATER)}, id="timestamp"),
        pytest.param({"interactions": log(*OTHER_ITEM)}, id="item of an interaction"),
        pytest.param({"interactions": log(*ROWS[1:])}, id="one interaction less"),
        pytest.param({"interactions": log(*(ROWS[i] for i in (0, 3, 2, 1, 4, 5)))}, id="order of a tie"),
        pytest.param({"clock": "position"}, id="clock"),
    ],
)
def test_fingerprint_changes(small, other):
    other = assemble(**{"name": "small", "items": catalogue(), "interactions": log(*ROWS)} | other)
    assert other.fingerprint() != small.fingerprint()


def test_fingerprint_follows_what_came_along(small):
    rows = np.eye(4, dtype=np.float32)
    came = [{}, {"embeddings": {"a": rows}}, {"embeddings": {"b": rows}}, {"embeddings": {"a": 2 * rows}},
            {"embeddings": {"a": rows.reshape(2, 8)}}, {"given": np.array([0, 1, 1, 0, 2, 3], np.int8)},
            {"given": np.array([0, 1, 1, 0, 3, 2], np.int8)}]
    assert len({replace(small, **what).fingerprint() for what in came}) == len(came)
    assert replace(small, embeddings={}, given=None).fingerprint() == small.fingerprint()


def test_fingerprint_sees_a_text_move_into_the_next_cell():
    rows = log(("u", "a", 1.0))
    cells = pd.DataFrame({"item_id": ["a", "b"], "title": ["x", "yz"], "description": ["", ""]})
    prints = {assemble("one", cells, rows).fingerprint()}
    for title, description in ((["x", "y"], ["z", ""]), (["xyz", ""], ["", ""]), (["x\x1fyz", ""], ["", ""])):
        prints.add(assemble("one", cells.assign(title=title, description=description), rows).fingerprint())
    assert len(prints) == 4


def test_fingerprint_ignores_name_notes_and_how_strings_are_stored(small):
    assert len(small.fingerprint()) == 16 and int(small.fingerprint(), 16) >= 0
    assert replace(small, name="other", notes=("Said.",)).fingerprint() == small.fingerprint()
    assert replace(small, items=small.items.astype(object)).fingerprint() == small.fingerprint()
