"""Each statement of the theory where it holds, and each counterexample with its figures."""

import numpy as np
import pytest

from nullrec_lib.errors import InputError
from nullrec_lib.information.theorems import (
    Experiment, chain, chain_information, dominates, erasure, linear_information, linear_risk, noisy,
    printed_sufficiency, refine, xor)


def test_the_exclusive_or_is_in_neither_view_and_in_both():
    seen = xor()
    assert [seen[name].bayes_risk for name in ("lm", "id", "both", "fusion")] == [0.5, 0.5, 0, 0]
    assert [seen[name].sufficiency for name in ("lm", "id", "both", "fusion")] == pytest.approx([0, 0, 1, 1])
    assert xor(0.1)["fusion"].bayes_risk == pytest.approx(0.1)


def test_a_linear_rule_needs_the_product():
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    y = bits[:, 0] ^ bits[:, 1]
    signs = 2 * bits - 1
    assert linear_risk(bits[:, :1], y) == linear_risk(bits[:, 1:], y) == 0.5
    assert linear_risk(bits, y) == 0.25  # from both as they are: three of four
    assert linear_risk(np.column_stack([signs, signs.prod(axis=1)]), y) == 0
    assert linear_risk(bits, bits[:, 0]) == 0


def test_the_printed_order_is_weaker_than_blackwells():
    u, v = erasure(0.1), noisy(0.1)
    assert printed_sufficiency(u, v) and not dominates(u, v)
    assert u.information == pytest.approx(0.1 * np.log(2))
    assert v.information == pytest.approx(np.log(2) + 0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert u.sufficiency < v.sufficiency and u.bayes_risk == pytest.approx(0.45) and v.bayes_risk == pytest.approx(0.1)


def test_blackwells_order_where_it_is_known():
    assert dominates(noisy(0.1), noisy(0.2)) and not dominates(noisy(0.2), noisy(0.1))
    assert dominates(noisy(0.1), noisy(0.1)) and dominates(erasure(0.5), noisy(0.25))  # a guess where nothing is shown
    assert not dominates(erasure(0.5), noisy(0.2))
    for u, v in ((noisy(0.1), noisy(0.2)), (erasure(0.5), noisy(0.25))):
        assert printed_sufficiency(u, v) and u.information > v.information
    with pytest.raises(InputError, match="different Y"):
        dominates(noisy(0.1), Experiment(np.array([[0.3, 0.0], [0.0, 0.7]])))
    with pytest.raises(InputError, match="sum to 1"):
        Experiment(np.ones((2, 2)))


def test_a_restricted_family_may_prefer_a_function_of_what_it_reads():
    random = np.random.default_rng(0)
    u = random.standard_normal((50_000, 1))
    y = u[:, 0] ** 2 + 0.3 * random.standard_normal(len(u))
    assert linear_information(u, y) == pytest.approx(0, abs=0.01)
    assert linear_information(u**2, y) == pytest.approx(0.5 * np.log((2 + 0.09) / 0.09), rel=0.02)


@pytest.mark.parametrize("leak", [0.0, 1.0])
def test_the_chains_information_is_that_of_its_columns(leak):
    made, true = chain(200_000, leak=leak), chain_information(leak=leak)
    y = made["y"][:, 0]
    assert linear_information(made["lm"], y) == pytest.approx(true["lm"], abs=0.01)
    assert linear_information(made["id"], y) == pytest.approx(true["id"], abs=0.01)
    assert linear_information(np.column_stack([made["lm"], made["id"]]), y) == pytest.approx(true["both"], abs=0.01)
    if leak:  # the premise of Theorem 1 is gone, and with it both halves
        assert true["id"] > true["lm"] and true["both"] > true["lm"]
    else:
        assert true["id"] < true["lm"] == true["both"]


def test_a_loop_contracts_where_both_operators_do():
    told = refine(0.8, 0.7)
    assert (told["user rate"].dropna() <= 0.8 * 0.7 + 1e-9).all()
    assert told["user"].iloc[-1] < 1e-2 * told["user"].iloc[0]
    apart = refine(1.2, 1.1)
    assert apart["user rate"].iloc[-1] > 1  # and without, it need not


def test_a_chain_without_noise_of_its_own_is_refused():
    with pytest.raises(InputError, match="noise_id: 0 is not above 0"):
        chain_information(noise_id=0, leak=1)
