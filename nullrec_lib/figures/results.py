"""Scores: over epochs, over parameters, method by method, group by group."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nullrec_lib.figures.style import PALETTE, axes_row, styled

SAID = {"test": "all items, authors", "test_consistent": "all items, consistent", "test_sampled": "sampled items, authors",
        "test_consistent_sampled": "sampled items, consistent"}


@styled
def learning_curves(frame: pd.DataFrame, columns: dict[str, str], label: str = "N@20", log: bool = False) -> Figure:
    """Validation curves per method, mean over seeds, band ± 1 sd, up to the epoch at which its first seed stopped:
    beyond that, a mean over fewer seeds would jump.

    Args:
        frame: long, with `method`, `seed`, `epoch` and the named columns (`experiments.learning_curves`).
        columns: column → title, one panel each.
        label: of the y axis; with `log` a logarithmic one, the same in all panels.
    """
    last = frame.groupby(["method", "seed"])["epoch"].max().groupby("method").min()
    frame = frame[frame["epoch"] <= frame["method"].map(last)]
    figure, axes = axes_row(len(columns), squeeze=False, sharey=log)
    for ax, (column, title) in zip(axes[0], columns.items()):
        sns.lineplot(frame, x="epoch", y=column, hue="method", errorbar="sd", palette="colorblind", lw=1.3, ax=ax,
                     legend=ax is axes[0][-1], err_kws={"alpha": 0.15, "lw": 0})
        ax.set(title=title, ylabel=label, yscale="log" if log else "linear")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0][-1].get_legend_handles_labels()
    axes[0][-1].get_legend().remove()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


@styled
def sweep(frame: pd.DataFrame, x: str, columns: dict[str, str], baseline: dict[str, float] | None = None) -> Figure:
    """Metrics against one parameter, mean ± sd over seeds (AlphaFuse Fig. 5c).

    Args:
        frame: one row per run, with `x` and the named columns.
        columns: column → label of its line.
        baseline: column → a value drawn as a dashed line in the same colour, such as Base's mean.
    """
    figure, axes = axes_row()
    _lines(axes, frame, x, columns, baseline)
    axes.set(xlabel=x, ylabel="N@10")
    axes.legend()
    return figure


def _lines(ax, frame: pd.DataFrame, x: str, columns: dict[str, str], baseline: dict[str, float] | None) -> None:
    for colour, (column, label) in zip(PALETTE, columns.items()):
        groups = frame.groupby(x)[column]
        mean, sd = groups.mean(), groups.std(ddof=1).fillna(0)
        ax.errorbar(mean.index, mean, sd, marker="o", ms=3, lw=1.3, capsize=2, color=colour, label=label)
        if baseline:
            ax.axhline(baseline[column], color=colour, lw=0.9, ls="--")


@styled
def sweeps(frame: pd.DataFrame, x: str, columns: dict[str, str], base: pd.DataFrame, panel: str = "case",
           label: str | None = None, nullity: bool = False, log: bool = False) -> Figure:
    """`sweep` for several settings side by side, each with its own base (dashed).

    Args:
        frame, base: one row per run, with `panel` (one panel per value), the columns, and in `frame` `x`.
        label: of the x axis, if not `x`.
        nullity: show the column `nullity` in grey on an axis of its own.
        log: a logarithmic x axis, with ticks at the values that were run.
    """
    names = list(frame[panel].unique())
    figure, axes = axes_row(len(names), squeeze=False, sharex=True)
    for ax, name in zip(axes[0], names):
        runs, means = frame[frame[panel] == name], base[base[panel] == name]
        _lines(ax, runs, x, columns, {column: means[column].mean() for column in columns})
        ax.set(title=name, xlabel=label or x)
        if log:
            ticks = sorted(frame[x].unique())
            ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
            ax.set_xticks([], minor=True)
        if nullity:
            right = ax.twinx()
            right.plot(runs.groupby(x)["nullity"].first(), color="0.6", lw=1, ls=":", marker="s", ms=2.5, zorder=0)
            right.set_ylim(0, 1.05 * frame["nullity"].max())
            right.spines["right"].set(visible=True, color="0.6")
            right.tick_params(axis="y", colors="0.5")
            right.grid(False)
    if nullity:
        right.set_ylabel("nullity (dotted)", color="0.5")
    axes[0][0].set_ylabel("N@10")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=len(columns))
    return figure


@styled
def dots(frame: pd.DataFrame, columns: dict[str, str], by: str = "method", panel: str = "backbone",
         label: str = "N@10", log: bool = False) -> Figure:
    """One line per value of `by`, one panel per value of `panel`: mean (dot) and range over seeds (bar) of columns.
    Runs without a value of `panel`, such as rules without a backbone, stand in every panel.

    Args:
        columns: column → what its colour says.
        label: of the x axis; with `log` a logarithmic one.
    """
    names, panels = list(frame[by].unique()), list(frame[panel].dropna().unique())
    figure, axes = axes_row(len(panels), height=1 + 0.18 * len(names), squeeze=False, sharey=True, sharex=log)
    shift = np.linspace(-0.15, 0.15, len(columns)) if len(columns) > 1 else [0]
    for ax, value in zip(axes[0], panels):
        for colour, offset, (column, said) in zip(PALETTE, shift, columns.items()):
            groups = frame[frame[panel].isna() | (frame[panel] == value)].groupby(by)[column]
            mean, low, high = groups.mean(), groups.min(), groups.max()
            place = np.array([names.index(name) for name in mean.index]) + offset
            ax.hlines(place, low, high, color=colour, lw=1.2)
            ax.plot(mean, place, "o", ms=4, color=colour, label=said)
        ax.set(title=value, xlabel=label)
        if log:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=len(columns))
    return figure


@styled
def scatter(frame: pd.DataFrame, x: str, columns: dict[str, str], by: str, label: str | None = None) -> Figure:
    """N@10 against another measure, one mark per value of `by` (mean over seeds), one panel per column.

    Args:
        columns: column → title of its panel.
        label: of the x axis, if not `x`.
    """
    means = frame.groupby(by, sort=False)[[x, *columns]].mean()
    figure, axes = axes_row(len(columns), height=3, squeeze=False, sharex=True)
    marks = "osD^v<>PX*hd"  # more than there are colours
    for ax, (column, title) in zip(axes[0], columns.items()):
        for place, (name, row) in enumerate(means.iterrows()):
            ax.plot(row[x], row[column], marks[place % len(marks)], ms=5, color=PALETTE[place % len(PALETTE)],
                    label=name)
        ax.set(title=title, xlabel=label or x)
    axes[0][0].set_ylabel("N@10")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


@styled
def group_heatmap(
    frame: pd.DataFrame, part: str, groups: list[str], metric: str = "N@10", by: str = "method"
) -> Figure:
    """Rows × groups of users and items: the mean metric, coloured within each group from its worst (light) to its best
    row.

    Args:
        frame: one row per run, with columns `<part> <metric>` and `<part> <group> <metric>`.
    """
    columns = {f"{part} {metric}": "overall"}
    columns |= {f"{part} {group} {metric}": group.replace("_", " ") for group in groups}
    values = frame[list(columns)].astype(float).dropna(axis=1, how="all")  # a group may have no example
    mean = values.groupby(frame[by], sort=False).mean().rename(columns=columns)
    low, high = mean.min(), mean.max()
    shade = (mean - low) / (high - low).where(high > low, 1)
    figure, axes = plt.subplots(figsize=(1 + 0.62 * mean.shape[1], 0.9 + 0.22 * len(mean)), layout="constrained")
    sns.heatmap(shade, annot=mean, fmt=".3f", cmap="crest", cbar=False, linewidths=0.5, annot_kws={"fontsize": 7},
                ax=axes)
    axes.set(xlabel="", ylabel="", title=f"{metric} among {SAID.get(part, part)}")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_xticklabels(axes.get_xticklabels(), rotation=30, ha="right")
    return figure
