"""Shared by all tests: a cache of the session's own, and made-up embeddings for the tiny shop."""

import numpy as np
import pytest
import torch

from nullrec_lib import data
from nullrec_lib.spec import Spec
from nullrec_lib.files import write_json, write_tensors


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """The user's cache stays untouched, and texts are encoded at most once in a session."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("NULLREC_CACHE", str(folder))
        yield folder


def made_up(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """(n, dimensions) float32 unit-norm rows around a common mean, with a spectrum that falls."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dimensions)) * np.linspace(2, 0.1, dimensions) + 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_embeddings(folder, name: str, seed: int) -> str:
    ids = data.load("shop-tiny").items["item_id"].tolist()
    path = folder / f"{name}.safetensors"
    write_tensors(path, {"embeddings": torch.from_numpy(made_up(len(ids), 48, seed))})
    write_json(path.with_suffix(".json"), {"item_ids": ids})
    return str(path)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    """Path of made-up embeddings (120, 48) of the tiny shop: no language model has to run."""
    return write_embeddings(tmp_path_factory.mktemp("embeddings"), "one", seed=1)


@pytest.fixture(scope="session")
def other_encoder(tmp_path_factory) -> str:
    return write_embeddings(tmp_path_factory.mktemp("embeddings"), "two", seed=2)


@pytest.fixture(scope="session")
def tiny(encoder):
    """`tiny(method=…, …)` → a spec on the tiny shop that trains in a blink."""

    def make(**chosen) -> Spec:
        small = {"width": 16, "negatives": 8, "epochs": 2, "heads": 2, "batch_size": 256}
        idle = Spec(method=chosen.get("method", "alphafuse"), backbone=chosen.get("backbone", "sasrec"))
        small = {name: value for name, value in small.items() if name in idle.read()}
        return Spec(**({"data": "shop-tiny", "encoder": encoder} | small | chosen))

    return make
