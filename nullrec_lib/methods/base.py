"""Base: one learned ID vector per item, no language."""

from __future__ import annotations

import torch

from nullrec_lib.methods.method import Learned, Material, id_table


class Base(Learned):
    """ID table (N, width), started from N(0, 1) as in the authors' code."""

    def __init__(self, material: Material, width: int):
        super().__init__()
        self.n_items, self.widths = material.n_items, (width,)
        self.id = id_table(torch.randn(material.n_items, width))
