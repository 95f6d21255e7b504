"""Probes of limited power: known risks, what they must not see, and the truth behind the generated data."""

import numpy as np
import pytest

from nullrec_lib import data
from nullrec_lib.data.splits import split
from nullrec_lib.errors import InputError
from nullrec_lib.information import risk as module
from nullrec_lib.information.risk import best_possible, contexts, curves, known_nothing, next_item_risk, risk


@pytest.fixture(scope="module")
def shop():
    dataset = data.load("shop-tiny")
    return dataset, split(dataset, "cold-start")


@pytest.mark.parametrize("probe", ["linear", "mlp", "knn"])
def test_what_is_known_and_what_is_not(probe):
    random = np.random.default_rng(0)
    z = random.standard_normal((600, 3))
    assert risk(z, z[:, :2] * 5 + 1, probe) < 0.2 < 0.8 < risk(z, random.standard_normal((600, 2)), probe) < 1.5
    assert risk(z, (z[:, 0] > 0).astype(int), probe) < 0.35
    assert risk(z, random.integers(4, size=600), probe) > 0.95 * np.log(4)


def test_the_exclusive_or_is_beyond_a_line():
    random = np.random.default_rng(1)
    bits = random.integers(2, size=(1500, 2))
    y = bits[:, 0] ^ bits[:, 1]
    z = bits + 0.1 * random.standard_normal(bits.shape)
    assert risk(z, y, "linear") > 0.98 * np.log(2) and risk(z, y, "mlp") < 0.1 and risk(z, y, "knn") < 0.1
    assert risk(np.column_stack([z, (2 * z[:, :1] - 1) * (2 * z[:, 1:] - 1)]), y, "linear") < 0.1


def test_a_class_that_was_never_fitted_costs_much_and_not_infinitely():
    y = np.array([0] * 40 + [1] * 40)
    y[np.split(np.random.default_rng(22).permutation(80), [24])[0][:3]] = 7  # held out only
    assert np.isfinite(risk(np.random.default_rng(0).standard_normal((80, 2)), y, "linear"))


@pytest.mark.parametrize("probe", ["linear", "mlp", "knn"])
def test_a_class_that_a_fold_lacks_does_not_decide_the_penalty(probe):
    """Two rows of a rare class: without them the risk is next to nothing, and with them it must not become that of a
    penalty that nobody chose."""
    random = np.random.default_rng(0)
    y = random.integers(2, size=400)
    z = np.column_stack([8.0 * y, random.standard_normal(400)])
    rare = y.copy()
    rare[:2] = 2
    assert risk(z, rare, probe) < risk(z, y, probe) + 2 * -np.log(1e-4) / 120 + 0.02


def test_neighbours_of_useless_vectors_are_no_worse_than_popularity(shop):
    dataset, parts = shop
    vectors = np.random.default_rng(0).standard_normal((dataset.n_items, 16))
    assert next_item_risk(vectors, parts, "knn") < known_nothing(parts) + 0.02


def test_curves_go_down_and_hold_out_the_same_rows_for_all():
    random = np.random.default_rng(2)
    z = random.standard_normal((500, 8))
    frame = curves({"all": z, "half": z[:, :4]}, z @ random.standard_normal((8, 3)), sizes=(20, None), probes=("linear",),
                   seeds=(1, 2))
    mean = frame.groupby(["view", "fitted"])["risk"].mean()
    assert mean["all", 350] < mean["all", 20] and mean["all", 350] < mean["half", 350] and len(frame) == 8


def test_the_truth_is_below_every_probe_and_popularity_above(shop):
    dataset, parts = shop
    least, most = best_possible(dataset, parts), known_nothing(parts)
    assert least < most < np.log(dataset.n_items) + 0.5
    found = {probe: next_item_risk(dataset.truth.item_factors, parts, probe, epochs=20) for probe in module.PROBES}
    assert all(least < value < most + 0.2 for value in found.values())
    with pytest.raises(InputError, match="true probabilities"):
        best_possible(type(dataset)(**vars(dataset) | {"truth": None}), parts)


def test_contexts_know_nothing_from_the_target_on(shop):
    dataset, parts = shop
    random = np.random.default_rng(3)
    vectors = random.standard_normal((dataset.n_items, 4))
    told = contexts(vectors, parts, "test", most=30)
    changed = parts.items.copy()
    last = parts.offsets[1:] - 1
    changed[last] = (changed[last] + 1) % dataset.n_items
    import dataclasses
    other = contexts(vectors, dataclasses.replace(parts, items=changed), "test", most=30)
    assert np.array_equal(told.z, other.z) and not np.array_equal(told.target, other.target)


@pytest.mark.parametrize("change, said", [(dict(probe="forest"), "probe: 'forest'"), (dict(y=np.ones(5)), "has 60"),
                                          (dict(fitted=3), "too few to fit")])
def test_wrong_input_is_one_sentence(change, said):
    with pytest.raises(InputError, match=said):
        risk(**dict(z=np.ones((60, 2)), y=np.arange(60) % 2, probe="linear") | change)
