"""The case study of PtE (section 3.4, Figures 1 and 2): item embeddings by ID, by language, and fused.

Z_id is the item table of a trained SASRec, Z_lm what the encoder says, and Z_fus comes from one network over each of the
two, added: trained on the same recommendation loss, with both of its inputs frozen. Beside these, the final item vectors
of AlphaFuse and of PtE.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nullrec_lib.backbones import BACKBONES
from nullrec_lib.data.examples import Examples
from nullrec_lib.data.interactions import Dataset
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.experiments import run_all, trained
from nullrec_lib.files import alone, read_tensors, sweep, write_tensors
from nullrec_lib.methods.method import Adapted
from nullrec_lib.preparing import prepare
from nullrec_lib.spec import Spec
from nullrec_lib.training import CHECKPOINT, Recommender, Scorer, fit

TABLE = "fusion.safetensors"
HIDDEN = 128


@dataclass(frozen=True, eq=False)
class Case:
    """Embeddings of the items that were trained on: of the others an ID says nothing."""

    views: dict[str, np.ndarray]
    """`id`, `lm`, `fusion`, `alphafuse`, `pte` → (n, d)."""
    items: np.ndarray
    """(n,) int64: which items of the catalogue."""
    dataset: Dataset
    split: Split


class Towers(nn.Module):
    """One network over the first `first` columns and one over the rest, added."""

    def __init__(self, first: int, rest: int, width: int):
        super().__init__()
        self.first = first
        self.ids, self.language = (nn.Sequential(nn.Linear(d, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, width))
                                   for d in (first, rest))

    def forward(self, rows: Tensor) -> Tensor:
        return self.ids(rows[..., : self.first]) + self.language(rows[..., self.first :])


class Fusion(Adapted):
    """Item vector = network(Z_id) + network(Z_lm), on frozen, standardised inputs."""

    def __init__(self, z_id: Tensor, z_lm: Tensor, width: int):
        scaled = [(z - z.mean(dim=0)) / z.std() for z in (z_id, z_lm)]
        super().__init__(torch.cat(scaled, dim=1), width, Towers(z_id.shape[1], z_lm.shape[1], width))


def case_study(spec: Spec, root: Path = Path("runs"), jobs: int | None = None) -> Case:
    """Train what is not stored under `root`, and collect the item embeddings.

    Args:
        spec: of the ID embeddings: method `base` on SASRec. The other methods get its data, seed and budget. With
            `profiles`, PtE reads them; without, it is the variant without profiles.

    Raises:
        InputError: another method or backbone.
    """
    if (spec.method, spec.backbone) != ("base", "sasrec"):
        raise InputError(f"case study: IDs are those of base on sasrec, not of {spec.method} on {spec.backbone}.")
    plain = replace(spec, profiles=None)
    specs = {"id": plain, "alphafuse": replace(plain, method="alphafuse"), "pte": replace(spec, method="pte")}
    run_all(list(specs.values()), root, jobs)
    tables = {name: Scorer(trained(one, root)).table.numpy() for name, one in specs.items()}
    prepared = prepare(plain)
    tables["lm"] = prepared.embeddings
    tables["fusion"] = _fusion(plain, tables["id"], tables["lm"], prepared.split, root)
    some = np.flatnonzero(prepared.split.popularity() > 0)
    order = ("id", "lm", "fusion", "alphafuse", "pte")
    return Case({name: tables[name][some] for name in order}, some, prepared.dataset, prepared.split)


def _fusion(spec: Spec, z_id: np.ndarray, z_lm: np.ndarray, split: Split, root: Path) -> np.ndarray:
    content = hashlib.sha256(z_id.tobytes() + z_lm.tobytes())
    content.update(json.dumps([asdict(spec), HIDDEN], sort_keys=True).encode())
    folder = Path(root) / f"fusion-{content.hexdigest()[:12]}"
    with alone(folder):
        if not (folder / TABLE).exists():
            with torch.random.fork_rng():
                torch.manual_seed(spec.seed)
                width = spec.width or z_id.shape[1]
                method = Fusion(torch.from_numpy(z_id), torch.from_numpy(z_lm), width)
                backbone = BACKBONES["sasrec"](widths=method.widths, length=spec.history_length, blocks=spec.blocks,
                                               heads=spec.heads, dropout=spec.dropout, temperature=spec.temperature,
                                               negatives=spec.negatives, exclude_history=spec.exclude_history,
                                               prefixes=spec.prefixes)
                model = Recommender(method, backbone)
            train, valid = (Examples(split, part, spec.history_length) for part in ("train", "valid"))
            fit(model, train, valid, folder, lr=spec.lr, batch_size=spec.batch_size, epochs=spec.epochs,
                patience=spec.patience, select=spec.select, seed=spec.seed)
            write_tensors(folder / TABLE, {"table": Scorer(model).table})
        sweep(folder, CHECKPOINT)
        return read_tensors(folder / TABLE, ["table"])[0]["table"].numpy()
