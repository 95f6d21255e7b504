"""The best of a group (PtE, Eq. 13): K candidates per subject, and the embedding of the one that is worth most."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, agree, alone, read_json, write_json
from nullrec_lib.language.writers import Prompt
from nullrec_lib.language.writers.local import Local
from nullrec_lib.profiles import prompts, vectors
from nullrec_lib.profiles.build import read_asked
from nullrec_lib.profiles.convergence import mean_cosine
from nullrec_lib.profiles.loop import Loop
from nullrec_lib.profiles.sides import Side, open_build, others, sides
from nullrec_lib.profiles.vectors import Vectors
from nullrec_lib.statistics import interval

RECORD = "best.json"
TEMPERATURES = (0.7, 1.0)
"""Candidates take turns: these temperatures, with and without the variant of the prompt, and a seed each."""


def best(
    profiles: Path, out: Path, model: str | None = None, candidates: int = 8, lambda_collab: float = 1.0,
    lambda_dist: float = 0.5, max_tokens: int = 64, seed: int = 22,
) -> dict[str, Any]:
    """Write K candidates for every item and every user at a cut of a finished build, and keep each best one's embedding
    in `out`, where `vectors.load` reads it. Stopped, the same call goes on: every candidate is stored when it exists.

    Without GRPO, `model` is the writer that the build had; the number of candidates is the same either way, so that the
    comparison is of the policies. Answers that were no use twice cannot win; where all of a group are, the subject keeps
    the profile that the build gave it, and is counted.

    Args:
        profiles: folder of the build.
        out: folder to make.
        model: of the candidates, a folder or a name on the hub; None: the build's local writer.
        candidates: K.
        lambda_collab, lambda_dist: weights of the reward.
        max_tokens: of a candidate.
        seed: of sampling.

    Returns: the record: what was asked, and by side `subjects`, `mean` and `best` reward with their intervals over
        subjects, `alike` (mean cosine of two subjects' best), `fallbacks`; and the writers' `usage`.

    Raises:
        InputError: no such build, no local writer, `out` holds something else, or no candidate was of any use.
    """
    if candidates < 1:
        raise InputError(f"candidates: {candidates} is below 1.")
    loop, _ = open_build(profiles)
    if model is None and not loop.writer.name.startswith("local:"):
        raise InputError(f"{profiles}: was written by {loop.writer.name}, which writes one text only; name a model.")
    loops = _writers(loop, Path(out), model or loop.writer.name.partition(":")[2], max_tokens, seed)
    writers = [one.writer for one in loops]
    built = read_asked(profiles)
    asked = {"profiles": built, "revisions": [one.revision for one in writers], "candidates": candidates,
             "lambda_collab": lambda_collab, "lambda_dist": lambda_dist, "max_tokens": max_tokens, "seed": seed}
    with alone(out):
        if (record := _stored(Path(out), asked)) is not None:
            return record
        _, made = sides(profiles, lambda_collab, lambda_dist)
        chosen = {kind: _choose(made[kind], loops, candidates, seed) for kind in ("item", "cut") if kind in made}
        empty = np.zeros((0, loop.encode(["a"]).shape[1]), np.float32)
        rows = {kind: chosen[kind][0] if kind in chosen else empty for kind in ("item", "cut")}
        record = {"asked": asked} | {kind: told for kind, (_, told) in chosen.items()}
        record["usage"] = [asdict(writer.usage) for writer in writers]
        item, cut = (made.get(kind) for kind in ("item", "cut"))
        vectors.store(out, Vectors(item.ids if item else [], rows["item"], cut.ids if cut else [],
                                   np.array(cut.cuts if cut else [], np.int64), rows["cut"], built | {"best_of": asked}))
        write_json(Path(out) / RECORD, record)
    return record


def _stored(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The record of this choice where it and the vectors are whole. Else it is made again from the candidates, which are
    stored.

    Raises:
        InputError: `out` holds another choice, or its record is damaged.
    """
    record = read_json(out / RECORD, ["asked"]) if (out / RECORD).exists() else None
    if record is not None:
        agree(out, "another choice", record["asked"], asked)
    if not (out / vectors.VECTORS).exists():
        return None
    try:
        chosen = vectors.load(out).about.get("best_of") or {}
    except DamagedFile:
        return None
    agree(out, "another choice", chosen, asked)
    return record


def rewritten(profiles: Path, out: Path, model: str, histories: list[np.ndarray], users: np.ndarray) -> np.ndarray:
    """(n, d) embeddings of the profiles that `best` would have chosen in `out` for other histories: the same prompts,
    writer, candidates and rewards. New texts are stored beside those of `out`.

    Args:
        profiles, out, model: as they were given to `best`, which has finished.
        histories: items before a target, oldest first; what a user's profile may know of them is their largest cut.
        users: (n,) whose they are.

    Raises:
        InputError: no such choice, another model than chose there, or a history that is shorter than every cut.
    """
    if not (Path(out) / RECORD).exists():
        raise InputError(f"{out}: nothing was chosen here; `nullrec profiles best` does.")
    asked = read_json(Path(out) / RECORD, ["asked"])["asked"]
    whole = asked["profiles"]["split"] == "leave-one-out"  # there the last examples' cuts are their histories
    cuts = [max((cut for cut in asked["profiles"]["cuts"] if cut <= len(one)), default=0) for one in histories]
    if not min(cuts):
        raise InputError(f"histories: one is shorter than every cut ({asked['profiles']['cuts']}).")
    known = [one if whole else one[:cut] for one, cut in zip(histories, cuts)]
    loop, side = others(profiles, known, users, asked["lambda_collab"], asked["lambda_dist"])
    loops = _writers(loop, Path(out), model, asked["max_tokens"], asked["seed"])
    if [one.writer.revision for one in loops] != asked["revisions"]:
        raise InputError(f"{out}: was chosen from what another model than {model} wrote.")
    return _choose(side, loops, asked["candidates"], asked["seed"])[0]


def _writers(loop: Loop, out: Path, model: str, max_tokens: int, seed: int) -> list[Loop]:
    """The loop once per temperature, writing candidates into `out`."""
    ids = loop.user_ids, loop.item_ids
    return [Loop(loop.visible, ids, Local(model, temperature, max_tokens=max_tokens), out, loop.encode, seed)
            for temperature in TEMPERATURES]


def _choose(side: Side, loops: list[Loop], candidates: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """(S, d) embeddings of the best candidates of a side, and what is told of them."""
    texts, totals = [], []
    for k in range(candidates):
        wording = prompts.varied if k // len(loops) % 2 else lambda prompt: prompt
        asked = [wording(Prompt(text)) for text in side.prompts]
        kind = "user" if side.kind == "cut" else side.kind
        answers, _, _ = loops[k % len(loops)].write(kind, asked, f"{side.kind} candidates, {k + 1}", seed + k)
        written = [text for text, _ in answers]
        worth = side.reward(written, range(len(written))).total
        texts.append(written)
        totals.append(np.where([fallback for _, fallback in answers], -np.inf, worth))
    total = np.stack(totals)
    winner = total.argmax(axis=0)
    useful = np.isfinite(total)
    some = useful.any(axis=0)
    rows = side.reward.encode([texts[k][place] if some[place] else side.texts[place] for place, k in enumerate(winner)])
    means = np.where(useful, total, 0).sum(axis=0)[some] / useful.sum(axis=0)[some]
    if not some.any():
        raise InputError(f"candidates: none of {candidates} for {len(some)} {side.kind} profiles was of any use; "
                         "train the model longer.")
    return rows, {"subjects": len(winner), "mean": interval(means), "best": interval(total.max(axis=0)[some]),
                  "alike": mean_cosine(rows) if len(rows) > 1 else None, "fallbacks": int((~some).sum())}
