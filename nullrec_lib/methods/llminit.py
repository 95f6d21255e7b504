"""LLMInit: the ID table starts from the PCA of the language embeddings and is then trained."""

from __future__ import annotations

import torch

from nullrec_lib.methods.method import Learned, Material, id_table
from nullrec_lib.nullspace import decompose


class LLMInit(Learned):
    """ID table (N, width), started from the first `width` principal components of the scaled embeddings."""

    def __init__(self, material: Material, width: int):
        super().__init__()
        self.n_items, self.widths = material.n_items, (width,)
        embeddings = material.embeddings.numpy()
        space = decompose(embeddings, null_dim=0, width=width, standardise="none")
        self.id = id_table(torch.from_numpy(space.project(embeddings)))
