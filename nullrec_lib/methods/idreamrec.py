"""iDreamRec: diffusion straight over whitened language, no trainable table (Hu et al. 2024)."""

from __future__ import annotations

import torch

from nullrec_lib.methods.method import Fixed, Material
from nullrec_lib.nullspace import decompose


class IDreamRec(Fixed):
    """Item vector = the first `width` whitened directions of the embedding, frozen.

    The linear map gives every direction the variance 1 of the noise that diffusion adds. At the width of the
    embeddings (the default on DreamRec) nothing is cut off. With a frozen table there is nothing to collapse.
    """

    def __init__(self, material: Material, width: int):
        super().__init__()
        rows = material.embeddings.numpy()
        space = decompose(rows, null_dim=0, width=width, standardise="all")
        self.n_items, self.widths, self.frozen_dim = material.n_items, (width,), width
        self.freeze_table("language", torch.from_numpy(space.project(rows)))
