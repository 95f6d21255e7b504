"""Writing that cannot be half done: every file appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch
from safetensors.torch import save_file

_UNFINISHED = ".unfinished"


def cache_folder() -> Path:
    """Where what can be made again is kept: $NULLREC_CACHE, or ~/.cache/nullrec."""
    return Path(os.environ.get("NULLREC_CACHE") or Path.home() / ".cache" / "nullrec")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name of `path` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes out of it; wait for one that is in. Sweeps up what a killed writer
    left. The lock goes with the process, however it ends."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    itself = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(itself, fcntl.LOCK_EX)
        for temporary in folder.glob(f".*{_UNFINISHED}"):
            temporary.unlink()
        yield
    finally:
        os.close(itself)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused (ValueError), as JSON has no word for them."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None = None) -> None:
    """Write safetensors atomically; `about` goes into the file's header as JSON under the key `about`."""
    metadata = {"about": json.dumps(about)} if about is not None else None
    with atomic(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
