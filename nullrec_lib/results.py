"""Tables of stored runs. Nothing here trains: frames come from `experiments.stored`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from nullrec_lib.files import write_text

METRICS = ("R@10", "N@10", "M@10", "R@20", "N@20", "M@20")
PARTS = {
    "test": "authors: raw dot product, nothing masked",
    "test_consistent": "consistent: cosine as trained with, the user's earlier items masked",
}
"""Prefix of the metric columns → what the scoring protocol is."""


def summary(frame: pd.DataFrame, columns: list[str], by: str = "method") -> pd.DataFrame:
    """Mean ± sd over seeds of `columns`, one row per value of `by` in order of appearance, and the seed count."""
    _one_run_per_seed(frame, by)
    rows = []
    for value, group in frame.groupby(by, sort=False):
        row = {by: value, "seeds": group["seed"].nunique()}
        for column in columns:
            spread = f" ± {group[column].std(ddof=1):.4f}" if len(group) > 1 else ""
            row[column] = f"{group[column].mean():.4f}{spread}"
        rows.append(row)
    return pd.DataFrame(rows).set_index(by)


def paired(frame: pd.DataFrame, column: str, reference: str = "base") -> pd.DataFrame:
    """Each method against `reference`, seed by seed: mean difference, 95% interval and p of a paired t-test.

    Seeds that only one of the two has are left out. With fewer than two shared seeds there is no test, and the
    method has no row.
    """
    _one_run_per_seed(frame, "method")
    wide = frame.pivot(index="seed", columns="method", values=column)
    rows = []
    for method in [name for name in frame["method"].unique() if name != reference and reference in wide]:
        both = wide[[method, reference]].dropna()
        if len(both) < 2:
            continue
        test = ttest_rel(both[method], both[reference])
        low, high = test.confidence_interval(0.95)
        rows.append({"method": method, "difference": float(np.mean(both[method] - both[reference])), "low": low,
                     "high": high, "p": test.pvalue, "seeds": len(both)})
    return pd.DataFrame(rows)


def _one_run_per_seed(frame: pd.DataFrame, by: str) -> None:
    """ValueError where several runs share `by` and seed: two configurations are not two seeds of one."""
    twice = frame.duplicated([by, "seed"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{by} {row[by]} has several runs with seed {row['seed']}: group by what tells them apart.")


def report(frame: pd.DataFrame, folder: str | Path, reference: str = "base") -> str:
    """The table of `frame` (`experiments.stored`) as Markdown, with what it needs to be read: data, split, seeds.

    Writes `results.csv` (one row per run) and `results.md` into `folder`, or nothing where `folder` is empty.
    """
    first = frame.iloc[0]
    text = [
        f"# {first['data']}, {first['split']}",
        f"{first['n_users']:,} users, {first['n_items']:,} items, {first['n_interactions']:,} interactions"
        f"{'' if pd.isna(first['keep']) else f' (keep={first.keep})'}; {first['train_examples']:,} training, "
        f"{first['valid_examples']:,} validation and {first['test_examples']:,} test examples, ranked among all items; "
        f"{first['cold_items']:,} items never trained on (split {first['split_fingerprint']}). "
        f"Encoder {first['encoder']}; backbone {', '.join(frame['backbone'].dropna().unique()) or 'none'}. "
        f"Mean ± sd over seeds {', '.join(map(str, sorted(frame['seed'].unique())))}; rules without training have "
        f"no seed. Learning rate {_values(frame, 'spec lr')}, at most {_values(frame, 'spec epochs')} epochs, "
        f"patience {_values(frame, 'spec patience')}, chosen by validation N@20 ({_values(frame, 'spec select')}).",
        f"Configuration: {_configuration(frame)}.",
    ]
    if first["notes"]:
        text.insert(2, first["notes"])
    for part, meaning in PARTS.items():
        columns = [f"{part} {name}" for name in METRICS]
        table = summary(frame, columns).rename(columns={f"{part} {name}": name for name in METRICS})
        text += [f"## Scoring {meaning}", markdown(table.reset_index())]
        compared = paired(frame, f"{part} N@10", reference)
        if len(compared):
            text += [f"N@10 against {reference}, paired over seeds (95% interval of the difference, t-test):",
                     markdown(compared.assign(p=["<0.0001" if p < 1e-4 else f"{p:.4f}" for p in compared["p"]])
                              .round({"difference": 4, "low": 4, "high": 4}))]
    columns = ["params_trainable", "params_total", "nullity", "best_epoch", "seconds_per_epoch",
               "seconds_per_evaluation"]
    costs = frame.groupby("method", sort=False)[[column for column in columns if column in frame]].median()
    text += ["## Cost (medians)", markdown(costs.round(2).reset_index())]
    content = "\n\n".join(text) + "\n"
    if str(folder):
        write_text(Path(folder) / "results.md", content)
        write_text(Path(folder) / "results.csv", frame.to_csv(index=False))
    return content


def _configuration(frame: pd.DataFrame) -> str:
    """Every other field of the trained runs' specs, with all the values that it takes."""
    said = {"data", "split", "keep", "encoder", "method", "backbone", "seed", "lr", "epochs", "patience", "select",
            "neighbours"}
    names = [column.removeprefix("spec ") for column in frame if column.startswith("spec ")]
    return ", ".join(f"{name} {_values(frame, f'spec {name}')}" for name in names
                     if name not in said and _values(frame, f"spec {name}") != "none")


def _values(frame: pd.DataFrame, column: str) -> str:
    trained = frame[frame["params_trainable"] > 0]
    values = ["none" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
              for value in trained[column].unique()]
    return " or ".join(value for value in values if value != "none" or len(values) == 1) or "-"


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value) -> str:
    if isinstance(value, float) and np.isnan(value):
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
