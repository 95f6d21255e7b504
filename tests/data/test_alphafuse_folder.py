"""AlphaFuse's folder: every row is one example with its own history, and what came along is used."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nullrec_lib.data import core, cut, load
from nullrec_lib.data.examples import Examples
from nullrec_lib.data.splits import split

N, WIDTH = 5, 3
PARTS = {"train": "train_data.df", "valid": "val_data.df", "test": "test_data.df"}


def padded(history, left=False, width=WIDTH, n=N):
    padding = [n] * (width - len(history))
    return padding + list(history) if left else list(history) + padding


def frame(rows, left=False, width=WIDTH):
    return pd.DataFrame({"seq": [padded(history, left, width) for history, _ in rows],
                         "len_seq": [max(len(history), 1) for history, _ in rows],
                         "next": [target for _, target in rows]})


ROWS = {
    # Two users' rows, then one that goes on with nothing, and one like the last of the second.
    "train": [([], 0), ([0], 1), ([0, 1], 2), ([0, 1, 2], 3), ([1, 2, 3], 4), ([4], 3), ([4, 3], 3), ([1], 0),
              ([4, 3], 3)],
    "valid": [([1, 0], 2), ([0], 2)],
    "test": [([], 4)],
}


@pytest.fixture
def folder(write_pickle):
    return fill(write_pickle, ROWS)


def fill(write_pickle, rows, left=False, width=WIDTH):
    for part, name in PARTS.items():
        write_pickle(name, frame(rows[part], left, width))
    return write_pickle("data_statis.df", pd.DataFrame({"seq_size": [width], "item_num": [N]}))


def examples(parts, part, width=WIDTH):
    """Every (history, target) that a model sees."""
    held = Examples(parts, part, width)
    batch = held.batch(torch.arange(len(held)))
    return [([i for i in history if i != parts.n_items], target)
            for history, target in zip(batch.history.tolist(), batch.target.tolist(), strict=True)]


def test_reads(folder):
    got = load(folder)
    assert (got.name, got.clock, got.n_items, got.embeddings) == ("set", "position", N, {})
    assert got.notes[:4] == ("Recognised: AlphaFuse examples (train_data.df).",
                         "train_data.df: 9 examples, joined to 4 sequences.",
                         "val_data.df: 2 examples, joined to 2 sequences.",
                         "test_data.df: 1 examples, joined to 1 sequences.")
    parts = split(got, "given")
    assert {part: examples(parts, part) for part in PARTS} == ROWS
    # 0 1 2 3 4 | 4 3 3 | 1 0 | 4 3 3: joined rows count once, and nothing of validation or test counts.
    assert parts.items[parts.owned].tolist() == [0, 1, 2, 3, 4, 4, 3, 3, 1, 0, 4, 3, 3]
    assert parts.popularity().tolist() == [2, 2, 1, 5, 3]
    assert parts.counts()["train_interactions"] == 13 and parts.notes == ()


histories = st.lists(st.integers(0, N - 1), max_size=WIDTH)
some_rows = st.lists(st.tuples(histories, st.integers(0, N - 1)), min_size=1, max_size=6)


@st.composite
def users_rows(draw):
    """Rows as such files have them: each user's prefixes, in order, and now and then a row from elsewhere."""
    rows = []
    for items in draw(st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=7), min_size=1, max_size=3)):
        rows += [(items[:end][-WIDTH:], items[end]) for end in range(len(items))]
        rows += draw(st.lists(st.tuples(histories, st.integers(0, N - 1)), max_size=1))
    return rows


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({part: some_rows | users_rows() for part in PARTS}), st.booleans())
def test_every_row_is_one_example_with_its_history(write_pickle, rows, left):
    parts = split(load(fill(write_pickle, rows, left)), "given")
    assert {part: examples(parts, part) for part in PARTS} == rows
    # What training owns is its own rows' items, whatever the other parts hold.
    users = parts.user_of(parts.train)
    assert set(parts.user_of(np.flatnonzero(parts.owned))) == set(users)
    assert not set(users) & set(parts.user_of(np.concatenate([parts.valid, parts.test])))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=9), min_size=1, max_size=4))
def test_whole_users_come_back_whole(write_pickle, users):
    """Where each user's rows stand in order from the first item on, the sequences are the users'."""
    prefixes = [(items[:end][-WIDTH:], items[end]) for items in users for end in range(len(items))]
    got = load(fill(write_pickle, ROWS | {"train": prefixes}))
    runs = got.interactions.groupby("user")["item"].apply(list).tolist()[:-3]  # without the three held-out runs
    assert runs == users


def test_the_split_is_given_and_no_other(folder, refused):
    got = load(folder)
    for protocol in ("cold-start", "leave-one-out"):
        assert refused(split, got, protocol) == (f"split: set cannot be split by {protocol}, its files bring their own "
                                                 "split and name no users; use given.")
    assert refused(split, load("shop-tiny"), "given") == (
        "split: shop-tiny cannot be split by given, its files bring no split of their own; use cold-start or "
        "leave-one-out.")
    assert "keep=first:2 needs whole users" in refused(cut, got, "first:2")
    assert "core=2 needs whole users" in refused(core, got, 2)


def test_the_fingerprint_follows_split_and_embeddings(folder, write_pickle):
    prints = [load(folder).fingerprint()]
    write_pickle("a_emb.pickle", np.eye(N))
    prints.append(load(folder).fingerprint())
    write_pickle("a_emb.pickle", 2 * np.eye(N))
    prints.append(load(folder).fingerprint())
    # The same sequences, but another row is the target of another part.
    write_pickle("val_data.df", frame([([1], 0), ([0], 2)]))
    write_pickle("a_emb.pickle", np.eye(N))
    prints.append(load(folder).fingerprint())
    assert len(set(prints)) == 4


def test_embeddings_come_by_file(folder, write_pickle, refused):
    rows = np.arange(2.0 * N).reshape(N, 2)
    write_pickle("3small_emb.pickle", rows)
    write_pickle("list_emb.pickle", [row.tolist() for row in rows])
    write_pickle("arrays_emb.pickle", list(rows))
    write_pickle("column_emb.pickle", pd.Series(list(rows)))
    got = load(folder).embeddings
    assert list(got) == ["3small_emb", "arrays_emb", "column_emb", "list_emb"]
    for held in got.values():
        assert held.dtype == np.float32
        np.testing.assert_array_equal(held, rows)
    for value, words in ((rows[:3], "3small_emb.pickle: holds 3 rows, but data_statis.df says 5 items."),
                         ([[1.0], [1.0, 2.0]], "all of one length, found 2 numbers where row 0 has 1 in row 1."),
                         ({"a": 1}, "found dict."), (7, "found int."),
                         (np.full((N, 2), np.nan), "3small_emb.pickle: row 0 is not finite.")):
        write_pickle("3small_emb.pickle", value)
        assert refused(load, folder).endswith(words)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("train_data.df", frame([([1], 0), ([0, 7], 1)]), "train_data.df, row 1, column seq: [0, 7, 5] is not 3 item ids "
     "of 0 to 4, padded with 5 on one side."),
    ("val_data.df", pd.DataFrame({"seq": [[0, 5, 1]], "next": [1]}), "data.df, row 0, column seq: [0, 5, 1] is not"),
    ("val_data.df", pd.DataFrame({"seq": [[5, 0, 5]], "next": [1]}), "row 0, column seq: [5, 0, 5] is not"),
    ("val_data.df", pd.DataFrame({"seq": [[0, 1, 2], [0, 1]], "next": [1, 1]}), "row 1, column seq: [0, 1] is not"),
    ("val_data.df", pd.DataFrame({"seq": ["abc"], "next": [1]}), "row 0, column seq: 'abc' is not"),
    ("val_data.df", pd.DataFrame({"seq": [[0, 1, 0.5]], "next": [1]}), "row 0, column seq: [0, 1, 0.5] is not 3 item ids"),
    ("test_data.df", frame([([1], 5)]), "test_data.df, row 0, column next: 5 is not an id of 0 to 4."),
    ("test_data.df", pd.DataFrame({"seq": [[0, 1, 2]], "next": [0.5]}), "row 0, column next: 0.5 is not an id of 0 to 4."),
    ("test_data.df", pd.DataFrame({"seq": [[0, 1, 2]]}), "expected a frame with the columns seq and next."),
    ("test_data.df", [1, 2], "expected a frame with the columns seq and next."),
    ("test_data.df", frame([]), "test_data.df: the frame has no row."),
    ("data_statis.df", pd.DataFrame({"seq_size": [0], "item_num": [5]}), "whole numbers seq_size and item_num of at "
     "least 1."),
    ("data_statis.df", pd.DataFrame({"item_num": [5]}), "data_statis.df: expected one row with whole numbers"),
])
def test_wrong_frames(folder, write_pickle, refused, name, value, words):
    write_pickle(name, value)
    assert words in refused(load, folder)


@pytest.mark.parametrize("name", [*list(PARTS.values())[1:], "data_statis.df"])
def test_a_missing_frame(folder, refused, name):
    (folder / name).unlink()
    assert refused(load, folder) == f"{folder}/{name}: there is no such file."


# ---- padding

def long(padding, side, lengths=True, n=N, width=WIDTH):
    """The three frames with another padding; a history is at least one item long."""
    frames = {}
    for part, name in PARTS.items():
        rows = [(history, target) for history, target in ROWS[part] if history] or [([2], 4)]
        filled = [[padding] * (width - len(history)) for history, _ in rows]
        frames[name] = pd.DataFrame({
            "seq": [fill + history if side == "front" else history + fill for fill, (history, _) in zip(filled, rows)],
            "len_seq": [len(history) for history, _ in rows], "next": [target for _, target in rows]})
        if not lengths:
            frames[name] = frames[name].drop(columns="len_seq")
    return frames


def put(write_pickle, frames):
    for name, value in frames.items():
        write_pickle(name, value)


@pytest.mark.parametrize("side", ["back", "front"])
@pytest.mark.parametrize("padding", [0, 2, N, -1, 99])
def test_len_seq_decides_whatever_the_padding(folder, write_pickle, padding, side):
    put(write_pickle, long(N, "back"))
    want = load(folder)
    put(write_pickle, long(padding, side))
    got = load(folder)
    assert got.fingerprint() == want.fingerprint() and got.interactions.equals(want.interactions)
    notes = [note for note in got.notes if "padded" in note]
    assert len(notes) == (padding != N) and all(f"with {padding} " in note and " 9 rows" in note for note in notes)


@pytest.mark.parametrize("side", ["back", "front"])
def test_without_len_seq_padding_is_n(folder, write_pickle, side):
    put(write_pickle, long(N, "back"))
    want = load(folder).fingerprint()
    put(write_pickle, long(N, side, lengths=False))
    assert load(folder).fingerprint() == want
    # In one frame alone it is not needed either.
    put(write_pickle, {**long(N, side), "val_data.df": long(N, side, lengths=False)["val_data.df"]})
    assert load(folder).fingerprint() == want


@pytest.mark.parametrize("side", ["back", "front"])
@pytest.mark.parametrize("padding", [0, 3])
def test_padding_that_nothing_tells_is_refused(folder, write_pickle, refused, padding, side):
    put(write_pickle, long(padding, side, lengths=False, width=6))
    write_pickle("data_statis.df", pd.DataFrame({"seq_size": [6], "item_num": [N]}))
    text = refused(load, folder)
    assert text.startswith(f"{folder}/") and "column seq" in text and f"with {padding} twice" in text and "len_seq" in text
    put(write_pickle, {**long(padding, side, width=6),
                       "val_data.df": pd.DataFrame({"seq": [[0, 1, 2, 3, 4, 0]], "next": [1]})})
    assert refused(load, folder).startswith(f"{folder}/val_data.df: has no len_seq")


@pytest.mark.parametrize("name", PARTS.values())
@pytest.mark.parametrize(("seq", "length", "column"), [
    ([0, 1, N], 1, "seq"),  # more items than len_seq says
    ([0, N, N], 2, "seq"),  # fewer
    ([0, N, 1], 3, "seq"), ([N, 0, 1], 3, "seq"), ([0, N, N], 3, "seq"), ([N, N, N], 2, "seq"), ([N, N, N], 3, "seq"),
    ([0, 2, 3], 1, "seq"),  # the rest is not one id
    ([0, 3, 3], 1, "seq"), ([N, N, 0], 1, "seq"),  # not the id, or the side, of the other rows
    ([0, 1, N], 0, "seq"), ([0, 1, 6], 3, "seq"), ([0, 1, -1], 3, "seq"), ([0, -1, -1], 1, "seq"),
    ([0, 1, 2], 4, "len_seq"), ([0, 1, 2], -1, "len_seq"), ([0, 1, 2], 2**70, "len_seq"), ([0, 1, 2], 1.0, "len_seq"),
    ([0, 1, 2], None, "len_seq"), ([0, 1, 2], True, "len_seq"), ([0, 1, 2], [3], "len_seq"), ([0, 1, 2], "3", "len_seq"),
])
def test_where_len_seq_and_padding_disagree(folder, write_pickle, refused, name, seq, length, column):
    frames = long(N, "back")
    rows = pd.DataFrame({"seq": [[1, N, N], seq], "len_seq": pd.Series([1, length], dtype=object), "next": [2, 3]})
    put(write_pickle, {**frames, name: rows})
    text = refused(load, folder)
    assert text.startswith(f"{folder}/{name}, row 1, column {column}: ") and len(text) < 400


@pytest.mark.parametrize("lengths", [True, False])
def test_the_frames_agree_on_the_side(folder, write_pickle, refused, lengths):
    put(write_pickle, {**long(N, "back", lengths), "test_data.df": long(N, "front", lengths)["test_data.df"]})
    assert refused(load, folder).startswith(f"{folder}/test_data.df, row 0, column seq: ")


@pytest.mark.parametrize("length", [0, 1])
def test_a_row_of_padding_alone_has_no_history(folder, write_pickle, length):
    put(write_pickle, {**long(N, "back"), "test_data.df": pd.DataFrame({"seq": [[N] * 3], "len_seq": [length], "next": [4]})})
    assert examples(split(load(folder), "given"), "test") == [([], 4)]


# ---- what is none

HUGE = [np.inf, -np.inf, np.nan, 1e300, 2**31, 2**63, 2**80, -1, 0, 2.5, True, None, "5", [5], [[5]], np.zeros((2, 2))]


@pytest.mark.parametrize("name", ["seq_size", "item_num"])
@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_statistics_that_are_no_sizes(folder, write_pickle, refused, name, value):
    column = pd.Series([value], dtype=object)
    write_pickle("data_statis.df", pd.DataFrame({"seq_size": [WIDTH], "item_num": [N]}).assign(**{name: column}))
    text = refused(load, folder)
    assert text.startswith(f"{folder}/data_statis.df, column {name}: ") and len(text) < 400


def test_sizes_that_the_frames_do_not_have(folder, write_pickle, refused):
    write_pickle("data_statis.df", pd.DataFrame({"seq_size": [10**8], "item_num": [N]}))
    assert refused(load, folder).startswith(f"{folder}/train_data.df, row 0, column seq: ")
    put(write_pickle, long(0, "back"))
    write_pickle("data_statis.df", pd.DataFrame({"seq_size": [WIDTH], "item_num": [10**9]}))
    tracemalloc.start()
    try:
        assert refused(load, folder).startswith(f"{folder}/data_statis.df, column item_num: 1,000,000,000 items")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    write_pickle("data_statis.df", pd.DataFrame({"seq_size": [WIDTH], "item_num": [500]}))
    assert load(folder).n_items == 500
    write_pickle("data_statis.df", pd.DataFrame({"seq_size": [WIDTH] * 2, "item_num": [N] * 2}))
    assert refused(load, folder).startswith(f"{folder}/data_statis.df, column seq_size: ")
    write_pickle("data_statis.df", {"seq_size": [WIDTH], "item_num": [[N] * 2]})
    assert refused(load, folder).startswith(f"{folder}/data_statis.df, column item_num: ")


OFTEN = [1]
for _level in range(40):
    OFTEN = [OFTEN, OFTEN, OFTEN]
CELLS = [True, None, 1.0, "1", b"1", [1], (1,), {}, np.array([1, 2]), np.nan, 2**70, -(2**70), np.bool_(True), OFTEN]


@pytest.mark.parametrize("name", PARTS.values())
@pytest.mark.parametrize("cell", CELLS, ids=range(len(CELLS)))
def test_cells_that_are_no_ids(folder, write_pickle, refused, name, cell):
    frames = long(N, "back")
    for column, values in (("seq", [[0, 1, 2], [0, 1, cell]]), ("seq", [[0, 1, 2], cell]), ("next", [1, cell])):
        rows = pd.DataFrame({"seq": [[0, 1, 2]] * 2, "len_seq": [3, 3], "next": [1, 1]})
        rows[column] = pd.Series(values, dtype=object)
        put(write_pickle, {**frames, name: rows})
        text = refused(load, folder)
        assert text.startswith(f"{folder}/{name}, row 1, column {column}: ") and len(text) < 400


@pytest.mark.parametrize("kind", [tuple, np.array, lambda row: np.array(row, np.uint8), lambda row: np.array(row, object)])
def test_rows_may_be_tuples_and_arrays(folder, write_pickle, kind):
    put(write_pickle, long(N, "back"))
    want = load(folder).fingerprint()
    put(write_pickle, {name: rows.assign(seq=rows["seq"].map(kind)) for name, rows in long(N, "back").items()})
    assert load(folder).fingerprint() == want


@pytest.mark.parametrize("value", [
    {"seq": [[0, 1, 2]], "next": [1, 2]}, {"seq": [[0, 1, 2]], "next": []}, {"seq": 7, "next": [1]}, {"seq": [[0, 1, 2]]},
    {"seq": [[0, 1, 2]], "next": [1], "len_seq": 3}, {"seq": [[0, 1, 2]], "next": [1], "len_seq": [3, 3]},
    {"seq": np.array(3), "next": [1]}, {"seq": [], "next": []}, {}, None, np.zeros((2, 2)), "seq", [{"seq": 1}],
    {"seq": np.zeros((2, 3, 2), int), "next": [1, 2]}, {"seq": [[0, 1, 2]], "next": np.zeros((1, 1), int)},
], ids=range(15))
def test_what_is_no_frame(folder, write_pickle, refused, value):
    write_pickle("val_data.df", value)
    assert refused(load, folder).startswith(f"{folder}/val_data.df")


def test_one_row_many_times_over(folder, write_pickle, refused):
    width = 5000
    write_pickle("data_statis.df", pd.DataFrame({"seq_size": [width], "item_num": [N]}))
    write_pickle("train_data.df", {"seq": [[1] * width] * 20_000, "next": [1] * 20_000})
    assert refused(load, folder).startswith(f"{folder}/train_data.df, column seq: ")
