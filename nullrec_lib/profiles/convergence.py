"""Do the profiles settle? Distances between rounds, how alike profiles become, and the rate of a geometric decay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def distances(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(n,) √(2 − 2cos) between rows of unit norm, a metric, as Theorem 3 asks for: their Euclidean distance, which is
    computed as such, so that what has not moved has moved by 0."""
    return np.linalg.norm(np.asarray(after, np.float64) - before, axis=1)


def mean_cosine(rows: np.ndarray) -> float:
    """Mean cosine over all pairs of rows of unit norm: 1 when all profiles say the same. From the rows' sum, since
    ‖Σx‖² is the sum over all pairs."""
    n = len(rows)
    if n < 2:
        return float("nan")
    total = rows.sum(axis=0, dtype=np.float64)
    return float((total @ total - np.einsum("nd,nd->", rows, rows, dtype=np.float64)) / (n * (n - 1)))


@dataclass(frozen=True)
class Rate:
    """Of a decay D_t ≈ D_1 · rate^(t-1), with the 95% interval over subjects. A rate below 1 is a contraction."""

    rate: float
    low: float
    high: float


def geometric_rate(steps: np.ndarray, seed: int = 22, resamples: int = 1000) -> Rate | None:
    """The rate at which the mean distance between successive rounds decays: a line through its logarithm (Theorem 3).

    If both operators are Lipschitz with ρ < 1, one round is two of them, so the rate is at most ρ². That they are is
    an assumption: the rate is measured, and one above 1 says that the profiles drift apart.

    Args:
        steps: (T, n) distance of each of n subjects in T successive rounds.
        seed: of the resampling of subjects.

    Returns: None with fewer than two rounds in which anything moved.
    """
    moved = steps[: _until_still(steps)]
    if len(moved) < 2:
        return None
    line = lambda means: float(np.exp(np.polyfit(np.arange(len(means)), np.log(means), 1)[0]))
    random, n = np.random.default_rng(seed), moved.shape[1]
    rates = []
    for _ in range(resamples):
        means = moved[:, random.integers(0, n, n)].mean(axis=1)
        if (means > 0).all():
            rates.append(line(means))
    low, high = np.quantile(rates, (0.025, 0.975))
    return Rate(line(moved.mean(axis=1)), float(low), float(high))


def _until_still(steps: np.ndarray) -> int:
    """Rounds before the first in which nothing moved: a fixed point has no logarithm."""
    still = np.flatnonzero(steps.mean(axis=1) == 0)
    return int(still[0]) if len(still) else len(steps)
