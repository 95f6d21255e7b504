"""Groups of users and items, and the untouched items of sampled metrics."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.data.groups import groups, left_out, thresholds, untouched
from nullrec_lib.data.negatives import past_banned
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.evaluation import metrics, rank_all


def leave_one_out(sequences: list[list[int]], n_items: int) -> Split:
    """Last item test, the one before validation; every other one is a training interaction."""
    offsets = np.cumsum([0, *map(len, sequences)])
    place, ends = np.arange(offsets[-1]), offsets[1:]
    owned = ~np.isin(place, [*(ends - 1), *(ends - 2)])
    train = place[owned & ~np.isin(place, offsets)]
    return Split("leave-one-out", n_items, np.concatenate(sequences).astype(np.int64), offsets, train, ends - 2,
                 ends - 1, owned)


def cold_start(train: list[list[int]], test: list[list[int]], n_items: int) -> Split:
    sequences = train + test
    offsets = np.cumsum([0, *map(len, sequences)])
    place = np.arange(offsets[-1])
    owned, first = place < offsets[len(train)], np.isin(place, offsets)
    held = place[~owned & ~first]
    return Split("cold-start", n_items, np.concatenate(sequences).astype(np.int64), offsets, place[owned & ~first],
                 held, held, owned)


# Five users and six items. Training: 0 0 | 0 1 | 0 1 2 | 0 | 0 1 2 3 0 1, so items have 7, 4, 2, 1, 0 and 0.
SEQUENCES = [[0, 0, 1, 2], [0, 1, 2, 0], [0, 1, 2, 0, 4], [0, 1, 3], [0, 1, 2, 3, 0, 1, 4, 5]]
SPLIT = leave_one_out(SEQUENCES, 6)


def names(mask: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: np.flatnonzero(members).tolist() for name, members in mask.items()}


# Groups


def test_groups_by_hand():
    assert SPLIT.popularity().tolist() == [7, 4, 2, 1, 0, 0]
    # Test targets 2, 0, 4, 3, 5 of popularity 2, 7, 0, 1, 0, after 3, 3, 4, 2, 7 interactions.
    assert names(groups(SPLIT, "test", tail_user=4, tail_item=2)) == {
        "tail_user": [0, 1, 3], "head_user": [2, 4], "tail_item": [2, 3, 4], "head_item": [0, 1],
        "tail_user_tail_item": [3], "tail_user_head_item": [0, 1],
        "head_user_tail_item": [2, 4], "head_user_head_item": [], "cold_item": [2, 4],
        "new_item": [0, 2, 3, 4], "repeated_item": [1],
    }
    # Validation targets 1, 2, 0, 1, 4 of popularity 4, 2, 7, 4, 0, after 2, 2, 3, 1, 6.
    assert names(groups(SPLIT, "valid", tail_user=3, tail_item=3)) == {
        "tail_user": [0, 1, 3], "head_user": [2, 4], "tail_item": [1, 4], "head_item": [0, 2, 3],
        "tail_user_tail_item": [1], "tail_user_head_item": [0, 3],
        "head_user_tail_item": [4], "head_user_head_item": [2], "cold_item": [4],
        "new_item": [0, 1, 3, 4], "repeated_item": [2],
    }


def test_every_prefix_of_a_cold_start_user_is_an_example_of_its_own():
    split = cold_start([[0, 1, 0], [0, 2]], [[0, 3, 1, 0]], 4)  # training counts 3, 1, 1, 0
    got = names(groups(split, "test", tail_user=3, tail_item=2))
    assert got["tail_user"] == [0, 1] and got["head_user"] == [2]
    assert got["tail_item"] == [0, 1] and got["cold_item"] == [0]
    assert got["new_item"] == [0, 1] and got["repeated_item"] == [2]  # what other users had is new to this one


def test_held_out_interactions_are_no_popularity():
    sequences = [[*sequence[:-2], 4, 4] for sequence in SEQUENCES]
    assert groups(leave_one_out(sequences, 6), "test")["cold_item"].all()


def partition(mask: dict[str, np.ndarray], *parts: str) -> bool:
    return bool((sum(mask[part].astype(int) for part in parts) == 1).all())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=9), min_size=1, max_size=9),
       st.none() | st.integers(1, 9), st.none() | st.integers(1, 9))
def test_complementary_groups_partition_the_examples(sequences, tail_user, tail_item):
    split = leave_one_out(sequences, 9)
    for part in ("train", "valid", "test"):
        if not len(getattr(split, part)):
            continue
        mask = groups(split, part, tail_user, tail_item)
        four = [f"{u}_{i}" for u in ("tail_user", "head_user") for i in ("tail_item", "head_item")]
        assert set(mask) == {"tail_user", "head_user", "tail_item", "head_item", "cold_item", "new_item", "repeated_item",
                             *four}
        assert all(m.shape == getattr(split, part).shape and m.dtype == bool for m in mask.values())
        for parts in (("tail_user", "head_user"), ("tail_item", "head_item"), four, ("new_item", "repeated_item")):
            assert partition(mask, *parts)
        if tail_item is not None:
            assert not (mask["cold_item"] & mask["head_item"]).any()
        # and they are what a plain loop says
        limits = thresholds(split, part, tail_user, tail_item)
        counted = [item for sequence in sequences for item in sequence[:-2]]
        for example, place in enumerate(getattr(split, part)):
            user = int(np.searchsorted(split.offsets, place, side="right")) - 1
            before = int(place - split.offsets[user])
            popularity = counted.count(split.items[place])
            assert mask["tail_user"][example] == (before < limits["tail_user"])
            assert mask["tail_item"][example] == (popularity < limits["tail_item"])
            assert mask["cold_item"][example] == (popularity == 0)
            assert mask["repeated_item"][example] == (split.items[place] in sequences[user][:before])


# Thresholds


def by_activity(*activity: int) -> Split:
    """One user per number, with that many interactions before its test target."""
    return leave_one_out([[0] * (count + 1) for count in activity], 1)


@pytest.mark.parametrize(("activity", "threshold", "tail"), [
    (range(2, 12), 10, 8),  # ten different: exactly the 8 least active
    ([2] * 8 + [5, 5], 5, 8),
    ([2] * 9 + [5], 5, 9),  # 90% is nearer than none
    ([2] * 7 + [5] * 3, 5, 7),
    ([2] * 7 + [5] * 2 + [9], 5, 7),  # 70% and 90% are equally near: the smaller
    ([2] * 3 + [5] * 6 + [9], 9, 9),  # 30% or 90%
    ([2, 3, 4, 5, 9], 9, 4),
    ([2] * 4 + [5] * 6, 5, 4),  # somebody is always head, though 100% would be nearer than 40%
    ([7] * 6, 7, 0),  # equals are not parted: none is less active than another
    ([7], 7, 0),
], ids=str)
def test_pareto_rule_with_ties(activity, threshold, tail):
    split = by_activity(*activity)
    assert thresholds(split, "test")["tail_user"] == threshold
    assert groups(split, "test")["tail_user"].sum() == tail


def test_pareto_rule_of_items_is_over_the_catalogue():
    # Of ten items one is in all histories, one in most, the others cold: 80% are under 3.
    split = leave_one_out([[0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 6, 7], [0, 8, 9]], 10)
    assert split.popularity().tolist() == [4, 3] + [0] * 8
    assert thresholds(split, "test")["tail_item"] == 3
    assert groups(split, "test")["tail_item"].all()
    # The order of the catalogue says nothing.
    turned = leave_one_out([[9 - item for item in sequence] for sequence in
                            ([0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 6, 7], [0, 8, 9])], 10)
    assert thresholds(turned, "test") == thresholds(split, "test")


def test_explicit_thresholds_are_taken_as_they_are():
    assert thresholds(SPLIT, "test", 12, 13) == {"tail_user": 12, "tail_item": 13}
    assert thresholds(SPLIT, "test", 12) == thresholds(SPLIT, "test") | {"tail_user": 12}
    assert all(type(value) is int for value in thresholds(SPLIT, "test").values())  # they go into a JSON file
    assert groups(SPLIT, "test", 1, 1)["head_user"].all()
    assert np.array_equal(groups(SPLIT, "test", 1, 1)["tail_item"], groups(SPLIT, "test")["cold_item"])


@pytest.mark.parametrize("bad", [{"tail_user": 0}, {"tail_item": 0}, {"tail_item": -3}], ids=str)
def test_a_threshold_below_one_is_named(bad):
    for function in (groups, thresholds):
        with pytest.raises(InputError, match=next(iter(bad))):
            function(SPLIT, "test", **bad)


# Metrics per group


class Pairs:
    """A ranker whose scores depend on user and item alone, with ties."""

    def scores(self, batch: Batch) -> torch.Tensor:
        return ((batch.user[:, None] * 7 + torch.arange(40) * 13) % 11).float()


def test_metrics_of_a_group_are_those_of_ranking_only_its_examples():
    rng = np.random.default_rng(3)
    sequences = [(40 * rng.random(rng.integers(3, 12)) ** 2).astype(int).tolist() for _ in range(50)]
    split = leave_one_out(sequences, 40)
    ranks = rank_all(Pairs(), Examples(split, "test"))
    seen = 0
    for mask in groups(split, "test").values():
        part = Split(split.protocol, 40, split.items, split.offsets, split.train, split.valid, split.test[mask],
                     split.owned)
        seen += mask.any()
        if mask.any():
            alone = rank_all(Pairs(), Examples(part, "test"))
            for protocol, rank in ranks.items():
                assert metrics(rank[torch.from_numpy(mask)]) == pytest.approx(metrics(alone[protocol]))
    assert seen >= 8


# Untouched items


def test_untouched_items_are_distinct_and_never_the_user_s():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 60, rng.integers(3, 40)).tolist() for _ in range(40)]
    split = leave_one_out(sequences, 60)
    few = untouched(split, "test", 15)
    assert few.shape == (40, 15) and few.dtype == np.int64
    for sequence, items in zip(sequences, few.tolist(), strict=True):
        assert len(set(items)) == 15 and set(items) <= set(range(60)) - set(sequence)


def test_all_examples_of_a_user_get_its_one_sample():
    split = cold_start([[0, 1]], [[2, 3, 4, 5], [6, 7, 8]], 30)
    few = untouched(split, "test", 10)
    assert few.shape == (5, 10)
    assert (few[:3] == few[0]).all() and (few[3:] == few[3]).all()
    # and so does its validation example, as the target is untouched in neither
    split = leave_one_out(SEQUENCES, 20)
    assert np.array_equal(untouched(split, "valid", 5), untouched(split, "test", 5))


def test_untouched_items_are_a_uniform_subset():
    users, free = 6000, [1, 3, 4, 6, 7]
    split = leave_one_out([[0, 2, 5, 0]] * users, 8)
    for count in (1, 2, 4):
        few = np.sort(untouched(split, "test", count, seed=1), axis=1)
        subsets = list(combinations(free, count))
        counts = [int((few == subset).all(axis=1).sum()) for subset in subsets]
        assert sum(counts) == users and chisquare(counts).pvalue > 1e-3


def test_users_are_sampled_independently():
    few = untouched(leave_one_out([[0, 1, 2]] * 6000, 7), "test", 1)[:, 0] - 3
    assert chisquare(np.bincount(few[:-1] * 4 + few[1:], minlength=16)).pvalue > 1e-3


def test_the_seed_decides_and_nothing_random_outside():
    split = leave_one_out([[0, 1, 2], [3, 4, 5, 6]] * 600, 60)  # more than one block of users
    np.random.seed(1)
    ours = untouched(split, "test", 20, seed=5)
    np.random.seed(2)
    torch.manual_seed(3)
    assert np.array_equal(ours, untouched(split, "test", 20, seed=5))
    assert not np.array_equal(ours, untouched(split, "test", 20, seed=6))
    assert not np.array_equal(ours[:1024:2][:88], ours[1024::2][:88])  # no block repeats another


def test_users_who_touch_nearly_everything_get_no_sample_and_change_nobody_else_s():
    usual = [[user, 10 + user % 7, 20 + user % 13, 29] for user in range(9)] * 200  # more than one block of users
    most = [list(range(n)) for n in (296, 297, 300)]
    alone = untouched(leave_one_out(usual, 300), "test", 4)
    mixed = [most[0], *usual[:500], most[1], *usual[500:], most[2]]
    few = untouched(leave_one_out(mixed, 300), "test", 4)
    assert sorted(few[0]) == [296, 297, 298, 299]  # exactly enough
    assert (few[[501, -1]] == 300).all() and few.shape == (len(mixed), 4)
    few = untouched(leave_one_out([*usual[:500], most[1], *usual[500:], most[2]], 300), "test", 4)
    assert np.array_equal(np.delete(few, [500, -1], axis=0), alone)


def test_nobody_is_sampled_in_a_catalogue_that_is_too_small():
    sequences = [[0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert (untouched(leave_one_out(sequences, 102), "test") == 102).all()
    assert sorted(untouched(leave_one_out(sequences, 103), "test")[0]) == list(range(3, 103))
    # repeats touch one item only, held-out items are touched as well, and users outside of the part do not matter
    assert untouched(leave_one_out([[0, 0, 0, 0, 1]], 4), "test", 2).tolist() in ([[2, 3]], [[3, 2]])
    split = leave_one_out([[0, 1, 2], [3, 2, 1, 0]], 4)
    assert untouched(split, "test", 1).tolist() == [[3], [4]]
    part = Split(split.protocol, 4, split.items, split.offsets, split.train, split.valid, split.test[:1], split.owned)
    assert untouched(part, "test", 1).tolist() == [[3]]


def test_who_is_left_out_is_counted_and_said():
    split = leave_one_out([[0, 1, 2], [3, 2, 1, 0], [0, 0, 0]], 5)
    for count, expected, words in ((1, [False] * 3, ()), (5, [True] * 3, ("no sampled figures", "all 3 test users")),
                                   (2, [False, True, False], ("1 of 3 test users", "fewer than 2 of the 5"))):
        without, notes = left_out(split, untouched(split, "test", count))
        assert without.tolist() == expected and len(notes) == bool(words)
        assert all(word in notes[0] for word in words)


@given(st.lists(st.lists(st.integers(0, 11), min_size=3, max_size=14), min_size=1, max_size=8), st.integers(1, 6))
def test_a_sample_is_what_moving_past_the_touched_items_one_by_one_gives(sequences, count):
    split = leave_one_out(sequences, 12)
    few = untouched(split, "test", count)
    for sequence, items in zip(sequences, few.tolist(), strict=True):
        free = set(range(12)) - set(sequence)
        assert len(set(items) & free) == count if len(free) >= count else set(items) == {12}


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["array", "tensor"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_past_banned_lists_the_allowed_items_in_order(kind, data):
    n_items = 9
    rows = data.draw(st.lists(st.sets(st.integers(0, n_items - 1), max_size=n_items - 1), min_size=1, max_size=4))
    width = max(map(len, rows), default=0)
    banned = [sorted(row) + [n_items] * (width - len(row)) for row in rows]
    few = min(n_items - len(row) for row in rows)
    drawn = kind([list(range(few))] * len(rows))
    got = past_banned(drawn, kind(banned).reshape(len(rows), width))
    assert got.tolist() == [[i for i in range(n_items) if i not in row][:few] for row in rows]
