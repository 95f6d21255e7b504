"""A language model of a few thousand parameters."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nullrec_lib.language.model import build
from small import CORPUS, PAIRS, TINY


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of a model that has learned next to nothing."""
    out = tmp_path_factory.mktemp("models") / "built"
    build(PAIRS, CORPUS, out, **TINY)
    return out


@pytest.fixture(scope="session")
def wild(built, tmp_path_factory):
    """The same with large random weights: what it writes depends on all that it reads, and it sometimes ends."""
    out = tmp_path_factory.mktemp("models") / "wild"
    shutil.copytree(built, out)
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: tensor + 0.4 * torch.randn(tensor.shape, generator=generator) * (tensor.ndim > 1)
        for name, tensor in load_file(out / "model.safetensors").items()
    }
    weights["model.embed_tokens.weight"][2] *= 2.5  # <|end|>, which is likelier then
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "checksums.json").unlink()  # changed on purpose
    return out
