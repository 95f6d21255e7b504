"""What was embedded once: text by text, in one SQLite file per encoder."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from nullrec_lib.errors import InputError
from nullrec_lib.files import alone

WAIT = 60
"""Seconds for another process that is writing."""


class Vectors:
    """A file of embeddings under the SHA-256 of their texts, which are not kept themselves.

    Args:
        path: of the file, which is made if it is not there.
        about: a record of what makes the embeddings; stored with a new file, for people.

    What was added stays, however the process ends. Several processes may have the file open, each with its own
    `Vectors`; what two of them add for the same text is kept once, as it came first.

    Raises:
        InputError: SQLite cannot use the file (here, and in every method).
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = Path(path)
        # One at a time: two that turn a new file to write-ahead logging at once do not wait for each other.
        with alone(self.path.parent), self._told():
            self._db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS vectors (sha256 BLOB PRIMARY KEY, row BLOB NOT NULL)")
            self._db.execute("CREATE TABLE IF NOT EXISTS spent (tokens INTEGER NOT NULL)")
            self._db.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            pairs = [(name, str(value)) for name, value in about.items()]
            self._db.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", pairs)

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those that are not there, each once, in the order of `texts`."""
        known = "SELECT 1 FROM vectors WHERE sha256 = ?"
        with self._told():
            return [text for text in dict.fromkeys(texts) if not self._db.execute(known, _key(text)).fetchone()]

    def add(self, texts: Sequence[str], rows: np.ndarray, tokens: int = 0) -> None:
        """Keep (b, d_l) float32 rows and count their tokens, all or nothing.

        Raises:
            InputError: they are not as wide as those that are there.
        """
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            there = self._db.execute("SELECT length(row) / 4 FROM vectors LIMIT 1").fetchone()
            if there and there[0] != rows.shape[1]:
                raise InputError(f"{self.path}: holds embeddings of width {there[0]} and now gets {rows.shape[1]}, so "
                                 "another model answers to the same name; remove the file to encode its texts anew.")
            pairs = [(*_key(text), row.astype("<f4").tobytes()) for text, row in zip(texts, rows, strict=True)]
            self._db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", pairs)
            self._db.execute("INSERT INTO spent VALUES (?)", (tokens,))

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d_l) float32 of n ≥ 1 texts, none of them missing."""
        with self._told():
            found = (self._db.execute("SELECT row FROM vectors WHERE sha256 = ?", _key(text)) for text in texts)
            return np.stack([np.frombuffer(one.fetchone()[0], "<f4") for one in found]).astype(np.float32)

    def tokens(self) -> int:
        """All that were ever counted."""
        with self._told():
            return self._db.execute("SELECT coalesce(sum(tokens), 0) FROM spent").fetchone()[0]

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: SQLite cannot use it ({error}); make room if the disk is full, wait if "
                             "another process writes, or remove the file to encode its texts anew.") from None


def _key(text: str) -> tuple[bytes]:
    return (hashlib.sha256(text.encode()).digest(),)
