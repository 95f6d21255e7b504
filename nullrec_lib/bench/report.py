"""What a bench leaves behind: tables for machines, a table and a figure for people. One folder per device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from nullrec_lib import figures
from nullrec_lib.bench.engine import TARGETS
from nullrec_lib.files import write_text

ABOUT = ["machine", "torch", "threads", "date"]
RESULTS = [*ABOUT, "case", "shape", "variant", "median_s", "p20_s", "p80_s", "repeats", "peak_mb", "gb_per_s",
           "gflop_per_s", "share_of_ceiling", "check"]
ENGINE = [*ABOUT, "data", "keep", "method", "engine", "training_examples", "evaluated_examples", "steps", "step_s",
          "epoch_s", "epoch_p20_s", "epoch_p80_s", "repeats", "evaluation_s", "peak_mb", "floor_s", "speed_up",
          "authors_epoch_s", "authors_epoch_median_s", "authors_evaluation_s"]
PROFILE = [*ABOUT, "data", "keep", "method", "operation", "seconds_per_step", "share"]
OWN = ("median_s", "p20_s", "p80_s", "repeats", "gb_per_s", "gflop_per_s", "share_of_ceiling", "peak_mb")
"""What is told of a variant by itself."""
SLOW = ("naive", "plain", "product")
"""Variants that a fast one is compared with."""
SHOWN = 4
"""Operations of a profile in results.md; profile.csv has more."""


def slug(name: str) -> str:
    """A name as a folder's: `NVIDIA H100 80GB HBM3` → `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def merge(path: Path, rows: list[dict[str, Any]], columns: list[str], key: list[str]) -> pd.DataFrame:
    """The table stored at `path` with new rows: those that share a new row's `key` make way, others stay with the
    date they have. So cases can be measured one after the other."""
    new = pd.DataFrame(rows, columns=columns)
    if not path.exists():
        return new
    old = pd.read_csv(path)
    same = lambda frame: frame[key].astype("string").fillna("").agg("|".join, axis=1)
    kept = old[~same(old).isin(same(new))] if len(new) else old
    # What was stored before a column was there has none of it.
    return pd.concat([part for part in (kept, new) if len(part)] or [new], ignore_index=True).reindex(columns=columns)


def write(folder: Path, results: list[dict], engine: list[dict], profile: list[dict], figure: bool = True) -> None:
    """Bring results.csv, engine.csv, profile.csv, results.md and bench.png/svg in `folder` up to date, each file
    atomically.

    Args:
        figure: that of the kernels, which takes seconds.
    """
    tables = {}
    for name, rows, columns, key in (("results", results, RESULTS, ["threads", "case"]),
                                     ("engine", engine, ENGINE, ["threads", "data", "keep", "method"]),
                                     ("profile", profile, PROFILE, ["threads", "data", "keep", "method"])):
        path = folder / f"{name}.csv"
        tables[name] = merge(path, rows, columns, key)
        if len(tables[name]):
            write_text(path, tables[name].to_csv(index=False, float_format="%.6g"))
    shown = speeds(tables["results"])
    shown = shown[~shown["variant"].isin(SLOW)] if len(shown) else shown
    if figure and len(shown):
        figures.save(figures.bench(shown), "bench", folder)
    write_text(folder / "results.md", text(tables["results"], tables["engine"], tables["profile"]))


def speeds(results: pd.DataFrame) -> pd.DataFrame:
    """One row per case, shape and fast variant: its seconds beside those of `SLOW`, and how many times as fast it is.
    Where there is no fast variant, the slow ones have the rows.

    Columns `threads`, `case`, `shape`, `variant`, the `OWN` ones, and for each slow variant its `<name>_s`, `<name>_mb` and
    `over_<name>` (NaN where there is none).
    """
    timed = results[(results["case"] != "ceiling") & results["median_s"].notna()]
    rows = []
    for (threads, case, shape), group in timed.groupby(["threads", "case", "shape"], sort=False):
        by = group.set_index("variant")
        for variant in [name for name in by.index if name not in SLOW] or by.index:
            own = by.loc[variant]
            row = {"threads": threads, "case": case, "shape": shape, "variant": variant}
            row |= {name: own[name] for name in OWN}
            for slow in SLOW:
                there = slow in by.index
                row[f"{slow}_s"] = by["median_s"].get(slow)
                row[f"{slow}_mb"] = by["peak_mb"].get(slow)
                row[f"over_{slow}"] = by["median_s"][slow] / own["median_s"] if there else None
            rows.append(row)
    frame = pd.DataFrame(rows)
    if len(frame):  # columns of None alone would be objects
        numbers = [name for name in frame if name not in ("case", "shape", "variant")]
        frame[numbers] = frame[numbers].astype(float)
    return frame


def text(results: pd.DataFrame, engine: pd.DataFrame, profile: pd.DataFrame) -> str:
    """results.md."""
    everything = pd.concat([frame for frame in (results, engine) if len(frame)] or [results])
    lines = ["# Bench", ""]
    for column, label in (("machine", "Machine"), ("torch", "torch"), ("threads", "Threads"), ("date", "Date")):
        lines.append(f"{label}: {', '.join(str(value) for value in dict.fromkeys(everything[column]))}  ")
    lines += ["", "Made by `nullrec bench`. Seconds are medians; the variants of a case took turns, so a busy machine "
              "slowed all of them. Share of ceiling: the least time that the machine needs to move the bytes and do "
              "the arithmetic that no implementation can avoid (every array once), over the time taken; a little above 100% "
              "where the machine was freer than when its ceilings were measured. × plain, × naive: their time over this "
              "one's. Time / product: this one's over that of the bare matrix product of states and items. Memory: the "
              "most that one call takes beyond its inputs.", ""]
    ceilings = results[results["case"] == "ceiling"]
    lines += _section("What the machine can do", [
        {"threads": str(int(row.threads)), "what": row.variant, "size": row.shape, "GB/s": _number(row.gb_per_s),
         "GFLOP/s": _number(row.gflop_per_s)} for row in ceilings.itertuples()])
    failed = results[results["check"].astype("string").str.startswith("failed").fillna(False)]
    lines += _section("Failed checks: not timed", [
        {"case": row.case, "shape": row.shape, "variant": row.variant, "check": row.check}
        for row in failed.itertuples()])
    lines += _section("Kernels", [
        {"case": row.case, "shape": row.shape, "variant": row.variant, "ms": _ms(row.median_s),
         "p20–p80": f"{_ms(row.p20_s)}–{_ms(row.p80_s)}" if row.repeats > 1 else "one reading",
         "plain ms": _ms(row.plain_s),
         "naive ms": _ms(row.naive_s), "× plain": _number(row.over_plain), "× naive": _number(row.over_naive),
         "time / product": _number(1 / row.over_product), "GB/s": _number(row.gb_per_s),
         "GFLOP/s": _number(row.gflop_per_s), "share of ceiling": _percent(row.share_of_ceiling),
         "MiB": _number(row.peak_mb), "plain MiB": _number(row.plain_mb)}
        for row in speeds(results).itertuples()])
    lines += _engine(engine)
    longest = profile.groupby(["threads", "data", "keep", "method"], sort=False, dropna=False).head(SHOWN)
    lines += _section("Where the steps of our engine spend their time", [
        {"data": row.data, "method": row.method, "operation": f"`{row.operation}`",
         "ms per step": _ms(row.seconds_per_step), "share": _percent(row.share)} for row in longest.itertuples()])
    return "\n".join(lines).rstrip() + "\n"


def _engine(engine: pd.DataFrame) -> list[str]:
    rows, published = [], engine["authors_epoch_s"].notna().any()
    for row in engine.itertuples():
        cells = {
            "data": row.data if pd.isna(row.keep) else f"{row.data} {row.keep}", "method": row.method,
            "engine": row.engine, "examples": f"{row.training_examples:,}", "ms per step": _ms(row.step_s),
            "least ms": _ms(row.floor_s), "s per epoch": _number(row.epoch_s),
            "p20–p80": f"{_number(row.epoch_p20_s)}–{_number(row.epoch_p80_s)}",
            "× reference": _number(row.speed_up), "s per evaluation": _number(row.evaluation_s),
            "MiB": _number(row.peak_mb)}
        if published:
            cells |= {"authors' s per epoch": _number(row.authors_epoch_s),
                      "median": _number(row.authors_epoch_median_s),
                      "authors' s per evaluation": _number(row.authors_evaluation_s)}
        rows.append(cells)
    lines = _section("Training", rows)
    if rows:
        lines += ["The reference is `nullrec_lib/bench/reference.py`: the same model and loss written the usual way; "
                  "it ranks under one protocol, ours under both. s per epoch: median step times steps. least ms: what the bytes "
                  "and the arithmetic of a step take at this machine's ceilings (`engine.least_work`). Batches of five times "
                  "the size bound what five seeds in one step could save: they have as much to compute, in larger products.",
                  ""]
    if published:
        lines += _targets(engine)
        lines += ["The authors' figures are of their public code on a CPU, and were not taken in this run: orders of "
                  "magnitude.", ""]
    return lines


def _targets(engine: pd.DataFrame) -> list[str]:
    """Our float32 engine beside what was aimed at, by data and method; what is missed has its distance to the floor."""
    rows = []
    ours = engine[(engine["engine"] == "nullrec") & engine["authors_epoch_s"].notna() & engine["method"].isin(TARGETS)]
    for row in ours.itertuples():
        times = row.authors_epoch_s / row.epoch_s
        rows.append({
            "data": row.data if pd.isna(row.keep) else f"{row.data} {row.keep}", "method": row.method,
            "aim, × authors": str(TARGETS[row.method]), "× authors": _number(times),
            "": "met" if times >= TARGETS[row.method] else "missed", "× reference": _number(row.speed_up),
            "least ms": _ms(row.floor_s), "ms per step": _ms(row.step_s)})
    return _section("Targets of training", rows)


def _section(title: str, rows: list[dict[str, str]]) -> list[str]:
    """A heading and a Markdown table without the columns that are empty throughout; nothing without rows."""
    if not rows:
        return []
    heads = [head for head in rows[0] if any(row[head] for row in rows)]
    cells = [[str(row[head]).replace("|", "\\|") for head in heads] for row in rows]
    return [f"## {title}", "", *(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells)), ""]


def _number(value: float | None) -> str:
    """Three digits, or nothing."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ms(seconds: float | None) -> str:
    return "" if pd.isna(seconds) else _number(seconds * 1000)


def _percent(share: float | None) -> str:
    return "" if pd.isna(share) else f"{100 * share:.3g}%"
