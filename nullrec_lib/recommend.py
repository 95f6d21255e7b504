"""Use a stored run: a history in, the best items out, by the scores that evaluation ranks by."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from nullrec_lib.data import around, places
from nullrec_lib.data.examples import Batch
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import RESULT, SPEC
from nullrec_lib.files import read_json
from nullrec_lib.kernels.rank import top_k
from nullrec_lib.preparing import Prepared, build, prepare
from nullrec_lib.spec import RESULTS_VERSION, Spec
from nullrec_lib.training import BEST, Recommender, Scorer, load_weights


def recommend(
    run: str | Path,
    history: list[str],
    top: int = 10,
    keep_history: bool = False,
    root: Path = Path("runs"),
    data: str | None = None,
) -> pd.DataFrame:
    """The `top` items after a history, with raw scores (scoring protocol `authors`, earlier items left out).

    Args:
        run: a run folder, or the key of one under `root`.
        history: oldest first; item ids of the source, or beginnings of titles that only one item has. The model
            sees the newest `history_length`.
        keep_history: earlier items may be recommended again.
        data: where the run's data lie now; None looks where they were, around the run's folder and under $NULLREC_DATA.

    Returns: rank (from 1), item_id, title, score; ties in catalogue order. No row where the history is the whole catalogue.

    Raises:
        InputError: no finished run there, its data are not what they were, an item that is not (or not alone) in
            the catalogue, an empty history where the run was trained on none, or `top` below 1.
        FloatingPointError: a NaN score.
    """
    if top < 1:
        raise InputError(f"top: {top} is below 1.")
    folder = Path(run) if (Path(run) / SPEC).exists() else Path(root) / run
    if not (folder / RESULT).exists():
        raise InputError(f"{run}: neither a folder of a finished run nor the key of one under {root}/.")
    spec, prepared = _prepared(folder, data)
    items = prepared.dataset.items
    seen = [_find(items, name) for name in history]
    if not seen and spec.min_history > 0:
        raise InputError(f"history: it is empty; this run knows none shorter than {spec.min_history} (min_history).")

    model = build(spec, prepared)
    if isinstance(model, Recommender):
        load_weights(model, folder / BEST)
        model = Scorer(model)
    newest = seen[-spec.history_length :]
    padded = [len(items)] * (spec.history_length - len(newest)) + newest
    # User -1 is nobody of the data set: what would look it up must fail, not take another user for it.
    batch = Batch(*(torch.tensor([value]) for value in (padded, 0, -1, 0)))
    try:
        with torch.no_grad():
            # A rule has no item vectors; its scores are those of a query of 1 with one number for each item.
            queries, table = (
                (model.queries(batch), model.table) if isinstance(model, Scorer)
                else (torch.ones(1, 1), model.scores(batch).T)
            )
    except KeyError as missing:  # of the batch's context, which a history alone does not give
        raise InputError(f"{folder}: {spec.method} reads {missing} of a user, not a history alone.") from None
    hidden = None if keep_history else torch.tensor([seen], dtype=torch.int64)
    best, scores = (found[0].tolist() for found in top_k(queries, table, top, hidden=hidden))
    best = [item for item in best if item < len(items)]  # fewer than `top` may be left
    found = items.loc[best, ["item_id", "title"]].reset_index(drop=True)
    found.insert(0, "rank", range(1, len(best) + 1))
    return found.assign(score=scores[: len(best)])


def _prepared(folder: Path, data: str | None) -> tuple[Spec, Prepared]:
    """A run's spec and what it reads, found again by their content wherever they lie now."""
    stored = read_json(folder / SPEC, ("key", "spec"), "remove it, and `nullrec run` with the same options writes it again")
    if stored.get("version", RESULTS_VERSION) != RESULTS_VERSION:
        raise InputError(f"{folder}: results are made in another way since this run; run it again.")
    try:
        spec = Spec(**stored["spec"])
    except TypeError as error:
        raise InputError(f"{folder}: was made by another version of nullrec ({error}); run it again.") from None
    moved = {name: _nearby(getattr(spec, name), folder) for name in ("encoder", "profiles")}
    spec = replace(spec, **{name: path for name, path in moved.items() if path is not None})
    failure = InputError(f"{folder}: its data, {spec.data}, are not where they were; name their place (--data).")
    for place in [data] if data is not None else places(spec.data, folder):
        try:
            prepared = prepare(replace(spec, data=place))
        except InputError as error:  # other data of this name, perhaps no data at all
            failure = InputError(f"{str(error).rstrip('.')}; where the data of {folder} have moved, name their place (--data).")
            continue
        if replace(spec, data=place).key(prepared.dataset.fingerprint()) == stored["key"]:
            return replace(spec, data=place), prepared
        failure = InputError(f"{folder}: {place} or the encoder is not what it was for this run; run it again, or name its "
                             "data (--data) where they have moved.")
    raise failure


def _nearby(path: str | None, folder: Path) -> str | None:
    """A path that is not there, as seen from around the run; None where that changes nothing."""
    return next(iter(around(path, folder)), None) if path and not Path(path).exists() else None


def _find(items: pd.DataFrame, name: str) -> int:
    """The item whose id is `name`, or the only one whose title begins with it (upper and lower case alike)."""
    same = items.index[items["item_id"] == name]
    name = name.strip()
    if not len(same):
        same = items.index[items["item_id"] == name]
    if not len(same) and name:
        same = items.index[items["title"].str.casefold().str.startswith(name.casefold())]
    if len(same) == 1:
        return int(same[0])
    if len(same):
        some = ", ".join(f"{row.item_id} ({row.title})" for row in items.loc[same[:5]].itertuples())
        raise InputError(f"history: {len(same)} titles begin with {name!r}: {some}{', …' if len(same) > 5 else ''}; "
                         "give the item id.")
    names = {word.casefold(): word for word in [*items["title"], *items["item_id"]] if word}
    close = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.5)
    hint = f"; the closest are {', '.join(names[word] for word in close)}" if close else ""
    raise InputError(f"history: {name!r} is neither an item id nor the beginning of a title{hint}; where there is "
                     "a comma in it, give each item by --item.")
