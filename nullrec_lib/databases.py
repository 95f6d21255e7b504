"""SQLite files that several processes share: one way to open them, to see damage, and to say what went wrong."""

from __future__ import annotations

import os
import re
import sqlite3
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator

from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, writing

WAIT_S = 60
"""How long a process waits for another one that is writing."""
LOOKED_THROUGH = 2**24
"""Bytes up to which a file's structure is looked through when it is opened; a row's content is checked when it is read."""
_FULL, _LOCKED, _FORBIDDEN = ("SQLITE_FULL",), ("SQLITE_BUSY", "SQLITE_LOCKED"), ("SQLITE_READONLY", "SQLITE_CANTOPEN",
                                                                              "SQLITE_PERM", "SQLITE_AUTH")


class Database:
    """A SQLite file in write-ahead logging: readers go on while one writes, and a kill leaves it whole.

    Args:
        path: of the file, which is made if it is not there.
        tables: SQL that makes its tables where there are none; a column `crc32` comes last and holds that of the others.
        again: what to do when it is damaged, as a clause.

    A folder that cannot be written is read as it lies there.

    Raises:
        DamagedFile: it is no database, or not a whole one (here, and in every method).
        InputError: it cannot be opened, read or written (likewise).
    """

    def __init__(self, path: Path, tables: str, again: str):
        self.path, self.again = Path(path), again
        with self._said():
            self.base = self._open(tables)
            # Bytes that are no text are told by their row's checksum, and not by an error that names no row.
            self.base.text_factory = lambda text: text.decode("utf-8", "replace")
            if self.path.stat().st_size <= LOOKED_THROUGH:
                [[told]] = self.base.execute("pragma quick_check(1)").fetchall()
                if told != "ok":
                    raise sqlite3.DatabaseError(told)

    def _open(self, tables: str) -> sqlite3.Connection:
        wal = self.path.with_name(f"{self.path.name}-wal")
        if self.path.is_file() and not os.access(self.path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size):
            return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
        base.execute("pragma journal_mode = wal")
        base.executescript(tables)
        _sign(base, tables)
        return base

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple]:
        """All rows of a query."""
        with self._said():
            return self.base.execute(query, tuple(values)).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is done in the block is kept, all of it or nothing. It asks for the right to write at once: a
        transaction that asks midway may be refused."""
        with self._said():
            self.base.execute("begin immediate")
            with self.base:
                yield self.base

    def damaged(self, what: str) -> DamagedFile:
        """The error for content that is not what was written."""
        return DamagedFile(f"{self.path}: is damaged ({what}); {self.again}.")

    def close(self) -> None:
        self.base.close()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            name = getattr(error, "sqlite_errorname", "")
            why = " ".join(str(error).split()) or name
            if name.startswith(_LOCKED):
                advice = "wait until the other process has written, and try again"
            elif name.startswith(_FULL) or name.startswith("SQLITE_IOERR"):
                advice = "make room if the disk is full, and the same command goes on"
            elif name.startswith(_FORBIDDEN):
                advice = "choose a place that can be written"
            else:
                raise self.damaged(why) from None
            raise InputError(f"{self.path}: cannot be used ({why}); {advice}.") from None


def _sign(base: sqlite3.Connection, tables: str) -> None:
    """Give the rows of tables from before there were checksums theirs."""
    base.create_function("crc32", -1, crc32)
    for name in re.findall(r"exists (\w+) \([^;]*\bcrc32\b", tables):
        columns = lambda: [column for _, column, *_ in base.execute(f"pragma table_info({name})")]
        if "crc32" in columns():
            continue
        base.execute("begin immediate")
        with base:
            if "crc32" not in (before := columns()):  # nor has another process been quicker
                base.execute(f"alter table {name} add column crc32 integer not null default 0")
                base.execute(f"update {name} set crc32 = crc32({', '.join(before)})")


def crc32(*values: Any) -> int:
    """A checksum of a row: what its column `crc32` holds."""
    crc = 0
    for value in values:
        content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        crc = zlib.crc32(content, zlib.crc32(f"{type(value).__name__} {len(content)} ".encode(), crc))
    return crc
