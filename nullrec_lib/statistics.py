"""How sure a table is: each row against its best rival or one row against all others, over seeds and over test users,
corrected for many looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student
from scipy.stats import ttest_rel

from nullrec_lib.progress import bar

RESAMPLES = 10_000
PARTS = {"test": "test_authors", "test_consistent": "test_consistent", "test_sampled": "test_authors_sampled",
         "test_consistent_sampled": "test_consistent_sampled"}
"""Prefix of the metric columns of a table → tensor of the stored ranks that they are means of."""


def against(
    frame: pd.DataFrame,
    ranks: dict[str, dict[str, np.ndarray]],
    metrics: Sequence[str] = ("N@10", "N@20"),
    by: str = "method",
    parts: Sequence[str] = tuple(PARTS),
    resamples: int = RESAMPLES,
    seed: int = 22,
    reference: str | None = None,
) -> pd.DataFrame:
    """Every other row of one table against `reference`; or without one, every row against its best rival: the other row
    with the highest mean, per part and metric.

    A best rival is chosen by the very test figures that are then compared, and no p-value pays for that choice.

    Args:
        frame: `experiments.stored` of one table (one data set, split and backbone), a row per run.
        ranks: `experiments.stored_ranks` of the same runs.
        by: column that tells the rows of the table apart.
        reference: the row that all others meet.

    Returns: one row per part, metric and value of `by`: `rival`; `difference` of the means over the `seeds` that
    both have (a rule without training has one figure for every seed); `t_low`, `t_high`, `t_p` of the paired
    t-test over seeds, NaN with fewer than two of them or a rule; `low`, `high`, `p` of `bootstrap` over the
    test users, on examples' figures averaged over seeds, without the examples that a part leaves out; `p_holm`,
    corrected for all comparisons that are returned, and `t_p_holm` for those of them that have a t-test.

    Raises:
        ValueError: the runs were not tested on the same examples.
    """
    users = _same_users([ranks[key]["test_user"] for key in frame["key"]])
    rows, differences, counted = [], [], []
    for part in [part for part in parts if f"{part} {metrics[0]}" in frame]:
        for metric in metrics:
            means = frame.groupby(by, sort=False)[f"{part} {metric}"].mean()
            for name in means.index if len(means) > 1 else ():
                rival = reference or means.drop(name).idxmax()
                if name == rival:
                    continue
                one, two = _shared(frame[frame[by] == name], frame[frame[by] == rival])
                row = {"part": part, "metric": metric, by: name, "rival": rival}
                rows.append(row | _over_seeds(one[f"{part} {metric}"], two[f"{part} {metric}"]))
                differences.append(np.subtract(*(
                    np.mean([gains(ranks[key][PARTS[part]], metric) for key in runs["key"]], axis=0)
                    for runs in (one, two))))
                counted.append(~np.isnan(differences[-1]))
    if not rows:
        return pd.DataFrame()
    differences, counted = np.stack(differences, axis=1), np.stack(counted, axis=1)
    means = np.empty((resamples, len(rows)))
    for some in np.unique(counted, axis=1).T:  # parts that count the same examples are drawn together
        columns = (counted == some[:, None]).all(axis=0)
        means[:, columns] = bootstrap(differences[some][:, columns], users[some], resamples, seed)
    table = pd.DataFrame(rows)
    table["low"], table["high"] = np.percentile(means, [2.5, 97.5], axis=0)
    table["p"] = two_sided(means)
    return table.assign(t_p_holm=holm(table["t_p"]), p_holm=holm(table["p"]))


def _same_users(all_users: list[np.ndarray]) -> np.ndarray:
    if any(not np.array_equal(users, all_users[0]) for users in all_users):
        raise ValueError("these runs were tested on different examples: compare runs of one data set and split.")
    return all_users[0]


def _shared(one: pd.DataFrame, two: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of two rows with the seeds that both have, in the order of seeds; a rule goes with every seed."""
    is_rule = [bool(runs["backbone"].isna().all()) for runs in (one, two)]
    seeds = np.intersect1d(one["seed"], two["seed"]) if not any(is_rule) else None
    if seeds is not None and len(seeds) == 0:
        raise ValueError("two rows of the table share no seed, so there is nothing to pair.")
    return tuple(runs if seeds is None else runs[runs["seed"].isin(seeds)].sort_values("seed") for runs in (one, two))


def _over_seeds(one: pd.Series, two: pd.Series) -> dict[str, float]:
    """Difference of means, and the paired t-test where both have the same two seeds or more."""
    found = {"difference": one.mean() - two.mean(), "seeds": max(len(one), len(two))}
    if len(one) != len(two) or len(one) < 2 or np.ptp(one.to_numpy() - two.to_numpy()) == 0:
        return found | {"t_low": np.nan, "t_high": np.nan, "t_p": np.nan}
    test = ttest_rel(one.to_numpy(), two.to_numpy())
    low, high = test.confidence_interval(0.95)
    return found | {"t_low": low, "t_high": high, "t_p": test.pvalue}


def gains(ranks: np.ndarray, metric: str) -> np.ndarray:
    """(n,) float64: what each example adds to the mean that `evaluation.metrics` calls `metric`, e.g. `N@10`; NaN for
    rank 0, an example that is left out."""
    kind, _, cutoff = metric.partition("@")
    rank = np.where(ranks > 0, ranks, np.nan)
    gain = {"R": lambda r: r / r, "N": lambda r: 1 / np.log2(r + 1), "M": lambda r: 1 / r}[kind](rank)
    return np.where(rank > int(cutoff), 0.0, gain)


def bootstrap(
    values: np.ndarray, clusters: np.ndarray, resamples: int = RESAMPLES, seed: int = 22, memory_mb: int = 128
) -> np.ndarray:
    """Means of the columns of `values` in resampled worlds: (resamples, C) float64.

    Whole clusters are drawn with replacement, as many as there are: the examples of one user are no independent
    witnesses. All columns see the same draws.

    Args:
        values: (n, C) float.
        clusters: (n,) ids of any kind.
        memory_mb: most that the draws in hand may take.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993; for clusters, Field & Welsh, JRSS B 2007.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    count = np.bincount(cluster).astype(np.float64)
    n = len(count)
    sums = np.stack([np.bincount(cluster, column, n) for column in values.T], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, sums.shape[1]))
    block = max(1, memory_mb * 2**20 // (24 * n))  # per cluster and resample: the draw, its count, and that as float
    with bar(what="bootstrap", total=resamples, unit="resample") as progress:
        for begin in range(0, resamples, block):
            rows = min(block, resamples - begin)
            drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
            weight = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
            means[begin : begin + rows] = (weight @ sums) / (weight @ count)[:, None]
            progress.update(rows)
    # Gains that cancel leave dust behind, and a difference of nothing must count for both sides.
    return np.where(np.abs(means) < 1e-12, 0.0, means)


def two_sided(means: np.ndarray) -> np.ndarray:
    """(C,) p of a mean of zero from `bootstrap`: twice the share of resamples on its rarer side, at least
    2/(resamples + 1), as the world that was seen counts too."""
    rarer = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    return np.minimum(2 * (rarer + 1) / (len(means) + 1), 1.0)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction for as many tests as there are p-values; NaN is no test and stays.

    Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p, dtype=np.float64)
    corrected = np.full_like(p, np.nan)
    order = np.argsort(np.where(np.isnan(p), np.inf, p), kind="stable")[: int((~np.isnan(p)).sum())]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Mean with its 95% interval (t); of one value, without."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}
