"""How far the estimate of mutual information can be trusted: cases whose answer is known, and another estimator."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.feature_selection import mutual_info_regression

from nullrec_lib.information.knife import Kernels
from nullrec_lib.information.sufficiency import sufficiency

BENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"Gaussian": lambda v: v, "bent": np.sinh}
"""What is done to each column of V: it can be undone, so the mutual information stays, but a kernel is no longer the
truth and no line is the best predictor."""
RELATIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "sine": lambda u, random: np.sin(3 * u) + 0.2 * random.standard_normal(u.shape),
    "square": lambda u, random: u**2 + 0.3 * random.standard_normal(u.shape),
    "sign": lambda u, random: np.sign(u) + 0.3 * random.standard_normal(u.shape),
}
"""V from U, column by column, with noise."""
NEIGHBOURS = 5


def correlated(d: int, rho: float, n: int, seed: int, bend: str = "Gaussian") -> tuple[np.ndarray, np.ndarray, float]:
    """U and V of shape (n, d), V's column j correlated with U's column j alone, and I(U; V) = −½ d log(1 − ρ²) nats."""
    random = np.random.default_rng(seed)
    u = random.standard_normal((n, d))
    v = rho * u + np.sqrt(1 - rho**2) * random.standard_normal((n, d))
    return u, BENDS[bend](v), -0.5 * d * float(np.log1p(-(rho**2)))


def against_truth(dims: Sequence[int], rows: Sequence[int], rhos: Sequence[float], seeds: Sequence[int],
                  kernels: Kernels = Kernels()) -> pd.DataFrame:
    """One row per bend, `rows`, `d` and `rho`: the `truth`, `mi_nats` with `low` and `high`, the `bias`, the same as a
    `share` of the truth (missing where that is 0), and whether the estimate was `flagged` for having few rows."""
    found = []
    for bend in BENDS:
        for n in rows:
            for d in dims:
                for rho in rhos:
                    u, v, truth = correlated(d, rho, n, seeds[0], bend)
                    told = sufficiency(u, v, seeds, pca=None, kernels=kernels)
                    bias = told.mi_nats.value - truth
                    found.append({"V": bend, "rows": n, "d": d, "rho": rho, "truth": truth, "mi_nats": told.mi_nats.value,
                                  "low": told.mi_nats.low, "high": told.mi_nats.high, "bias": bias,
                                  "share": bias / truth if truth else np.nan,
                                  "flagged": any("rows are few" in flag for flag in told.flags)})
    return pd.DataFrame(found)


def against_neighbours(rows: int, seeds: Sequence[int], kernels: Kernels = Kernels(), d: int = 2) -> pd.DataFrame:
    """One row per relation: `mi_nats` with `low` and `high` here, and `neighbours`: the sum over columns, which are
    independent, of what nearest neighbours tell (Kraskov et al. 2004, as scikit-learn has it)."""
    found = []
    for name, relation in RELATIONS.items():
        random = np.random.default_rng(seeds[0])
        u = random.standard_normal((rows, d))
        v = relation(u, random)
        told = sufficiency(u, v, seeds, pca=None, kernels=kernels).mi_nats
        nearest = sum(mutual_info_regression(u[:, [j]], v[:, j], n_neighbors=NEIGHBOURS, random_state=seeds[0])[0]
                      for j in range(d))
        found.append({"relation": name, "mi_nats": told.value, "low": told.low, "high": told.high,
                      "neighbours": nearest, "ratio": told.value / nearest})
    return pd.DataFrame(found)
