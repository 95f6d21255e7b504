"""What turns texts into vectors: a sentence-transformers model, a language model, or a server. One kind, one file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Generator, Protocol, Sequence

import numpy as np

from nullrec_lib.errors import InputError
from nullrec_lib.matrices import finite, real


@dataclass(frozen=True, eq=False)
class Encoded:
    """Some texts of a call of `encode`, done."""

    places: Sequence[int]
    """Where they stand in the call's list."""
    rows: np.ndarray
    """(b, d_l) float32, unit norm."""
    tokens: int = 0
    """What a server says that it has read, and may charge."""


class Encoder(Protocol):
    """What encodes."""

    made_by: dict[str, Any]
    """What decides its embeddings, as JSON, for records and their keys: neither a path nor a password in it."""
    revision: str
    """64 hex digits: another wherever `made_by` is."""
    dear: bool
    """Whether each row is worth keeping the moment it comes: servers are paid, and large models take hours."""

    def encode(self, texts: Sequence[str]) -> Generator[Encoded, None, None]:
        """Every text once, a part at a time, in any order; a part that has come stays good if a later one fails.
        To be closed by who stops half-way: it may hold a model or requests.

        Raises:
            InputError: the model cannot be used, or the server does not answer as it should.
        """


def digest(made_by: dict[str, Any]) -> str:
    """64 hex digits of a record, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()


def unit(rows: np.ndarray, place: str) -> np.ndarray:
    """(n, d) rows of real numbers, of any dtype and size, as float32 of unit norm.

    Raises:
        InputError: it is no matrix of real numbers, or a row is not finite or zero.
    """
    rows = real(rows, place)
    if rows.ndim != 2 or not rows.shape[1]:
        raise InputError(f"{place}: its shape is {rows.shape}; give one row of numbers for each item.")
    made = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), 4096):  # in float64, of which a whole copy would be gigabytes
        part = finite(rows[start : start + 4096], place, start).astype(np.float64)
        size = np.abs(part).max(axis=1, keepdims=True)
        if (size == 0).any():
            raise InputError(f"{place}: row {start + int(np.argmin(size))} is zero, which is no embedding.")
        part /= size  # a square could be beyond float64
        made[start : start + 4096] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return made
