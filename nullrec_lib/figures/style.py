"""The house style of figures, and how they are stored."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Callable

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from nullrec_lib.files import atomic

COLUMN = 3.4  # inches: one column of a two-column paper
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 300, "savefig.bbox": "tight", "svg.fonttype": "none", "svg.hashsalt": "nullrec",
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.5,
}
PALETTE = sns.color_palette("colorblind")


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Give a figure function the house style, and leave the caller's matplotlib settings alone."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)  # shown by whoever gets it, once
        return figure

    return drawn


def save(figure: Figure, name: str, folder: str | Path) -> Figure:
    """Write `name`.png and `name`.svg into `folder`, or nothing where `folder` is empty; the figure comes back."""
    for kind in ("png", "svg") if str(folder) else ():
        with plt.rc_context(STYLE), atomic(Path(folder) / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return figure


def axes_row(columns: int = 1, height: float = 2.5, **options):
    """A figure and its axes: one, as wide as a column of a paper, or `columns` side by side; `height` in inches."""
    width = COLUMN * (1 if columns == 1 else 0.8 * columns)
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", **options)
