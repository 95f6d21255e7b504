"""How far a recommender moves when one interaction is taken out of a history (PtE, section 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import trained
from nullrec_lib.methods.pte import NOBODY, PtE
from nullrec_lib.preparing import prepare
from nullrec_lib.profiles.visible import served
from nullrec_lib.spec import Spec
from nullrec_lib.statistics import interval
from nullrec_lib.training import Scorer

TOP = 10

Rewrite = Callable[[list[np.ndarray], np.ndarray], np.ndarray]
"""Histories and their users → (n, d) embeddings of the profiles that they would have had; see `ablation.rewriter`."""


def removals(split: Split, most: int, seed: int, newest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test users, one example each, and the interaction that is taken out.

    Args:
        most: users, drawn.
        newest: the interaction is one of so many right before the target.

    Returns: (n,) places of the targets, (n,) users, and (n,) places of one drawn interaction before each target; users
        without an example of at least two interactions before its target have none.
    """
    random = np.random.default_rng(seed)
    places, users = split.test, split.user_of(split.test)
    long = places - split.offsets[users] >= 2
    places, users = places[long], users[long]
    order = random.permutation(len(places))
    _, first = np.unique(users[order], return_index=True)
    chosen = np.sort(order[random.permutation(first)[:most]])  # users alike, however many examples they have
    places, users = places[chosen], users[chosen]
    begin = split.offsets[users]
    return places, users, places - random.integers(1, np.minimum(places - begin, newest) + 1)


def drift(runs: dict[str, Spec], root: Path = Path("runs"), most: int = 300, seed: int = 22,
          rewrite: dict[str, Rewrite] | None = None) -> pd.DataFrame:
    """One row per run and drawn test example: what one interaction less does to it.

    The interaction is drawn from those that the model sees; one older than these then comes into its view. A user's
    profile that stands beside the history is kept as it was, unless `rewrite` has the run's name: then the profile is
    written anew from what is left.

    Args:
        runs: label → spec of a finished run under `root`; all on the same data and split.
        most: examples, at most one of a user.

    Returns: columns `label`, `user`, `moved` (1 − cos of the state), `relative` (that, over the mean 1 − cos of two
        users' states: models whose states all point one way do not look stable by it), `kept` (share of the top 10
        that is still there; interactions before the target are not recommended), `rank` and `rank_after` of the target
        among all items by raw dot product, and `profiled`, whether a profile of the user stands beside the history.

    Raises:
        InputError: a run that is not there, or one of other data.
    """
    frames = []
    for label, spec in runs.items():
        prepared = prepare(spec)
        places, users, out = removals(prepared.split, most, seed, spec.history_length)
        frames.append(_drift(spec, root, prepared.split, places, out, (rewrite or {}).get(label))
                      .assign(label=label, user=users))
    if len({tuple(frame["user"]) for frame in frames}) > 1:
        raise InputError("runs: they are of different data or splits, and nothing could be compared.")
    return pd.concat(frames, ignore_index=True)


def _drift(spec: Spec, root: Path, split: Split, places: np.ndarray, out: np.ndarray, rewrite: Rewrite | None):
    model = trained(spec, root)
    begin = split.offsets[split.user_of(places)]
    before = [split.items[a:b] for a, b in zip(begin, places)]
    after = [np.delete(history, gone - a) for history, gone, a in zip(before, out, begin)]
    users, targets = split.user_of(places), split.items[places]
    example = np.flatnonzero(np.isin(split.test, places))  # its noise is the one that evaluation drew
    contexts: tuple[dict, dict] = {}, {}
    profiled = torch.zeros(len(places), dtype=torch.bool)
    if isinstance(model.method, PtE) and model.method.profiles is not None:
        contexts = _profiles(model.method, users, before, after, rewrite)
        profiled = contexts[0]["profile"] != NOBODY
    scorer, found = Scorer(model), []
    seen = _padded(before, max(map(len, before)), split.n_items)
    for histories, context in zip((before, after), contexts):
        batch = Batch(_padded(histories, spec.history_length, split.n_items), torch.from_numpy(targets),
                      torch.from_numpy(users), torch.from_numpy(example), context)
        with torch.no_grad():
            queries = scorer.queries(batch)
            scores = queries @ scorer.table.T
        mine = scores.gather(1, batch.target[:, None])
        rank = 1 + (scores > mine).sum(dim=1) + (scores == mine).sum(dim=1) - 1  # ties count against the model
        hidden = F.pad(scores, (0, 1)).scatter(1, seen, -torch.inf)[:, :-1]
        found.append((F.normalize(queries, dim=1), rank, hidden.topk(min(TOP, split.n_items)).indices))
    (one, rank, top), (two, rank_after, top_after) = found
    moved = 1 - (one * two).sum(dim=1)
    n = len(one)
    apart = 1 - float((one.sum(dim=0).square().sum() - n) / (n * (n - 1)))  # mean over pairs of users
    kept = (top[:, :, None] == top_after[:, None]).any(dim=2).float().mean(dim=1)
    return pd.DataFrame({"moved": moved, "relative": moved / apart, "kept": kept, "rank": rank,
                         "rank_after": rank_after, "profiled": profiled})


def _profiles(method: PtE, users: np.ndarray, before: list, after: list, rewrite: Rewrite | None) -> tuple[dict, dict]:
    """The profiles beside the histories as they were and as they are: rows of the method's table, which gets those that
    are written anew."""
    cuts = method.profiles.cuts.numpy()
    row = served(np.stack([users, [len(history) for history in before]], axis=1), cuts)
    as_it_was = {"profile": torch.from_numpy(row)}
    if rewrite is None or (row == NOBODY).all():
        return as_it_was, as_it_was
    some = np.flatnonzero(row != NOBODY)  # who had no profile gets none
    new = method.spoken_of(torch.from_numpy(rewrite([after[at] for at in some], users[some])))
    now = row.copy()
    now[some] = len(method.spoken) + np.arange(len(some))
    method.spoken = torch.cat([method.spoken, new])
    return as_it_was, {"profile": torch.from_numpy(now)}


def _padded(histories: list[np.ndarray], length: int, n_items: int) -> Tensor:
    """(n, length) int64: the newest items, left-padded."""
    rows = np.full((len(histories), length), n_items, np.int64)
    for row, history in zip(rows, histories):
        newest = history[-length:]
        row[length - len(newest):] = newest
    return torch.from_numpy(rows)


def compared(frame: pd.DataFrame, reference: str) -> pd.DataFrame:
    """By label: means with 95% intervals over users, and the difference to `reference`, paired by user.

    `rank change` is the mean |ln(rank after / rank)| of the target.
    """
    frame = frame.assign(**{"rank change": np.log(frame["rank_after"] / frame["rank"]).abs()})
    rows = []
    for name in ("moved", "relative", "kept", "rank change"):
        wide = frame.pivot(index="user", columns="label", values=name)
        for label in frame["label"].unique():
            told = interval(wide[label].to_numpy())
            beside = interval((wide[label] - wide[reference]).to_numpy()) if label != reference else {}
            rows.append({"measure": name, "label": label, **told,
                         **{f"difference {end}": value for end, value in beside.items()}})
    return pd.DataFrame(rows).set_index(["measure", "label"])
