"""Models in folders: fetched from the hub, and recognised by what is in them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from nullrec_lib import manifest
from nullrec_lib.errors import InputError

COPIES = ["*.onnx", "*.h5", "*.gguf", "onnx/*", "openvino/*", "original/*"]
"""The same weights once more, for other programs: not fetched."""


def from_hub(name: str, asked: str, tried: str, kind: str, role: str = "encoder") -> Path:
    """The folder of a model that the hub has, fetched where it is not there yet.

    Args:
        name: on the hub.
        asked: what the user wrote, `tried`: what it is not, `kind`: which sort of folder would do, and `role`: what
            it was wanted for; all for the error.

    Raises:
        InputError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=COPIES))
    except Exception as error:  # the hub client raises its own, requests' and OS errors: all mean "not to be had"
        raise InputError(
            f"{role}: {asked!r} is {tried}, and the hub did not give it "
            f"({type(error).__name__}); give the path of a {kind} folder."
        ) from error


def weights_sha256(folder: Path) -> str:
    """SHA-256 over a model folder's *.safetensors files in name order (of the file itself where there is one)."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return _weights_sha256(tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _weights_sha256(files: tuple[tuple[Path, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _ in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def model_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of all files that decide what a model folder does to a text: weights of
    every module, tokenizer, pooling, chat template; not the records of how it was made (`language.model`).

    Raises:
        DamagedFile: a folder with a record of its files holds others than these, see `manifest`.
    """
    manifest.check(folder)
    files = sorted(
        path for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix in (".bin", ".jinja", ".json", ".model", ".safetensors", ".txt")
        and path.name not in ("build.json", manifest.FILE)
    )
    return _sha256(folder, tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _sha256(folder: Path, files: tuple[tuple[Path, int], ...]) -> str:
    # Kept while the files are unchanged: a table asks for every row, and weights are large.
    digest = hashlib.sha256()
    for path, _ in files:
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as opened:  # piece by piece: a shard of a language model may be larger than memory
            digest.update(f"{name}\x1f{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
