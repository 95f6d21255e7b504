"""The probes and the explorer."""

import numpy as np
import pytest

from nullrec_lib import data
from nullrec_lib.data.splits import split
from nullrec_lib.profiles.explorer import explorer
from nullrec_lib.profiles.probe import linear_probe, readings, without_training
from nullrec_lib.profiles.store import Profile
from foreseen import toy


def test_a_linear_truth_is_read_and_noise_is_not():
    random = np.random.default_rng(0)
    rows = random.standard_normal((600, 20))
    truth = rows @ random.standard_normal((20, 3))
    assert linear_probe(rows, truth) == pytest.approx(1, abs=1e-3)
    assert linear_probe(rows, random.standard_normal((600, 3))) < 0.05
    noise = random.standard_normal(truth.shape) * truth.std(axis=0)
    assert linear_probe(rows, truth + noise) == pytest.approx(0.5, abs=0.08)  # half of the variance is noise


def test_without_training_the_items_nearest_to_the_history_come_first():
    """64 items in pairs that point the same way: the target is the other one of the pair, or a stranger."""
    random = np.random.default_rng(0)
    rows = np.repeat(random.standard_normal((32, 8)), 2, axis=0) + random.standard_normal((64, 8)) / 100
    rows = rows.astype(np.float32)
    pairs = [[2 * n, 2 * n + 1] for n in range(32)]
    strangers = [[n, (n + 31) % 64] for n in range(64)]
    _, near = toy(pairs, [0], n_items=64)
    _, far = toy(strangers, [0], n_items=64)
    assert without_training(rows, near) == {"N@10": 1.0, "N@20": 1.0}
    assert without_training(rows, near, "valid") == {"N@10": 1.0, "N@20": 1.0}
    found = without_training(rows, far)
    assert found["N@10"] < 0.2 and found["N@10"] <= found["N@20"] < 0.3


def test_readings_of_profiles_that_know_everything_and_of_texts_that_know_nothing():
    dataset = data.load("shop-tiny")
    parts = split(dataset, "cold-start")
    random, truth = np.random.default_rng(0), dataset.truth
    users = np.unique(parts.training_interactions()[0])
    vectors = {f"t{n}": row for n, row in enumerate(random.standard_normal((dataset.n_items, truth.item_factors.shape[1])))}
    profiles = [Profile("user", "cold", 3, 0, "never asked", "w", False)]
    for kind, numbers, ids, factors in (
        ("user", users, dataset.user_ids, truth.user_factors),
        ("item", range(dataset.n_items), list(dataset.items["item_id"]), truth.item_factors),
    ):
        profiles += [Profile(kind, ids[n], None, 0, f"{kind}{n}", "w", False) for n in numbers]
        vectors |= {f"{kind}{n}": factors[n] for n in numbers}
    found = readings(dataset, parts, profiles, lambda said: np.stack([vectors[one] for one in said]).astype(np.float32),
                     np.stack([vectors[f"t{n}"] for n in range(dataset.n_items)])).set_index("source")
    assert list(found.index) == ["item texts", "profiles, round 0", "round 0, dealt at random"]
    assert found.loc["profiles, round 0", ["user", "item"]].min() > 0.99
    assert found.loc["round 0, dealt at random", ["user", "item"]].max() < 0.1
    assert np.isnan(found.loc["item texts", "user"]) and found.loc["item texts", "item"] < 0.2
    assert found.loc["profiles, round 0", "N@10"] > 1.5 * found.loc["item texts", "N@10"]


def test_the_explorer_has_a_page_for_every_subject_linked_without_python():
    said = [("user", 0, "likes <tents>"), ("item", 0, "a tent"), ("user", 1, "likes rain")]
    some = [Profile(kind, "u1", None, round_, text, "w", False) for kind, round_, text in said]
    box = explorer(some)
    choice, stack = box.children
    assert choice.options == ("user u1", "item u1") and len(stack.children) == 2
    assert "likes &lt;tents&gt;" in stack.children[0].value and "round 1" in stack.children[0].value
    assert len(explorer(some, most=1).children[1].children) == 1
    assert explorer([]).value == "no profiles"
