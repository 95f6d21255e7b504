"""What profiles know: a linear reading of a known truth, and recommending by them without any training."""

from __future__ import annotations

from typing import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.linear_model import RidgeCV

from nullrec_lib import nullspace
from nullrec_lib.data.examples import Examples
from nullrec_lib.data.interactions import Dataset
from nullrec_lib.data.splits import Split
from nullrec_lib.evaluation import metrics
from nullrec_lib.kernels.rank import rank
from nullrec_lib.profiles.store import Profile

HELD_OUT = 0.3
PENALTIES = np.logspace(-3, 3, 13)
LENGTH = 10
"""The newest items of a history, in `without_training`."""


def readings(
    dataset: Dataset, split: Split, profiles: Iterable[Profile], encode: Callable[[list[str]], np.ndarray],
    texts: np.ndarray, seed: int = 22,
) -> pd.DataFrame:
    """What can be read from item texts and from the profiles of each round; and, as controls, from the last profiles
    dealt out to users, and to items, at random.

    Args:
        profiles: of one store; users at cuts are not looked at.
        encode: n texts → (n, d) float32 of unit norm.
        texts: (N, d) embeddings of the items' texts; they also stand for items without a profile.
        seed: of the part that is held out, and of the dealing.

    Returns: one row per source. `user`: R² of the linear probe from a training user's profile to the true factors;
        `user, by items`: the same from the mean of the source's item vectors over the user's training items; `item`:
        from an item's vector to its factors (these three on generated data only, on rows that the probe was not fitted
        to); `N@10`, `N@20`: of the test examples, see `without_training`.
    """
    said = {}
    for one in profiles:
        if one.cut is None:
            said.setdefault((one.kind, one.round), {})[one.id] = one.text
    number = {"user": dict(zip(dataset.user_ids, range(dataset.n_users))),
              "item": dict(zip(dataset.items["item_id"], range(dataset.n_items)))}
    owner, bought = split.training_interactions()
    some = next((sorted(number["user"][name] for name in of) for (kind, _), of in said.items() if kind == "user"),
                np.unique(owner))
    counts = sparse.csr_matrix((np.ones(len(owner)), (owner, bought)), (dataset.n_users, dataset.n_items))[some]
    mean = counts.multiply(1 / counts.sum(axis=1)).tocsr()
    truth, random = dataset.truth, np.random.default_rng(seed)

    def row(source: str, users: np.ndarray | None, items: np.ndarray | None) -> dict:
        found = {"source": source}
        if truth is not None:
            if users is not None:
                found["user"] = linear_probe(users, truth.user_factors[some], seed)
            if items is not None:
                found["user, by items"] = linear_probe(mean @ items, truth.user_factors[some], seed)
                found["item"] = linear_probe(items, truth.item_factors, seed)
        return found | ({} if items is None else without_training(items, split))

    rows = [row("item texts", None, texts)]
    for t in sorted({round for _, round in said}):
        users = items = None
        if (whole := said.get(("user", t))) and truth is not None:
            named = {number["user"][name]: text for name, text in whole.items()}
            users = encode([named[user] for user in some])
        if of_items := said.get(("item", t)):
            items = texts.copy()
            items[[number["item"][name] for name in of_items]] = encode(list(of_items.values()))
        rows.append(row(f"profiles, round {t}", users, items))
    dealt = [None if vectors is None else random.permutation(vectors) for vectors in (users, items)]
    found = pd.DataFrame([*rows, row(f"round {t}, dealt at random", *dealt)])
    order = ("source", "user", "user, by items", "item", "N@10", "N@20")
    return found[[name for name in order if name in found]]


def without_training(items: np.ndarray, split: Split, part: str = "test") -> dict[str, float]:
    """N@10 and N@20 among all items where the history is masked, with nothing learned but a whitening: the cosine of an
    item and the mean of the history.

    All directions are whitened, but no more than an eighth of the items: on Toys validation rose with each further one
    up to all 384, and where there are hardly more items than directions, whitening puts all items equally far apart.

    Args:
        items: (N, d) float32.
    """
    space = nullspace.decompose(items, width=min(items.shape[1], max(1, len(items) // 8)), null_dim=0)
    table = torch.nn.functional.normalize(torch.from_numpy(space.project(items)).float(), dim=-1)
    examples = Examples(split, part, LENGTH)
    index = torch.arange(len(examples))
    batch = examples.batch(index)
    padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
    asked = torch.nn.functional.embedding_bag(batch.history, padded, mode="sum")
    found = metrics(rank(asked, table, batch.target, hidden=examples.seen(index)).consistent)
    return {name: found[name] for name in ("N@10", "N@20")}


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
