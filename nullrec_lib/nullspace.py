"""Where meaning ends: the spectrum of language embeddings, and its split into row space and null space.

Σ = Cov(E) = U S Uᵀ with S descending (AlphaFuse §3.2). S are eigenvalues of the covariance, that is
variances, so to standardise a direction is to divide by √S. Directions with large S are the *row space*, where
the texts differ; the rest is the *null space*, where an ID embedding can live without touching the meaning.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nullrec_lib.errors import InputError, shown
from nullrec_lib.kernels.covariance import covariance as moments
from nullrec_lib.machine import one_thread
from nullrec_lib.matrices import at_least_zero, finite, real, whole

STANDARDISE = ("all", "row", "none")
BASES = ("principal", "random")


@dataclass(frozen=True, eq=False)
class NullSpace:
    """A decomposition of language embeddings; `width` directions are kept, the last `nullity` are null space."""

    mean: np.ndarray
    """(d_l,) float64, weighted as asked."""
    basis: np.ndarray
    """(d_l, width) float64, orthonormal columns, row space first."""
    singular_values: np.ndarray
    """(width,) float64: variance along each column of `basis`, descending."""
    spectrum: np.ndarray
    """(d_l,) float64: all singular values of the covariance, descending, whatever the basis."""
    nullity: int
    full_nullity: int
    """Nullity by the same rule over all d_l directions."""
    gain: np.ndarray
    """(width,) float64: what `project` multiplies each direction with; 0 where it is exactly null."""

    @property
    def width(self) -> int:
        return self.basis.shape[1]

    @property
    def row_dim(self) -> int:
        """d_s: kept directions that carry frozen language."""
        return self.width - self.nullity

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """(n, d_l) any float → (n, width) float32: (E − μ) U, scaled by `gain`.

        Raises:
            InputError: a vector is beyond float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            made = ((np.asarray(embeddings, np.float64) - self.mean) @ self.basis * self.gain).astype(np.float32)
        return finite(made, "embeddings, projected")


def covariance(embeddings: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d_l,) and covariance (d_l, d_l) in float64 of embeddings (N, d_l), items weighted by `weights` (N,).

    The covariance is the population one (divides by the total weight), as popularity weights are not counts of
    independent samples.

    Raises:
        InputError: fewer than two items, embeddings that are not real, not finite, constant or of a size whose square
            float64 cannot hold, or bad weights.
    """
    rows = real(embeddings, "embeddings")
    if weights is not None:
        weights = real(weights, "weights")
        if 1e150 < float(weights.max(initial=0)) < np.inf:  # their sum may be beyond float64
            weights = weights / weights.max()
    with np.errstate(over="ignore", invalid="ignore"):
        mean, sigma = moments(rows, weights)
        # The mean of squared lengths is the trace plus the squared length of the mean.
        scale = max(np.trace(sigma) + mean @ mean, np.finfo(np.float64).tiny)
    if not np.isfinite(scale):
        raise InputError("embeddings: their squares are beyond float64; bring the rows to unit norm.")
    if not np.trace(sigma) > np.finfo(np.float64).eps * scale:
        raise InputError("embeddings: all rows are the same, or nearly, so there is no direction to decompose; give items texts of their own, "
                         "or embeddings as encoder.")
    return mean, sigma


def decompose(
    embeddings: np.ndarray,
    *,
    threshold: float | None = None,
    relative_threshold: float | None = None,
    null_dim: int | None = None,
    width: int | None = None,
    standardise: str = "all",
    basis: str = "principal",
    weights: np.ndarray | None = None,
    epsilon: float = 1e-9,
    seed: int = 22,
) -> NullSpace:
    """Split language embeddings (N, d_l) into row space and null space.

    Exactly one of three rules says where the null space starts:

    Args:
        threshold: directions with S ≤ threshold are null (AlphaFuse; on the *scaled* embeddings).
        relative_threshold: the same, with S relative to the mean variance of all d_l directions.
        null_dim: the last `null_dim` kept directions are null.
        width: d_s + d_n, directions kept ("clip"); all of them by default. Nullity is counted in the kept
            width (the authors' code counts it in the full width and applies it to the clipped one, which
            breaks).
        standardise: divide by √S in `all` kept directions (the authors' code), in the `row` space only (the
            paper's notes), or in `none`.
        basis: `principal`, or a `random` orthonormal one (the control), ordered by variance like the other.
        weights: (N,) item weights, such as training popularity; uniform by default.
        epsilon: directions with S_i ≤ epsilon·S_1 are exactly null: never divided by, they carry 0. Real texts
            leave such directions: rounding noise there would be blown up to the size of the rest.
        seed: of the random basis.

    Returns: the decomposition, made in float64. Both ends are legitimate: nullity 0 is frozen text, nullity =
        width is pure ID.

    Raises:
        InputError: no rule or several, a parameter out of range, or embeddings that cannot be decomposed.
    """
    rules = {"threshold": threshold, "relative_threshold": relative_threshold, "null_dim": null_dim}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"null space: give exactly one of {', '.join(rules)} (got {', '.join(given) or 'none'}).")
    for name, value, known in (("standardise", standardise, STANDARDISE), ("basis", basis, BASES)):
        if not isinstance(value, str) or value not in known:
            raise InputError(f"{name}: {shown(value)} is not one of {', '.join(known)}.")
    threshold, relative_threshold = (None if rules[name] is None else at_least_zero(rules[name], name)
                                     for name in ("threshold", "relative_threshold"))
    epsilon, seed = at_least_zero(epsilon, "epsilon"), whole(seed, "seed", 0)
    mean, sigma = covariance(embeddings, weights)
    full = len(mean)
    width = full if width is None else whole(width, "width", 1, full, f"the embeddings' {full} dimensions")
    if null_dim is not None:
        null_dim = whole(null_dim, "null_dim", 0, width, f"the {width} kept dimensions")

    # Beside other work on the same cores, threads of a small decomposition wait for each other for seconds.
    with one_thread() if full <= 1024 else nullcontext():
        values, vectors = np.linalg.eigh(sigma)
    spectrum, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # An eigenvector's sign is arbitrary: fix it, so that the same texts give the same table everywhere.
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(full)] < 0, -1.0, 1.0)
    S = spectrum
    if basis == "random":
        vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((full, full)))
        S = np.einsum("ij,ij->j", vectors, sigma @ vectors)
        order = np.argsort(-S, kind="stable")
        S, vectors = S[order], vectors[:, order]
    noise = epsilon * float(spectrum[0])
    if null_dim is not None:
        nullity, full_nullity = null_dim, null_dim + full - width
    else:
        limit = threshold if threshold is not None else relative_threshold * float(spectrum.mean())
        limit = max(limit, noise)  # below it is rounding noise
        nullity, full_nullity = int((S[:width] <= limit).sum()), int((S <= limit).sum())

    S, vectors = S[:width], np.ascontiguousarray(vectors[:, :width])
    alive = S > noise
    scaled = {"all": alive, "row": alive & (np.arange(width) < width - nullity), "none": np.zeros(width, bool)}
    gain = alive / np.sqrt(np.where(scaled[standardise], S, 1.0))
    return NullSpace(mean, vectors, S, spectrum, nullity, full_nullity, gain)


THRESHOLDS = (0.001, 0.01, 0.1, 0.25, 0.5)
"""The absolute thresholds that the papers sweep, on the covariance of scaled embeddings."""


def nullities(embeddings: np.ndarray, width: int, thresholds: tuple[float, ...] = THRESHOLDS) -> list[dict]:
    """Nullity at full and at kept `width` for each threshold, absolute and relative to the mean variance.

    Returns: rows with `rule` (`threshold` or `relative_threshold`), `value`, `full_nullity`, `nullity`.
    """
    rows = []
    for rule in ("threshold", "relative_threshold"):
        for value in thresholds:
            space = decompose(embeddings, width=width, **{rule: value})
            rows.append({"rule": rule, "value": value, "full_nullity": space.full_nullity, "nullity": space.nullity})
    return rows


def cosines(vectors: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Cosine similarity (n_pairs,) float64 of row pairs of vectors (N, d); zero rows give 0."""
    unit = _unit(vectors)
    blocks = range(0, max(1, len(pairs[0])), 10_000)  # two gathered copies of all pairs would be gigabytes
    ends = [(pairs[0][start : start + 10_000], pairs[1][start : start + 10_000]) for start in blocks]
    return np.concatenate([np.einsum("ij,ij->i", unit[left], unit[right]) for left, right in ends])


def random_pairs(n: int, count: int, seed: int = 22) -> tuple[np.ndarray, np.ndarray]:
    """`count` pairs of distinct rows out of n ≥ 2, drawn uniformly."""
    rng = np.random.default_rng(seed)
    left = rng.integers(n, size=count)
    return left, (left + rng.integers(1, n, size=count)) % n


def preservation(
    embeddings: np.ndarray, vectors: np.ndarray, neighbours: int = 10, sample: int = 2000, seed: int = 22
) -> dict[str, float | None]:
    """How much of the meaning of `embeddings` (N, d_l) survives in final item `vectors` (N, d).

    Frozen columns prove little, as the other columns may drown them: both measures look at whole vectors.

    Args:
        neighbours, sample: at least 1.

    Returns:
        neighbour_overlap: mean share of an item's nearest neighbours by cosine that stay among its nearest
            (over at most `sample` items; at most N-1 neighbours).
        cosine_rank_correlation: Spearman correlation of the two cosines over random pairs of items; None where
            one of them is constant.

    Raises:
        InputError: one is no matrix of real, finite numbers, they have different numbers of rows, or fewer than two.
    """
    neighbours, sample = whole(neighbours, "neighbours", 1), whole(sample, "sample", 1)
    before, after = _unit(embeddings, "embeddings"), _unit(vectors, "vectors")
    n = len(before)
    if n < 2 or n != len(after):
        raise InputError(f"embeddings and vectors: have {n:,} and {len(after):,} rows; give the same two or more items.")
    rows = np.random.default_rng(seed).permutation(n)[:sample]
    k = min(neighbours, n - 1)
    overlap = 0
    for block in np.array_split(rows, max(1, len(rows) * n // 4_000_000)):
        near = []
        for unit in (before, after):
            similarity = unit[block] @ unit.T
            similarity[np.arange(len(block)), block] = -np.inf
            near.append(np.argpartition(-similarity, k - 1, axis=1)[:, :k])
        overlap += sum(len(np.intersect1d(a, b)) for a, b in zip(*near))
    pairs = random_pairs(n, min(200_000, n * (n - 1)), seed)
    first, second = cosines(embeddings, pairs), cosines(vectors, pairs)
    # Spearman's correlation has no value where one side is constant (two items, or all equally far apart).
    known = np.ptp(first) > 1e-12 and np.ptp(second) > 1e-12
    return {
        "neighbour_overlap": overlap / (len(rows) * k),
        "cosine_rank_correlation": _rank_correlation(first, second) if known else None,
    }


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's. Importing scipy.stats for it would take a second of every process of a grid."""
    return float(np.corrcoef(pd.Series(a).rank(), pd.Series(b).rank())[0, 1])


def _unit(vectors: np.ndarray, place: str = "vectors") -> np.ndarray:
    """(N, d) float64 of unit norm; zero rows stay zero."""
    vectors = real(vectors, place).astype(np.float64)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise InputError(f"{place}: shape {vectors.shape} is not (N, d), a vector for each item.")
    size = np.abs(finite(vectors, place)).max(axis=1, keepdims=True)
    extreme = (size > 0) & ((size > 1e100) | (size < 1e-100))  # squares of these are beyond float64
    vectors /= np.where(extreme, size, 1)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)
