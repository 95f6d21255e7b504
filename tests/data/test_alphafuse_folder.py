"""AlphaFuse's folder: every row is one example with its own history, and what came along is used."""

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
