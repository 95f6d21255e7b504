"""Mean and covariance of many rows in float64, block by block: no float64 copy of all of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nullrec_lib.errors import InputError

BLOCK = 2048
"""Rows at a time: enough for the matrix product to run at full speed."""

Array = np.ndarray | Tensor


def covariance_naive(embeddings: Array, weights: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The reference of `covariance`: the textbook formula on a full float64 copy."""
    E = np.asarray(embeddings, np.float64)
    w = np.full(len(E), 1 / len(E)) if weights is None else np.asarray(weights, np.float64)
    w = w / w.sum()
    mean = w @ E
    return mean, ((E - mean) * w[:, None]).T @ (E - mean)


def covariance(embeddings: Array, weights: Array | None = None, block: int = BLOCK) -> tuple[Array, Array]:
    """Mean (d,) and population covariance (d, d), float64, of embeddings (N, d), rows weighted by `weights` (N,).

    Two passes over the rows: the mean, then the products of centred rows, with what the first pass missed of the mean
    taken off at the end (Chan, Golub and LeVeque 1983): accurate to float64 even where the mean is far larger than
    the spread. Memory beyond the input is O(block·d + d²), so the rows may be a memory-mapped file.

    There is no Triton kernel: nearly all the time goes into float64 matrix products, and on a GPU too the library's
    product, called here block by block, already runs at the hardware's limit.

    Args:
        embeddings: any real number type; read block by block, and not changed.
        weights: finite, not negative, with a positive sum; uniform by default.
        block: rows at a time; changes the last digits only.

    Returns: tensors on the device of `embeddings` if that is a tensor, else arrays.

    Raises:
        InputError: fewer than two rows, a row that is not finite, or bad weights.
    """
    rows = embeddings.detach() if isinstance(embeddings, Tensor) else np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) < 2:
        raise InputError(f"embeddings: shape {tuple(rows.shape)} is not (N, d) with N of at least 2.")
    if isinstance(rows, Tensor) and rows.device.type == "cpu" and rows.dtype != torch.bfloat16:
        # NumPy's product of a matrix with its own transpose makes one half only; torch's makes both.
        return tuple(torch.from_numpy(part) for part in covariance(rows.numpy(), weights, block))
    w = None if weights is None else _shares(weights, rows)
    mean = _mean(rows, w, block)
    sigma, missed = 0.0, 0.0
    for start in range(0, len(rows), block):
        centred = rows[start : start + block] - mean
        if w is None:
            missed += centred.sum(0) / len(rows)
        else:
            missed += w[start : start + block] @ centred
            centred *= w[start : start + block, None] ** 0.5
        sigma += centred.T @ centred
    if w is None:
        sigma /= len(rows)
    return mean + missed, sigma - missed[:, None] * missed


def _shares(weights: Array, rows: Array) -> Array:
    """(N,) float64 of the kind of `rows`, with sum 1."""
    if isinstance(weights, Tensor):
        weights = weights.detach().cpu()
    w = np.asarray(weights, np.float64)
    if w.shape != (len(rows),) or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise InputError(f"weights: need {len(rows)} finite, non-negative numbers with a positive sum.")
    w = w / w.sum()
    return torch.from_numpy(w).to(rows.device) if isinstance(rows, Tensor) else w


def _mean(rows: Array, w: Array | None, block: int) -> Array:
    """(d,) float64, up to rounding; refuses rows that are not finite."""
    float64, finite = (torch.float64, torch.isfinite) if isinstance(rows, Tensor) else (np.float64, np.isfinite)
    mean = 0.0
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        # Summed before weighing: a sum is not finite where one of its terms is not, whatever its weight.
        with np.errstate(invalid="ignore", over="ignore"):
            total = part.sum(0, dtype=float64)
        if not finite(total).all():
            for place, row in enumerate(part):  # large numbers may have a sum beyond float64 and be finite
                if not finite(row).all():
                    raise InputError(f"embeddings: row {start + place} is not finite.")
        if w is None:
            mean += total / len(rows)
        else:
            mean += w[start : start + block] @ (part.double() if isinstance(part, Tensor) else part.astype(float64))
    return mean
