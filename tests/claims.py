"""What the papers' own tables say about themselves: figures that cannot all be true as they are printed.

The tables are transcribed in `reports/papers/`, one CSV per table. Printed values are rounded, and rounding keeps
order: what cannot be below something else cannot be below it when both are rounded, so such tests need no slack.
Where figures are computed from several printed ones, every value within half a printed unit is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from math import log2
from pathlib import Path

import pandas as pd

from nullrec_lib.errors import InputError

PAPERS = Path("reports/papers")
HALF = 0.00005
"""Half a unit of the last printed digit of a metric."""

KEYS = ["table", "dataset", "backbone", "method", "group"]
CHECKS = {
    "cutoff": "A list of 20 is never worse than its first 10: R, N and M can only grow with K",
    "metric": "With one relevant item, 1/rank ≤ 1/log2(rank + 1) ≤ 1 bounds M, N and R against each other",
    "group": "The overall value is a mean of two complementary groups, so it lies between them",
    "share": "The groups' share of the examples is the same whatever is measured and by which method",
    "count": "Counts and what is computed from them",
    "improvement": "“Best Impr.” computed from the printed values",
    "mark": "The best and the second best are marked",
    "copy": "The full model's row in an ablation is its row in the main table",
    "text": "What the text says about a table",
}

VARIANTS = {"shop, cold-start": "ablations-shop/table5", "ml-100k, cold-start": "ablations-ml-100k/table5",
            "shop, leave-one-out": "ablations-shop/table6", "ml-100k, leave-one-out": "ablations-ml-100k/table6"}
"""Tables 5 and 6 as they were run: column → folder among the reports. Leave-one-out is read where it was sampled."""


def tables(folder: Path = PAPERS) -> pd.DataFrame:
    """All transcribed values: table, dataset, backbone, method, group, metric, value (float64), underlined (str).

    Raises:
        InputError: `folder` holds no transcribed table.
    """
    files = sorted(path for path in Path(folder).glob("*.csv") if re.fullmatch(r"\w+-table\d+", path.stem))
    if not files:
        raise InputError(f"{folder}: no transcribed tables here (files such as pte-table3.csv).")
    return pd.concat([pd.read_csv(file, keep_default_na=False) for file in files], ignore_index=True)


def improvements(folder: Path = PAPERS) -> pd.DataFrame:
    """The printed “Best Impr.” rows: table, dataset, backbone, group, metric, percent (float64)."""
    files = sorted(Path(folder).glob("*-improvements.csv"))
    return pd.concat([pd.read_csv(file, keep_default_na=False) for file in files], ignore_index=True)


def inconsistent(folder: Path = PAPERS) -> pd.DataFrame:
    """Everything that is inconsistent as printed: table, check (a key of `CHECKS`), place, printed, why."""
    values = tables(folder)
    metrics = values[values["metric"].str.contains("@")]
    rows = [*_cutoffs(metrics), *_groups(metrics), *_shares(metrics), *_counts(values), *_copies(metrics),
            *_improvements(metrics, improvements(folder)), *_marks(metrics), *_text(metrics)]
    frame = pd.DataFrame(rows, columns=["table", "check", "place", "printed", "why"])
    order = frame["check"].map(list(CHECKS).index)
    return frame.assign(order=order).sort_values(["order", "table"], kind="stable", ignore_index=True).drop(
        columns="order")


S3_REC, OUTSIDE_METRICS = "RUCAIBox/CIKM2020-S3Rec", ("R@10", "N@10", "N@20")
OUTSIDE = {
    "Toys": ({"SASRec": (0.0675, 0.0374, 0.0441), "S3-Rec": (0.0700, 0.0376, 0.0468)}, False, "table4-toys"),
    "Yelp": ({"SASRec": (0.0274, 0.0136, 0.0182), "S3-Rec": (0.0341, 0.0168, 0.0226)}, True, "table4-yelp"),
}
"""Data → figures of S3-Rec's repository (R@10, N@10, N@20), whether repeated items are lost, and folder of ours."""


def inconsistent_markdown(folder: Path = PAPERS) -> str:
    """`inconsistent` as the section of reports/CLAIMS.md."""
    found = inconsistent(folder)
    main = found[found["table"].isin(["Table 3", "Table 4"]) & (found["place"].str.count(", ") > 1)]
    pte = main["place"].str.contains(", PtE").sum()
    text = [f"Computed by `tests/claims.py` from PtE's tables as transcribed in `papers/`: {len(found)} places.",
            f"In the main tables (3 and 4), {pte} of the {len(main)} that lie in some method's row lie in PtE's; what",
            "made them, a slip of the pen or more, cannot be told from the tables."]
    for check, about in CHECKS.items():
        part = found[found["check"] == check]
        text += ["", f"### {about}", "", f"{len(part)} violations." if len(part) else "No violation."]
        if len(part):
            text += ["", "| table | place | printed | why |", "| --- | --- | --- | --- |"]
            text += [f"| {row.table} | {row.place} | {row.printed} | {row.why} |" for row in part.itertuples()]
    return "\n".join(text) + "\n"


def _place(*names: str) -> str:
    return ", ".join(name for name in names if name and name != "all")


def _shown(value: dict[str, float], *names: str) -> str:
    return ", ".join(f"{name} {value[name]:.4f}" for name in names)


def _wide(metrics: pd.DataFrame, column: str, keys: list[str]) -> pd.DataFrame:
    """One row per `keys`, in order of appearance, one column per value of `column`."""
    wide = metrics.pivot(index=keys, columns=column, values="value")
    return wide.reindex(metrics[keys].drop_duplicates()).reset_index()


def _cutoffs(metrics: pd.DataFrame) -> Iterator[tuple]:
    """Within one row of one group: K = 10 against K = 20, and M, N, R against each other."""
    for row in _wide(metrics, "metric", KEYS).to_dict("records"):
        value = {name: row.get(name) for name in ("R@10", "N@10", "M@10", "N@20", "M@20") if pd.notna(row.get(name))}
        place = _place(row["dataset"], row["backbone"], row["method"], row["group"])
        fell = [kind for kind in "NM" if value.get(f"{kind}@20", 1) < value.get(f"{kind}@10", 0)]
        for kind in fell:
            low, high = f"{kind}@10", f"{kind}@20"
            yield row["table"], "cutoff", place, _shown(value, low, high), f"{high} is below {low}"
        for low, high in (("M@10", "N@10"), ("M@20", "N@20"), ("N@10", "R@10")):
            if low in value and high in value and value[low] > value[high]:
                yield row["table"], "metric", place, _shown(value, low, high), f"{low} is above {high}"
        # The ratios are largest where every hit is the last of the list.
        ratios = (("N@10", "R@10", log2(11)), ("M@10", "N@10", 10 / log2(11)), ("M@20", "N@20", 20 / log2(21)))
        for low, high, most in ratios:
            if low in value and high in value and value[high] - HALF > most * (value[low] + HALF):
                yield (row["table"], "metric", place, _shown(value, low, high),
                       f"{high} is more than {most:.2f} times {low}, its most at rank {high[2:]}")
        if "M@20" in value and not fell:  # what ranks 11 to 20 add: 1/rank against 1/log2(rank + 1)
            more = {kind: value[f"{kind}@20"] - value[f"{kind}@10"] for kind in "NM"}
            least, most = log2(21) / 20, log2(12) / 11
            if not (more["M"] + 2 * HALF >= least * (more["N"] - 2 * HALF)
                    and more["M"] - 2 * HALF <= most * (more["N"] + 2 * HALF)):
                yield (row["table"], "metric", place, _shown(value, "N@10", "N@20", "M@10", "M@20"),
                       f"ranks 11 to 20 add {more['M']:.4f} to M and {more['N']:.4f} to N; "
                       f"possible are {least:.2f} to {most:.2f} of what N gains")


def _by_group(metrics: pd.DataFrame) -> Iterator[tuple[dict, str, float, float, float]]:
    """(row, what is grouped, overall, tail, head) for every value that has groups."""
    keys = ["table", "dataset", "backbone", "method", "metric"]
    for row in _wide(metrics[metrics["group"] != "all"], "group", keys).to_dict("records"):
        for kind in ("item", "user"):
            yield row, kind, row["overall"], row[f"tail {kind}"], row[f"head {kind}"]


def _groups(metrics: pd.DataFrame) -> Iterator[tuple]:
    for row, kind, overall, tail, head in _by_group(metrics):
        if not min(tail, head) <= overall <= max(tail, head):
            yield (row["table"], "group", _place(row["dataset"], row["method"], row["metric"]),
                   f"overall {overall:.4f}, tail {kind} {tail:.4f}, head {kind} {head:.4f}",
                   f"overall is {'below' if overall < min(tail, head) else 'above'} both groups of {kind}s")


def _tail_share(overall: float, tail: float, head: float) -> tuple[float, float] | None:
    """Range of w in overall = w·tail + (1 − w)·head over all values that print the same; None if any w would do."""
    if abs(head - tail) <= 2 * HALF:
        return None
    steps = list(product((-HALF, HALF), repeat=3))
    ends = [(head + h - overall - o) / (head + h - tail - t) for o, t, h in steps if head + h != tail + t]
    return min(ends), max(ends)


def _shares(metrics: pd.DataFrame) -> Iterator[tuple]:
    """The share on which most of a data set's rows in the main table agree, and the rows that contradict it."""
    ranges: dict[tuple, list] = {}
    for row, kind, overall, tail, head in _by_group(metrics):
        share = _tail_share(overall, tail, head)
        if share and min(tail, head) <= overall <= max(tail, head):  # else no share exists: see `_groups`
            ranges.setdefault((row["dataset"], kind), []).append((row, *share))
    for (dataset, kind), found in ranges.items():
        main = [(low, high) for row, low, high in found if row["table"] == "Table 4"]
        agreed = max((low for low, _ in main), key=lambda w: sum(low <= w <= high for low, high in main))
        least, most = agreed, min(high for low, high in main if low <= agreed <= high)
        many = f"{sum(low <= agreed <= high for low, high in main)} of Table 4's {len(main)} values"
        for row, low, high in found:
            if low > most or high < least:
                yield (row["table"], "share", _place(dataset, row["method"], row["metric"]),
                       f"overall {row['overall']:.4f}, tail {kind} {row[f'tail {kind}']:.4f}, "
                       f"head {kind} {row[f'head {kind}']:.4f}",
                       f"needs {100 * low:.2f} to {100 * high:.2f}% of the examples in the tail, where {many} agree on "
                       f"{100 * least:.2f} to {100 * most:.2f}%")


def _counts(values: pd.DataFrame) -> Iterator[tuple]:
    """Tables 1 and 2: what is called density, and sparsity from users, items and interactions or mean length."""
    for (table, dataset), part in values[values["method"] == ""].groupby(["table", "dataset"], sort=False):
        count = part.set_index("metric")["value"]
        interactions = count.get("interactions", count["users"] * count.get("mean length", 0))
        density = 100 * interactions / (count["users"] * count["items"])
        for name, wanted in (("density %", density), ("sparsity %", 100 - density)):
            if name in count and abs(count[name] - wanted) > 0.006:  # half a unit, and the mean length's own rounding
                yield (table, "count", dataset, f"{name[:-2]} {count[name]:.2f}%",
                       f"{interactions:,.0f} of {count['users'] * count['items']:,.0f} pairs are {density:.4f}%"
                       + ("; what is printed is the sparsity" if abs(count[name] + density - 100) < 0.006 else ""))


def _improvements(metrics: pd.DataFrame, printed: pd.DataFrame) -> Iterator[tuple]:
    keys = ["table", "dataset", "backbone", "group", "metric"]
    cells = {key: part.set_index("method")["value"] for key, part in metrics.groupby(keys, sort=False)}
    for row in printed.to_dict("records"):
        cell = cells[tuple(row[key] for key in keys)]
        best, second = cell["PtE"], cell.drop("PtE").max()
        low, high = ((best + sign * HALF) / (second - sign * HALF) * 100 - 100 for sign in (-1, 1))
        if not low - 0.005 <= row["percent"] <= high + 0.005:
            yield (row["table"], "improvement", _place(row["dataset"], row["backbone"], row["group"], row["metric"]),
                   f"{row['percent']:+.2f}%", f"{best:.4f} over {second:.4f} ({cell.drop('PtE').idxmax()}) is "
                   f"{best / second * 100 - 100:+.2f}%")


def _marks(metrics: pd.DataFrame) -> Iterator[tuple]:
    """Underlined must be second; the transcript has no bold, so first must be PtE, whose row is last and boldest."""
    keys = ["table", "dataset", "backbone", "group", "metric"]
    main = metrics[metrics["table"].isin(metrics.loc[metrics["underlined"] == "yes", "table"])]
    for key, part in main.groupby(keys, sort=False):
        ranked = part.sort_values("value", ascending=False, kind="stable")
        second = ranked["value"].iloc[1]
        marked = part[part["underlined"] == "yes"]
        place = _place(*key[1:])
        if ranked["method"].iloc[0] != "PtE":
            printed = f"{ranked['method'].iloc[0]} {ranked['value'].iloc[0]:.4f}"
            yield key[0], "mark", place, printed, "PtE is not the best"
        if len(marked) != 1 or marked["value"].iloc[0] != second:
            names = ", ".join(f"{row.method} {row.value:.4f}" for row in marked.itertuples()) or "nothing"
            yield (key[0], "mark", place, f"underlined: {names}",
                   f"second is {ranked['method'].iloc[1]} with {second:.4f}")


def _copies(metrics: pd.DataFrame) -> Iterator[tuple]:
    keys = ["dataset", "backbone", "group", "metric"]
    for main, ablation in (("Table 3", "Table 5"), ("Table 4", "Table 6")):
        pte = metrics[(metrics["table"] == main) & (metrics["method"] == "PtE")].set_index(keys)["value"]
        full = metrics[(metrics["table"] == ablation) & (metrics["method"] == "PtE (full)")]
        for row in full.to_dict("records"):
            there = pte[tuple(row[key] for key in keys)]
            if there != row["value"]:
                place = _place(*(row[key] for key in keys))
                yield ablation, "copy", place, f"{row['value']:.4f}", f"{main}: {there:.4f}"


def _text(metrics: pd.DataFrame) -> Iterator[tuple]:
    """Sentences of PtE's sections 5.3 and 5.4 that name what their tables would have to show."""
    cell = metrics[(metrics["table"] == "Table 4")].pivot_table(
        index=["dataset", "group", "metric"], columns="method", values="value")
    gain = 100 * (cell["PtE"] / cell.drop(columns="PtE").max(axis=1) - 1)
    most = gain[gain.index.get_level_values("metric") == "R@10"].max()
    if most < 49:
        yield ("Table 4", "text", "section 5.3", "“relative gains reach up to 49% in N@10 and R@10”",
               f"the largest gain in R@10 is {most:.2f}%")
    for table, part in metrics[metrics["table"].isin(["Table 5", "Table 6"])].groupby("table"):
        wide = part.pivot_table(index=["dataset", "group", "metric"], columns="method", values="value")
        partial = wide[["User-only Profiling", "Item-only Profiling"]].max(axis=1)
        better = (wide["Single-pass Profiling"] > partial).sum()
        if better:
            yield (table, "text", "section 5.4", "“Single-pass profiling further degrades performance”",
                   f"it is above both user-only and item-only profiling in {better} of {len(wide)} columns")
    named = metrics.loc[metrics["table"] == "Table 5", "dataset"].unique()
    if len(named) > 1:
        yield ("Table 5", "text", "caption", "“Ablation results on the Amazon Movies dataset”",
               f"the table has {', '.join(named)}")


def variants_markdown(reports: Path) -> str:
    """N@10 of the stored Tables 5 and 6 side by side, `authors` / `consistent`; a star is a difference to PtE.

    Both are read from each `results.md`, since significance needs ranks that are not stored beside it.
    """
    columns = {}
    for column, folder in VARIANTS.items():
        parts = (Path(reports) / folder / "results.md").read_text(encoding="utf-8").split("\n## Scoring ")
        parts = [part for part in parts if ("sampled" in part.splitlines()[0]) == ("leave-one-out" in column)]
        both = [_cells(part) for name in ("authors", "consistent") for part in parts if part.startswith(name)]
        columns[column] = {label: " / ".join(cells[label] for cells in both) for label in both[0]}
    rows = [f"| {label} | " + " | ".join(cells[label] for cells in columns.values()) + " |" for label in columns[column]]
    head = f"| N@10, `authors` / `consistent` | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}\n"
    return head + "\n".join(rows) + "\n"


def outside_markdown(reports: Path) -> str:
    """The stored leave-one-out figures among all items beside those of S3-Rec's repository, one table per data set."""
    names = {"base": "Base (SASRec)", "llminit": "LLMInit", "alphafuse": "AlphaFuse", "itemknn": "ItemKNN, no training"}
    tables = []
    for data, (theirs, lost, folder) in OUTSIDE.items():
        lines = [f"| {data} | seeds | {' | '.join(OUTSIDE_METRICS)} | where |", "|" + " --- |" * (len(OUTSIDE_METRICS) + 3)]
        lines += [f"| {name}, as they give it |  | {' | '.join(f'{figure:.4f}' for figure in figures)} | {S3_REC} |"
                  for name, figures in theirs.items()]
        frame = pd.read_csv(Path(reports) / folder / "results.csv")
        for label, name in names.items():
            rows = frame[frame["label"] == label]
            part, share = "test_consistent", 1.0
            if lost:  # the items that a user has had before never count as found
                part = "test_consistent new_item"
                share = rows[f"{part} n"] / rows["test_examples"]
            figures = [(rows[f"{part} {metric}"] * share).mean() for metric in OUTSIDE_METRICS]
            cells = " | ".join(f"{figure:.4f}" for figure in figures)
            lines.append(f"| {name} | {len(rows)} | {cells} | [{folder}]({folder}/results.md) |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _cells(part: str) -> dict[str, str]:
    """Label → N@10 of one scoring's section, with a star where Holm (bootstrap) is below 0.05."""
    tables = [[[cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines()]
              for block in part.split("\n\n") if block.startswith("| label")]
    whole, against = (pd.DataFrame(rows[2:], columns=rows[0]) for rows in tables[:2])
    against = against[(against["metric"] == "N@10")].set_index("label")["Holm (bootstrap)"].astype(float)
    return {row["label"]: row["N@10"].split(" ")[0] + ("*" if against.get(row["label"], 1.0) < 0.05 else "")
            for row in whole.to_dict("records")}
