"""What finished builds of profiles did and know, measured and put side by side."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nullrec_lib.errors import InputError
from nullrec_lib.files import read_json, write_json, write_text
from nullrec_lib.language.encoder import embed_items, embed_texts, short_name
from nullrec_lib.machine import environment
from nullrec_lib.profiles.build import material, own_user, where
from nullrec_lib.profiles.grpo import RECORD
from nullrec_lib.profiles.loop import BUILT, finished
from nullrec_lib.profiles.probe import readings
from nullrec_lib.profiles.store import Store
from nullrec_lib.results import markdown


def measure(folder: Path) -> dict[str, Any]:
    """What `readings` and `own_user` find in a finished build, with what it did.

    A writer behind a server is not asked again: there `own_user` is None.

    Raises:
        InputError: there is no finished build.
    """
    built = finished(folder)
    if built is None:
        raise InputError(f"{folder}: no build has finished here; `nullrec profiles build --out` goes on with one.")
    asked = built.asked
    dataset, split = material(where(folder, asked), asked["split"], asked["keep"])
    found = readings(dataset, split, Store(folder).profiles(), partial(embed_texts, encoder=asked["encoder"]),
                     embed_items(dataset.items, asked["encoder"], given=dataset.embeddings))
    both = {one.side for one in built.rounds} >= {"user", "item"}
    owed = own_user(folder) if both and not asked["writer"].startswith("server:") else None
    told = read_json(Path(folder) / BUILT)
    del told["neighbour_overlap"]
    told["asked"] = _shown(asked)
    rows = json.loads(found.to_json(orient="records"))
    return told | {"readings": rows, "own_user": owed, "measured_on": environment()}


def _name(model: str) -> str:
    """A model's folder without the path to it; a name on the hub as it is."""
    return Path(model).name if Path(model).is_absolute() or model.startswith(".") else model


def report(folders: list[Path], out: Path) -> Path:
    """Measure builds into `out`/<folder's name>.json, and put all that lie there into `out`/results.md.

    Returns: that file.

    Raises:
        InputError: see `measure`.
    """
    for folder in folders:
        write_json(Path(out) / f"{Path(folder).resolve().name}.json", measure(folder))
    all_ = {path.stem: read_json(path) for path in sorted(Path(out).glob("*.json"))}
    text = ["# Profiles", "One row per build. Distances are √(2 − 2cos) between the embeddings of a subject's profiles "
            "of two rounds; `rate` is the factor per round of a line through their logarithms, with the 95% interval "
            "over subjects; `floor` the distance of one prompt's answers under two seeds; `alike` the mean cosine of "
            "two subjects' profiles in the first and in the last round. `written/s` are tokens (of the extractive "
            "writer: words).",
            markdown(pd.DataFrame([_work(name, one) for name, one in all_.items()])),
            "## What they know", "N@10 and N@20 of the test examples among all items, history masked, with nothing "
            "learned but a whitening; R² of a linear probe from vectors to the true taste factors, on rows that it was "
            "not fitted to (generated data only): `user` from the user's own profile, `user, by items` from the mean "
            "of the source's item vectors, `item` from the item's.",
            markdown(pd.concat([pd.DataFrame(one["readings"]).assign(build=name) for name, one in all_.items()])
                     .pipe(lambda rows: rows[["build", *rows.columns.drop("build")]]).round(4)),
            "## What an item's profile owes to one of its users", "Profiles of drawn items written once more without "
            "one user whose profile they were made from: the mean distance to the profile as it was, and the mean "
            "cosine to this user's own profile with and without.",
            markdown(pd.DataFrame([{"build": name} | one["own_user"] for name, one in all_.items() if one["own_user"]])
                     .round(4))]
    path = Path(out) / "results.md"
    write_text(path, "\n\n".join(text) + "\n")
    return path


def gains(folders: list[Path], out: Path) -> Path:
    """Put the records of finished GRPO trainings into `out`/<folder's name>.json, and all that lie there side by side
    into `out`/results.md.

    Returns: that file.

    Raises:
        InputError: a folder holds no finished training.
    """
    for folder in folders:
        path = Path(folder) / RECORD
        if not path.is_file():
            raise InputError(f"{folder}: no training has finished here; `nullrec grpo --out` goes on with one.")
        record = read_json(path, ["profiles", "gain"])
        record["profiles"] = _shown(record["profiles"])
        write_json(Path(out) / f"{Path(folder).resolve().name}.json", record | {"reported_on": environment()})
    all_ = {path.stem: read_json(path) for path in sorted(Path(out).glob("*.json"))}
    rows = [_gained(name, one, which) for name, one in all_.items() for which in one["gain"]]
    text = ["# What policies gained", "K candidates of each judged subject before and after GRPO, sampled alike; "
            "`held_out` subjects were never learned from; both are judged beside the neighbours' profiles as they were built. "
            "Gains are paired over subjects, with 95% intervals (t); at equal length longer texts are cut to the shortest "
            "tenth's. `useless` is the share of texts that are no profile, whose reward is the least there is: part of a "
            "gain is fewer of these. So beside it stands the gain of useful texts alone, all of that very length; `counted` "
            "is their share of all. `alike` is the mean cosine of two subjects' candidates.",
            markdown(pd.DataFrame([_asked_of(name, one) for name, one in all_.items()])),
            markdown(pd.DataFrame(rows))]
    path = Path(out) / "results.md"
    write_text(path, "\n\n".join(text) + "\n")
    return path


def _asked_of(name: str, one: dict[str, Any]) -> dict[str, Any]:
    asked, made = one["settings"], one["profiles"]
    return {"policy": name, "data": made["data"], "split": made["split"], "users": made["limit_users"] or "all",
            "writer": made["writer"], **{key: asked[key] for key in (
                "seed", "steps", "num_generations", "prompts_per_step", "advantage", "lambda_collab", "lambda_dist", "lr",
                "beta", "max_tokens")}, "KL at the end": f"{one['history'][-1]['kl']:.3f}", "seconds": round(one["seconds"])}


def _gained(name: str, one: dict[str, Any], which: str) -> dict[str, Any]:
    before, after, gained = (one[part][which] for part in ("start", "end", "gain"))
    between = lambda some: "" if some["low"] is None else f" ({some['low']:+.3f} … {some['high']:+.3f})"
    told = lambda some: f"{some['mean']:+.3f}{between(some)}"
    number = lambda value, form: "-" if value is None else format(value, form)
    pair = lambda key, form: f"{number(before[key], form)} → {number(after[key], form)}"
    return {"policy": name, "subjects": which, "n": before["subjects"],
            "reward": f"{before['reward']['mean']:.3f} → {after['reward']['mean']:.3f}", "gain": told(gained["reward"]),
            "gain at equal length": told(gained["reward_at_equal_length"]),
            # Records from before these were taken have none of them.
            "of useful texts": told(gained["reward_of_useful"]) if gained.get("reward_of_useful") else "-",
            "counted": "{:.0%} → {:.0%}".format(*gained["useful"]) if "useful" in gained else "-", "near": pair("collab", ".3f"),
            "far": pair("dist", ".3f"), "useless": pair("useless", ".1%"), "words": pair("words", ".1f"),
            "alike": pair("alike", ".3f"), "best of K": f"{before['best']['mean']:.3f} → {after['best']['mean']:.3f}"}


def _shown(asked: dict[str, Any]) -> dict[str, Any]:
    """What a build was asked for, for others to read: a model by its name, not by where it lies here."""
    kind, _, where = asked["writer"].partition(":")
    settings = {name: _name(value) if name == "model" else value for name, value in asked["settings"].items()}
    return asked | {"writer": f"{kind}:{_name(where)}" if kind == "local" else asked["writer"], "settings": settings}


def _work(name: str, one: dict[str, Any]) -> dict[str, Any]:
    """What one build did, as a row."""
    asked, rounds = one["asked"], one["rounds"]
    count = sum(done["profiles"] for done in rounds)
    row = {"build": name, "data": asked["data"], "split": asked["split"], "keep": asked["keep"] or "all",
           "users": asked["limit_users"] or "all", "writer": asked["writer"].partition(":")[0], "mode": asked["mode"],
           "encoder": short_name(asked["encoder"]), "seed": asked["seed"],
           "rounds": 1 + max(done["round"] for done in rounds), "profiles": count,
           "fallbacks": f"{100 * sum(done['fallbacks'] for done in rounds) / count:.2f}%",
           "seconds": round(one["usage"]["seconds"]),
           "written/s": round(one["usage"]["written_tokens"] / max(one["usage"]["seconds"], 1e-9)),
           "floor": "-" if one["floor"] is None else f"{one['floor']:.3f}"}
    for side in ("user", "item"):
        mine, rate = [done for done in rounds if done["side"] == side], one["rates"].get(side)
        row[f"{side} distances"] = ", ".join(f"{done['distance']:.3f}" for done in mine if done["distance"]) or "-"
        row[f"{side} rate"] = f"{rate['rate']:.2f} ({rate['low']:.2f} … {rate['high']:.2f})" if rate else "-"
        row[f"{side} alike"] = f"{mine[0]['homogenisation']:.2f} → {mine[-1]['homogenisation']:.2f}" if mine else "-"
    return row
