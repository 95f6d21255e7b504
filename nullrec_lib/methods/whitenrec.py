"""WhitenRec: fully whitened language through a small network (Zhang et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nullrec_lib.methods.method import Adapted, Material
from nullrec_lib.nullspace import decompose


class WhitenRec(Adapted):
    """Item vector = W₂ ReLU(W₁ z + b₁) + b₂ of the whitened embedding z; the hidden layer is as wide as the vector.

    Full whitening, the paper's best single setting (its ensemble WhitenRec+ is not part of the comparison).
    AlphaFuse's authors use one layer with a GELU; the paper's network is followed.
    """

    def __init__(self, material: Material, width: int):
        language = whitened(material.embeddings)
        layers = nn.Linear(language.shape[1], width), nn.ReLU(), nn.Linear(width, width)
        super().__init__(language, width, nn.Sequential(*layers))


def whitened(embeddings: Tensor) -> Tensor:
    """ZCA: (E − μ) U S^(-1/2) Uᵀ, (N, d_l) float32 with covariance I; exactly-null directions carry 0."""
    rows = embeddings.numpy()
    space = decompose(rows, null_dim=0, standardise="all")
    return torch.from_numpy(space.project(rows) @ space.basis.T.astype("float32"))
