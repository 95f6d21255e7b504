"""Pickles that other people made, read without running anything in them.

A pickle is a program: it may name any function of any installed package and call it. Here it may name a short list
and nothing else, and of that list only numpy's containers are real. A class or function of pandas or pyarrow is
answered by a stand-in that keeps what it was given; columns are then taken out of the stand-ins. So no code of
pandas sees the file, and which version of pandas wrote it (0.20 to 3) hardly matters.

Nor can a small file become something large: `opcodes` measures the program before it runs, and `stand_ins` what is
called.
"""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from nullrec_lib.data import opcodes
from nullrec_lib.data.stand_ins import LEFT, Array, Inert, Slice, spend
from nullrec_lib.data.stand_ins import NAMES as _NAMES
from nullrec_lib.data.stand_ins import REAL as _REAL
from nullrec_lib.data.stand_ins import STANDS as _STANDS
from nullrec_lib.errors import InputError

_NUMBERS = (int, float, np.bool_, np.integer, np.floating)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        # As a whole: `list.__class__` is one name here, and not on the list.
        stands = name in _NAMES and module.partition(".")[0] in ("pandas", "pyarrow")
        known = _STANDS[name] if stands else _REAL.get((module, name))
        if known is None:
            raise _Refused(f"{module}.{name}"[:100])
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object kept elsewhere")


class _Refused(Exception):
    pass


def read(path: Path) -> Any:
    """What the pickle at `path` holds: numbers, texts, lists, dicts and numpy arrays as they are; a pandas frame
    as a dict of its columns (name → (n,) array), a series as its (n,) array.

    Raises:
        InputError: the file is missing or damaged, holds something else, or asks for a function or class that
            data have no need of (names it). Nothing of what it asks for has run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            opcodes.check(file.read())
            LEFT.set([opcodes.limit(file.tell())])
            file.seek(0)
            return _plain(_Unpickler(file, encoding="latin1").load())
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except _Refused as refused:
        name = repr(str(refused))[1:-1]  # a name may hold line breaks
        raise InputError(f"{path}: the pickle asks for {name}, which data have no need of; nothing was run.") from None
    except Exception as error:  # a damaged pickle can fail in any way
        why = [str(part) for part in error.args if isinstance(part, (str, int))]  # others may be long to write out
        what = ": ".join([type(error).__name__, *why[-1:]])
        raise InputError(f"{path}: this is no pickle that can be read as data ({what!r:.120}).") from None


def matrix(path: Path) -> np.ndarray:
    """(N, d) float32: the array, or the list or column of equally long rows, that the pickle at `path` holds.

    Raises:
        InputError: see `read`; or it is something else, or holds a number that is not finite in float32.
    """
    path = Path(path)
    held = read(path)
    array = held if isinstance(held, np.ndarray) else None
    if array is not None and array.ndim == 2 and array.dtype.kind in "biuf":
        rows = array
    elif isinstance(held, (list, tuple)) or array is not None and array.dtype == object and array.ndim:
        rows = _stacked(path, held)
    else:
        rows = np.empty(0)
    if not rows.size:
        what = f"an array {held.shape} of {held.dtype}" if isinstance(held, np.ndarray) else type(held).__name__
        raise InputError(f"{path}: expected rows of numbers, all of one length, found {what}.")
    if rows is array:
        with np.errstate(over="ignore"):
            rows = np.array(array, dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        large = all(isinstance(number, int) or np.isfinite(number) for number in held[row])
        what = "holds a number that is too large for float32" if large else "is not finite"
        raise InputError(f"{path}: row {row} {what}.")
    return rows


def _stacked(path: Path, held: Any) -> np.ndarray:
    """(N, d) float32 from N rows; how large it gets is known before it is made."""
    sizes = [len(row) if isinstance(row, (list, tuple)) or isinstance(row, np.ndarray) and row.ndim == 1 else -1
             for row in held]  # fmt: skip
    for number, size in enumerate(sizes):
        if size < 0 or size != sizes[0]:
            what = _kind(held[number]) if size < 0 else f"{size} numbers where row 0 has {sizes[0]}"
            raise InputError(f"{path}: expected rows of numbers, all of one length, found {what} in row {number}.")
    width = sizes[0] if sizes else 0
    if 4 * len(sizes) * width > opcodes.limit(path.stat().st_size):
        what = f"its {len(sizes):,} rows of {width:,} numbers are one row many times over; save them as an array"
        raise InputError(f"{path}: {what}.")
    rows = np.empty((len(sizes), width), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number, row in enumerate(held):
            if isinstance(row, np.ndarray) and row.dtype.kind in "biuf":
                rows[number] = row
                continue
            try:
                if not isinstance(sum(row), _NUMBERS):  # by far the fastest way to see that all are numbers
                    raise TypeError
                rows[number] = np.fromiter(row, np.float32, width)
            except OverflowError:  # an integer beyond float64
                rows[number] = np.inf
            except (TypeError, ValueError):
                kind = next((type(value).__name__ for value in row if not isinstance(value, _NUMBERS)), "a number")
                what = f"expected rows of numbers, all of one length, found {kind} in row {number}"
                raise InputError(f"{path}: {what}.") from None
    return rows


def _kind(value: Any) -> str:
    return f"an array {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _plain(value: Any) -> Any:
    """Stand-ins as what they stand for; everything else as it is."""
    if isinstance(value, Array):
        return np.asarray(value)
    if not isinstance(value, Inert):
        return value
    kind = type(value).__name__
    if kind == "DataFrame":
        return _columns(value)
    if kind == "Series":
        return next(_blocks(value))[0]
    if kind == "Slice":
        return slice(*value.args)
    if kind == "_new_Index":
        which, content = value.args[0].__name__, value.args[1]
        if which != "RangeIndex":
            return _plain(content["data"])
        numbers = _REAL["builtins", "range"](content["start"], content["stop"], content["step"])
        spend(8 * len(numbers))
        return np.arange(numbers.start, numbers.stop, numbers.step)
    if kind == "ArrowStringArray":
        return _plain(value.state["_pa_array"])
    if kind in ("StringArray", "__pyx_unpickle_NDArrayBacked"):
        parts = value.state.values() if isinstance(value.state, dict) else value.state
        return next(np.asarray(part) for part in parts if isinstance(part, np.ndarray))
    if kind == "_restore_array":
        return _arrow(*(value.args[0] if len(value.args) == 1 else value.args)[:5])
    raise ValueError(f"{kind} is not read")


def _arrow(alias: Inert, length: int, nulls: int, offset: int, buffers: Any) -> np.ndarray:
    """(length,) texts. Arrow's own layout: a buffer of offsets into a buffer of UTF-8."""
    if nulls or type(length) is not int or type(offset) is not int or min(length, offset) < 0:
        raise ValueError("an array of texts has gaps")
    width = {"string": "<i4", "large_string": "<i8"}[_text(alias.args[0])]
    text = bytes(buffers[2].args[0]) if length else b""
    ends = np.frombuffer(buffers[1].args[0], width)[offset : offset + length + 1] if length else np.zeros(1, width)
    if len(ends) != length + 1 or ends[0] < 0 or ends[-1] > len(text) or (np.diff(ends) < 0).any():
        raise ValueError("an array's texts do not follow on each other")
    spend(len(text) + 8 * length)
    return np.array([text[a:b].decode() for a, b in itertools.pairwise(ends)], dtype=object)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is no text")
    return value


def _columns(frame: Inert) -> dict[Any, np.ndarray]:
    names = _names(frame).tolist()
    if not all(name is None or isinstance(name, (str, bytes, int, float)) for name in names):
        raise ValueError("a column's name is neither text nor number")
    columns: dict[Any, np.ndarray] = {}
    for values, places in _blocks(frame):
        places = places.args[0] if isinstance(places, Inert) and not isinstance(places, Slice) else places
        if isinstance(places, Slice):
            places = range(*slice(*places.args).indices(len(names)))
        elif isinstance(places, (int, np.ndarray)):
            places = np.atleast_1d(places)
        for row, place in zip(np.atleast_2d(values), places, strict=True):
            if row.ndim == 1:
                columns[names[place]] = row
    if len(columns) != len(names) or len({len(column) for column in columns.values()}) > 1:
        raise ValueError("the frame's blocks do not make up its columns")
    return {name: columns[name] for name in names}


def _manager(frame: Inert) -> Inert:
    return frame.state["_mgr"] if "_mgr" in frame.state else frame.state["_data"]  # pandas < 1.1


def _names(frame: Inert) -> np.ndarray:
    """The names of the columns; what the rows are called is of no use here."""
    manager = _manager(frame)
    axes = manager.args[1] if manager.args else manager.state[3]["0.14.1"]["axes"]  # pandas < 1.3
    return _plain(axes[0])


def _blocks(frame: Inert):
    """(array, places) of each block of columns."""
    manager = _manager(frame)
    if manager.args:
        blocks = manager.args[0] if isinstance(manager.args[0], (tuple, list)) else [manager.args[0]]
        blocks = ((block.args[0], block.args[1]) for block in blocks)
    else:
        blocks = ((block["values"], block["mgr_locs"]) for block in manager.state[3]["0.14.1"]["blocks"])
    for values, places in blocks:
        values = _plain(values)
        if not isinstance(values, np.ndarray):
            raise ValueError("a block is no array")
        yield values, places
