"""Embeddings as they lie: spectra, similarities, maps."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from nullrec_lib.figures.style import PALETTE, axes_row, styled


@styled
def spectrum(
    values: np.ndarray, width: int, null_dim: int, thresholds: tuple[float, ...] = (), zero: float = 1e-9
) -> Figure:
    """Singular values of the covariance on a log axis, with the kept width, its null space and thresholds.

    Args:
        values: (d_l,) descending. Those at most `zero`·largest are drawn at the bottom: they are rounding.
        width, null_dim: the shaded null space is directions width-null_dim … width.
        thresholds: horizontal lines; S below a line is null space under that threshold.
    """
    figure, axes = axes_row()
    alive = values > zero * values[0]
    floor = values[alive].min() / 3
    axes.semilogy(np.arange(1, len(values) + 1), np.where(alive, values, floor), color=PALETTE[0], lw=1.4)
    if null_dim:
        label = f"null space of the kept {width}"
        axes.axvspan(width - null_dim + 0.5, width + 0.5, color=PALETTE[1], alpha=0.25, lw=0, label=label)
    for threshold in thresholds:
        axes.axhline(threshold, color="0.5", lw=0.7, ls=":")
        axes.annotate(f"{threshold:g}", (len(values), threshold), fontsize=7, color="0.4", ha="right", va="bottom")
    if not alive.all():
        label = f"{(~alive).sum()} exactly null"
        axes.plot(np.flatnonzero(~alive) + 1, np.full((~alive).sum(), floor), color=PALETTE[3], lw=2.5, label=label)
    axes.set(xlabel="direction", ylabel="variance S", xlim=(0, len(values) + 1))
    axes.legend(loc="lower left")
    return figure


@styled
def similarity_histograms(cosines: dict[str, np.ndarray]) -> Figure:
    """Histograms of pairwise cosine similarity, one outline per name (AlphaFuse Fig. 4); dotted: the mean."""
    figure, axes = axes_row(height=3)
    bins = np.linspace(-1, 1, 101)
    for colour, (name, values) in zip(PALETTE, cosines.items()):
        mean = round(values.mean(), 2) + 0.0  # no minus before a zero
        axes.hist(values, bins=bins, density=True, histtype="step", lw=1.4, color=colour,
                  label=f"{name}: {mean:.2f} ± {values.std():.2f}")
        axes.axvline(values.mean(), color=colour, lw=0.8, ls=":")
    axes.set(xlabel="cosine similarity of two items", ylabel="density", xlim=(-0.6, 1))
    figure.legend(loc="outside upper left", title="mean ± sd", title_fontsize=8)
    return figure


@styled
def maps(planes: dict[str, np.ndarray], colour: np.ndarray, label: str) -> Figure:
    """Item maps side by side: name → (N, 2) coordinates, points coloured by `colour` (N,).

    Whole numbers with at most 20 values are classes; anything else is a scale with its bar.
    """
    figure, axes = axes_row(len(planes), height=2.9, squeeze=False)
    classes = np.issubdtype(colour.dtype, np.integer) and len(np.unique(colour)) <= 20
    for ax, (name, points) in zip(axes[0], planes.items()):
        drawn = ax.scatter(*points.T, c=colour, s=4, lw=0, cmap="tab20" if classes else "viridis", rasterized=True)
        ax.set(title=name, xticks=[], yticks=[])
        ax.grid(False)
    if not classes:
        figure.colorbar(drawn, ax=axes[0], label=label, shrink=0.8)
    return figure


def plane(vectors: np.ndarray, seed: int = 22, neighbours: int = 15) -> np.ndarray:
    """(N, d) → (N, 2) by UMAP on cosine distance, seeded (so single-threaded)."""
    from umap import UMAP  # compiles for seconds when imported

    return UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)

