"""Pickles that other people made, read without running anything in them.

A pickle is a program: it may name any function of any installed package and call it. Here it may name a short list
and nothing else, and of that list only numpy's containers are real. A class or function of pandas or pyarrow is
answered by a stand-in that keeps what it was given; columns are then taken out of the stand-ins. So no code of
pandas sees the file, and which version of pandas wrote it (0.20 to 3) hardly matters.
"""

from __future__ import annotations

import collections
import itertools
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from nullrec_lib.errors import InputError

_DTYPE = re.compile(r"[<>|=]?(\?|[biufcSUO]\d{0,9})")


class _Inert:
    """Stands for a class or function: keeps its arguments and state. Calling, `__new__` and `BUILD` all end here."""

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Every global below is a class with a `__setstate__` or a built-in: a pickle cannot write to either.
class _Dtype(_Inert):
    """numpy.dtype of plain numbers, texts or objects. A real one would take its sizes and flags from the file,
    and numpy believes them."""

    def real(self) -> np.dtype:
        if not (isinstance(self.args[0], str) and _DTYPE.fullmatch(self.args[0])):
            raise ValueError(f"dtype {self.args[0]!r:.40} is not read")
        order = self.state[1] if self.state else "|"
        return np.dtype(self.args[0]).newbyteorder(order if order in ("<", ">") else "|")


class _Array(np.ndarray):
    """numpy.ndarray whose content is checked against its shape before it is taken over."""

    def __new__(cls):
        return np.ndarray.__new__(cls, (0,))

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        real, raw = dtype.real(), _bytes(raw)
        if real.hasobject != isinstance(raw, list) or math.prod(shape) * real.itemsize != len(raw) * (
            real.itemsize if real.hasobject else 1
        ):
            raise ValueError("an array's content does not fit its shape")
        super().__setstate__((1, tuple(shape), real, bool(fortran), raw))


class _Reconstruct(_Inert):
    def __new__(cls, kind, *_):
        return _Array() if kind is _Array else super().__new__(cls)


class _FromBuffer(_Inert):
    def __new__(cls, raw, dtype, shape, order="C"):
        return np.frombuffer(raw, dtype.real()).reshape(shape, order=order)


class _Scalar(_Inert):
    def __new__(cls, dtype, raw):
        return np.frombuffer(_bytes(raw), dtype.real(), 1)[0]


class _Encode(_Inert):
    """_codecs.encode: how old protocols write bytes."""

    def __new__(cls, text, encoding="latin1"):
        return text.encode("latin1")


def _bytes(raw: Any) -> Any:
    return raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as text


_REAL: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    _REAL[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct
    _REAL[f"{_core}.multiarray", "scalar"] = _Scalar
    _REAL[f"{_core}.numeric", "_frombuffer"] = _FromBuffer
for _builtin in (slice, range, list, dict, tuple, set, frozenset, bytearray, bytes, int, float, bool, str):
    _REAL["builtins", _builtin.__name__] = _REAL["__builtin__", _builtin.__name__] = _builtin

_NAMES = (
    "DataFrame", "Series", "Index", "_new_Index", "RangeIndex", "Int64Index", "UInt64Index", "Float64Index",
    "BlockManager", "SingleBlockManager", "BlockPlacement", "new_block", "_unpickle_block",
    "NA", "StringDtype", "StringArray", "ArrowStringArray",
    "__pyx_unpickle_NDArrayBacked", "_restore_array", "type_for_alias", "py_buffer",
)  # fmt: skip
_STANDS = {name: type(name, (_Inert,), {}) for name in _NAMES}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        # As a whole: `list.__class__` is one name here, and not on the list.
        stands = _STANDS.get(name) if module.partition(".")[0] in ("pandas", "pyarrow") else None
        known = _REAL.get((module, name)) or stands
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
            return _plain(_Unpickler(file, encoding="latin1").load())
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except _Refused as refused:
        said = repr(str(refused))[1:-1]  # a name may hold line breaks
        raise InputError(f"{path}: the pickle asks for {said}, which data have no need of; nothing was run.") from None
    except Exception as error:  # a damaged pickle can fail in any way
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: this is no pickle that can be read as data ({what!r:.120}).") from None


def matrix(path: Path) -> np.ndarray:
    """(N, d) float32: the array, or the list or column of equally long rows, that the pickle at `path` holds.

    Raises:
        InputError: see `read`; or it is something else, or holds a number that is not finite.
    """
    held = read(path)
    try:
        rows = np.array(held if isinstance(held, np.ndarray) and held.ndim == 2 else list(held), dtype=np.float32)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"{path}: expected rows of numbers, all of one length, found {type(held).__name__}.")
    if not np.isfinite(rows).all():
        raise InputError(f"{path}: row {int(np.argmin(np.isfinite(rows).all(axis=1)))} is not finite.")
    return rows


def _plain(value: Any) -> Any:
    """Stand-ins as what they stand for; everything else as it is."""
    if isinstance(value, _Array):
        return np.asarray(value)
    if not isinstance(value, _Inert):
        return value
    kind = type(value).__name__
    if kind == "DataFrame":
        return _columns(value)
    if kind == "Series":
        return next(_blocks(value))[0]
    if kind == "_new_Index":
        which, said = value.args[0].__name__, value.args[1]
        return np.arange(said["start"], said["stop"], said["step"]) if which == "RangeIndex" else _plain(said["data"])
    if kind == "ArrowStringArray":
        return _plain(value.state["_pa_array"])
    if kind in ("StringArray", "__pyx_unpickle_NDArrayBacked"):
        parts = value.state.values() if isinstance(value.state, dict) else value.state
        return next(np.asarray(part) for part in parts if isinstance(part, np.ndarray))
    if kind == "_restore_array":  # Arrow's own layout: a buffer of offsets into a buffer of UTF-8
        (alias, length, nulls, offset, buffers, *_) = value.args[0] if len(value.args) == 1 else value.args
        width = {"string": "<i4", "large_string": "<i8"}[alias.args[0]]
        ends = np.frombuffer(buffers[1].args[0], width)[offset : offset + length + 1]
        if not nulls:
            text = bytes(buffers[2].args[0])
            return np.array([text[a:b].decode() for a, b in itertools.pairwise(ends)], dtype=object)
    raise ValueError(f"{kind} is not read")


def _columns(frame: _Inert) -> dict[Any, np.ndarray]:
    names = _axes(frame)[0].tolist()
    columns: dict[Any, np.ndarray] = {}
    for values, places in _blocks(frame):
        if not isinstance(values, np.ndarray):
            raise ValueError("a block is no array")
        places = places.args[0] if isinstance(places, _Inert) else places
        places = range(*places.indices(len(names))) if isinstance(places, slice) else np.atleast_1d(places)
        for row, place in zip(np.atleast_2d(values), places, strict=True):
            columns[names[place]] = row
    if len(columns) != len(names) or len({len(column) for column in columns.values()}) > 1:
        raise ValueError("the frame's blocks do not make up its columns")
    return {name: columns[name] for name in names}


def _manager(frame: _Inert) -> _Inert:
    return frame.state["_mgr"] if "_mgr" in frame.state else frame.state["_data"]  # pandas < 1.1


def _axes(frame: _Inert) -> list[np.ndarray]:
    manager = _manager(frame)
    axes = manager.args[1] if manager.args else manager.state[3]["0.14.1"]["axes"]  # pandas < 1.3
    return [_plain(axis) for axis in axes]


def _blocks(frame: _Inert):
    """(values, places) of each block of columns."""
    manager = _manager(frame)
    if manager.args:
        blocks = manager.args[0] if isinstance(manager.args[0], (tuple, list)) else [manager.args[0]]
        for block in blocks:
            yield _plain(block.args[0]), block.args[1]
    else:
        for block in manager.state[3]["0.14.1"]["blocks"]:
            yield _plain(block["values"]), block["mgr_locs"]
