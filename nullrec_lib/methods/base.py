"""Base: one learned ID vector per item, no language."""

from __future__ import annotations

import torch
from torch import Tensor

from nullrec_lib.methods.method import Material, Method, id_table


class Base(Method):
    """ID table (N, width), started from N(0, 1) as in the authors' code."""

    def __init__(self, material: Material, width: int):
        super().__init__()
        self.n_items, self.widths = material.n_items, (width,)
        self.id = id_table(torch.randn(material.n_items, width))

    def vectors(self, ids: Tensor) -> Tensor:
        return self.id(ids)
