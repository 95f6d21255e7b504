"""PtE and what is left when a part of it is taken away (its Tables 5 and 6), with the controls that the paper lacks.

One writer and one data set in; rows of a grid out. The builds of the loop differ in their mode, the policies in the
reward that they learned by. A policy learns on the full loop's prompts, and writes the candidates of every mode: so a
row with half of the loop differs from PtE in its profiles and not in who writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pandas as pd

from nullrec_lib.errors import InputError
from nullrec_lib.files import alone, write_text
from nullrec_lib.language import model as own_model
from nullrec_lib.profiles import vectors
from nullrec_lib.profiles.best import best, rewritten
from nullrec_lib.profiles.build import SMALL_CONTEXT, build, examples, folder_of
from nullrec_lib.profiles.grpo import MODEL, Settings, train
from nullrec_lib.profiles.loop import finished
from nullrec_lib.profiles.vectors import VECTORS, Vectors
from nullrec_lib.results import markdown

FULL = "PtE"


@dataclass(frozen=True)
class Variant:
    """One row of Tables 5 and 6 that has profiles."""

    mode: str = "full"
    """Of the loop, see `loop.MODES`."""
    lambdas: tuple[int, int] = (1, 1)
    """What is left of λ_c and λ_d, for the policy and for the choice of the best candidate."""
    learns: bool = True
    """Whether GRPO moved the writer; if not, the best of as many candidates is that of the writer as it was."""


VARIANTS = {
    FULL: Variant(),
    "user-only": Variant("user-only"),
    "item-only": Variant("item-only"),
    "single-pass": Variant("single-pass"),
    "no GRPO": Variant(learns=False),
    "w/o distinctiveness": Variant(lambdas=(1, 0)),
    "w/o collaborative alignment": Variant(lambdas=(0, 1)),
}
AS_PRINTED = {
    FULL: "PtE (full)", "no profile": "No Profile (Direct Embedding)", "user-only": "User-only Profiling",
    "item-only": "Item-only Profiling", "single-pass": "Single-pass Profiling", "no GRPO": "No GRPO",
    "w/o distinctiveness": "GRPO w/o Distinctiveness",
    "w/o collaborative alignment": "GRPO w/o Collaborative Alignment",
}
"""Rows as here → as in the transcribed tables."""


@dataclass(frozen=True)
class Made:
    """Folders of profiles, as rows of a grid, and what they cost."""

    rows: list[dict[str, Any]]
    """`method`, `label` and what else a row of `grid.make` has."""
    costs: pd.DataFrame
    """By row with profiles: `prompts` and `tokens` (read and written) of the loop, of GRPO and of the candidates, and
    their `seconds`. Rows share builds and policies; each is told all that it needs, so a row with half of the loop also
    the whole one that its policy learned on."""
    rewards: pd.DataFrame
    """By row and side: reward of the candidates on `mean` and of the `best`, both with intervals over subjects, at the
    same number of candidates; `alike` is the mean cosine of two subjects' best ones."""
    folders: dict[str, dict[str, Path]]
    """By row: `profiles` (the build), `best` (its embeddings) and `policy` (who wrote)."""


def small_writer(root: Path, steps: int, sft_steps: int, data: str = "shop", split: str = "cold-start",
                 keep: str | None = None, seed: int = 22) -> Path:
    """A small language model under `root` that learned to write profiles of these data: made once, then found.

    Args:
        steps, sft_steps: of pretraining, and of fine-tuning on the extractive writer's profiles.
    """
    made = dict(data=data, split=split, keep=keep, seed=seed, steps=steps, sft_steps=sft_steps)
    folder = folder_of(Path(root), made)
    if not (folder / own_model.RECORD).exists():
        pairs, corpus = examples(data, split, keep, rounds=1, seed=seed)
        own_model.build(pairs, corpus, folder, seed=seed, steps=steps, sft_steps=sft_steps, context=SMALL_CONTEXT)
    return folder


def make(
    root: Path, model: str, data: str = "shop", split: str = "cold-start", keep: str | None = None,
    settings: Settings = Settings(), candidates: int = 4, rounds: int = 2, cuts: tuple[int, ...] = (1, 3, 10),
    limit_users: int | None = None, variants: tuple[str, ...] = tuple(VARIANTS),
    say: Callable[[str], None] = print,
) -> Made:
    """Everything that the rows of Table 5 or 6 need: builds, policies, best candidates. Stopped, the same call goes on.

    Args:
        root: folder for all of it; what is there is read.
        model: the writer, a folder or a name on the hub.
        data, split, keep, rounds, cuts, limit_users: of the builds, see `build.build`.
        settings: of GRPO. Its seed is that of the builds and of the candidates too.
        candidates: K of Eq. 13, the same for every row.
        variants: names among `VARIANTS`; PtE itself is always made.

    Raises:
        InputError: no such variant, or see `build.build`, `grpo.train` and `best.best`.
    """
    for name in variants:
        if name not in VARIANTS:
            raise InputError(f"variants: {name!r} is not one of {', '.join(VARIANTS)}.")
    root, names = Path(root), [name for name in VARIANTS if name in variants or name == FULL]
    common = dict(data=data, split=split, keep=keep, cuts=cuts, limit_users=limit_users, seed=settings.seed, say=say)

    def built(writer: str, mode: str, **more: Any) -> Path:
        asked = dict(common, writer=writer, mode=mode, rounds=rounds, **more)
        folder = folder_of(root / "profiles", {name: value for name, value in asked.items() if name != "say"})
        build(folder, **asked, epsilon=0.0)  # every mode takes its rounds: stopping early would be another variant
        return folder

    folders, costs, rewards = {}, [], []
    for name in names:
        variant = VARIANTS[name]
        weights = settings.lambda_collab * variant.lambdas[0], settings.lambda_dist * variant.lambdas[1]
        profiles = built(f"local:{model}", variant.mode, max_tokens=settings.max_tokens)
        policy, record, read = Path(model), None, {profiles}
        if variant.learns:
            learned = replace(settings, lambda_collab=weights[0], lambda_dist=weights[1])
            full = built(f"local:{model}", "full", max_tokens=settings.max_tokens)
            trained = folder_of(root / "grpo", {"profiles": full.name, "settings": learned})
            policy, record, read = trained / MODEL, train(full, trained, learned), {profiles, full}
        chosen = dict(model=str(policy), candidates=candidates, lambda_collab=weights[0], lambda_dist=weights[1],
                      max_tokens=settings.max_tokens, seed=settings.seed)
        out = folder_of(root / "best", chosen | {"profiles": profiles.name, "model": policy.parent.name})
        told = best(profiles, out, **chosen)
        folders[name] = {"profiles": profiles, "best": out, "policy": policy}
        costs.append({"row": name} | _cost(read, record, told))
        rewards += [{"row": name, "side": side, **_flat(told[side])} for side in ("item", "cut") if side in told]
    rows = [{"method": "pte", "label": name, "profiles": str(folders[name]["best"])} for name in names]
    rows += _controls(root, folders[FULL]["best"], built("extractive", "full"), settings.seed)
    return Made(rows, pd.DataFrame(costs), pd.DataFrame(rewards), folders)


def _controls(root: Path, full: Path, extractive: Path, seed: int) -> list[dict[str, Any]]:
    found = vectors.load(full)
    kept = {name: root / name / full.name for name in ("extractive", "random", "dealt-out")}
    # The extractive writer has one answer: there is no best of several.
    _store(kept["extractive"], lambda: vectors.load(extractive))
    _store(kept["random"], lambda: noise(found, seed))
    _store(kept["dealt-out"], lambda: dealt_out(found, seed))
    return [
        {"method": "pte", "label": "no profile"},
        {"method": "pte", "label": "extractive profiles", "profiles": str(kept["extractive"])},
        {"method": "pte", "label": "shuffled profiles", "profiles": str(kept["dealt-out"]), "shuffle_profiles": seed},
        {"method": "pte", "label": "only users' shuffled", "profiles": str(full), "shuffle_profiles": seed},
        {"method": "pte", "label": "random vectors", "profiles": str(kept["random"])},
        {"method": "base", "label": "base"},
        {"method": "alphafuse", "label": "alphafuse"},
        {"method": "alphafuse", "label": "alphafuse on profiles", "profiles": str(full)},
    ]


def _store(folder: Path, made: Callable[[], Vectors]) -> None:
    with alone(folder):
        if not (folder / VECTORS).exists():
            vectors.store(folder, made())


def noise(found: Vectors, seed: int) -> Vectors:
    """Random directions of the same number and width: what a head of this size makes of vectors that say nothing but
    which item, and which user at which cut, this is."""
    random = np.random.default_rng(seed)

    def like(rows: np.ndarray) -> np.ndarray:
        drawn = random.standard_normal(rows.shape).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    return replace(found, items=like(found.items), users=like(found.users), about=found.about | {"control": "random"})


def dealt_out(found: Vectors, seed: int) -> Vectors:
    """The same vectors, but items have each other's."""
    order = np.random.default_rng(seed).permutation(len(found.items))
    return replace(found, items=found.items[order], about=found.about | {"control": "items dealt out"})


def _cost(read: set[Path], record: dict[str, Any] | None, told: dict[str, Any]) -> dict[str, float]:
    """What one row's texts took, with the builds that it read; of what was stopped, what the last call wrote. Candidates
    that a policy was judged by are prompts and seconds, their tokens are not counted."""
    spent = [*(finished(folder).usage for folder in read), *told["usage"]]
    cost = {"prompts": sum(one["prompts"] for one in spent), "seconds": sum(one["seconds"] for one in spent),
            "tokens": sum(one["prompt_tokens"] + one["written_tokens"] for one in spent)}
    if record is not None:
        asked = record["settings"]
        judged = sum(one["subjects"] for one in record["start"].values()) * 2 * asked["num_generations"]
        cost["prompts"] += asked["steps"] * asked["prompts_per_step"] * asked["num_generations"] + judged
        cost["tokens"] += record["history"][-1].get("num_tokens", 0)
        cost["seconds"] += record["seconds"]
    return cost


def _flat(told: dict[str, Any]) -> dict[str, Any]:
    wide = {f"{name} {end}" if end != "mean" else name: told[name][end]
            for name in ("mean", "best") for end in ("mean", "low", "high")}
    return {"subjects": told["subjects"], **wide, "alike": told["alike"], "fallbacks": told["fallbacks"]}


def rewriter(folders: dict[str, Path]) -> Callable[[list[np.ndarray], np.ndarray], np.ndarray]:
    """`best.rewritten` of one row's `Made.folders`: how its users' profiles read after other histories."""
    return partial(rewritten, folders["profiles"], folders["best"], str(folders["policy"]))


def beside_the_paper(frame: pd.DataFrame, printed: pd.DataFrame, column: str, metric: str) -> pd.DataFrame:
    """Each variant's score as a share of PtE's, here and as printed.

    Args:
        frame: of `grid.tables`; its column `column` is averaged over seeds.
        printed: a transcribed table: `dataset`, `method`, `group`, `metric`, `value`.
        metric: the printed one that `column` is compared with, of all test examples.

    Returns: by variant: `here`, and one column per printed data set.
    """
    here = frame.groupby("label", sort=False)[column].mean()
    rows = printed[(printed["metric"] == metric) & printed["group"].isin(["all", "overall"])]
    wide = rows.pivot(index="method", columns="dataset", values="value").rename(
        {there: mine for mine, there in AS_PRINTED.items()})
    wide.insert(0, "here", here.reindex(wide.index))
    return (wide / wide.loc[FULL]).reindex([name for name in AS_PRINTED if name in here.index])


def report(about: str, costs: pd.DataFrame, rewards: pd.DataFrame, moved: pd.DataFrame, folder: str | Path) -> None:
    """Write into `folder` what stands beside Tables 5 and 6, as `pte.md` and one CSV each; nothing where it is empty.

    Args:
        about: a sentence on how profiles and policies were made.
        costs, rewards: of `Made`, those of several splits one below the other, with the row in the index.
        moved: of `robustness.compared`, likewise.
    """
    if not str(folder):
        return
    tables = {"costs": ("What a row costs", costs.round(0)), "rewards": ("What the candidates are worth", rewards.round(3)),
              "robustness": ("One interaction less", moved.round(3))}
    text = ["# Behind the tables", about]
    for name, (heading, table) in tables.items():
        flat = table.rename_axis([level or "split" for level in table.index.names]).reset_index()
        write_text(Path(folder) / f"{name}.csv", flat.to_csv(index=False))
        text += [f"## {heading}", markdown(flat)]
    write_text(Path(folder) / "pte.md", "\n\n".join(text) + "\n")
