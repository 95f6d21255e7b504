"""What was timed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nullrec_lib.figures.style import PALETTE, axes_row, styled


@styled
def bench(frame: pd.DataFrame) -> Figure:
    """Fast variants of kernels: how many times as fast as plain PyTorch (left), and share of the ceiling (right).

    Args:
        frame: one row per bar, as `bench.report.speeds` makes it.
    """
    labels = [f"{row.case}  {row.shape}" for row in frame.itertuples()]
    figure, axes = axes_row(2, height=0.8 + 0.17 * len(frame), sharey=True)
    place = np.arange(len(frame))
    # Where naive is the plain way, it stands in for it. Bars start at 1: to the left of it is slower.
    axes[0].barh(place, frame["over_plain"].fillna(frame["over_naive"]) - 1, left=1, color=PALETTE[0])
    axes[0].axvline(1, color="0.3", lw=0.9)
    axes[0].set(xscale="log", xlabel="× plain (or naive) PyTorch")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set_yticks(place, labels, fontsize=7)
    axes[0].invert_yaxis()
    axes[1].barh(place, 100 * frame["share_of_ceiling"], color=PALETTE[2])
    axes[1].set(xlabel="% of the ceiling")
    return figure
