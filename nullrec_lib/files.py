"""What is kept on disk: every file appears whole or not at all, and one that is no longer whole is noticed when read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterable, Iterator

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nullrec_lib.errors import InputError

_UNFINISHED = ".unfinished"
AGAIN = "remove it, and the same command makes it again"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
             errno.ENAMETOOLONG}


class DamagedFile(InputError):
    """A file of ours is missing, or is not what was written."""


def cache_folder() -> Path:
    """Where what can be made again is kept: $NULLREC_CACHE, or ~/.cache/nullrec."""
    return Path(os.environ.get("NULLREC_CACHE") or Path.home() / ".cache" / "nullrec")


# Writing


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full disk, a quota or missing rights make of writing `path` into one sentence, whoever writes.

    Raises:
        InputError: `path` cannot be written.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # OSError; other libraries put the system's error into a text of their own
        number = error.errno if isinstance(error, OSError) else _number(str(error))
        if number not in FULL | FORBIDDEN:
            raise
        advice = "make room, and the same command goes on" if number in FULL else "choose a place that can be written"
        raise InputError(f"{path}: cannot be written ({os.strerror(number)}); {advice}.") from None


def _number(text: str) -> int | None:
    """The system's error number in an error of safetensors or tokenizers, or of torch.save, which does not say it."""
    if told := re.search(r"\(os error (\d+)\)", text):
        return int(told[1])
    return errno.ENOSPC if "PytorchStreamWriter" in text or "inline_container" in text else None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name of `path` when the block ends without error.

    Raises:
        InputError: there is no room, or no right to write.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, temporary = _temporary(path)
        try:
            yield temporary
            # mkstemp makes files for the owner alone; results are meant to be read like any other file.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, locked for as long as its descriptor is open: `sweep` leaves it alone."""
    while True:
        lock, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
        with suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return lock, Path(name)
        os.close(lock)  # swept before it was locked


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with a checksum for `read_json`; NaN and infinity are refused (ValueError), as JSON has no
    word for them.

    JSON has no comments either: the CRC-32 is the last line, 32 bits in blanks (0) and tabs (1), which every reader of
    JSON passes over.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text + _blank(zlib.crc32(text.encode())) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None = None) -> None:
    """Write safetensors atomically; `about` goes into the file's header as JSON under the key `about`, and behind it the
    CRC-32 over it and all tensors, in blanks and tabs as in `write_json`: of two keys the order would be drawn by chance,
    and the same content would be two files."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about or {})
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"about": text + _blank(_crc32(tensors, text))})


# Reading


def read_json(path: Path, needs: Iterable[str] | None = None, again: str = AGAIN) -> Any:
    """What `write_json` wrote. A file without its checksum (an older one, or one made by hand) is taken as it is.

    Args:
        needs: keys of the mapping that it must be; None takes any JSON.
        again: what to do when it is damaged, as a clause.

    Raises:
        DamagedFile: it is missing, cannot be parsed, is not what was written, or lacks a key.
    """
    with _reading(path, again):
        text = Path(path).read_bytes()
        if not text:
            raise ValueError("it is empty")
        body, _, last = text.removesuffix(b"\n").rpartition(b"\n")
        if re.fullmatch(rb"[ \t]{32}", last) and _blank(zlib.crc32(body + b"\n")).encode() != last:
            raise ValueError("its content does not match its checksum")
        content = json.loads(text.decode("utf-8"))
        if needs is not None:
            _has(path, content, needs, again)
    return content


def read_tensors(
    path: Path, needs: Iterable[str] = (), about: Iterable[str] = (), again: str = AGAIN
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, on the CPU, and what `write_tensors` was told about them ({}: nothing).

    Args:
        needs: names that must be among the tensors.
        about: keys that must be among what was told.
        again: what to do when it is damaged, as a clause.

    Raises:
        DamagedFile: it is missing, cannot be parsed, is not what was written, or lacks a tensor.
    """
    with _reading(path, again):
        if not Path(path).stat().st_size:
            raise ValueError("it is empty")
        with safe_open(path, "pt") as opened:
            text = (opened.metadata() or {}).get("about", "{}")
            # Copied: what lies in the file itself goes with it, and takes the process along.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}
        body, last = text[:-32], text[-32:]
        if re.fullmatch(r"[ \t]{32}", last) and _blank(_crc32(tensors, body)) != last:
            raise ValueError("its content does not match its checksum")
        told = json.loads(text)
        _has(path, tensors, needs, again)
        _has(path, told, about, again)
    return tensors, told


def _has(path: Path, content: Any, needs: Iterable[str], again: str) -> None:
    lacking = [name for name in needs if name not in content] if isinstance(content, dict) else ["a mapping"]
    if lacking:
        raise DamagedFile(f"{path}: is not what belongs there (it does not hold {', '.join(lacking)}); {again}.")


@contextmanager
def _reading(path: Path, again: str) -> Iterator[None]:
    """Turn all that reading and parsing a file may raise into one sentence that names it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise DamagedFile(f"{path}: is missing; {again.removeprefix('remove it, and ').replace('remove it and ', 'remove ')}.") from None
    except MemoryError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # of JSON, UTF-8, safetensors, torch: all mean that it is not what it should be
        why = " ".join(str(error).split()).rstrip(".")
        raise DamagedFile(f"{path}: is damaged ({why}); {again}.") from None


def _blank(crc: int) -> str:
    return f"{crc:032b}".replace("0", " ").replace("1", "\t")


def _crc32(tensors: dict[str, torch.Tensor], about: str) -> int:
    """Over names, dtypes, shapes and bytes, in the order of names, and over `about`."""
    crc = zlib.crc32(about.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


# Folders


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes out of it; wait for one that is in. Sweeps up what a killed writer
    left. The lock goes with the process, however it ends.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    itself = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(itself, fcntl.LOCK_EX)
        sweep(folder)
        yield
    finally:
        os.close(itself)


def sweep(folder: Path, *leftovers: str) -> None:
    """Remove from a folder the temporary files of killed writers, none that a living one holds, and the files and folders
    named `leftovers`. What cannot be removed stays."""
    for name in leftovers:
        path = Path(folder) / name
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for temporary in Path(folder).glob(f".*{_UNFINISHED}"):
        with suppress(OSError), temporary.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def sweep_idle(folder: Path) -> None:
    """Remove a folder that some process worked in, unless one is in it now (`alone`)."""
    with suppress(OSError):
        itself = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(itself, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(itself)


def agree(folder: Path, what: str, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Compare what a folder was made by with what is asked for now.

    Raises:
        InputError: they differ; names where, and settings by their own names.
    """
    stored, asked = ({key: value for key, value in one.items() if key != "settings"} | (one.get("settings") or {})
                     for one in (stored, asked))
    nothing = object()
    differ = sorted(key for key in stored | asked if stored.get(key, nothing) != asked.get(key, nothing))
    if differ:
        raise InputError(f"{folder}: holds {what} ({', '.join(differ)} differ); choose another folder.")
