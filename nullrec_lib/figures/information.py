"""What one embedding tells of another, and what predictors make of it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from nullrec_lib.figures.style import PALETTE, axes_row, styled


@styled
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


@styled
def risks(frame: pd.DataFrame, label: str = "risk", known: float | None = None) -> Figure:
    """Learning curves of probes: risk against the rows that were fitted, one panel per probe, mean and range over seeds.

    Args:
        frame: `information.risk.curves`.
        known: a risk that is known, dashed: the least possible one, or that of knowing nothing.
    """
    probes = list(dict.fromkeys(frame["probe"]))
    figure, axes = axes_row(len(probes), height=2.6, squeeze=False, sharey=True)
    for ax, probe in zip(axes[0], probes):
        for place, (view, some) in enumerate(frame[frame["probe"] == probe].groupby("view", sort=False)):
            of = some.groupby("fitted")["risk"]
            colour = PALETTE[place % len(PALETTE)]
            ax.plot(of.mean(), "o-", ms=3, color=colour, label=view)
            ax.fill_between(of.mean().index, of.min(), of.max(), color=colour, alpha=0.2, lw=0)
        if known is not None:
            ax.axhline(known, ls="--", lw=1, color="black")
        ax.set(title=probe, xlabel="rows fitted", xscale="log")
    axes[0][0].set_ylabel(label)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


@styled
def calibration(frame: pd.DataFrame) -> Figure:
    """By how much an estimate of mutual information misses the truth, against the columns, one panel per kind of V.

    Args:
        frame: `information.calibration.against_truth`; rows without information are left out.
    """
    frame = frame[frame["truth"] > 0]
    figure, axes = axes_row(frame["V"].nunique(), height=2.6, squeeze=False, sharey=True)
    for ax, (kind, some) in zip(axes[0], frame.groupby("V", sort=False)):
        for place, ((rows, rho), line) in enumerate(some.groupby(["rows", "rho"])):
            ax.plot(line["d"], 100 * line["share"], "o-", ms=3, color=PALETTE[place % len(PALETTE)],
                    label=f"{rows:,} rows, ρ = {rho:g}")
        ax.axhspan(-5, 5, color="black", alpha=0.08, lw=0)
        ax.set(title=kind, xlabel="columns of U and of V", xscale="log")
        ax.set_xticks(sorted(some["d"].unique()), [str(d) for d in sorted(some["d"].unique())])
        ax.minorticks_off()
    axes[0][0].set_ylabel("bias in % of the truth")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure
