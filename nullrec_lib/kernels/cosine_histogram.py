"""How the cosine similarities of all pairs of items are spread (AlphaFuse Fig. 4), without N × N numbers."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.dispatch import choose

MOST_BINS = 1024
"""A program on a GPU holds all bins at once."""


def cosine_histogram_naive(vectors: Tensor, bins: int = 100) -> Tensor:
    """The reference of `cosine_histogram`: all N × N cosines, and those above the diagonal counted."""
    unit = unit_rows(vectors)
    cosines = (unit @ unit.T)[torch.ones(len(unit), len(unit), dtype=torch.bool, device=unit.device).triu(1)]
    places = (cosines.double() * (bins / 2) + bins / 2).floor().long().clamp(0, bins - 1)
    return torch.bincount(places, minlength=bins)


def cosine_histogram(vectors: Tensor, bins: int = 100, impl: str = "auto") -> Tensor:
    """Counts (bins,) int64, on the device of `vectors`, of the cosines of all N(N-1)/2 unordered
    pairs of distinct rows.

    Bin b holds -1 + 2b/bins ≤ cosine < -1 + 2(b+1)/bins, the last one also 1; rounding beyond ±1 counts as ±1. A zero
    row has cosine 0 with everything. Products are made in float32: a cosine within 10⁻⁶ of an edge may be counted on
    the other side of it. Memory beyond the vectors: one normalised float32 copy and one tile of cosines.

    Args:
        vectors: (N, d) of any float type, N of at least 2, d of at least 1.
        bins: 1…1024 equal bins over [-1, 1].
        impl: see `dispatch.choose`.

    Raises:
        InputError: another shape or type, a row that is not finite, or a bad number of bins.
    """
    if vectors.ndim != 2 or len(vectors) < 2 or vectors.shape[1] < 1 or not vectors.is_floating_point():
        shape = tuple(vectors.shape)
        raise InputError(f"vectors: {vectors.dtype} of shape {shape} is not (N, d) floats, N at least 2.")
    if not isinstance(bins, Integral) or not 1 <= bins <= MOST_BINS:
        raise InputError(f"bins: {bins!r} is not a whole number in 1…{MOST_BINS}.")
    impl = choose(impl, vectors)
    if impl == "naive":
        return cosine_histogram_naive(vectors, bins)
    if impl == "cpu":
        from nullrec_lib.kernels.cosine_histogram_cpu import count
    else:
        from nullrec_lib.kernels.cosine_histogram_gpu import count
    return count(unit_rows(vectors), bins)


def unit_rows(vectors: Tensor) -> Tensor:
    """(N, d) float → (N, d) float32, contiguous: rows of length 1, zero rows as they are.

    Raises:
        InputError: a row is not finite.
    """
    # float64 stays for now: its numbers may be beyond float32's range.
    vectors = vectors.detach() if vectors.dtype == torch.float64 else vectors.detach().float()
    largest = vectors.abs().amax(dim=1, keepdim=True)  # NaN and infinity come through
    if not largest.isfinite().all():
        raise InputError(f"vectors: row {int(largest.isfinite().int().argmin())} is not finite.")
    # By the largest entry first, so that no square leaves the range of its type.
    scaled = (vectors / largest.masked_fill(largest == 0, 1)).float()
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled.div_(norm.masked_fill_(norm == 0, 1)).contiguous()
