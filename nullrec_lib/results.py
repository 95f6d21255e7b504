"""Tables of stored runs. Nothing here trains: frames come from `experiments.stored`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from nullrec_lib.backbones import WIDTHS
from nullrec_lib.files import write_text
from nullrec_lib.statistics import RESAMPLES, against

METRICS = ("R@10", "N@10", "M@10", "R@20", "N@20", "M@20")
PARTS = {
    "test": "authors: raw dot product, nothing masked",
    "test_consistent": "consistent: the similarity trained with, the user's earlier items masked",
    "test_sampled": "authors, each target only among itself and 100 sampled items that its user never touched",
    "test_consistent_sampled": "consistent, each target only among itself and the same sampled items",
}
"""Prefix of the metric columns → what the scoring protocol is. The sampled ones are leave-one-out's."""

GROUPS = ("tail_item", "head_item", "tail_user", "head_user", "tail_user_tail_item", "tail_user_head_item",
          "head_user_tail_item", "head_user_head_item", "cold_item", "new_item", "repeated_item")


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


def paired(frame: pd.DataFrame, column: str, reference: str = "base", by: str = "method") -> pd.DataFrame:
    """Each row against `reference`, seed by seed: mean difference, 95% interval and p of a paired t-test.

    Seeds that only one of the two has are left out. With fewer than two shared seeds there is no test, and no
    row.
    """
    _one_run_per_seed(frame, by)
    wide = frame.pivot(index="seed", columns=by, values=column)
    rows = []
    for name in [name for name in frame[by].unique() if name != reference and reference in wide]:
        both = wide[[name, reference]].dropna()
        if len(both) < 2:
            continue
        test = ttest_rel(both[name], both[reference])
        low, high = test.confidence_interval(0.95)
        rows.append({by: name, "difference": float(np.mean(both[name] - both[reference])), "low": low,
                     "high": high, "p": test.pvalue, "seeds": len(both)})
    return pd.DataFrame(rows)


def _one_run_per_seed(frame: pd.DataFrame, by: str) -> None:
    """ValueError where several runs share `by` and seed: two configurations are not two seeds of one."""
    twice = frame.duplicated([by, "seed"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{by} {row[by]} has several runs with seed {row['seed']}: group by what tells them apart.")


def report(
    frame: pd.DataFrame,
    folder: str | Path,
    reference: str | None = None,
    ranks: dict[str, dict[str, np.ndarray]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The table of `frame` (`experiments.stored`) as Markdown, with what it needs to be read: data, split, seeds.

    Writes `results.csv` (one row per run) and `results.md` into `folder`, or nothing where `folder` is empty.

    Args:
        frame: its rows are told apart by the column `label` if there is one, else by `method`.
        reference: the row that others are compared with: seed by seed where there are no `ranks` (None: base), else as
            `statistics.against` does (None: each row with its best rival).
        ranks: `experiments.stored_ranks` of the same runs.
        notes: said above the tables, one line each.
    """
    first = frame.iloc[0]
    by = "label" if "label" in frame else "method"
    backbones = list(frame["backbone"].dropna().unique())
    rivals = pd.DataFrame() if ranks is None else against(frame, ranks, by=by, reference=reference)
    text = [
        f"# {', '.join([first['data'], first['split'], *(backbones if by == 'label' else [])])}",
        f"{first['n_users']:,} users, {first['n_items']:,} items, {first['n_interactions']:,} interactions"
        f"{'' if pd.isna(first['keep']) else f' (keep={first.keep})'}; {first['train_examples']:,} training, "
        f"{first['valid_examples']:,} validation and {first['test_examples']:,} test examples, ranked among all items; "
        f"{first['cold_items']:,} items never trained on (split {first['split_fingerprint']}). "
        f"Encoder {_encoders(frame)}; backbone {', '.join(backbones) or 'none'}. " + (
        f"Mean ± sd over seeds {', '.join(map(str, sorted(frame['seed'].unique())))}; rules without training have "
        f"no seed. Learning rate {_values(frame, 'spec lr')}, at most {_values(frame, 'spec epochs')} epochs, "
        f"patience {_values(frame, 'spec patience')}, chosen by validation N@20 ({_values(frame, 'spec select')})."
        if backbones else "Rules without training have no seed."),
    ]
    if backbones:
        text.append(f"Configuration: {_configuration(frame, by)}.")
    if "threshold tail_user" in frame:
        text.append(f"Tail users have fewer than {first['threshold tail_user']} interactions before the target, tail "
                    f"items fewer than {first['threshold tail_item']} training interactions; cold items have none.")
    if again := _counts(frame, "test").get("repeated_item"):
        text.append(
            f"{again:,} test targets ({again / first['test_examples']:.1%}) are items that the user has had before. Scored "
            "`consistent`, such a target is the only earlier item that competes, so that a model which ranks what a user had "
            "is given it: there compare models by their figures of new items.")
    if first["notes"]:
        text.insert(2, first["notes"])
    if notes:
        text.append("\n".join(f"- {note}" for note in notes))
    if len(rivals):
        text.append(
            (f"Comparisons with {reference}. " if reference else "Comparisons with the best rival: the other row with the "
             "highest mean, chosen on these same test figures. ") +
            f"Paired t-test over shared seeds, and bootstrap over test users ({RESAMPLES:,} resamples of whole users, "
            f"examples averaged over seeds); 95% intervals of the difference. Both p-values are followed by Holm's "
            f"correction over this table (all rows, metrics and scoring protocols): the bootstrap's for the "
            f"{len(rivals)} comparisons, the t-test's for the {int(rivals['t_p'].notna().sum())} of two trained rows.")
    for part, meaning in [(part, meaning) for part, meaning in PARTS.items() if f"{part} N@10" in frame]:
        columns = [f"{part} {name}" for name in METRICS]
        table = summary(frame, columns, by).rename(columns={f"{part} {name}": name for name in METRICS})
        text += [f"## Scoring {meaning}", markdown(table.reset_index())]
        if len(rivals):
            text += [f"Against {reference or 'the best rival'}:", markdown(_told(rivals[rivals["part"] == part], by, reference))]
        compared = paired(frame, f"{part} N@10", reference or "base", by) if ranks is None else ()
        if len(compared):
            text += [f"N@10 against {reference or 'base'}, paired over seeds (95% interval of the difference, t-test):",
                     markdown(compared.assign(p=[_p(p) for p in compared["p"]])
                              .round({"difference": 4, "low": 4, "high": 4}))]
        text += [f"By group, {metric}:\n\n{markdown(by_group(frame, part, metric, by))}"
                 for metric in (("R@10", "N@10") if "sampled" in part else ("N@10",)) if f"{part} cold_item n" in frame]
    columns = ["params_trainable", "params_total", "nullity", "best_epoch", "seconds_per_epoch",
               "seconds_per_evaluation"]
    costs = frame.groupby(by, sort=False)[[column for column in columns if column in frame]].median()
    text += ["## Cost (medians)", markdown(costs.round(2).reset_index())]
    content = "\n\n".join(text) + "\n"
    if str(folder):
        write_text(Path(folder) / "results.md", content)
        write_text(Path(folder) / "results.csv", frame.to_csv(index=False))
    return content


def by_group(frame: pd.DataFrame, part: str, metric: str, by: str = "method") -> pd.DataFrame:
    """Mean ± sd of a metric in each of `GROUPS` that holds some examples and not all, one row per value of `by`; the
    number of examples in the header."""
    counts = _counts(frame, part)
    columns = {f"{part} {group} {metric}": f"{group.replace('_', ' ')} ({n:,})" for group, n in counts.items()
               if 0 < n < _ranked(frame, part)}
    return summary(frame, list(columns), by).drop(columns="seeds").rename(columns=columns).reset_index()


def _ranked(frame: pd.DataFrame, part: str) -> int:
    """Examples that a part's figures count: sampled ones leave out users who have touched nearly all items."""
    left_out = frame["sampled_left_out"].max() if "sampled" in part and "sampled_left_out" in frame else 0
    return int(frame["test_examples"].iloc[0] - left_out)


def _counts(frame: pd.DataFrame, part: str) -> dict[str, int]:
    """Examples of each group that all runs of `frame` know: older ones know fewer."""
    known = {group: f"{part} {group} n" for group in GROUPS}
    return {group: int(frame[n].iloc[0]) for group, n in known.items() if n in frame and frame[n].notna().all()}


def _told(rivals: pd.DataFrame, by: str, reference: str | None) -> pd.DataFrame:
    """Comparisons as a person reads them."""
    def interval(low, high):
        return ["-" if np.isnan(a) else f"{a:+.4f} … {b:+.4f}" for a, b in zip(rivals[low], rivals[high], strict=True)]

    return pd.DataFrame({
        by: rivals[by], "metric": rivals["metric"], **({} if reference else {"best rival": rivals["rival"]}),
        "difference": [f"{value:+.4f}" for value in rivals["difference"]], "seeds": rivals["seeds"],
        "95% (t)": interval("t_low", "t_high"), "p (t)": rivals["t_p"].map(_p), "Holm (t)": rivals["t_p_holm"].map(_p),
        "95% (bootstrap)": interval("low", "high"), "p (bootstrap)": rivals["p"].map(_p),
        "Holm (bootstrap)": rivals["p_holm"].map(_p),
    })


def _p(p: float) -> str:
    return "-" if np.isnan(p) else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _encoders(frame: pd.DataFrame) -> str:
    """Those of the rows that read texts; a rule's spec names one that nothing looks at."""
    reads = frame[frame["spec encoder"].notna()] if "spec encoder" in frame else frame
    return ", ".join(reads["encoder"].unique()) or "none"


def _configuration(frame: pd.DataFrame, by: str) -> str:
    """Every other field of the trained runs' specs, with all the values that it takes, and whose they are unless all rows
    have it."""
    said = {"data", "split", "keep", "encoder", "method", "backbone", "seed", "lr", "epochs", "patience", "select",
            "neighbours"}
    # A reader of the table cannot look up what the backbone takes where no width is asked for.
    asked = pd.to_numeric(frame["spec width"]).fillna(pd.to_numeric(frame["backbone"].map(WIDTHS)))
    frame = frame.assign(**{"spec width": asked})
    names = [column.removeprefix("spec ") for column in frame if column.startswith("spec ")]
    told = {name: _values(frame, f"spec {name}", by) for name in names if name not in said}
    return ", ".join(f"{name} {values}" for name, values in told.items() if values != "-")


def _values(frame: pd.DataFrame, column: str, by: str | None = None) -> str:
    trained = frame[frame["params_trainable"] > 0]
    found = []
    for value in trained[column].dropna().unique():
        rows = trained[by][trained[column] == value].unique() if by else []
        whose = f" ({', '.join(rows)})" if by and len(rows) < trained[by].nunique() else ""
        found.append((f"{value:g}" if isinstance(value, float) else str(value)) + whose)
    return " or ".join(found) or "-"


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
