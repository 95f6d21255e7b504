"""How much of a known truth is in embeddings: a linear reading of it."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV

HELD_OUT = 0.3
PENALTIES = np.logspace(-3, 3, 13)


def linear_probe(rows: np.ndarray, truth: np.ndarray, seed: int = 22) -> float:
    """R² of ridge regression on rows that it was not fitted to, mean over the columns of the truth.

    Args:
        rows: (n, d) embeddings.
        truth: (n, k), one row per embedding.
        seed: of the part that is held out. The penalty is chosen within the rest, by leaving one out.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    test, train = np.split(order, [round(HELD_OUT * len(rows))])
    centred = rows - rows[train].mean(axis=0)
    said = RidgeCV(PENALTIES).fit(centred[train], truth[train]).predict(centred[test])
    left = ((said - truth[test]) ** 2).sum(axis=0) / ((truth[test] - truth[train].mean(axis=0)) ** 2).sum(axis=0)
    return float(1 - left.mean())
