"""Where bytes become text: the lines of a file, whatever its encoding, line ends and compression."""

from __future__ import annotations

import ast
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nullrec_lib.errors import InputError
from nullrec_lib.progress import bar

Note = Callable[[str], None]
"""Takes one sentence on what was noticed."""

_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32",
          b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # fmt: skip
_HEAD = 1 << 16
"""Bytes in which encoding and line ends are recognised."""


def wrong(path: Path, what: str, line: int | None = None, column: str | None = None) -> InputError:
    """The error as one sentence that begins with the place."""
    place = (f"line {line}" if line else "", f"column {column}" if column else "")
    return InputError(f"{', '.join([str(path), *filter(None, place)])}: {what}.")


def lines(path: Path, note: Note = lambda sentence: None, blank: bool = False) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, as it is read, with a bar over the file's bytes.

    UTF-8, UTF-16 or UTF-32, with or without a byte order mark; what is plainly none of them is read as Windows-1252,
    which holds Latin-1's letters. Lines end with LF, CR LF or, where there is no LF, CR. Gzip is recognised by its
    first bytes. What is not plain UTF-8 goes to `note`. With `blank`, blank lines are lines like others.

    Raises:
        InputError: the file is empty, a line is blank, a part of the file is UTF-8 and another is not, or the gzip
            stream is damaged.
    """
    number = 0
    with path.open("rb", buffering=_HEAD) as raw, bar(
        what=f"reading {path.name}", total=path.stat().st_size, unit="B", unit_scale=True
    ) as progress:
        zipped = raw.peek(2)[:2] == b"\x1f\x8b" or path.suffix == ".gz" and not raw.peek(1)
        try:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), _HEAD) if zipped else raw
            for number, text in enumerate(_decoded(path, stream, note), 1):
                if number % 8192 == 0:
                    progress.update(raw.tell() - progress.n)
                if not (blank or text.strip()):
                    raise wrong(path, "the line is blank, delete it", number)
                yield number, text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise wrong(path, f"the gzip stream is damaged or breaks off ({error})", number + 1) from None
        except UnicodeDecodeError as error:  # of UTF-16 and UTF-32, which are decoded as a whole
            what = f"a byte is not {error.encoding}, as its beginning says; save the file as UTF-8"
            raise wrong(path, what, number + 1) from None
    if not number:
        raise wrong(path, "the file is empty")


def _decoded(path: Path, stream: io.BufferedReader, note: Note) -> Iterator[str]:
    """Lines without their ends."""
    head = stream.peek(_HEAD)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding is None and b"\0" in head[:2] and len(head) > 1:  # files of data begin with a sign of ASCII
        encoding = "utf-16-le" if head[1] == 0 else "utf-16-be"
    begin = head.decode(encoding or "latin-1", "ignore")
    unix = "\n" in begin or "\r" not in begin
    if encoding not in (None, "utf-8-sig"):
        note(f"{path.name}: is in {encoding.upper().removesuffix('-LE').removesuffix('-BE')} and was read as that.")
        decode = None
    else:
        if encoding:
            stream.read(3)
        decode = _Decoder(path, note)
    if decode is None or not unix:
        # "\n" leaves other line ends alone: U+2028 and its like may stand in a title. None ends lines at CR as well.
        opened = io.TextIOWrapper(stream, "latin-1" if decode else encoding, newline="\n" if unix else None)
        for number, line in enumerate(opened, 1):
            line = _unended(line)
            yield line if decode is None else decode(line.encode("latin-1"), number)
        opened.detach()
        return
    for number, line in enumerate(stream, 1):
        yield _unended(decode(line, number))


def _unended(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


class _Decoder:
    """UTF-8, or for a whole file Windows-1252: one that holds both is damaged."""

    def __init__(self, path: Path, note: Note):
        self.path, self.note = path, note
        self.unicode = self.windows = 0
        """The first line beyond ASCII that was read as either."""

    def __call__(self, line: bytes, number: int) -> str:
        if line.isascii():
            return line.decode("ascii")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.unicode:
                what = f"byte 0x{line[error.start]:02x} is not UTF-8, as line {self.unicode} is"
                raise wrong(self.path, f"{what}; save the file as UTF-8", number) from None
            if not self.windows:
                self.windows = number
                self.note(f"{self.path.name}: is not UTF-8 and was read as Windows-1252, a superset of Latin-1.")
            try:
                return line.decode("cp1252")
            except UnicodeDecodeError:  # five of its bytes have no meaning
                return line.decode("latin-1")
        if self.windows:
            raise wrong(self.path, f"is UTF-8, and line {self.windows} is not; save the file as UTF-8", number)
        self.unicode = self.unicode or number
        return text


def records(
    path: Path, note: Note = lambda sentence: None, literal: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of each line: a JSON object or, with `literal`, also the same as a Python literal. Halves of
    surrogate pairs become question marks.

    Raises:
        InputError: a line is neither; see `lines`.
    """
    for number, line in lines(path, note):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            try:  # literal_eval reads constants and containers of them, and runs nothing
                record = ast.literal_eval(line) if literal else None
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                record = None
        if not isinstance(record, dict):
            raise wrong(path, f"{line!r:.40} is not a whole JSON object", number)
        if "\\ud" in line.lower():  # half a pair, as where a text was cut within an emoji, is no character
            record = json.loads(json.dumps(record, ensure_ascii=False).encode(errors="replace"))
        yield number, record
