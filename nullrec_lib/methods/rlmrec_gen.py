"""RLMRec-Gen: ID vectors from which a network can tell the language (Ren et al. 2024)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.methods.rlmrec_con import RLMRecCon


class RLMRecGen(RLMRecCon):
    """As RLMRec-Con, but the network maps the ID vector to the language space, where the two are compared.

    RLMRec's code reconstructs the profiles of nodes that it masked before a graph convolution; without a graph a
    masked item's ID would carry nothing, so the batch's targets are reconstructed. The loss is its InfoNCE.
    """

    def sizes(self, language: int, width: int) -> tuple[int, int]:
        return width, language

    def pair(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(self.id(ids)), F.embedding(ids, self.language)
