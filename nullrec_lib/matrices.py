"""Numbers that callers give: arrays of real ones, whole ones in a range, ones from 0 on; everything else is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from nullrec_lib.errors import InputError, shown


def real(rows: Any, place: str) -> np.ndarray:
    """An array or a tensor as an array of real numbers, of any shape; mostly without a copy.

    Args:
        rows: whole numbers and booleans too. Tensors of types that numpy does not know become float32, and what is wider
            than float64 becomes that.
        place: what errors call it.

    Raises:
        InputError: it holds no real numbers, or rows of different lengths.
    """
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu()
        known = rows.dtype in (torch.float16, torch.float32, torch.float64) or not rows.is_floating_point()
        rows = (rows if known else rows.float()).numpy()
    try:
        rows = np.asarray(rows)
    except (ValueError, TypeError):
        raise InputError(f"{place}: its rows are not of one length; give a matrix, one row per item.") from None
    if rows.dtype.kind not in "biuf":
        raise InputError(f"{place}: holds {rows.dtype}, which is no kind of real number; give float32.")
    with np.errstate(over="ignore"):  # infinite then, and refused as such
        return rows.astype(np.float64) if rows.dtype.itemsize > 8 else rows


def finite(rows: np.ndarray, place: str, first: int = 0) -> np.ndarray:
    """The rows (n, d) as they are.

    Args:
        first: number of the first row, where they are a part of more.

    Raises:
        InputError: a row is not finite; names it.
    """
    sound = np.isfinite(rows).all(axis=1)
    if not sound.all():
        raise InputError(f"{place}: row {first + int(np.argmin(sound))} is not finite.")
    return rows


def whole(value: Any, place: str, least: int, most: int | None = None, of: str = "") -> int:
    """A whole number from `least` to `most`; 8.0 is one, True and "8" are none.

    Args:
        of: what the upper bound is, for the error.

    Raises:
        InputError: it is none, or lies outside.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not isinstance(value, int) and not (math.isfinite(value) and value == int(value)):
        raise InputError(f"{place}: {shown(value)} is not a whole number.")
    if value < least or most is not None and value > most:
        bounds = f"at least {least}" if most is None else f"between {least} and {of or f'{most:,}'}"
        raise InputError(f"{place}: {shown(value)} is not {bounds}.")
    return int(value)


def at_least_zero(value: Any, place: str) -> float:
    """A number from 0 on, infinity with it.

    Raises:
        InputError: it is none.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not value >= 0:
        raise InputError(f"{place}: {shown(value)} is not a number of at least 0.")
    try:
        return float(value)
    except OverflowError:  # a whole number beyond all floats
        return math.inf
