"""What can be predicted from a representation by predictors of limited power (PtE, Eqs. 17 and 18).

    R_H(Z → Y) = inf over h in H of E[loss(h(Z), Y)],    ε = R_H(Z → Y) − R*(Y)

The infimum is taken on one part of the rows and the expectation on another. H is linear, a small network, or nearest
neighbours. Recommenders live on this quantity, and not on how much of Y is in Z for somebody of unlimited power.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Examples
from nullrec_lib.data.interactions import Dataset
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.progress import bar

PROBES = ("linear", "mlp", "knn")
HELD_OUT = 0.3
NEAREST, SHARES = (10, 30, 100), (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Of the next item's neighbours: how many, and how much of the probability is theirs."""
UNSEEN = 1e-4
"""Probability that each class gets on top, before all are brought to 1: neighbours may know nothing of the true one."""


def _network(kind: type, rows: int, scoring: str | Callable, seed: int) -> GridSearchCV:
    """One hidden layer. Its penalty is chosen on a fifth of the rows; it is not stopped early, as a network that begins
    on a plateau (the exclusive or) would never leave it."""
    made = kind(hidden_layer_sizes=(64,), learning_rate_init=5e-3, batch_size=min(64, max(1, rows // 2)), max_iter=100,
                n_iter_no_change=15, random_state=seed)
    return GridSearchCV(made, {"alpha": [1e-2, 1.0, 30.0]}, scoring=scoring, cv=ShuffleSplit(1, test_size=0.2, random_state=seed))


def _log_likelihood(made, z: np.ndarray, y: np.ndarray) -> float:
    """Mean log probability of classes y, of those too that the probe `made` was not fitted to: a fold may lack one."""
    kinds = np.union1d(made.classes_, y)
    told = np.full((len(y), len(kinds)), UNSEEN)
    told[:, np.searchsorted(kinds, made.classes_)] += made.predict_proba(z)
    told /= told.sum(axis=1, keepdims=True)
    return float(np.log(told[np.arange(len(y)), np.searchsorted(kinds, y)]).mean())


def _classifier(probe: str, rows: int, seed: int):
    folds = 3 if rows >= 30 else 2
    if probe == "linear":
        return GridSearchCV(LogisticRegression(max_iter=300), {"C": [0.01, 0.1, 1.0, 10.0]}, scoring=_log_likelihood, cv=folds)
    if probe == "mlp":
        return _network(MLPClassifier, rows, _log_likelihood, seed)
    near = [k for k in (3, 10, 30, 100) if k <= rows // folds]
    return GridSearchCV(KNeighborsClassifier(), {"n_neighbors": near or [1], "weights": ["uniform", "distance"]},
                        scoring=_log_likelihood, cv=folds)


def _regressor(probe: str, rows: int, seed: int):
    folds = 3 if rows >= 30 else 2
    if probe == "linear":
        return GridSearchCV(Ridge(), {"alpha": list(np.logspace(-2, 4, 7))}, cv=folds)
    if probe == "mlp":
        return _network(MLPRegressor, rows, "neg_mean_squared_error", seed)
    near = [k for k in (3, 10, 30) if k <= rows // folds]
    return GridSearchCV(KNeighborsRegressor(weights="distance"), {"n_neighbors": near or [1]}, cv=folds)


def risk(z: np.ndarray, y: np.ndarray, probe: str, seed: int = 22, fitted: int | None = None) -> float:
    """R_H(Z → Y) of one representation, on rows that the probe was not fitted to.

    Args:
        z: (n, d) representation.
        y: (n,) classes as integers: −log probability in nats; or (n, k) numbers: the mean squared error in units of
            their variance, so that 1 is knowing nothing.
        probe: one of `PROBES`; its penalty or its number of neighbours is chosen within the fitted rows.
        seed: of the rows that are held out (the same for every z) and of the network.
        fitted: so many of the other rows; None is all.

    Raises:
        InputError: an unknown probe, rows that do not match, or fewer than ten to fit.
    """
    if probe not in PROBES:
        raise InputError(f"probe: {probe!r} is not one of {', '.join(PROBES)}.")
    if len(z) != len(y):
        raise InputError(f"rows: the representation has {len(z):,}, and there are {len(y):,} to predict.")
    test, rest = np.split(np.random.default_rng(seed).permutation(len(z)), [round(HELD_OUT * len(z))])
    rest = rest[:fitted]
    if len(rest) < 10:
        raise InputError(f"rows: {len(rest)} are too few to fit a probe to; give 10 or more.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of probes that stop at their most iterations, and of classes with few rows
        return _class_risk(z, y, probe, seed, test, rest) if y.ndim == 1 else _square_risk(z, y, probe, seed, test, rest)


def _class_risk(z, y, probe: str, seed: int, test: np.ndarray, rest: np.ndarray) -> float:
    made = make_pipeline(StandardScaler(), _classifier(probe, len(rest), seed)).fit(z[rest], y[rest])
    return -_log_likelihood(made, z[test], y[test])


def _square_risk(z, y, probe: str, seed: int, test: np.ndarray, rest: np.ndarray) -> float:
    centre, spread = y[rest].mean(axis=0), y[rest].std(axis=0)
    made = make_pipeline(StandardScaler(), _regressor(probe, len(rest), seed)).fit(z[rest], (y[rest] - centre) / spread)
    return float(np.square(made.predict(z[test]).reshape(len(test), -1) - (y[test] - centre) / spread).mean())


def curves(views: dict[str, np.ndarray], y: np.ndarray, sizes: Sequence[int | None] = (None,),
           probes: Sequence[str] = PROBES, seeds: Sequence[int] = (22, 23, 24)) -> pd.DataFrame:
    """`risk` of every view by every probe, fitted to growing numbers of rows.

    Returns: one row per view, probe, size and seed: `view`, `probe`, `fitted`, `seed`, `risk`.
    """
    rows = []
    with bar(what="probes", total=len(views) * len(probes) * len(sizes) * len(seeds), unit="fit") as progress:
        for seed in seeds:
            for view, z in views.items():
                for size in sizes:
                    most = len(z) - round(HELD_OUT * len(z))
                    for probe in probes:
                        rows.append({"view": view, "probe": probe, "fitted": min(size or most, most), "seed": seed,
                                     "risk": risk(z, y, probe, seed, size)})
                        progress.update()
    return pd.DataFrame(rows)


# The next item

@dataclass(frozen=True)
class Contexts:
    """Examples of one part: the mean of the history's vectors is what a probe reads."""

    z: torch.Tensor
    """(n, d)."""
    target: torch.Tensor
    """(n,) int64."""


def contexts(vectors: np.ndarray, split: Split, part: str, length: int = 10, most: int | None = None,
             seed: int = 22) -> Contexts:
    """Mean vectors of the newest `length` items before each target of a part; `most` of them, drawn."""
    examples = Examples(split, part, length)
    index = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(examples))[:most]))
    batch = examples.batch(index)
    padded = torch.cat([torch.as_tensor(vectors, dtype=torch.float32), torch.zeros(1, vectors.shape[1])])
    summed = F.embedding_bag(batch.history, padded, mode="sum")
    count = (batch.history < split.n_items).sum(dim=1, keepdim=True).clamp(min=1)
    return Contexts(summed / count, batch.target)


def next_item_risk(vectors: np.ndarray, split: Split, probe: str, seed: int = 22, fitted: int | None = None,
                   epochs: int = 60, patience: int = 5) -> float:
    """Mean −log probability (nats) of the next item of test users, among all items, from the mean vector of the history.

    A predictor scores an item by its vector: p(i | z) ∝ exp(h(z)·x_i + c·log(popularity of i + 1)); h is linear or a
    network with one hidden layer, fitted to training examples and stopped early by validation ones. `knn` counts the
    next items of the nearest training histories, beside the training popularity; how many and to which share, validation
    examples choose.

    Args:
        vectors: (N, d) items.
        fitted: so many training examples, drawn; None is all.
    """
    if probe not in PROBES:
        raise InputError(f"probe: {probe!r} is not one of {', '.join(PROBES)}.")
    vectors = (vectors - vectors.mean(axis=0)) / max(vectors.std(), 1e-12)
    train, valid, test = (contexts(vectors, split, part, most=most, seed=seed)
                          for part, most in (("train", fitted), ("valid", 5000), ("test", None)))
    popularity = torch.from_numpy(np.log1p(split.popularity())).float()
    if probe == "knn":
        return _neighbours(train, valid, test, popularity)
    table = torch.as_tensor(vectors, dtype=torch.float32)
    d = table.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(d, d) if probe == "linear" else nn.Sequential(nn.Linear(d, 128), nn.GELU(), nn.Linear(128, d))
        weight = nn.Parameter(torch.ones(1))
        optimiser = torch.optim.AdamW([*head.parameters(), weight], lr=3e-3, weight_decay=1e-2)
        loss = lambda some, at: F.cross_entropy(head(some.z[at]) @ table.T / d**0.5 + weight * popularity, some.target[at])
        state = lambda: (copy.deepcopy(head.state_dict()), weight.detach().clone())
        least, kept, waited = np.inf, state(), 0
        for _ in range(epochs):
            for at in torch.randperm(len(train.z)).split(512):
                optimiser.zero_grad()
                loss(train, at).backward()
                optimiser.step()
            waited += 1
            if (now := _mean_loss(loss, valid)) < least:
                least, kept, waited = now, state(), 0
            if waited >= patience:
                break
        head.load_state_dict(kept[0])
        weight.data = kept[1]
        return _mean_loss(loss, test)


@torch.no_grad()
def _mean_loss(loss: Callable[[Contexts, Tensor], Tensor], some: Contexts) -> float:
    """Over all of a part, a block at a time: scores of all items for all states would not fit everywhere."""
    parts = torch.arange(len(some.z)).split(1024)
    return sum(float(loss(some, at)) * len(at) for at in parts) / len(some.z)


def _neighbours(train: Contexts, valid: Contexts, test: Contexts, log_popularity: torch.Tensor) -> float:
    """A share of the probability by the k nearest training histories, the rest by popularity: the share and k that are
    best on validation examples. A share of 0 is among them, so that useless vectors cost nothing."""
    told = []
    for asked in (valid, test):
        near = (F.normalize(asked.z, dim=1) @ F.normalize(train.z, dim=1).T).topk(min(max(NEAREST), len(train.z)), dim=1)
        hit = (train.target[near.indices] == asked.target[:, None]).float()
        popular = torch.softmax(log_popularity, dim=0)[asked.target]
        told.append({(k, share): float(-(share * hit[:, :k].mean(dim=1) + (1 - share) * popular).log().mean())
                     for k in NEAREST for share in SHARES})
    return told[1][min(told[0], key=told[0].get)]


def best_possible(dataset: Dataset, split: Split) -> float:
    """R*: mean −log probability of test targets under the probabilities that the data were drawn from, which know each
    user's true taste. No representation of a history can do better on average.

    Raises:
        InputError: the data are not generated.
    """
    if dataset.truth is None:
        raise InputError(f"data: the true probabilities of {dataset.name} are not known; use a generated set.")
    examples = Examples(split, "test", 10)
    index = torch.arange(len(examples))
    seen, batch = examples.seen(index).numpy(), examples.batch(index)
    target, users = batch.target.numpy(), batch.user.numpy()
    seen = np.concatenate([seen, batch.history[:, -1:].numpy()], axis=1)  # the truth reads the newest item, repeated or not
    said = [dataset.truth.log_probs(users[some], seen[some])[np.arange(len(some)), target[some]]
            for some in np.array_split(np.arange(len(users)), max(1, len(users) // 256))]
    return float(-np.concatenate(said).mean())


def known_nothing(split: Split) -> float:
    """The same of a predictor that knows the training popularity alone (one more of each item)."""
    log_popularity = np.log1p(split.popularity())
    return float((logsumexp(log_popularity) - log_popularity[split.items[split.test]]).mean())
