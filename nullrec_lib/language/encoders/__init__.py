"""What turns texts into vectors: a sentence-transformers model, a language model, or a server. One kind, one file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Generator, Protocol, Sequence

import numpy as np

from nullrec_lib.errors import InputError


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
    """Rows brought to unit norm.

    Raises:
        InputError: one is not finite, or zero.
    """
    if not np.isfinite(rows).all():
        raise InputError(f"{place}: row {int(np.argmin(np.isfinite(rows).all(axis=1)))} is not finite.")
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norm == 0).any():
        raise InputError(f"{place}: row {int(np.argmin(norm))} is zero, which is no embedding.")
    return rows / norm
