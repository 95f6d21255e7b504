"""Do profiles settle: against numbers worked out by hand."""

import numpy as np
import pytest

from nullrec_lib.profiles.convergence import distances, geometric_rate, mean_cosine


def unit(n, d=5, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_distance_is_that_of_points():
    a, b = unit(20), unit(20, seed=1)
    assert distances(a, b) == pytest.approx(np.linalg.norm(a - b, axis=1))
    assert distances(a, a) == pytest.approx(0, abs=1e-7)


def test_the_mean_cosine_is_over_pairs():
    rows = unit(30)
    cosines = rows @ rows.T
    assert mean_cosine(rows) == pytest.approx(cosines[~np.eye(30, dtype=bool)].mean())
    assert mean_cosine(np.repeat(rows[:1], 4, 0)) == pytest.approx(1)
    assert np.isnan(mean_cosine(rows[:1]))


def test_a_known_rate_comes_back_within_its_interval():
    random = np.random.default_rng(3)
    steps = 0.8 * 0.5 ** np.arange(5)[:, None] * random.uniform(0.5, 1.5, (5, 400))
    found = geometric_rate(steps)
    assert found.rate == pytest.approx(0.5, abs=0.01) and found.low < 0.5 < found.high
    assert found.high - found.low < 0.05
    assert geometric_rate(1.2 ** np.arange(4)[:, None] * np.ones((4, 10))).rate == pytest.approx(1.2)


def test_a_fixed_point_ends_the_line():
    steps = np.array([[0.4, 0.4], [0.2, 0.2], [0.0, 0.0]])
    assert geometric_rate(steps).rate == pytest.approx(0.5)
    assert geometric_rate(steps[1:]) is None and geometric_rate(steps[:1]) is None
