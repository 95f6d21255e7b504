"""Remember: one frozen spec → one run folder → rows of a table. A finished spec is never run again."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from nullrec_lib.data.examples import Examples
from nullrec_lib.data.groups import groups, left_out, thresholds, untouched
from nullrec_lib.errors import InputError
from nullrec_lib.evaluation import Ranker, metrics, rank_all
from nullrec_lib.files import DamagedFile, alone, read_json, read_tensors, sweep, write_json, write_tensors
from nullrec_lib.language.encoder import short_name
from nullrec_lib.machine import choose_device, environment, peak_memory_mb
from nullrec_lib.methods import METHODS, RULES
from nullrec_lib.nullspace import preservation
from nullrec_lib.preparing import Prepared, arguments, build, fingerprint, prepare, resolved
from nullrec_lib.processes import outcomes
from nullrec_lib.progress import bar
from nullrec_lib.spec import RESULTS_VERSION, Spec
from nullrec_lib.training import (BEST, CHECKPOINT, HISTORY, WITH_RESULT, Recommender, Scorer, fit, load_weights, read_history,
                                  spread)

SPEC, RESULT, RANKS, DATA, ENVIRONMENT = "spec.json", "result.json", "ranks.safetensors", "data.json", "environment.json"


def run(
    spec: Spec,
    root: Path = Path("runs"),
    folder: Path | None = None,
    threads: int = 1,
    device: str = "auto",
    memory_mb: int = 256,
) -> dict[str, Any]:
    """Run a spec, or go on with it, or return its stored result.

    Args:
        root: folder of run folders; this run's is `root/<key>`.
        folder: this run's own folder instead.
        threads: CPU threads of torch. One is fastest for models of this size on busy cores; results are
            identical for the same number of threads.
        device: `cpu`, `cuda` or `auto` (cuda where there is one).
        memory_mb: budget for scores in evaluation.

    Two processes may ask for the same run: the second waits and then finds it finished.

    Returns: what `result.json` holds, see the README.

    Where the result is missing and the training that it is of is whole, the run is evaluated again and not trained.

    Raises:
        InputError: bad input, `folder` belongs to another spec or cannot be written, or a file in it is damaged.
    """
    if threads < 1:
        raise InputError(f"threads: {threads} is below 1.")
    torch.set_num_threads(threads)
    device = "cpu" if spec.method in RULES else choose_device(device)
    # numpy's and scipy's own threads too: the order of their sums decides the last digits of a decomposition.
    with threadpool_limits(threads):
        return _run_once(spec, Path(root), folder, threads, device, memory_mb)


def _run_once(spec: Spec, root: Path, folder: Path | None, threads: int, device: str, memory_mb: int):
    """`run` with its arguments checked: find the folder, return what is finished there, or do the work alone."""
    spec = resolved(spec)
    prepared = prepare(spec)
    key = spec.key(prepared.dataset.fingerprint())
    folder = Path(folder) if folder else root / key
    own = folder == root / key  # named by its key: whose it is needs no file
    if (result := _stored_result(folder, key, spec, own)) is not None:
        return result
    # Built before the folder is: wrong input leaves nothing behind.
    model = build(spec, prepared)
    with alone(folder):
        if (result := _stored_result(folder, key, spec, own)) is not None:
            return result
        return _run(spec, prepared, model, key, folder, threads, device, memory_mb)


def _stored_result(folder: Path, key: str, spec: Spec, own: bool) -> dict[str, Any] | None:
    """The result in `folder` if this spec's run finished there; what was left besides is swept up then.

    Raises:
        InputError: the result, the ranks or the spec are not whole; the folder is another run's, or, unless it is its
            `own`, nobody knows whose.
    """
    if (folder / SPEC).exists():
        again = "remove it, and the same run writes it again" if own else "restore it, or choose another folder"
        _refuse_other(read_json(folder / SPEC, ["key", "spec"], again), folder, key, spec)
    elif not (own or _is_of(folder, key)):
        names = RESULT, RANKS, BEST, CHECKPOINT, HISTORY, DATA, ENVIRONMENT
        if there := [name for name in names if (folder / name).exists()]:
            raise InputError(f"{folder / SPEC}: is missing, so nobody knows whose the {there[0]} beside it is; remove what "
                             "lies there, or choose another folder.")
    if not (folder / RESULT).exists():
        return None
    result = _result(folder)
    if result["key"] != key:
        raise InputError(f"{folder / RESULT}: is the result of another run; remove it, or choose another folder.")
    if not (folder / RANKS).exists():
        return None  # ranked again
    read_tensors(folder / RANKS, again=WITH_RESULT)
    if not (folder / SPEC).exists():
        _write_spec(folder, key, spec)
    sweep(folder, CHECKPOINT)
    return result


def _result(folder: Path) -> dict[str, Any]:
    return read_json(folder / RESULT, ["key", "method", "test", "valid", "groups", "thresholds", "notes"])


def _is_of(folder: Path, key: str) -> bool:
    """Whether the result in a folder says that it is this run's."""
    try:
        return _result(folder)["key"] == key
    except DamagedFile:
        return False


def _refuse_other(stored: dict[str, Any], folder: Path, key: str, spec: Spec) -> None:
    if stored["key"] != key:
        theirs = stored["spec"] if isinstance(stored["spec"], dict) else {}
        differs = [name for name, value in asdict(spec).items() if theirs.get(name) != value]
        if not differs:
            differs = ["the data" if stored.get("version") == RESULTS_VERSION else "how results are made"]
        raise InputError(f"{folder}: holds another run ({', '.join(differs)} differ); choose another folder.")


def _write_spec(folder: Path, key: str, spec: Spec) -> None:
    write_json(folder / SPEC, {"key": key, "version": RESULTS_VERSION, "spec": asdict(spec)})


def _run(spec: Spec, prepared: Prepared, model, key: str, folder: Path, threads: int, device: str, memory_mb: int):
    """Do the work of `run` in a folder that is this process's own."""
    dataset, parts = prepared.dataset, prepared.split
    # Sampled metrics are leave-one-out's custom; under cold-start users all items are ranked.
    sampled = untouched(parts, "test", seed=spec.split_seed) if spec.split == "leave-one-out" else None
    without, notes = (None, []) if sampled is None else left_out(parts, sampled)
    sampled = None if sampled is None or without.all() else torch.from_numpy(sampled)
    counts = parts.counts() | {"split_fingerprint": parts.fingerprint(), "notes": [*dataset.notes, *parts.notes, *notes]}
    _write_spec(folder, key, spec)
    write_json(folder / ENVIRONMENT, environment() | {"threads": threads, "device": device})
    write_json(folder / DATA, dataset.describe() | counts)

    started = time.perf_counter()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    work = _rule if spec.method in RULES else _train
    ranks, found = work(spec, prepared, model, folder, device, memory_mb, sampled)
    tensors = {f"{part}_{name}": rank for (part, name), rank in ranks.items()}
    # Examples of one user are not independent: tests of significance must know whose they are.
    tensors |= {f"{part}_user": torch.from_numpy(parts.user_of(getattr(parts, part))) for part in ("valid", "test")}
    write_tensors(folder / RANKS, tensors)
    result = {
        "key": key, "method": spec.method, "backbone": spec.backbone if spec.method in METHODS else None,
        "data": dataset.name, "split": spec.split, "keep": spec.keep, "encoder": short_name(spec.encoder),
        "seed": spec.seed,
    }
    for (part, name), rank in ranks.items():
        result[_place(part, name)] = metrics(rank)
    limits = {name: getattr(spec, name) for name in ("tail_user", "tail_item")}
    members = {name: torch.from_numpy(mask) for name, mask in groups(parts, "test", **limits).items()}
    result["groups"] = {
        _place(part, name): {group: metrics(rank[mask]) | {"n": int((rank[mask] > 0).sum())}  # 0 is left out
                             for group, mask in members.items()}
        for (part, name), rank in ranks.items() if part == "test"
    }
    result["thresholds"] = thresholds(parts, "test", **limits)
    if sampled is not None:
        result |= {"sampled_items": sampled.shape[1], "sampled_left_out": int(without.sum())}
    result |= found | counts | {
        "n_users": dataset.n_users, "n_items": dataset.n_items, "n_interactions": dataset.n_interactions,
        "seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(device),
        "threads": threads, "device": device, "spec": asdict(spec),
    }
    write_json(folder / RESULT, result)
    sweep(folder, CHECKPOINT)
    return result


def _place(part: str, protocol: str) -> str:
    """Where a result keeps the metrics of a part under a protocol: `test`, `test_consistent`, `test_sampled`, …"""
    return f"{part}_{protocol}".replace("_authors", "")


def _train(spec: Spec, prepared: Prepared, model: Recommender, folder: Path, device: str, memory_mb: int,
           sampled: torch.Tensor | None):
    """Fit, then rank validation and test targets with the best weights."""
    parts = prepared.split
    model.to(device)
    train, valid, test = (Examples(parts, part, spec.history_length, device) for part in ("train", "valid", "test"))
    for examples in (train, valid, test):
        examples.context = model.method.context(examples)
    before, trained = Scorer(model).table.cpu(), torch.from_numpy(parts.popularity() > 0)
    fitted = fit(model, train, valid, folder, memory_mb=memory_mb, **arguments(fit, spec))
    scorer = Scorer(model)
    table = scorer.table.cpu()
    ranks = {
        (part, name): r
        for part, examples in (("valid", valid), ("test", test))
        for name, r in rank_all(scorer, examples, scorer.similarity, memory_mb, f"ranking {part}",
                                sampled if part == "test" else None).items()
    }
    median = lambda name: float(np.median([entry[name] for entry in fitted.history]))
    start = spread(before[trained])
    found: dict[str, Any] = {
        "best_epoch": fitted.best_epoch, "epochs": len(fitted.history),
        "seconds_per_epoch": median("seconds"), "seconds_per_evaluation": median("evaluation_seconds"),
        "width": table.shape[1], **model.parameter_counts(), **preservation(prepared.embeddings, table.numpy()),
        "spread_kept": spread(table[trained]) / start if start else None,  # of one trained item there is none
    }
    if frozen := model.method.frozen_dim:
        found["row_space_identical"] = bool(torch.equal(before[:, :frozen], table[:, :frozen]))
    found |= model.method.facts()
    return ranks, found


def _rule(spec: Spec, prepared: Prepared, rule: Ranker, folder: Path, device: str, memory_mb: int,
          sampled: torch.Tensor | None):
    """Rank validation and test targets by a rule without training, on the CPU."""
    ranks, seconds = {}, 0.0
    for part in ("valid", "test"):
        examples = Examples(prepared.split, part, spec.history_length)
        started = time.perf_counter()
        few = sampled if part == "test" else None
        for name, r in rank_all(rule, examples, None, memory_mb, f"ranking {part}", few).items():
            ranks[part, name] = r
        seconds = time.perf_counter() - started
    return ranks, {"best_epoch": 0, "epochs": 0, "seconds_per_epoch": 0.0, "seconds_per_evaluation": seconds,
                   "params_trainable": 0, "params_total": 0}


def run_all(
    specs: list[Spec], root: Path = Path("runs"), jobs: int | None = None, threads: int = 1, **options
) -> pd.DataFrame:
    """`run_many`, then the `stored` results of all specs.

    Raises:
        RuntimeError: after all have ended, naming the specs that failed.
    """
    failures = run_many(specs, root, jobs, threads, **options)
    if failures:
        said = "; ".join(f"{spec.method} seed {spec.seed}: {error}" for spec, error in failures.items())
        raise RuntimeError(f"{len(failures)} of {len(specs)} runs failed: {said}")
    return stored(specs, root)


def run_many(
    specs: list[Spec], root: Path = Path("runs"), jobs: int | None = None, threads: int = 1,
    work: Callable = run, **options,
) -> dict[Spec, str]:
    """Run specs side by side in `jobs` processes; a failed run does not stop the others, nor does a killed process.

    Data are loaded and texts embedded once, before the processes start. A run whose process died is tried once
    more, alone.

    Args:
        jobs: 1 runs everything in this process; None is a process for every `threads` cores, or two where there
            is a GPU.
        work: what is called with a spec, `root`, `threads` and `options`; a function of a module.

    Returns: spec → error in one line, of the runs that failed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, jobs or (2 if torch.cuda.is_available() else cores // threads))  # processes on one GPU take turns
    inputs = lambda s: (s.data, s.clock, s.clean, s.missing_text, s.core, s.encoder, s.template, s.profiles, s.reads_language)
    for spec in {inputs(spec): spec for spec in specs}.values():
        prepare(spec)
    call = partial(work, root=Path(root), threads=threads, **options)
    failures = {}
    with bar(what="runs", total=len(specs), unit="run") as progress:
        for spec, _, error in outcomes(call, specs, jobs):
            if error:
                failures[spec] = error
            progress.update()
    return failures


def stored(specs: list[Spec], root: Path = Path("runs")) -> pd.DataFrame:
    """One row per spec, read from its stored run: metrics as `test N@10`, `test_consistent N@10`, … and the rest.

    Raises:
        InputError: a spec has no finished run under `root`, or its result is damaged.
    """
    rows = []
    for spec in specs:
        result = _result(_finished(spec, root))
        row = {name: value for name, value in result.items() if not isinstance(value, (dict, list))}
        for part in [name for name in result if name.startswith(("test", "valid")) and isinstance(result[name], dict)]:
            row |= {f"{part} {name}": value for name, value in result[part].items()}
        for part, members in result["groups"].items():
            row |= {f"{part} {group} {name}": value for group, of in members.items() for name, value in of.items()}
        row |= {f"threshold {name}": value for name, value in result["thresholds"].items()}
        row["notes"] = " ".join(result["notes"])
        # A rule reads no seed and is stored once; here it stands for the spec that asked for it.
        own = {f"spec {name}": value if name in spec.read() else None for name, value in asdict(spec).items()}
        rows.append(row | {"seed": spec.seed} | own)
    return pd.DataFrame(rows)


def learning_curves(specs: list[Spec], root: Path = Path("runs")) -> pd.DataFrame:
    """Long frame of the stored histories: method, seed, epoch, loss, spread (total variance of the item vectors),
    `valid N@20`, `valid_consistent N@20`.

    Raises:
        InputError: a spec of a trained method has no finished run under `root`.
    """
    rows = []
    for spec in [spec for spec in specs if spec.method in METHODS]:
        for entry in read_history(_finished(spec, root)):
            rows.append({"method": spec.method, "seed": spec.seed, "epoch": entry["epoch"], "loss": entry["loss"],
                         "spread": entry.get("spread")}  # missing in histories from before it was kept
                        | {f"{part} N@20": entry[part]["N@20"] for part in ("valid", "valid_consistent")})
    return pd.DataFrame(rows)


def stored_ranks(specs: list[Spec], root: Path = Path("runs")) -> dict[str, dict[str, np.ndarray]]:
    """Run key → `test_user` and the `test_…` ranks, (n,) int64 each, of the stored runs: what `statistics.against` reads.

    Raises:
        InputError: a spec has no finished run under `root`, or its ranks are damaged or do not say whose they are.
    """
    found = {}
    for folder in {_finished(spec, root) for spec in specs}:
        ranks, _ = read_tensors(folder / RANKS, ["test_user"], again=WITH_RESULT)
        found[folder.name] = {name: rank.numpy() for name, rank in ranks.items() if name.startswith("test_")}
    return found


def finished(spec: Spec, root: Path = Path("runs")) -> bool:
    """Whether a spec's run is stored under `root`, with a result and ranks that are whole. Embeds no text."""
    folder = _folder(spec, root)
    try:
        return _stored_result(folder, folder.name, spec, own=True) is not None
    except InputError:
        return False


def trained(spec: Spec, root: Path = Path("runs")) -> Recommender | Ranker:
    """The model of a finished run with its best weights, on the CPU; or its rule.

    Raises:
        InputError: the spec has no finished run under `root`.
    """
    folder = _finished(spec, root)
    model = build(spec, prepare(spec))
    if isinstance(model, Recommender):
        load_weights(model, folder / BEST)
    return model


def _finished(spec: Spec, root: Path) -> Path:
    folder = _folder(spec, root)
    if not (folder / RESULT).exists():
        raise InputError(f"{folder}: no finished run of {spec.method} with seed {spec.seed}; run it first.")
    return folder


def _folder(spec: Spec, root: Path) -> Path:
    return Path(root) / resolved(spec).key(fingerprint(spec))
