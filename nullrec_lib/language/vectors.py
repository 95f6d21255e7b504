"""What was embedded once: text by text, in one SQLite file per encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from nullrec_lib.databases import Database, crc32
from nullrec_lib.errors import InputError
from nullrec_lib.files import alone

_TABLES = """
create table if not exists vectors (sha256 blob primary key, row blob not null, crc32 integer not null);
create table if not exists spent (tokens integer not null, crc32 integer not null);
create table if not exists about (name text primary key, value text not null);
"""


class Vectors:
    """A file of embeddings under the SHA-256 of their texts, which are not kept themselves.

    Args:
        path: of the file, which is made if it is not there.
        about: a record of what makes the embeddings; stored with a new file, for people.

    What was added stays, however the process ends. Several processes may have the file open, each with its own
    `Vectors`; what two of them add for the same text is kept once, as it came first. A row that is not what was written
    counts as missing.

    Raises:
        InputError: SQLite cannot use the file (here, and in every method).
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = Path(path)
        # One at a time: two that turn a new file to write-ahead logging at once do not wait for each other.
        with alone(self.path.parent):
            self._db = Database(self.path, _TABLES, "remove it, and the same command encodes its texts anew")
            pairs = [(name, str(value)) for name, value in about.items()]
            if not self._db.rows("select 1 from about limit 1"):
                with self._db.transaction() as base:
                    base.executemany("insert or ignore into about values (?, ?)", pairs)

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those that are not there, each once, in the order of `texts`."""
        return [text for text in dict.fromkeys(texts) if self._row(_key(text)) is None]

    def add(self, texts: Sequence[str], rows: np.ndarray, tokens: int = 0) -> None:
        """Keep (b, d_l) float32 rows and count their tokens, all or nothing.

        Raises:
            InputError: they are not as wide as those that are there.
        """
        with self._db.transaction() as base:
            pairs = [(_key(text), row.astype("<f4").tobytes()) for text, row in zip(texts, rows, strict=True)]
            there = {key for key, _ in pairs if self._row(key) is not None}
            query = "select sha256, row, crc32 from vectors limit 100"
            width = next((len(row) // 4 for key, row, crc in base.execute(query) if crc == crc32(key, row)), None)
            if width not in (None, rows.shape[1]):
                raise InputError(f"{self.path}: holds embeddings of width {width} and now gets {rows.shape[1]}, so "
                                 "another model answers to the same name; remove the file to encode its texts anew.")
            base.executemany("insert or replace into vectors values (?, ?, ?)",
                             [(*pair, crc32(*pair)) for pair in pairs if pair[0] not in there])
            base.execute("insert into spent values (?, ?)", (tokens, crc32(tokens)))

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d_l) float32 of n ≥ 1 texts, none of them missing."""
        found = [self._row(_key(text)) for text in texts]
        if any(row is None for row in found) or len(set(map(len, found))) > 1:
            raise self._db.damaged("embeddings are missing that were there before")
        return np.stack([np.frombuffer(row, "<f4") for row in found]).astype(np.float32)

    def tokens(self) -> int:
        """All that were ever counted."""
        counts = self._db.rows("select tokens, crc32 from spent")
        if any(crc != crc32(tokens) for tokens, crc in counts):
            raise self._db.damaged("a count of tokens is not what was written")
        return sum(tokens for tokens, _ in counts)

    def close(self) -> None:
        self._db.close()

    def _row(self, key: bytes) -> bytes | None:
        """What is stored under a key; None where it is not there or not whole."""
        there = self._db.rows("select row, crc32 from vectors where sha256 = ?", (key,))
        return there[0][0] if there and there[0][1] == crc32(key, there[0][0]) else None


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
