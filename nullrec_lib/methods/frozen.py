"""Frozen E: the language embeddings as they are; only the backbone learns. An honest row for every table."""

from __future__ import annotations

import torch

from nullrec_lib.methods.method import Fixed, Material
from nullrec_lib.nullspace import decompose


class Frozen(Fixed):
    """The first `width` principal components of the scaled embeddings, not standardised, never trained.

    AlphaFuse with `null_dim=0` is the same, with standardised directions unless `standardise=none`.
    """

    def __init__(self, material: Material, width: int):
        super().__init__()
        self.n_items, self.widths = material.n_items, (width,)
        embeddings = material.embeddings.numpy()
        space = decompose(embeddings, null_dim=0, width=width, standardise="none")
        self.frozen_dim = width
        self.freeze_table("language", torch.from_numpy(space.project(embeddings)))
