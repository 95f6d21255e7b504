"""AlphaFuse's frames as arrays: every cell is looked at before anything of its size is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from nullrec_lib.data import opcodes, pickles
from nullrec_lib.errors import InputError


@dataclass(frozen=True)
class Frame:
    """One of the three, with whatever is padding still in it."""

    path: Path
    rows: np.ndarray
    """(n, seq_size) int64: `seq`."""
    targets: np.ndarray
    """(n,) int64: `next`."""
    lengths: np.ndarray | None
    """(n,) int64: `len_seq`, where there is one."""


def read_statistics(path: Path) -> tuple[int, int]:
    """seq_size and item_num.

    Raises:
        InputError: they are not one whole number each, of at least 1 (file, column).
    """
    held = pickles.read(path)
    wanted = "expected one row with whole numbers seq_size and item_num of at least 1"
    sizes = []
    for name in ("seq_size", "item_num"):
        column = _column(held, name)
        if column is None:
            raise InputError(f"{path}: {wanted}.")
        value = column[0] if len(column) == 1 else None
        whole = _is_integer(value) or isinstance(value, (float, np.floating)) and value.is_integer()
        if not whole or not 1 <= value < 2**31:
            raise InputError(f"{path}, column {name}: {_shown(column)} was found, {wanted}.")
        sizes.append(int(value))
    return sizes[0], sizes[1]


def _column(held: Any, name: str) -> list | None:
    column = held.get(name) if isinstance(held, dict) else None
    return list(column) if isinstance(column, list) or isinstance(column, np.ndarray) and column.ndim else None


def read_frame(path: Path, width: int, n_items: int) -> Frame:
    """The frame at `path`, whose rows are `width` whole numbers each; ids of `seq` may be any.

    Raises:
        InputError: a column is missing, or a cell is something else (file, row, column).
    """
    held = pickles.read(path)
    seq, following, lengths = (_column(held, name) for name in ("seq", "next", "len_seq"))
    if seq is None or following is None or lengths is None and "len_seq" in held:
        raise InputError(f"{path}: expected a frame with the columns seq and next.")
    if not seq:
        raise InputError(f"{path}: the frame has no row.")
    if not len(seq) == len(following) == len(seq if lengths is None else lengths):
        raise InputError(f"{path}: its columns are of other lengths, expected as many rows of seq as of next.")
    wanted = f"{width} item ids of 0 to {n_items - 1}, padded with {n_items} on one side"
    for row, ids in enumerate(seq):
        if not (_is_row(ids) and len(ids) == width):
            raise wrong(path, row, "seq", ids, wanted)
    if 8 * len(seq) * width > opcodes.limit(path.stat().st_size):
        raise InputError(f"{path}, column seq: its {len(seq):,} rows of {width:,} ids are one row many times over.")
    rows = np.empty((len(seq), width), np.int64)
    for row, ids in enumerate(seq):
        rows[row] = _integers(path, row, "seq", ids, ids, wanted)
    targets = _numbers(path, "next", following, f"an id of 0 to {n_items - 1}", n_items - 1)
    sizes = None if lengths is None else _numbers(path, "len_seq", lengths, f"a length of 0 to {width}", width)
    return Frame(path, rows, targets, sizes)


def _numbers(path: Path, name: str, values: list, wanted: str, largest: int) -> np.ndarray:
    """(n,) int64 of 0 to `largest`."""
    numbers = np.array([_integers(path, row, name, [value], value, wanted)[0] for row, value in enumerate(values)])
    outside = (numbers < 0) | (numbers > largest)
    if outside.any():
        row = int(np.argmax(outside))
        raise wrong(path, row, name, values[row], wanted)
    return numbers


def _integers(path: Path, row: int, column: str, values: Any, shown: Any, wanted: str) -> np.ndarray:
    """(n,) int64 of what are whole numbers by type: 1.0 and True are none."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.int64)
    try:
        if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in set(map(type, values))):
            return np.fromiter(values, np.int64, len(values))
    except OverflowError:
        pass
    raise wrong(path, row, column, shown, wanted)


class _Short(Repr):
    """Values as far as they fit into a sentence: one may hold itself, or another many times over."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxlist = 2, 10

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, np.generic):
            return repr(value.item())
        return "None" if value is None else str(value) if isinstance(value, (bool, float)) else type(value).__name__


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim == 1


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def wrong(path: Path, row: int, column: str, value: Any, wanted: str) -> InputError:
    """The error as one sentence that begins with the place."""
    return InputError(f"{path}, row {row}, column {column}: {_shown(value)} is not {wanted}.")


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value[:11].tolist()
    return _Short().repr(value)[:80]
