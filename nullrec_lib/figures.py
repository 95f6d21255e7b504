"""Show: every figure is a function, data in and Figure out. Nothing here reads a disk or trains a model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from nullrec_lib.files import atomic

COLUMN = 3.4  # inches: one column of a two-column paper
_STYLE = {
    "figure.dpi": 110, "savefig.dpi": 300, "savefig.bbox": "tight", "svg.fonttype": "none", "svg.hashsalt": "nullrec",
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.5,
}
_PALETTE = sns.color_palette("colorblind")


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Give a figure function the house style, and leave the caller's matplotlib settings alone."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with plt.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)  # shown by whoever gets it, once
        return figure

    return drawn


def save(figure: Figure, name: str, folder: str | Path) -> Figure:
    """Write `name`.png and `name`.svg into `folder`, or nothing where `folder` is empty; the figure comes back."""
    for kind in ("png", "svg") if str(folder) else ():
        with plt.rc_context(_STYLE), atomic(Path(folder) / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return figure


def _axes(columns: int = 1, height: float = 2.5, **options):
    width = COLUMN * (1 if columns == 1 else 0.8 * columns)
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", **options)


@_styled
def spectrum(
    values: np.ndarray, width: int, null_dim: int, thresholds: tuple[float, ...] = (), zero: float = 1e-9
) -> Figure:
    """Singular values of the covariance on a log axis, with the kept width, its null space and thresholds.

    Args:
        values: (d_l,) descending. Those at most `zero`·largest are drawn at the bottom: they are rounding.
        width, null_dim: the shaded null space is directions width-null_dim … width.
        thresholds: horizontal lines; S below a line is null space under that threshold.
    """
    figure, axes = _axes()
    alive = values > zero * values[0]
    floor = values[alive].min() / 3
    axes.semilogy(np.arange(1, len(values) + 1), np.where(alive, values, floor), color=_PALETTE[0], lw=1.4)
    if null_dim:
        label = f"null space of the kept {width}"
        axes.axvspan(width - null_dim + 0.5, width + 0.5, color=_PALETTE[1], alpha=0.25, lw=0, label=label)
    for threshold in thresholds:
        axes.axhline(threshold, color="0.5", lw=0.7, ls=":")
        axes.annotate(f"{threshold:g}", (len(values), threshold), fontsize=7, color="0.4", ha="right", va="bottom")
    if not alive.all():
        label = f"{(~alive).sum()} exactly null"
        axes.plot(np.flatnonzero(~alive) + 1, np.full((~alive).sum(), floor), color=_PALETTE[3], lw=2.5, label=label)
    axes.set(xlabel="direction", ylabel="variance S", xlim=(0, len(values) + 1))
    axes.legend(loc="lower left")
    return figure


@_styled
def similarity_histograms(cosines: dict[str, np.ndarray]) -> Figure:
    """Histograms of pairwise cosine similarity, one outline per name (AlphaFuse Fig. 4); dotted: the mean."""
    figure, axes = _axes(height=3)
    bins = np.linspace(-1, 1, 101)
    for colour, (name, values) in zip(_PALETTE, cosines.items()):
        mean = round(values.mean(), 2) + 0.0  # no minus before a zero
        axes.hist(values, bins=bins, density=True, histtype="step", lw=1.4, color=colour,
                  label=f"{name}: {mean:.2f} ± {values.std():.2f}")
        axes.axvline(values.mean(), color=colour, lw=0.8, ls=":")
    axes.set(xlabel="cosine similarity of two items", ylabel="density", xlim=(-0.6, 1))
    figure.legend(loc="outside upper left", title="mean ± sd", title_fontsize=8)
    return figure


@_styled
def maps(planes: dict[str, np.ndarray], colour: np.ndarray, label: str) -> Figure:
    """Item maps side by side: name → (N, 2) coordinates, points coloured by `colour` (N,).

    Whole numbers with at most 20 values are classes; anything else is a scale with its bar.
    """
    figure, axes = _axes(len(planes), height=2.9, squeeze=False)
    classes = np.issubdtype(colour.dtype, np.integer) and len(np.unique(colour)) <= 20
    for ax, (name, points) in zip(axes[0], planes.items()):
        drawn = ax.scatter(*points.T, c=colour, s=4, lw=0, cmap="tab20" if classes else "viridis", rasterized=True)
        ax.set(title=name, xticks=[], yticks=[])
        ax.grid(False)
    if not classes:
        figure.colorbar(drawn, ax=axes[0], label=label, shrink=0.8)
    return figure


@_styled
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
    figure, axes = _axes(len(columns), squeeze=False, sharey=log)
    for ax, (column, title) in zip(axes[0], columns.items()):
        sns.lineplot(frame, x="epoch", y=column, hue="method", errorbar="sd", palette="colorblind", lw=1.3, ax=ax,
                     legend=ax is axes[0][-1], err_kws={"alpha": 0.15, "lw": 0})
        ax.set(title=title, ylabel=label, yscale="log" if log else "linear")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    axes[0][-1].get_legend().remove()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


@_styled
def sweep(frame: pd.DataFrame, x: str, columns: dict[str, str], baseline: dict[str, float] | None = None) -> Figure:
    """Metrics against one parameter, mean ± sd over seeds (AlphaFuse Fig. 5c).

    Args:
        frame: one row per run, with `x` and the named columns.
        columns: column → label of its line.
        baseline: column → a value drawn as a dashed line in the same colour, such as Base's mean.
    """
    figure, axes = _axes()
    _lines(axes, frame, x, columns, baseline)
    axes.set(xlabel=x, ylabel="N@10")
    axes.legend()
    return figure


def _lines(ax, frame: pd.DataFrame, x: str, columns: dict[str, str], baseline: dict[str, float] | None) -> None:
    for colour, (column, label) in zip(_PALETTE, columns.items()):
        groups = frame.groupby(x)[column]
        mean, sd = groups.mean(), groups.std(ddof=1).fillna(0)
        ax.errorbar(mean.index, mean, sd, marker="o", ms=3, lw=1.3, capsize=2, color=colour, label=label)
        if baseline:
            ax.axhline(baseline[column], color=colour, lw=0.9, ls="--")


@_styled
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
    figure, axes = _axes(len(names), squeeze=False, sharex=True)
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


@_styled
def dots(frame: pd.DataFrame, columns: dict[str, str], by: str = "method", panel: str = "backbone",
         label: str = "N@10", log: bool = False) -> Figure:
    """One line per value of `by`, one panel per value of `panel`: mean (dot) and range over seeds (bar) of columns.
    Runs without a value of `panel`, such as rules without a backbone, stand in every panel.

    Args:
        columns: column → what its colour says.
        label: of the x axis; with `log` a logarithmic one.
    """
    names, panels = list(frame[by].unique()), list(frame[panel].dropna().unique())
    figure, axes = _axes(len(panels), height=1 + 0.18 * len(names), squeeze=False, sharey=True, sharex=log)
    shift = np.linspace(-0.15, 0.15, len(columns)) if len(columns) > 1 else [0]
    for ax, value in zip(axes[0], panels):
        for colour, offset, (column, said) in zip(_PALETTE, shift, columns.items()):
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


@_styled
def scatter(frame: pd.DataFrame, x: str, columns: dict[str, str], by: str, label: str | None = None) -> Figure:
    """N@10 against another measure, one mark per value of `by` (mean over seeds), one panel per column.

    Args:
        columns: column → title of its panel.
        label: of the x axis, if not `x`.
    """
    means = frame.groupby(by, sort=False)[[x, *columns]].mean()
    figure, axes = _axes(len(columns), height=3, squeeze=False, sharex=True)
    marks = "osD^v<>PX*hd"  # more than there are colours
    for ax, (column, title) in zip(axes[0], columns.items()):
        for place, (name, row) in enumerate(means.iterrows()):
            ax.plot(row[x], row[column], marks[place % len(marks)], ms=5, color=_PALETTE[place % len(_PALETTE)],
                    label=name)
        ax.set(title=title, xlabel=label or x)
    axes[0][0].set_ylabel("N@10")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


@_styled
def group_heatmap(
    frame: pd.DataFrame, part: str, groups: list[str], metric: str = "N@10", by: str = "method"
) -> Figure:
    """Rows × groups of users and items: the mean metric, coloured within each group from its worst to its best row.

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
    axes.set(xlabel="", ylabel="")
    axes.tick_params(length=0)
    axes.set_xticklabels(axes.get_xticklabels(), rotation=30, ha="right")
    return figure


@_styled
def sufficiency(frame: pd.DataFrame) -> Figure:
    """I_S from each embedding (rows) to each other (columns), with half the width of its interval below.

    Args:
        frame: `information.sufficiency.table`; where there is no ratio the field stays empty.
    """
    order = list(dict.fromkeys(frame["u"]))
    wide = frame.pivot(index="u", columns="v", values="isi").reindex(index=order, columns=order).astype(float)
    half = ((frame["isi high"] - frame["isi low"]).astype(float) / 2).where(frame["isi"].notna())
    half = frame.assign(half=half).pivot(index="u", columns="v", values="half").reindex(index=order, columns=order)
    text = wide.map("{:.2f}".format) + half.map("\n±{:.2f}".format)
    figure, axes = plt.subplots(figsize=(1.2 + 0.7 * len(order), 0.9 + 0.5 * len(order)), layout="constrained")
    sns.heatmap(wide, annot=text, fmt="", cmap="crest", vmin=0, vmax=1, linewidths=0.5, annot_kws={"fontsize": 7},
                cbar_kws={"label": "$I_S$"}, ax=axes)
    axes.set(xlabel="of (V)", ylabel="told by (U)")
    axes.tick_params(length=0, rotation=0)
    axes.grid(False)
    return figure


@_styled
def risks(frame: pd.DataFrame, label: str = "risk", known: float | None = None) -> Figure:
    """Learning curves of probes: risk against the rows that were fitted, one panel per probe, mean and range over seeds.

    Args:
        frame: `information.risk.curves`.
        known: a risk that is known, dashed: the least possible one, or that of knowing nothing.
    """
    probes = list(dict.fromkeys(frame["probe"]))
    figure, axes = _axes(len(probes), height=2.6, squeeze=False, sharey=True)
    for ax, probe in zip(axes[0], probes):
        for place, (view, some) in enumerate(frame[frame["probe"] == probe].groupby("view", sort=False)):
            of = some.groupby("fitted")["risk"]
            colour = _PALETTE[place % len(_PALETTE)]
            ax.plot(of.mean(), "o-", ms=3, color=colour, label=view)
            ax.fill_between(of.mean().index, of.min(), of.max(), color=colour, alpha=0.2, lw=0)
        if known is not None:
            ax.axhline(known, ls="--", lw=1, color="black")
        ax.set(title=probe, xlabel="rows fitted", xscale="log")
    axes[0][0].set_ylabel(label)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


@_styled
def calibration(frame: pd.DataFrame) -> Figure:
    """By how much an estimate of mutual information misses the truth, against the columns, one panel per kind of V.

    Args:
        frame: `information.calibration.against_truth`; rows without information are left out.
    """
    frame = frame[frame["truth"] > 0]
    figure, axes = _axes(frame["V"].nunique(), height=2.6, squeeze=False, sharey=True)
    for ax, (kind, some) in zip(axes[0], frame.groupby("V", sort=False)):
        for place, ((rows, rho), line) in enumerate(some.groupby(["rows", "rho"])):
            ax.plot(line["d"], 100 * line["share"], "o-", ms=3, color=_PALETTE[place % len(_PALETTE)],
                    label=f"{rows:,} rows, ρ = {rho:g}")
        ax.axhspan(-5, 5, color="black", alpha=0.08, lw=0)
        ax.set(title=kind, xlabel="columns of U and of V", xscale="log")
        ax.set_xticks(sorted(some["d"].unique()), [str(d) for d in sorted(some["d"].unique())])
        ax.minorticks_off()
    axes[0][0].set_ylabel("bias in % of the truth")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


@_styled
def convergence(frame: pd.DataFrame, rates: dict[str, float | None]) -> Figure:
    """A profile loop by round: how far profiles moved since the round before (left), how alike they are (right).

    Args:
        frame: `side`, `round`, `distance` (NaN in the first round), `homogenisation`; see `profiles.loop.Round`.
        rates: side → fitted geometric rate, told in the legend; None is not told.
    """
    figure, axes = _axes(2)
    for colour, (side, rows) in zip(_PALETTE, frame.groupby("side", sort=False)):
        rate = rates.get(side)
        label = f"{side}s" + (f": × {rate:.2f} per round" if rate is not None else "")
        axes[0].plot(rows["round"], rows["distance"], "o-", ms=4, lw=1.3, color=colour, label=label)
        axes[1].plot(rows["round"], rows["homogenisation"], "o-", ms=4, lw=1.3, color=colour)
    axes[0].set(title="distance to the round before", xlabel="round", ylabel="mean √(2 − 2cos)", yscale="log")
    axes[1].set(title="how alike profiles are", xlabel="round", ylabel="mean pairwise cosine")
    for ax in axes:
        ax.set_xticks(sorted(frame["round"].unique()))
    figure.legend(loc="outside right upper")
    return figure


@_styled
def rewards(histories: dict[str, pd.DataFrame], smooth: int = 5) -> Figure:
    """A policy's training by step: reward, how alike its candidates are, divergence from the writer before, and the
    share of groups in which all candidates are worth the same (these teach nothing).

    Args:
        histories: label → `step`, `user/reward`, `item/reward`, `user/alike`, `item/alike`, `kl` and
            `frac_reward_zero_std`; see `profiles.grpo.train`.
        smooth: steps of the running mean.
    """
    figure, axes = _axes(4, height=2.3)
    mean = lambda frame, name: frame[name].rolling(smooth, min_periods=1).mean()
    for colour, (label, frame) in zip(_PALETTE, histories.items()):
        for ax, name in zip(axes, ("reward", "alike")):
            for side, style in (("user", "-"), ("item", "--")):
                if f"{side}/{name}" in frame:
                    ax.plot(frame["step"], mean(frame, f"{side}/{name}"), style, lw=1.3, color=colour)
        for ax, name in zip(axes[2:], ("kl", "frac_reward_zero_std")):
            if name in frame:
                ax.plot(frame["step"], mean(frame, name), lw=1.3, color=colour, label=label if ax is axes[2] else None)
    titles = "reward (items dashed)", "mean pairwise cosine", "divergence", "groups without spread"
    for ax, title in zip(axes, titles):
        ax.set(title=title, xlabel="step")
    figure.legend(loc="outside lower center", ncols=max(1, len(histories)))
    return figure


@_styled
def overlaps(scores: np.ndarray) -> Figure:
    """How much of a history its neighbours share (Eq. 5): median and quartiles over users, by rank of the neighbour.

    Args:
        scores: (users, k), nearest first.
    """
    figure, ax = _axes(height=2.5)
    rank = np.arange(1, scores.shape[1] + 1)
    low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75), axis=0)
    ax.fill_between(rank, low, high, alpha=0.2, lw=0, color=_PALETTE[0], label="quartiles")
    ax.plot(rank, middle, "o-", ms=4, lw=1.3, color=_PALETTE[0], label="median")
    ax.set(xlabel="neighbour, nearest first", ylabel="share of the history", ylim=(0, None), xticks=rank)
    ax.legend()
    return figure


@_styled
def bench(frame: pd.DataFrame) -> Figure:
    """Fast variants of kernels: how many times as fast as plain PyTorch (left), and share of the ceiling (right).

    Args:
        frame: one row per bar, as `bench.report.speeds` makes it.
    """
    labels = [f"{row.case}  {row.shape}" for row in frame.itertuples()]
    figure, axes = _axes(2, height=0.8 + 0.17 * len(frame), sharey=True)
    place = np.arange(len(frame))
    # Where naive is the plain way, it stands in for it. Bars start at 1: to the left of it is slower.
    axes[0].barh(place, frame["over_plain"].fillna(frame["over_naive"]) - 1, left=1, color=_PALETTE[0])
    axes[0].axvline(1, color="0.3", lw=0.9)
    axes[0].set(xscale="log", xlabel="× plain PyTorch")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set_yticks(place, labels, fontsize=7)
    axes[0].invert_yaxis()
    axes[1].barh(place, 100 * frame["share_of_ceiling"], color=_PALETTE[2])
    axes[1].set(xlabel="% of the ceiling")
    return figure


def plane(vectors: np.ndarray, seed: int = 22, neighbours: int = 15) -> np.ndarray:
    """(N, d) → (N, 2) by UMAP on cosine distance, seeded (so single-threaded)."""
    from umap import UMAP  # compiles for seconds when imported

    return UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)
