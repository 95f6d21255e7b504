"""A grid: one YAML file → many runs → tables with their statistics. What is stored is not run again."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from nullrec_lib import figures, yaml_core
from nullrec_lib.backbones import BACKBONES
from nullrec_lib.errors import InputError, shown
from nullrec_lib.experiments import finished, run_many, stored, stored_ranks
from nullrec_lib.files import sweep, write_json, write_text
from nullrec_lib.machine import choose_device, environment
from nullrec_lib.methods import METHODS, RULES, runs_on
from nullrec_lib.results import METRICS, PARTS, report
from nullrec_lib.spec import Spec

VARY = ("data", "split", "backbone", "method", "seed", "lr")
"""Fields that may be lists. Each data × split × backbone is a table, each method a row of it."""

COMMON = {"data", "clock", "clean", "missing_text", "core", "keep", "split", "min_history", "split_seed", "tail_user", "tail_item", "backbone", "seed",
          "lr", "epochs", "patience", "select"}
"""Fields that no row may have of its own: rows of a table share data, groups, seeds and budget."""

PACKAGED = Path(__file__).parent / "grids"
MOST = 100_000
"""Runs of one grid."""
SHOWN = ["tail_item", "head_item", "tail_user", "head_user", "tail_user_tail_item", "cold_item"]
"""Groups in the figures; the tables have all."""

_TYPES = {field.name: field.type for field in fields(Spec)}


@dataclass(frozen=True)
class Cell:
    """One row of one table."""

    table: tuple[str, str, str]
    """data, split, backbone."""
    label: str
    spec: Spec

    def at(self, rate: float, seed: int) -> Spec:
        """The run of this row with a learning rate and a seed; a rule without training has but one."""
        return replace(self.spec, lr=rate, seed=seed) if self.spec.method in METHODS else self.spec


@dataclass(frozen=True)
class Grid:
    """What a file asks for."""

    name: str
    text: str
    cells: tuple[Cell, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    reference: str | None
    """Label of the row that all others are compared with; None: each row with its best rival."""
    skipped: tuple[str, ...]
    """Methods left out of tables whose backbone they do not run on, a sentence each."""

    def search(self) -> list[Spec]:
        """Every row with every rate on the first seed, without repetition."""
        return list(dict.fromkeys(cell.at(rate, self.seeds[0]) for cell in self.cells for rate in self.rates))

    def rest(self, rates: dict[Cell, float]) -> list[Spec]:
        """The other seeds of the rows whose rate is known."""
        return list(dict.fromkeys(cell.at(rates[cell], seed) for cell in self.cells if cell in rates
                                  for seed in self.seeds[1:]))


# Reading


def load(grid: str | Path) -> Grid:
    """Read a grid file, or the packaged grid of that name.

    Raises:
        InputError: no such file, not YAML, or not a grid; names the file and the field.
    """
    path = Path(grid) if Path(grid).is_file() else PACKAGED / f"{grid}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(known.stem for known in PACKAGED.glob("*.yaml")))
        raise InputError(f"grid: {str(grid)!r} is neither a file nor one of {there}.")
    try:
        text = yaml_core.read(path)
        return make(yaml_core.parse(text), path.stem, text)
    except InputError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def make(content: dict[str, Any], stem: str, text: str = "") -> Grid:
    """The grid that a mapping of fields to values asks for; `stem` is its name if it does not say one itself.

    Raises:
        InputError: not a grid; names the field.
    """
    if not isinstance(content, dict) or "method" not in content:
        raise InputError("a grid maps fields of a spec to values, rows among them: `method: [base, alphafuse]`.")
    asked_for = dict(content)
    name, reference = asked_for.pop("name", stem), asked_for.pop("reference", None)
    if not (isinstance(name, str) and re.fullmatch(r"[\w.-]*\w[\w.-]*", name) and len(name.encode()) <= 200):
        raise InputError(f"name: {shown(name)} must be a plain folder name, it becomes one under reports/.")
    given = {key: _value(key, value) for key, value in asked_for.items()}
    axes = {key: given.get(key, [Spec.__dataclass_fields__[key].default]) for key in VARY}
    if (runs := math.prod(map(len, axes.values()))) > MOST:
        raise InputError(f"a grid of {runs:,} runs is too large, split it into files of at most {MOST:,}.")
    rows = [_row(entry) for entry in axes["method"]]
    labels = [label for label, _, _ in rows]
    twice, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise InputError(f"method: two rows are called {twice!r}; give one a `label`.")
    if reference is not None and reference not in labels:
        raise InputError(f"reference: no row is called {shown(reference)}; there are {', '.join(labels)}.")

    shared = {key: value for key, value in given.items() if key not in VARY}
    cells, skipped, heard = [], {}, {"method"}
    for data, split, backbone in product(axes["data"], axes["split"], axes["backbone"]):
        for label, method, own in rows:
            if method in METHODS and backbone in BACKBONES and not runs_on(method, backbone):
                skipped[f"{label} does not run on {backbone} and is left out there."] = None
                continue
            # Profiles decide what else is read.
            first = {"backbone": backbone, "profiles": own.get("profiles")} if method in METHODS else {}
            reads = Spec(method=method, **first).read()
            if idle := [key for key in own if key not in reads]:
                raise InputError(f"{idle[0]}: method {method} does not read it, so it would change nothing.")
            asked = shared | own | {"data": data, "split": split, "backbone": backbone, "method": method}
            heard |= reads
            cells.append(Cell((data, split, backbone), label, Spec(**{k: v for k, v in asked.items() if k in reads})))
    if not cells:
        raise InputError(f"nothing is left to run: {' '.join(skipped)}")
    if unheard := [key for key in given if key not in heard]:
        raise InputError(f"{unheard[0]}: no row of this grid reads it, so it would change nothing.")
    for key in ("lr", "seed"):  # a wrong one is refused here and not halfway through
        for value in axes[key]:
            Spec(method="base", **{key: value})
    text = text or yaml_core.dump(content)
    return Grid(name, text, tuple(cells), tuple(map(float, axes["lr"])), tuple(axes["seed"]), reference, tuple(skipped))


def _value(key: Any, value: Any) -> Any:
    """A field's value, or the list of values of a field that may vary."""
    _known(key)
    if key not in VARY:
        if isinstance(value, (list, tuple, dict)):
            raise InputError(f"{key}: only {', '.join(VARY)} may be lists; give one value, and variants as rows: "
                             f"`method: [{{method: alphafuse, {key}: …}}]`.")
        return _plain(key, value)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if key != "method":
        values = [_plain(key, entry) for entry in values]
    if not values or key != "method" and len(set(values)) < len(values):
        raise InputError(f"{key}: a list needs at least one value, and none twice.")
    return values


def _plain(key: str, value: Any) -> Any:
    """A single value, of which a Spec can say the rest: it takes True for 1.0, and cannot make every whole number a
    float. A text goes into files and may name some."""
    if not isinstance(value, str | int | float | None) or value != value:
        raise InputError(f"{key}: {shown(value)} is not a value.")
    if isinstance(value, int) and (value.bit_length() > 1000 or isinstance(value, bool) and "bool" not in _TYPES[key]):
        raise InputError(f"{key}: {shown(value)} is not of type {_TYPES[key]}.")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise InputError(f"{key}: {shown(value)} holds characters that no file may have.")
    return value


def _known(key: Any, *besides: str) -> None:
    names = [*_TYPES, *besides]
    if key not in names:
        close = difflib.get_close_matches(shown(key), names, n=1, cutoff=0)[0]
        name = key if isinstance(key, str) else shown(key)
        raise InputError(f"{name}: there is no such field; the closest is {close}.")


def _row(entry: Any) -> tuple[str, str, dict[str, Any]]:
    """Label, method and fields of its own of one entry of `method`."""
    own = dict(entry) if isinstance(entry, dict) else {"method": entry}
    for key in own:
        _known(key, "label")
        if key in COMMON:
            raise InputError(f"{key}: rows of a table have it in common; give it for the whole grid.")
    method = own.pop("method", None)
    if not isinstance(method, str) or method not in {**METHODS, **RULES}:
        raise InputError(f"method: {shown(method)} is not one of {', '.join([*METHODS, *RULES])}.")
    label = own.pop("label", None)
    own = {key: _plain(key, value) for key, value in own.items()}
    if label is None:
        label = " ".join([method, *(f"{key}={value}" for key, value in own.items())])
    if not isinstance(label, str) or not label.strip() or "|" in label or not label.isprintable():
        raise InputError(f"label: {shown(label)} must be text on one line, without |.")
    return label, method, own


# Running


def choose(grid: Grid, root: Path) -> dict[Cell, float]:
    """The learning rate of every row: highest validation N@20 (protocol `select`) on the first seed, of equal ones
    the larger. Rows of which no candidate has finished are left out."""
    chosen = {}
    for cell in grid.cells:
        figures = {rate: figure for rate in grid.rates if (figure := _validation(cell, rate, grid, root)) is not None}
        if figures:
            chosen[cell] = max((figure, rate) for rate, figure in figures.items())[1]
    return chosen


def _validation(cell: Cell, rate: float, grid: Grid, root: Path, select: str | None = None) -> float | None:
    """Validation N@20 of a candidate, None if it has not finished."""
    spec = cell.at(rate, grid.seeds[0])
    part = "valid" if (select or spec.select) == "authors" else "valid_consistent"
    return float(stored([spec], root)[f"{part} N@20"].iloc[0]) if finished(spec, root) else None


def _missing(specs: list[Spec], root: Path) -> list[Spec]:
    return [spec for spec in specs if not finished(spec, root)]


def plan(grid: Grid, root: Path = Path("runs")) -> dict[str, int]:
    """How many `tables`, `cells` and `runs` a grid has, and how many runs are `to_do` (at most: as long as a row's
    rate is open, its other seeds are counted as missing)."""
    search = grid.search()
    todo = _missing(search, root)
    rates = {cell: rate for cell, rate in choose(grid, root).items()
             if not set(todo) & {cell.at(candidate, grid.seeds[0]) for candidate in grid.rates}}
    trained = [cell for cell in grid.cells if cell.spec.method in METHODS]
    later = len(grid.seeds) - 1
    open_ = later * len([cell for cell in trained if cell not in rates])
    return {"tables": len({cell.table for cell in grid.cells}), "cells": len(grid.cells),
            "runs": len(search) + later * len(trained),
            "to_do": len(todo) + len(_missing(grid.rest(rates), root)) + open_}


def run_grid(
    grid: Grid,
    root: Path = Path("runs"),
    reports: Path | None = Path("reports"),
    jobs: int | None = None,
    threads: int = 1,
    device: str = "auto",
    command: str = "",
) -> dict[str, Any]:
    """Run what is missing, choose rates by validation, run the other seeds, and write `reports/<name>/`, or nothing
    where `reports` is None.

    A failed run is noted and the rest goes on; the next call tries it again.

    Returns: `folder`, `tables` (data, split, backbone and rows with label, seeds, `lr`, whether that is at the
        `edge` of the search, and mean metrics), `failures`, and `missing`: the rows without any result.

    Raises:
        InputError: bad data, encoder, device, threads or jobs.
    """
    for option, value in {"threads": threads, "jobs": jobs}.items():
        if value is not None and value < 1:
            raise InputError(f"{option}: {value} is below 1.")
    choose_device(device)
    options = {"root": Path(root), "jobs": jobs, "threads": threads, "device": device}
    errors = run_many(_missing(grid.search(), root), **options)
    chosen = choose(grid, root)
    errors |= run_many(_missing(grid.rest(chosen), root), **options)
    failures = [
        _named(cell, rate, seed) | {"error": errors[cell.at(rate, seed)]}
        for cell in grid.cells
        for rate, seed in (product(grid.rates, grid.seeds) if cell.spec.method in METHODS else [(None, None)])
        if cell.at(rate, seed) in errors
    ]
    made = tables(grid, root, failures)
    if reports is not None:
        folder = Path(reports) / grid.name
        sweep(folder)
        write_text(folder / "grid.yaml", grid.text)
        about = environment() | {"command": command, "threads": threads, "device": device}
        write_json(folder / "environment.json", about)
        candidates = pd.DataFrame(_candidates(grid, chosen, errors, root))
        write_text(folder / "search.csv", candidates.to_csv(index=False))
        (folder / "failures.json").unlink(missing_ok=True)
        if failures:
            write_json(folder / "failures.json", failures)
        if made:
            write_text(folder / "results.csv", pd.concat(frame for frame, _ in made.values()).to_csv(index=False))
            write_text(folder / "results.md", "\n".join(text for _, text in made.values()))
            _figures(made, folder)
    told = [dict(zip(("data", "split", "backbone"), table, strict=True)) | {"rows": _means(grid, table, chosen, frame)}
            for table, (frame, _) in made.items()]
    missing = [f"{cell.label} on {', '.join(cell.table)}" for cell in grid.cells if cell not in chosen]
    where = str(folder) if reports is not None else None
    return {"folder": where, "tables": told, "failures": failures, "missing": missing}


def tables(grid: Grid, root: Path = Path("runs"), failures: list[dict] = ()) -> dict[tuple, tuple[pd.DataFrame, str]]:
    """(data, split, backbone) → the stored runs of that table, one row each with its `label`, and its Markdown."""
    chosen, made = choose(grid, root), {}
    for table in dict.fromkeys(cell.table for cell in grid.cells):
        rows = [(cell, spec) for cell in grid.cells if cell.table == table and cell in chosen
                for spec in dict.fromkeys(cell.at(chosen[cell], seed) for seed in grid.seeds) if finished(spec, root)]
        if rows:
            specs = [spec for _, spec in rows]
            frame = stored(specs, root)
            frame.insert(0, "label", [cell.label for cell, _ in rows])
            frame.insert(0, "table", ", ".join(table))
            notes = _notes(grid, table, chosen, frame, failures)
            reference = grid.reference if grid.reference in set(frame["label"]) else None  # it may have failed
            made[table] = frame, report(frame, "", reference, ranks=stored_ranks(specs, root), notes=notes)
    return made


def _figures(made: dict[tuple, tuple[pd.DataFrame, str]], folder: Path) -> None:
    """All rows at a glance, backbones side by side; for leave-one-out also by group, each backbone alone."""
    whole = pd.concat(frame.assign(path=data) for (data, _, _), (frame, _) in made.items())
    whole = whole.drop_duplicates(["path", "split", "label", "backbone", "seed"])  # rules stand in every table
    short = {path: Path(path).name for path in whole["path"].unique()}
    if len(set(short.values())) < len(short):  # two folders of one name
        short = {path: f"{name}-{number}" for number, (path, name) in enumerate(short.items(), 1)}
    for (path, split), frame in whole.groupby(["path", "split"], sort=False):
        if frame["backbone"].notna().any():
            columns = {"test N@10": "authors", "test_consistent N@10": "consistent"}
            figures.save(figures.dots(frame, columns, by="label"), f"{short[path]}-{split}", folder)
    for (path, split, backbone), (frame, _) in made.items():
        for part in [part for part in ("test_sampled", "test_consistent") if "test_sampled N@10" in frame]:
            name = f"{short[path]}-{split}-{backbone}-{part}"
            figures.save(figures.group_heatmap(frame, part, SHOWN, by="label"), name, folder)


def _named(cell: Cell, rate: float | None, seed: int | None) -> dict[str, Any]:
    return dict(zip(("data", "split", "backbone"), cell.table, strict=True)) | {
        "label": cell.label, "method": cell.spec.method, "lr": rate, "seed": seed}


def _edge(grid: Grid, rate: float) -> bool:
    return len(grid.rates) > 1 and rate in (min(grid.rates), max(grid.rates))


def _candidates(grid: Grid, chosen: dict[Cell, float], errors: dict[Spec, str], root: Path) -> list[dict[str, Any]]:
    """Rows of `search.csv`."""
    return [
        _named(cell, rate, grid.seeds[0])
        | {"valid N@20": _validation(cell, rate, grid, root, "authors"),
           "valid_consistent N@20": _validation(cell, rate, grid, root, "consistent"),
           "select": cell.spec.select, "error": errors.get(cell.at(rate, grid.seeds[0]), ""),
           "chosen": chosen.get(cell) == rate, "edge": chosen.get(cell) == rate and _edge(grid, rate)}
        for cell in grid.cells if cell.spec.method in METHODS for rate in grid.rates
    ]


def _notes(grid: Grid, table: tuple, chosen: dict[Cell, float], frame: pd.DataFrame, failures: list[dict]) -> list[str]:
    trained = [cell for cell in grid.cells if cell.table == table and cell.spec.method in METHODS]
    notes = []
    if trained and len(grid.rates) > 1:
        several = len(grid.rates) > 2
        edge = " (chosen at the edge of the search)" * several
        found = [f"{cell.label} {chosen[cell]:g}{edge * _edge(grid, chosen[cell])}" for cell in trained if cell in chosen]
        notes.append(
            f"Learning rate chosen once per row, on seed {grid.seeds[0]}, by validation N@20 "
            f"({trained[0].spec.select}) among {', '.join(f'{rate:g}' for rate in grid.rates)}: {', '.join(found)}."
            + " Of two rates each is an edge of the search: a better one may lie outside." * (not several))
    # Where the budget ended a run and not its patience, more epochs might still have helped.
    fitted = frame[frame["backbone"].notna()]
    at_end = (fitted["epochs"] == fitted["spec epochs"]) & (fitted["epochs"] - fitted["best_epoch"] < fitted["spec patience"])
    if len(ends := fitted[at_end].groupby("label", sort=False).size()):
        counts = frame.groupby("label").size()
        notes.append("Ended by the most epochs and not by patience: "
                     + ", ".join(f"{label} ({n} of {counts[label]} seeds)" for label, n in ends.items()) + ".")
    for failed in failures:
        if (failed["data"], failed["split"], failed["backbone"]) == table:
            place = f", lr {failed['lr']:g}, seed {failed['seed']}," if failed["lr"] else ""
            notes.append(f"{failed['label']}{place} failed: {failed['error']}")
    notes += [f"{cell.label} has no result." for cell in grid.cells if cell.table == table and cell not in chosen]
    return notes + [note for note in grid.skipped if f" on {table[2]} " in note]


def _means(grid: Grid, table: tuple, chosen: dict[Cell, float], frame: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for cell in [cell for cell in grid.cells if cell.table == table and cell in chosen]:
        mine = frame[frame["label"] == cell.label]
        rate = chosen[cell] if cell.spec.method in METHODS else None
        found.append({"label": cell.label, "method": cell.spec.method, "seeds": len(mine), "lr": rate,
                      "edge": rate is not None and _edge(grid, rate)}
                     | {part: {name: float(mine[f"{part} {name}"].mean()) for name in METRICS} for part in PARTS
                        if f"{part} N@10" in mine})
    return found
