"""What a policy's candidates are worth before and after it learned, on subjects that it saw and on others."""

from __future__ import annotations

from typing import Any

import numpy as np

from nullrec_lib.language.writers import Prompt, Writer
from nullrec_lib.profiles.convergence import mean_cosine
from nullrec_lib.profiles.prompts import answered, degenerate
from nullrec_lib.profiles.sides import Side
from nullrec_lib.progress import bar
from nullrec_lib.statistics import interval

HELD_OUT = 0.2
"""Part of the subjects of each side that the policy never sees."""
JUDGED = 64
"""Subjects of each side and part, at most, whose reward is measured before and after."""

Parts = dict[str, np.ndarray]
Written = dict[tuple[str, str], list[list[str]]]
"""(side, part) → K lists of texts, one per judged subject."""


def part(side: Side, seed: int) -> Parts:
    """Places of the subjects to learn from and of those held out; what differs only in its id is on one side."""
    prompts = sorted(set(side.prompts))
    order = np.random.default_rng(seed).permutation(len(prompts))
    held = {prompts[place] for place in order[: max(1, round(HELD_OUT * len(prompts)))]}
    places = np.random.default_rng(seed + 1).permutation(len(side.prompts))
    is_held = np.array([side.prompts[place] in held for place in places])
    return {"train": places[~is_held], "held_out": places[is_held]}


def candidates(writer: Writer, K: int, seed: int, made: dict[str, Side], parts: dict[str, Parts]) -> Written:
    """K candidates for the judged subjects; with one seed, sampled alike by every writer."""
    jobs = [(kind, which, places, made[kind]) for kind in made for which, places in parts[kind].items()]
    written: Written = {}
    with bar(what="candidates", total=len(jobs) * K, unit="batch") as progress:
        for kind, which, places, side in jobs:
            asked = [Prompt(side.prompts[place]) for place in places[:JUDGED]]
            written[kind, which] = []
            for k in range(K):
                written[kind, which].append([answered(text) for text in writer.write(asked, seed + k)])
                progress.update()
    return written


def judge(made: dict[str, Side], parts: dict[str, Parts], written: Written) -> dict[str, dict[str, Any]]:
    """What candidates are worth, by `side part`: mean `collab` and `dist`; `reward` and that of the `best` of each
    group, with their intervals over subjects; `spread` (mean standard deviation within groups), `useless` (share of
    texts that are no profile), `words`, and `alike`, the mean cosine of two subjects' texts."""
    found = {}
    for (kind, part), groups in written.items():
        side, places = made[kind], parts[kind][part][:JUDGED]
        terms = [side.reward(texts, places) for texts in groups]
        total = np.stack([one.total for one in terms])  # (K, n)
        found[f"{kind} {part}"] = {
            "subjects": len(places), "collab": float(np.mean([one.collab for one in terms])),
            "dist": float(np.mean([one.dist for one in terms])), "reward": interval(total.mean(axis=0)),
            "best": interval(total.max(axis=0)), "spread": float(total.std(axis=0, ddof=1).mean()),
            "useless": float(np.mean([degenerate(text) for texts in groups for text in texts])),
            "words": float(np.mean([len(text.split()) for texts in groups for text in texts])),
            "alike": float(np.mean([mean_cosine(side.reward.encode(texts)) for texts in groups]))
            if len(places) > 1 else None,
        }
    return found


def gain(made: dict[str, Side], parts: dict[str, Parts], before: Written, after: Written) -> dict[str, Any]:
    """How much the mean reward rose, by `side part`, paired over subjects: as it is; with longer texts cut to one length,
    the shortest tenth's of both that are profiles at all, since longer texts may be nearer to everything; and so cut, of
    those texts alone that are profiles and have that length, so that neither fewer useless texts nor longer ones count.

    Returns: `reward`, `reward_at_equal_length` and `reward_of_useful`, each with `mean`, `low`, `high` (95%, t over
        subjects; of the last over those that have such texts before and after, None where there is none); `words` of the
        length, and `useful`, the share of texts that the last is of, before and after.
    """
    found = {}
    for (kind, part), groups in before.items():
        side, places = made[kind], parts[kind][part][:JUDGED]
        both = groups, after[kind, part]
        lengths = [len(text.split()) for some in both for texts in some for text in texts if not degenerate(text)]
        words = max(2, int(np.quantile(lengths, 0.1))) if lengths else 2  # of one word, every text would be useless
        worth = lambda some, cut: np.stack([side.reward([cut(text) for text in texts], places).total for texts in some])
        full = [worth(some, str) for some in both]
        short = [worth(some, lambda text: " ".join(text.split()[:words])) for some in both]
        useful = [np.array([[not degenerate(text) and len(text.split()) >= words for text in texts] for texts in some])
                  for some in both]
        there = useful[0].any(axis=0) & useful[1].any(axis=0)
        mean = [(one * here).sum(axis=0)[there] / here.sum(axis=0)[there] for one, here in zip(short, useful)]
        rise = lambda pair: pair[1].mean(axis=0) - pair[0].mean(axis=0)
        found[f"{kind} {part}"] = {
            "reward": interval(rise(full)), "reward_at_equal_length": interval(rise(short)),
            "reward_of_useful": interval(mean[1] - mean[0]) if there.any() else None,
            "words": words, "useful": [float(here.mean()) for here in useful]}
    return found
