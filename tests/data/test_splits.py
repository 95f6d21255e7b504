"""Splits: who is in which part, what an example's history may be, what training may count."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullrec_lib.data.interactions import Dataset, cut
from nullrec_lib.data.splits import OF_USERS, split
from nullrec_lib.errors import InputError

PARTS = ("train", "valid", "test")


def log(sequences, ends=None, n_items=None, clock="time") -> Dataset:
    """A data set of users' item lists; user u's last interaction is at `ends[u]`, the others long before."""
    ends = range(len(sequences)) if ends is None else ends
    n_items = 1 + max(max(s, default=0) for s in sequences) if n_items is None else n_items
    rows = [
        (user, item, float(end if place == len(items) - 1 else place - 1000 - end))
        for user, (items, end) in enumerate(zip(sequences, ends, strict=True))
        for place, item in enumerate(items)
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"]).astype({"user": int, "item": int})
    names = [f"i{item}" for item in range(n_items)]
    catalogue = pd.DataFrame({"item_id": names, "title": names, "description": ""})
    return Dataset("log", catalogue, frame, np.array([f"u{u}" for u in range(len(sequences))], object), clock)


def users(parts, part) -> list[int]:
    return sorted(set(parts.user_of(getattr(parts, part)).tolist()))


def examples(parts, part) -> list[tuple[int, list[int], int]]:
    """(user, history, target) of every example, read from the split's own arrays."""
    found = []
    for place in getattr(parts, part):
        user = int(np.flatnonzero(parts.offsets <= place)[-1])
        found.append((user, parts.items[parts.offsets[user] : place].tolist(), int(parts.items[place])))
    return found


TRIPLES = [[3 * u, 3 * u + 1, 3 * u + 2] for u in range(10)]

# Cold-start users


def test_cold_start_goes_by_the_last_time():
    # The first interactions run in the opposite order, so a sort by them gives other users.
    parts = split(log(TRIPLES, ends=[50, 90, 10, 20, 80, 30, 0, 60, 40, 70]), "cold-start")
    assert users(parts, "train") == [0, 2, 3, 5, 6, 7, 8, 9]
    assert users(parts, "valid") == [4]
    assert users(parts, "test") == [1]
    assert parts.notes == ()


def test_cold_start_breaks_ties_by_user_id():
    parts = split(log(TRIPLES, ends=[5, 5, 5, 5, 9, 9, 9, 9, 9, 9]), "cold-start")
    assert [users(parts, part) for part in PARTS] == [[0, 1, 2, 3, 4, 5, 6, 7], [8], [9]]
    parts = split(log(TRIPLES, ends=[9, 9, 9, 1, 9, 9, 9, 9, 9, 1]), "cold-start")
    assert [users(parts, part) for part in PARTS] == [[0, 1, 2, 3, 4, 5, 6, 9], [7], [8]]


@pytest.mark.parametrize("n", [10, 11, 15, 19, 20, 23, 70, 99, 1000])
def test_cold_start_is_80_10_10_of_the_users(n):
    parts = split(log([[0, 1]] * n), "cold-start")
    sizes = [len(users(parts, part)) for part in PARTS]
    assert sizes == [8 * n // 10, 9 * n // 10 - 8 * n // 10, n - 9 * n // 10]


def test_users_without_interactions_do_not_count():
    sequences = [[], *TRIPLES[:5], [], *TRIPLES[5:], []]
    parts = split(log(sequences, ends=range(100, 113)), "cold-start")
    assert [users(parts, part) for part in PARTS] == [[1, 2, 3, 4, 5, 7, 8, 9], [10], [11]]
    assert parts.notes == ()
    parts = split(log(sequences), "leave-one-out", min_history=0)
    assert len(parts.test) == 10 and parts.notes == ()


def test_positions_are_shuffled_with_a_seed_and_say_so():
    sequences = [[0, 1, 2]] * 60
    one = split(log(sequences, clock="position"), "cold-start", seed=1)
    again = split(log(sequences, ends=range(60, 0, -1), clock="position"), "cold-start", seed=1)
    other = split(log(sequences, clock="position"), "cold-start", seed=2)
    assert one.notes == ("Users were split by a shuffle with seed 1: the data set has no times.",)
    assert [users(one, part) for part in PARTS] == [users(again, part) for part in PARTS]
    assert users(one, "test") != users(other, "test")
    assert [len(users(one, part)) for part in PARTS] == [48, 6, 6]
    assert users(one, "train") != list(range(48))  # shuffled, not in order of id


def test_seed_means_nothing_where_there_are_times():
    data = log(TRIPLES)
    assert split(data, "cold-start", seed=1).fingerprint() == split(data, "cold-start", seed=2).fingerprint()


@pytest.mark.parametrize("min_history", [0, 1, 2])
def test_cold_start_makes_each_prefix_one_example(min_history):
    sequences = [[1, 2, 3]] * 8 + [[4, 5, 6], [7, 8, 9, 7]]
    parts = split(log(sequences), "cold-start", min_history=min_history)
    for part, members in zip(PARTS, (range(8), [8], [9]), strict=True):
        whole = [(user, sequences[user]) for user in members]
        wanted = [(u, items[:k], items[k]) for u, items in whole for k in range(min_history, len(items))]
        assert examples(parts, part) == wanted
    assert parts.owned.tolist() == [True] * 24 + [False] * 7


def test_cold_start_counts_users_that_are_too_short():
    sequences = [[0]] * 3 + [[0, 1]] * 7
    parts = split(log(sequences), "cold-start")
    assert parts.notes == ("3 users are too short for an example with min_history=1.",)
    assert parts.owned[:3].all() and parts.popularity().tolist() == [8, 5]  # they count for popularity
    assert split(log(sequences), "cold-start", min_history=0).notes == ()


# Leave-one-out


def test_leave_one_out_by_hand():
    parts = split(log([[4, 3, 2, 1, 0], [0, 2, 4], [1, 1, 1, 5]]), "leave-one-out")
    assert examples(parts, "test") == [(0, [4, 3, 2, 1], 0), (1, [0, 2], 4), (2, [1, 1, 1], 5)]
    assert examples(parts, "valid") == [(0, [4, 3, 2], 1), (1, [0], 2), (2, [1, 1], 1)]
    assert examples(parts, "train") == [(0, [4], 3), (0, [4, 3], 2), (2, [1], 1)]
    assert parts.owned.tolist() == [True] * 3 + [False] * 2 + [True, False, False] + [True] * 2 + [False] * 2
    assert parts.popularity().tolist() == [1, 2, 1, 1, 1, 0]
    assert parts.notes == ()


def test_leave_one_out_with_empty_histories():
    parts = split(log([[4, 3, 2, 1, 0], [0, 2, 4], [3, 2]]), "leave-one-out", min_history=0)
    assert examples(parts, "train") == [
        (0, [], 4), (0, [4], 3), (0, [4, 3], 2), (1, [], 0), (2, [], 3), (2, [3], 2)
    ]
    assert examples(parts, "valid") == [(0, [4, 3, 2], 1), (1, [0], 2)]


def test_short_users_of_leave_one_out_train_only_and_are_counted():
    parts = split(log([[0], [1, 2], [3, 4, 5], [1, 2, 3, 4]]), "leave-one-out")
    assert parts.notes == (
        "2 users are too short for leave-one-out: all of their items train, none is a test.",
    )
    assert users(parts, "test") == users(parts, "valid") == [2, 3]
    assert examples(parts, "train") == [(1, [1], 2), (3, [1], 2)]
    assert parts.owned[:3].all()


def test_min_history_holds_in_leave_one_out_too():
    parts = split(log([[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]), "leave-one-out", min_history=2)
    for part in PARTS:
        assert all(len(history) >= 2 for _, history, _ in examples(parts, part))
    assert users(parts, "test") == [1, 2]


# What training may count


def test_training_interactions_and_cold_items():
    sequences = [[0, 1], *[[1, 2]] * 7, [3, 3], [4, 0]]
    parts = split(log(sequences, n_items=7), "cold-start")
    assert parts.n_items == 7
    assert parts.popularity().tolist() == [1, 8, 7, 0, 0, 0, 0]  # 3 and 4 are held out, 5 and 6 never seen
    owners, items = parts.training_interactions()
    assert list(zip(owners.tolist(), items.tolist(), strict=True)) == [
        (u, item) for u in range(8) for item in sequences[u]
    ]
    sizes = {"train_examples": 8, "valid_examples": 1, "test_examples": 1}
    assert parts.counts() == sizes | {"train_interactions": 16, "cold_items": 4}


def test_a_cut_comes_before_the_split():
    sequences = [[0, 1, 2, 3, 4], [5, 6, 7], [0, 2, 4, 6]]
    data = log(sequences, n_items=9)
    last = split(cut(data, "last:3"), "leave-one-out", min_history=0)
    assert examples(last, "test") == [(0, [2, 3], 4), (1, [5, 6], 7), (2, [2, 4], 6)]
    assert last.n_items == 9
    assert examples(last, "train") == [(0, [], 2), (1, [], 5), (2, [], 2)]
    with pytest.raises(InputError, match="part of leave-one-out"):
        split(cut(data, "last:2"), "leave-one-out")
    first = split(cut(data, "first:4"), "leave-one-out")
    assert examples(first, "test") == [(0, [0, 1, 2], 3), (1, [5, 6], 7), (2, [0, 2, 4], 6)]


# Wrong input


@pytest.mark.parametrize(
    ("sequences", "arguments", "words"),
    [
        (TRIPLES, {"protocol": "random"}, r"^split: 'random' is not one of cold-start, leave-one-out, given\.$"),
        (TRIPLES, {"protocol": "cold-start", "min_history": -1}, r"^min_history: -1 is below 0\.$"),
        (TRIPLES[:5], {"protocol": "cold-start"}, "validation part of cold-start.*5 users with 3 to 3 inter"),
        (TRIPLES[:1], {"protocol": "cold-start"}, "training part of cold-start"),
        ([[0, 1]] * 9 + [[0]], {"protocol": "cold-start"}, "test part of cold-start.*with 1 to 2 inter"),
        ([[0]] * 8 + [[0, 1]] * 2, {"protocol": "cold-start"}, "training part"),
        ([[0, 1]] * 4, {"protocol": "leave-one-out"}, "log leaves the validation part of leave-one-out"),
        ([[0, 1, 2]] * 4, {"protocol": "leave-one-out"}, "training part of leave-one-out"),
        (TRIPLES, {"protocol": "cold-start", "min_history": 3}, "training part"),
    ],
)
def test_split_refuses(sequences, arguments, words):
    with pytest.raises(InputError, match=words) as caught:
        split(log(sequences), **arguments)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_the_split_does_not_share_memory_with_the_data():
    data = log(TRIPLES)
    parts = split(data, "cold-start")
    parts.items[:] = 0
    assert data.interactions["item"].tolist() == sum(TRIPLES, [])


# Properties

# Ten users with room for an example in each part, then anything.
LONG = st.lists(st.lists(st.integers(0, 8), min_size=4, max_size=7), min_size=10, max_size=12)
ANY = st.lists(st.lists(st.integers(0, 8), max_size=6), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(OF_USERS), st.sampled_from([0, 1]), st.data())
def test_parts_are_disjoint_and_cover_every_target(protocol, min_history, data):
    sequences = data.draw(LONG) + data.draw(ANY)
    sequences = data.draw(st.permutations(sequences))
    ends = data.draw(st.lists(st.integers(0, 5), min_size=len(sequences), max_size=len(sequences)))
    whole = log(sequences, ends, n_items=10)
    try:
        parts = split(whole, protocol, min_history)
    except InputError as error:  # short users may fill a whole part of cold-start
        assert protocol == "cold-start" and "part of cold-start without an example" in str(error)
        return
    places = np.concatenate([getattr(parts, part) for part in PARTS])
    assert len(np.unique(places)) == len(places)
    lengths = np.array([len(s) for s in sequences])
    start = np.repeat(np.cumsum(lengths) - lengths, lengths)
    eligible = np.flatnonzero(np.arange(lengths.sum()) - start >= min_history)
    assert np.array_equal(np.sort(places), eligible)
    assert all(np.all(np.diff(getattr(parts, part)) > 0) for part in PARTS)
    # Training targets are owned, the others are not.
    assert parts.owned[parts.train].all() and not parts.owned[np.r_[parts.valid, parts.test]].any()
    assert parts.popularity().sum() == parts.owned.sum() == len(parts.training_interactions()[0])
    assert parts.popularity().shape == (10,)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    assert np.array_equal(parts.user_of(np.arange(lengths.sum())), owner)
    if protocol == "cold-start":
        groups = [set(users(parts, part)) for part in PARTS]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
        # A user's interactions are owned all or none, and no owner ends after a held-out user.
        owned = [parts.owned[a:b] for a, b in zip(parts.offsets[:-1], parts.offsets[1:], strict=True)]
        assert all(rows.all() or not rows.any() for rows in owned)
        trained = [end for end, rows in zip(ends, owned, strict=True) if len(rows) and rows.all()]
        held = [end for end, rows in zip(ends, owned, strict=True) if len(rows) and not rows.all()]
        assert max(trained) <= min(held)
    else:
        assert np.array_equal(parts.valid + 1, parts.test)
        assert np.isin(parts.test + 1, parts.offsets).all()


# Fingerprint


def test_fingerprint_is_sensitive():
    base = [[u % 3, (u + 1) % 3, u % 2, 2] for u in range(20)]
    swapped = [[base[0][1], base[0][0], *base[0][2:]], *base[1:]]
    moved = [base[0][:-1], [base[0][-1], *base[1]], *base[2:]]  # the same flat items, another boundary
    data, positions = log(base), log(base, clock="position")
    prints = [split(d, "cold-start").fingerprint() for d in (data, log(swapped), log(moved), positions)]
    prints += [split(log(base, ends=range(20, 0, -1)), "cold-start").fingerprint()]
    prints += [split(positions, "cold-start", seed=3).fingerprint()]
    prints += [split(data, "cold-start", min_history=0).fingerprint()]
    prints += [split(data, "leave-one-out").fingerprint()]
    parts = split(data, "cold-start")
    prints += [replace(parts, owned=~parts.owned).fingerprint(), replace(parts, protocol="x").fingerprint()]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 16 and set(p) <= set("0123456789abcdef") for p in prints)
    assert split(log(base), "cold-start").fingerprint() == prints[0]
    assert split(replace(data, name="renamed"), "cold-start").fingerprint() == prints[0]


def test_fingerprint_tells_where_one_part_ends_and_the_next_begins():
    parts = split(log(TRIPLES), "cold-start")
    moved = replace(parts, train=parts.train[:-1], valid=np.r_[parts.train[-1:], parts.valid])
    assert moved.fingerprint() != parts.fingerprint()


@pytest.mark.parametrize("protocol", OF_USERS)
def test_a_catalogue_of_one_item_ranks_nothing(protocol):
    with pytest.raises(InputError, match="split: .* only 1 item"):
        split(log([[0] * 5] * 12, n_items=1), protocol)
    split(log([[0] * 5] * 12, n_items=2), protocol)
