"""What is said: texts → embeddings, cached with a record of what made them."""

from __future__ import annotations

import hashlib
import string
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, cache_folder, read_json, read_tensors, sweep, write_json, write_tensors
from nullrec_lib.language.encoders import Encoder, digest, unit
from nullrec_lib.language.encoders.causal import Causal
from nullrec_lib.language.encoders.sentence import DEFAULT, Sentence
from nullrec_lib.language.encoders.server import Server
from nullrec_lib.language.vectors import Vectors
from nullrec_lib.matrices import real

TEMPLATE = "{title}. {description}"
"""Item text; without a description the title stands alone. Attributes are part of the description column."""
FIELDS = ("title", "description")

KINDS = {"lm": Causal, "server": Server}
"""What may stand before a colon; without one, an encoder is a sentence-transformers model."""
GIVEN = "given"
"""Not a model: the embeddings that came with the data; `given:NAME` where there are several."""


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
        InputError: it cannot be read, names no field or another than `FIELDS`, or says how to format one: a width may
            be anything.
    """
    known = " and ".join(f"{{{name}}}" for name in FIELDS)
    try:
        fields = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
    except ValueError:
        fields = []
    named = {name: None for name, _, _ in fields}
    if not named or not set(named) <= set(FIELDS) or any(spec or conversion for _, spec, conversion in fields):
        raise InputError(f"template: {template!r} does not name fields of an item; write a text with {known}.")
    return list(named)


def identity(encoder: str) -> str:
    """SHA-256 of what an encoder is, wherever it lies: of a model's files, of a server's address and its model's name,
    or of a file of embeddings. Embeddings that came with the data are in the data's fingerprint: here their name is
    enough.

    Raises:
        InputError: there is no such encoder or file.
    """
    if _is_given(encoder):
        return encoder
    if not _is_file(encoder):
        return _encoder(encoder).revision
    path = Path(encoder)
    if not path.is_file():
        raise InputError(f"encoder: there is no file {path}.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def short_name(encoder: str) -> str:
    """What tables call an encoder: without folders, a server without its address."""
    if not (kind := _kind(encoder)):
        return Path(encoder).name
    return f"{kind}:{Path(encoder.partition(':')[2].rpartition('#')[2]).name}"


def encode(texts: list[str], encoder: str = DEFAULT) -> np.ndarray:
    """(n, d_l) float32 unit-norm embeddings of n ≥ 1 texts, made now.

    Raises:
        InputError: there is no such encoder, or it fails.
    """
    parts = list(_encoder(encoder).encode(texts))
    return np.concatenate([part.rows for part in parts])[np.argsort(np.concatenate([part.places for part in parts]))]


def embed_texts(texts: list[str], encoder: str = DEFAULT, cache: Path | None = None) -> np.ndarray:
    """(n, d_l) float32 unit-norm embeddings of n ≥ 1 texts, each text encoded once and then read from the cache.

    Each part that is encoded is kept at once: after a crash, the same call goes on from there.

    Args:
        texts: any; one that comes several times is encoded once.
        encoder: a model, `lm:` or `server:`, see `embed_items`.
        cache: folder; default $NULLREC_CACHE or ~/.cache/nullrec.

    Raises:
        InputError: there are no texts, there is no such encoder or it fails, its embeddings are made already, or the
            cache cannot be used.
    """
    if _is_given(encoder) or _is_file(encoder):
        raise InputError(f"encoder: the embeddings in {encoder} are made already and read no text; name a model.")
    return _kept(texts, encoder, cache)[0]


def _kept(texts: list[str], encoder: str, cache: Path | None) -> tuple[np.ndarray, dict[str, int]]:
    """What `embed_texts` returns, and the tokens that a server counted for it, now and ever."""
    if not texts:
        raise InputError("encoder: there are no texts to embed; give at least one.")
    made = _encoder(encoder)
    path = (cache or cache_folder()) / "texts" / f"{made.revision[:16]}.sqlite"
    spent = 0
    with closing(Vectors(path, {"encoder": encoder, **made.made_by})) as vectors:
        if new := vectors.missing(texts):
            with closing(made.encode(new)) as parts:  # closed at an error, or a server would be asked on and on
                for part in parts:
                    vectors.add([new[i] for i in part.places], part.rows, part.tokens)
                    spent += part.tokens
        return vectors.rows(texts), {"tokens": spent, "tokens_in_all": vectors.tokens()}


def embed_items(
    items: pd.DataFrame,
    encoder: str = DEFAULT,
    cache: Path | None = None,
    given: dict[str, np.ndarray] | None = None,
    template: str | None = None,
) -> np.ndarray:
    """(N, d_l) float32 embeddings of a catalogue, computed once and then read from the cache: of unit norm, but for items
    without any text, which have the mean of the others'.

    Args:
        items: columns `item_id`, `title`, `description`; row i = item id i.
        encoder: a sentence-transformers model (see `sentence.find`); `lm:PATH_OR_HUB_NAME`, a language model; or
            `server:URL#MODEL`, one that is asked; a .safetensors file in this cache's format, made elsewhere, with its
            JSON beside it; or `given`, `given:NAME`. Rows are brought to unit norm.
        cache: folder; default $NULLREC_CACHE or ~/.cache/nullrec.
        given: `Dataset.embeddings`, what came with the data; taken for the default encoder too where no item has a text.
        template: of the item texts, see `item_texts`.

    Raises:
        InputError: the encoder cannot be found or fails, there is no text for it, stored embeddings do not belong to
            these items, or a template is given for embeddings that are made already.
    """
    if encoder == DEFAULT and template is None and given and len(given) == 1 and not any(item_texts(items)):
        encoder = GIVEN
    if template is not None and (_is_given(encoder) or _is_file(encoder)):
        raise InputError(f"template: the embeddings in {encoder} are made already; leave one of the two out.")
    if _is_given(encoder):
        return unit(*_given(given or {}, encoder))
    ids = list(items["item_id"])
    if _is_file(encoder):
        return _read(Path(encoder), ids, items)
    texts = item_texts(items, template)
    if not any(texts):
        use = f"use encoder={GIVEN}, the embeddings that came with the data" if given else "give .safetensors instead"
        raise InputError(f"encoder: the items have no text that {encoder} could read; {use}.")
    made = _encoder(encoder)
    record = {
        "encoder": encoder,
        **made.made_by,
        "template": TEMPLATE if template is None else template,
        "text_sha256": _sha256(texts),
        "item_ids": ids,
    }
    made_by = {name: value for name, value in record.items() if name != "encoder"}  # a path is not what made it
    path = (cache or cache_folder()) / "embeddings" / f"{digest(made_by)[:16]}.safetensors"
    bare = np.array([not text for text in texts])
    sweep(path.parent)
    try:
        rows = _read(path, ids)
    except DamagedFile:  # or not there yet
        some = [text for text in texts if text]
        rows, spent = _kept(some, encoder, cache) if made.dear else (encode(some, encoder), {})
        rows = _with_means(rows, bare)
        write_tensors(path, {"embeddings": torch.from_numpy(rows)})
        write_json(path.with_suffix(".json"), record | spent | {"shape": list(rows.shape)})
        rows = _read(path, ids)
    return _with_means(rows[~bare], bare) if bare.any() else rows


def _sha256(texts: list[str]) -> str:
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()


def _with_means(rows: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """(N, d) from the rows of those that are not `bare` (N,) bool; these get the mean, which says nothing of an item."""
    whole = np.empty((len(bare), rows.shape[1]), np.float32)
    whole[~bare] = rows
    whole[bare] = rows.mean(axis=0, dtype=np.float64)
    return whole


def _read(path: Path, ids: list[str], items: pd.DataFrame | None = None) -> np.ndarray:
    """Embeddings whose JSON lists exactly `ids` in this order: a mismatch is an error, never a zero row. Where the JSON
    says of which texts, these must be the texts of `items`."""
    record_path = path.with_suffix(".json")
    if not path.exists() or not record_path.exists():
        raise DamagedFile(f"encoder: {path} and {record_path.name} beside it must both exist.")
    record = read_json(record_path, ["item_ids"], "make both again")
    stored = record["item_ids"]
    rows = real(read_tensors(path, ["embeddings"], again="make both again")[0]["embeddings"], str(path))
    if stored != ids or rows.ndim and len(rows) != len(ids):
        raise InputError(
            f"{path}: holds {len(rows):,} embeddings of other items than the catalogue's {len(ids):,} "
            "(or in another order); remove it, or make it again for this catalogue."
        )
    rows = unit(rows, str(path))
    if items is None or "text_sha256" not in record:
        return rows
    texts = item_texts(items, record.get("template"))
    if record["text_sha256"] != _sha256(texts):
        raise InputError(f"{path}: holds embeddings of other texts of these items; make them again for this catalogue.")
    bare = np.array([not text for text in texts])
    return _with_means(rows[~bare], bare) if bare.any() else rows


def _kind(encoder: str) -> str:
    """What stands before the colon where that is one of `KINDS`, or nothing."""
    kind, colon, _ = encoder.partition(":")
    return kind if colon and kind in KINDS else ""


def _encoder(name: str) -> Encoder:
    kind = _kind(name)
    return KINDS[kind](name.partition(":")[2]) if kind else Sentence(name)


def _is_file(encoder: str) -> bool:
    return not _kind(encoder) and encoder.endswith(".safetensors")


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
