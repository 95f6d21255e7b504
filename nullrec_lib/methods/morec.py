"""MoRec: one dense layer turns frozen language into item vectors (Yuan et al. 2023)."""

from __future__ import annotations

from torch import nn

from nullrec_lib.methods.method import Adapted, Material


class MoRec(Adapted):
    """Item vector = GELU(W e + b), with e the scaled language embedding and no ID.

    MoRec trains the text encoder end to end; here, as wherever AlphaFuse and PtE compare it, language is frozen.
    The GELU is in MoRec's code, not in its paper's formula; the code is followed.
    """

    def __init__(self, material: Material, width: int):
        language = material.embeddings
        super().__init__(language, width, nn.Sequential(nn.Linear(language.shape[1], width), nn.GELU()))
