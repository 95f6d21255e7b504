"""What profiles may know: cuts, who they serve, and nothing that is held out."""

import numpy as np
import pytest

from foreseen import toy
from nullrec_lib import data
from nullrec_lib.data.splits import split
from nullrec_lib.errors import InputError
from nullrec_lib.profiles.visible import served_by, visible

SEQUENCES = [[0, 1, 2, 3, 4], [1, 2, 5], [2, 3, 6, 0], [4, 5, 6, 7]]


def test_a_cut_holds_the_first_items_and_is_there_only_if_an_example_needs_it():
    dataset, parts = toy(SEQUENCES, [0, 1])
    seen = visible(dataset, parts, cuts=(1, 3))
    # A target after h items is served by the largest cut up to h; user 1 has targets after 1 and 2 items only.
    assert seen.cuts.tolist() == [[0, 1], [0, 3], [1, 1], [2, 1], [2, 3], [3, 1], [3, 3]]
    assert [seen.cut_history(row).tolist() for row in range(3)] == [[0], [0, 1, 2], [1]]
    assert seen.users.tolist() == [0, 1] and seen.history(0).tolist() == SEQUENCES[0]
    assert seen.history(2).tolist() == []  # a held-out user has no training history


def test_an_example_is_served_by_the_longest_cut_that_its_history_allows():
    dataset, parts = toy(SEQUENCES, [0, 1])
    seen = visible(dataset, parts, cuts=(1, 3))
    served = seen.cuts[served_by(parts, parts.train, seen.cuts)].tolist()
    assert served == [[0, 1], [0, 1], [0, 3], [0, 3], [1, 1], [1, 1]]
    short = visible(dataset, parts, cuts=(3,))
    assert served_by(parts, parts.train, short.cuts).tolist() == [-1, -1, 0, 0, -1, -1]


@pytest.mark.parametrize("protocol", ["cold-start", "leave-one-out"])
def test_no_profile_knows_more_than_the_history_it_stands_beside(protocol):
    dataset = data.load("shop-tiny")
    parts = split(dataset, protocol)
    seen = visible(dataset, parts, cuts=(1, 3, 10))
    for places in (parts.train, parts.valid, parts.test):
        rows = served_by(parts, places, seen.cuts)
        assert (rows >= 0).all()
        for place, row in zip(places[::7], rows[::7]):
            user, begin = parts.user_of(np.array([place]))[0], parts.offsets[parts.user_of(np.array([place]))[0]]
            history = parts.items[begin:place]
            assert seen.cuts[row, 0] == user
            assert seen.cut_history(row).tolist() == history[: seen.cuts[row, 1]].tolist()


def test_leave_one_out_has_cuts_as_long_as_its_held_out_histories():
    dataset = data.load("shop-tiny")
    parts = split(dataset, "leave-one-out")
    seen = visible(dataset, parts, cuts=(1, 3))
    rows = served_by(parts, parts.test, seen.cuts)
    lengths = parts.test - parts.offsets[parts.user_of(parts.test)]
    assert (seen.cuts[rows, 1] == lengths).all()


def test_users_of_an_item_come_by_the_share_it_has_of_them():
    dataset, parts = toy([[0, 1, 2], [0, 1], [0, 3, 4, 5], [6, 7]], [0, 1, 2])
    seen = visible(dataset, parts, cuts=(1,))
    assert [users.tolist() for users in seen.users_of(2)][:2] == [[1, 0], [1, 0]]
    assert seen.users_of(5)[0].tolist() == [1, 0, 2] and seen.users_of(5)[7].tolist() == []


def test_a_limit_draws_users_and_keeps_their_items_only():
    dataset = data.load("shop-tiny")
    parts = split(dataset, "cold-start")
    seen = visible(dataset, parts, limit_users=20, seed=3)
    everybody = np.union1d(seen.users, seen.cuts[:, 0])
    assert len(everybody) == 20
    drawn = np.concatenate([seen.history(user) for user in seen.users])
    assert seen.subjects.tolist() == np.unique(drawn).tolist()
    assert (visible(dataset, parts, limit_users=20, seed=3).cuts == seen.cuts).all()
    assert set(np.concatenate(seen.users_of(50)).tolist()) <= set(seen.users.tolist())


def test_users_are_drawn_from_all_parts_of_a_split_by_shuffle():
    """Not by the split's own shuffle: the first of that all train."""
    dataset, _ = toy([[n % 8, (n + 1) % 8, (n + 2) % 8] for n in range(200)], [0])
    parts = split(dataset, "cold-start")
    seen = visible(dataset, parts, limit_users=100)
    assert 60 <= len(seen.users) < 95 and len(np.setdiff1d(seen.cuts[:, 0], seen.users)) > 5


def test_which_items_have_a_profile_does_not_depend_on_what_is_held_out():
    now = [[0, 1, 2], [1, 2], [3, 4, 5, 6]]
    one, two = (visible(*toy(sequences, [0, 1]), cuts=(1, 3), limit_users=3)
                for sequences in (now, [*now[:2], [3, 7, 6, 5]]))
    assert one.subjects.tolist() == two.subjects.tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrong, said", [
    ({"cuts": (3, 1)}, "cuts: "), ({"cuts": (0,)}, "cuts: "), ({"cuts": ()}, "cuts: "),
    ({"limit_users": 0}, "limit_users: 0")])
def test_wrong_input_is_one_sentence(wrong, said):
    with pytest.raises(InputError, match=said):
        visible(*toy(SEQUENCES, [0, 1]), **wrong)
