"""The linear probe and the explorer."""

import numpy as np
import pytest

from nullrec_lib.profiles.explorer import explorer
from nullrec_lib.profiles.probe import linear_probe
from nullrec_lib.profiles.store import Profile


def test_a_linear_truth_is_read_and_noise_is_not():
    random = np.random.default_rng(0)
    rows = random.standard_normal((600, 20))
    truth = rows @ random.standard_normal((20, 3))
    assert linear_probe(rows, truth) == pytest.approx(1, abs=1e-3)
    assert linear_probe(rows, random.standard_normal((600, 3))) < 0.05
    noise = random.standard_normal(truth.shape) * truth.std(axis=0)
    assert linear_probe(rows, truth + noise) == pytest.approx(0.5, abs=0.08)  # half of the variance is noise


def test_the_explorer_has_a_page_for_every_subject_linked_without_python():
    said = [("user", 0, "likes <tents>"), ("item", 0, "a tent"), ("user", 1, "likes rain")]
    some = [Profile(kind, "u1", None, round_, text, "w", False) for kind, round_, text in said]
    box = explorer(some)
    choice, stack = box.children
    assert choice.options == ("user u1", "item u1") and len(stack.children) == 2
    assert "likes &lt;tents&gt;" in stack.children[0].value and "round 1" in stack.children[0].value
    assert len(explorer(some, most=1).children[1].children) == 1
    assert explorer([]).value == "no profiles"
