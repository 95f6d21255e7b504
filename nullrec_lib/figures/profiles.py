"""Profiles: the loop by round, rewards by step, neighbours by rank."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nullrec_lib.figures.style import COLUMN, PALETTE, axes_row, styled


@styled
def convergence(frame: pd.DataFrame, rates: dict[str, float | None]) -> Figure:
    """A profile loop by round: how far profiles moved since the round before (left), how alike they are (right).

    Args:
        frame: `side`, `round`, `distance` (NaN in the first round), `homogenisation`; see `profiles.loop.Round`.
        rates: side → fitted geometric rate, told in the legend; None is not told.
    """
    figure, axes = axes_row(2, height=2.8)
    for colour, (side, rows) in zip(PALETTE, frame.groupby("side", sort=False)):
        rate = rates.get(side)
        label = f"{side}s" + (f": × {rate:.2f} per round" if rate is not None else "")
        axes[0].plot(rows["round"], rows["distance"], "o-", ms=4, lw=1.3, color=colour, label=label)
        axes[1].plot(rows["round"], rows["homogenisation"], "o-", ms=4, lw=1.3, color=colour)
    axes[0].set(title="to the round before", xlabel="round", ylabel="mean √(2 − 2cos)", yscale="log")
    axes[1].set(title="among profiles", xlabel="round", ylabel="mean cosine of pairs")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    for ax in axes:
        ax.set_xticks(sorted(frame["round"].unique()))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def rewards(histories: dict[str, pd.DataFrame], smooth: int = 5) -> Figure:
    """A policy's training by step. Above: each side's reward and its two terms, in a band of one standard deviation
    over candidates. Below: how alike two subjects' candidates are, divergence from the writer before, entropy, the share
    of candidates that were cut off, and that of groups in which all are worth the same (these teach nothing).

    Args:
        histories: label → `step`, and what of it there is: `{side}/{reward, collab, dist, alike}`, `{side}/... std`, `kl`,
            `entropy`, `completions/clipped_ratio`, `frac_reward_zero_std`; see `profiles.grpo.train`.
        smooth: steps of the running mean.
    """
    terms = {"reward": "reward", "collab": "near its subject (Eq. 10)", "dist": "far from neighbours (Eq. 11)"}
    rest = {"alike": "mean cosine of two subjects", "kl": "divergence", "entropy": "entropy",
            "completions/clipped_ratio": "cut off", "frac_reward_zero_std": "groups without spread"}
    figure, axes = plt.subplots(2, 4, figsize=(3.2 * COLUMN, 4.4), layout="constrained")
    axes = axes.ravel()
    mean = lambda frame, name: frame[name].rolling(smooth, min_periods=1).mean()
    for colour, (label, frame) in zip(PALETTE, histories.items()):
        for ax, name in zip(axes, [*terms, *rest]):
            for side, style in (("user/", "-"), ("item/", "--")) if name in terms or name == "alike" else (("", "-"),):
                if side + name not in frame:
                    continue
                line = mean(frame, side + name)
                ax.plot(frame["step"], line, style, lw=1.3, color=colour)
                if f"{side}{name} std" in frame:
                    about = mean(frame, f"{side}{name} std")
                    ax.fill_between(frame["step"], line - about, line + about, color=colour, alpha=0.1, lw=0)
        axes[0].plot([], [], lw=1.3, color=colour, label=label)
    for ax, title in zip(axes, [*terms.values(), *rest.values()]):
        ax.set(title=title, xlabel="step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].plot([], [], "--", lw=1.3, color="grey", label="items")
    figure.legend(loc="outside lower center", ncols=1 + len(histories))
    return figure


@styled
def overlaps(scores: np.ndarray) -> Figure:
    """How much of a history its neighbours share (Eq. 5): median and quartiles over users, by rank of the neighbour.

    Args:
        scores: (users, k), nearest first.
    """
    figure, ax = axes_row(height=2.5)
    rank = np.arange(1, scores.shape[1] + 1)
    low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75), axis=0)
    ax.fill_between(rank, low, high, alpha=0.2, lw=0, color=PALETTE[0], label="quartiles")
    ax.plot(rank, middle, "o-", ms=4, lw=1.3, color=PALETTE[0], label="median")
    ax.set(xlabel="neighbour, nearest first", ylabel="share of the history", ylim=(0, None), xticks=rank)
    ax.legend()
    return figure
