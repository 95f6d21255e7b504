"""RLMRec-Con: ID vectors, contrasted with what a network makes of the language (Ren et al. 2024)."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.lookup import Items
from nullrec_lib.methods.alignment import ALIGNMENTS, check, contrastive, cosine_distance
from nullrec_lib.methods.method import Learned, Material, id_table


class RLMRecCon(Learned):
    """ID table from N(0, 1); extra loss β · InfoNCE(ID vector, MLP(language)) over the batch's distinct targets.

    The network maps language to the ID space, two layers with LeakyReLU, hidden width (d_l + d) / 2, as in RLMRec's
    code (PtE's appendix describes Con and Gen the other way round). RLMRec aligns users too; in a sequential model
    they have no vector of their own. It aligns sampled negatives as well; here it is the targets.
    `alignment=cosine` is the form of AlphaFuse's authors: 1 − mean cosine over *all* items at every step.
    """

    def __init__(self, material: Material, width: int, beta: float, alignment: str, align_temperature: float):
        """β weighs the extra loss; `alignment` is `contrastive` or `cosine`; τ divides cosines in the former."""
        super().__init__()
        check(align_temperature, beta=beta)
        if alignment not in ALIGNMENTS:
            raise InputError(f"alignment: {alignment!r} is not one of {', '.join(ALIGNMENTS)}.")
        self.n_items, self.widths = material.n_items, (width,)
        self.beta, self.alignment, self.temperature = beta, alignment, align_temperature
        self.id = id_table(torch.randn(material.n_items, width))
        self.freeze_table("language", material.embeddings)
        self.network = two_layers(*self.sizes(material.embeddings.shape[1], width))

    def sizes(self, language: int, width: int) -> tuple[int, int]:
        """Widths that the network maps from and to."""
        return language, width

    def pair(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The two sides that the extra loss aligns, in one space, rows of `ids` (n,)."""
        return self.id(ids), self.network(F.embedding(ids, self.language))

    def extra_loss(
        self, batch: Batch, states: Tensor, encode: Callable[[Batch], Tensor], items: Items
    ) -> Tensor:
        if self.alignment == "cosine":
            return self.beta * cosine_distance(*self.pair(torch.arange(self.n_items, device=self.device)))
        return self.beta * contrastive(*self.pair(batch.target.unique()), self.temperature)


def two_layers(start: int, end: int) -> nn.Sequential:
    """RLMRec's network, with its Xavier initialisation."""
    hidden = (start + end) // 2
    network = nn.Sequential(nn.Linear(start, hidden), nn.LeakyReLU(), nn.Linear(hidden, end))
    for layer in (network[0], network[2]):
        nn.init.xavier_uniform_(layer.weight)
    return network
