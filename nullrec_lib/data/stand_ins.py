"""What the globals of a pickle stand for: numpy's containers, built-ins that pay for what they copy, and stand-ins.

Each is a class with a `__setstate__`, so that a pickle cannot write to it. None takes a size from the file: every copy
is paid for out of `LEFT` before it is taken.
"""

from __future__ import annotations

import math
import re
from contextvars import ContextVar
from typing import Any

import numpy as np

from nullrec_lib.data import opcodes

_DTYPE = re.compile(r"[<>|=]?(\?|[biufcSUO]\d{0,9})")
DEPTH = 20
"""Tuples within tuples as keys, at most."""
LEFT: ContextVar[list[int]] = ContextVar("left")
"""Bytes, or values, that may still be copied for the file that is being read."""


def spend(count: int) -> None:
    """Pay for a copy of `count` bytes or values.

    Raises:
        ValueError: that is more than the file may still take.
    """
    left = LEFT.get()
    left[0] -= count
    if left[0] < 0:
        raise ValueError("it would become far larger than its file")


class Inert:
    """Stands for a class or function: keeps its arguments and state. Calling, `__new__` and `BUILD` all end here."""

    def __new__(cls, *args):
        spend(8 * len(args))
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(Inert):
    """numpy.dtype of plain numbers, texts or objects. A real one would take its sizes and flags from the file,
    and numpy believes them."""

    def real(self) -> np.dtype:
        if not (isinstance(self.args[0], str) and _DTYPE.fullmatch(self.args[0])):
            raise ValueError("its dtype is not read")
        order = self.state[1] if self.state else "|"
        return np.dtype(self.args[0]).newbyteorder(order if order in ("<", ">") else "|")


class Array(np.ndarray):
    """numpy.ndarray whose content is checked against its shape before it is taken over."""

    def __new__(cls):
        return np.ndarray.__new__(cls, (0,))

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        real, raw = dtype.real(), _bytes(raw)
        count = _count(shape, real)
        if real.hasobject != isinstance(raw, list) or count * real.itemsize != len(raw) * (
            real.itemsize if real.hasobject else 1
        ):
            raise ValueError("an array's content does not fit its shape")
        super().__setstate__((1, shape, real, bool(fortran), raw))

    def __setitem__(self, *_) -> None:
        raise ValueError("an array is written to")


def _count(shape: Any, dtype: np.dtype) -> int:
    """Elements of an array, which are paid for; an empty one pays for its other dimensions."""
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array's shape is not whole numbers")
    spend(math.prod(max(size, 1) for size in shape) * max(dtype.itemsize, 1))
    return math.prod(shape)


class _Reconstruct(Inert):
    def __new__(cls, kind, *_):
        return Array() if kind is Array else super().__new__(cls)


class _FromBuffer(Inert):
    def __new__(cls, raw, dtype, shape, order="C"):
        real = dtype.real()
        _count(shape, real)
        return np.frombuffer(raw, real).reshape(shape, order=order).view(Array)


class _Scalar(Inert):
    def __new__(cls, dtype, raw):
        spend(len(raw))
        return np.frombuffer(_bytes(raw), dtype.real(), 1)[0]


class _Encode(Inert):
    """_codecs.encode: how old protocols write bytes."""

    def __new__(cls, text, encoding="latin1"):
        return _bytes(text)


class Slice(Inert):
    """A real slice would let a list be copied into itself, over and over."""

    def __new__(cls, *args):
        if not all(part is None or type(part) is int for part in args):
            raise ValueError("a slice is not of whole numbers")
        return super().__new__(cls, *args)


def _bytes(raw: Any) -> Any:
    if not isinstance(raw, str):
        return raw
    spend(len(raw))
    return raw.encode("latin1")  # Python 2 wrote bytes as text


def _container(kind: type, *args: Any) -> Any:
    """A list, dict, set or bytes from what is there already: a number would be a size."""
    if not args:
        return kind()
    content = _bytes(args[0]) if kind is bytearray and args[1:] else args[0]  # `bytearray("a", "latin-1")`
    if type(content) not in (list, tuple, dict, set, frozenset, bytes, bytearray):
        raise ValueError(f"{kind.__name__} of {type(content).__name__} is not read")
    spend(len(content) * (1 if type(content) in (bytes, bytearray) else 8))
    if kind in (set, frozenset, dict):
        _hashed([pair[0] for pair in content if type(pair) in (list, tuple)] if kind is dict else content)
    return kind(content)


def _hashed(values: Any) -> None:
    """A tuple may hold another many times over, or deeper than the machine can follow."""
    for _ in range(DEPTH):
        tuples = [value for value in values if type(value) is tuple]
        spend(sum(map(len, tuples)))
        values = [part for value in tuples for part in value]
    if values:
        raise ValueError("its keys are nested too deeply")


def _scalar(kind: type, *args: Any) -> Any:
    """A number or text from a tuple of at most one; all else is refused."""
    whole = all(type(part) in (int, float, bool) or type(part) is str and len(part) <= opcodes.DIGITS for part in args)
    if len(args) > 1 or not whole:
        raise ValueError(f"{kind.__name__} of this is not read")
    return kind(*args)


def _nothing(kind: type, *args: Any) -> Any:
    if args:
        raise ValueError(f"{kind.__name__} of this is not read")
    return kind()


def _ranged(kind: type, *args: Any) -> range:
    return kind(*Slice(*args).args)


def _builtin(kind: type, make: Any) -> type:
    return type(kind.__name__, (Inert,), {"__new__": lambda cls, *args: make(kind, *args)})


REAL: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    ("collections", "OrderedDict"): _builtin(dict, _container),
}
for _core in ("numpy.core", "numpy._core"):
    REAL[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct
    REAL[f"{_core}.multiarray", "scalar"] = _Scalar
    REAL[f"{_core}.numeric", "_frombuffer"] = _FromBuffer
_BUILTINS = {"slice": Slice, "range": _builtin(range, _ranged)}
for _make, _kinds in ((_container, (list, dict, set, frozenset, bytearray, bytes)), (_scalar, (int, float, bool, str)),
                      (_nothing, (tuple,))):
    _BUILTINS |= {kind.__name__: _builtin(kind, _make) for kind in _kinds}
for _name, _kind in _BUILTINS.items():
    REAL["builtins", _name] = REAL["__builtin__", _name] = _kind

NAMES = (
    "DataFrame", "Series", "Index", "_new_Index", "RangeIndex", "Int64Index", "UInt64Index", "Float64Index",
    "BlockManager", "SingleBlockManager", "BlockPlacement", "new_block", "_unpickle_block",
    "NA", "StringDtype", "StringArray", "ArrowStringArray",
    "__pyx_unpickle_NDArrayBacked", "_restore_array", "type_for_alias", "py_buffer",
)  # fmt: skip
STANDS = {name: type(name, (Inert,), {}) for name in NAMES}
