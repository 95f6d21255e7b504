"""Rewards on literals, and what the printed objective prefers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nullrec_lib.errors import InputError
from nullrec_lib.profiles.rewards import Reward, advantages, mean_rows

WORDS = {"likes old tents": [1.0, 0.0], "likes new boats": [0.0, 1.0], "likes tents and boats": [0.6, 0.8],
         "the opposite of tents": [-1.0, 0.0], "": [1.0, 0.0]}


def encode(texts):
    return np.array([WORDS[text] for text in texts])


def reward(**weights):
    """Subject 0 is about tents and boats alike, its neighbours are 1 and 2; subject 1 is about boats, alone."""
    return Reward(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[1, 2], [-1, -1]]),
                  np.array([[9.0, 9.0], [0.0, 1.0], [-1.0, 0.0]]), encode, **weights)


def test_rewards_are_the_means_of_cosines():
    texts = ["likes old tents", "likes tents and boats", "likes tents and boats"]
    found = reward(lambda_collab=2.0, lambda_dist=0.5)(texts, [0, 0, 1])
    assert found.collab == pytest.approx([0.5, 0.7, 0.8])
    assert found.dist == pytest.approx([0.5, -(0.8 - 0.6) / 2, 0.0])  # to (0, 1) and (-1, 0): -(0 - 1) / 2 first
    assert found.total == pytest.approx(2 * found.collab + 0.5 * found.dist)


def test_a_weight_of_zero_is_the_ablation():
    texts = ["likes old tents", "likes new boats"]
    assert reward(lambda_dist=0)(texts, [0, 0]).total == pytest.approx([0.5, 0.5])
    assert reward(lambda_collab=0, lambda_dist=1)(texts, [0, 0]).total == pytest.approx([0.5, -0.5])


def test_saying_nothing_never_wins():
    found = reward()(["", "the opposite of tents"], [0, 0])
    assert found.collab[0] == found.dist[0] == -1 and found.total[0] < found.total[1]


def test_neighbours_move_when_they_are_refreshed():
    one = reward()
    before = one(["likes new boats"], [0]).dist
    one.refresh(np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert before == pytest.approx([-0.5]) and one(["likes new boats"], [0]).dist == pytest.approx([-1.0])


def test_the_mean_of_nobody_is_nothing():
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert mean_rows(rows, np.array([[0, 1], [1, -1], [-1, -1]])).tolist() == [[2, 3], [3, 4], [0, 0]]


groups = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 8)), elements=st.floats(-3, 3))


@given(groups)
def test_the_printed_objective_is_highest_where_all_rewards_are_equal(rewards):
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    printed = np.log(1 / (1 + np.exp(-centred))).sum(axis=1)
    assert (printed <= rewards.shape[1] * np.log(0.5) + 1e-9).all()
    spread = np.ptp(rewards, axis=1) > 1e-3
    assert (printed < rewards.shape[1] * np.log(0.5))[spread].all()


@given(groups, st.sampled_from(["standard", "log_sigmoid"]))
def test_advantages_are_centred_and_ordered_like_rewards(rewards, kind):
    found = advantages(rewards, kind)
    assert found.sum(axis=1) == pytest.approx(np.zeros(len(rewards)), abs=1e-6)
    for row, reward_row in zip(found, rewards):
        order = np.argsort(reward_row, kind="stable")
        assert (np.diff(row[order]) >= -1e-9).all()


def test_advantages_on_literals():
    assert advantages(np.array([[1.0, 2.0, 3.0]])) == pytest.approx(np.array([[-1.0, 0.0, 1.0]]), abs=1e-3)
    said = np.log(1 / (1 + np.exp([1.0, 0.0, -1.0])))
    assert advantages(np.array([[1.0, 2.0, 3.0]]), "log_sigmoid")[0] == pytest.approx(said - said.mean())
    assert advantages(np.array([[0.3, 0.3]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("wrong, said", [
    (dict(lambda_collab=-1.0), "lambda_collab: -1.0 is not a finite number"),
    (dict(lambda_dist=float("nan")), "lambda_dist: nan is not"),
    (dict(lambda_collab=0.0, lambda_dist=0.0), "both are 0"),
])
def test_wrong_weights_are_one_sentence(wrong, said):
    with pytest.raises(InputError, match=said):
        reward(**wrong)
    with pytest.raises(InputError, match="advantage: 'raw' is not standard or log_sigmoid"):
        advantages(np.zeros((1, 2)), "raw")
