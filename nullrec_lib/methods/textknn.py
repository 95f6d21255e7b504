"""TextKNN: items that read like the history. Language without any learning."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch
from nullrec_lib.methods.method import Material, pad_row


class TextKNN:
    """Cosine between an item's language embedding and the mean of the history's."""

    def __init__(self, material: Material):
        self.unit = pad_row(F.normalize(material.embeddings, dim=-1))

    def scores(self, batch: Batch) -> Tensor:
        """(B, N) float32 cosines; an empty history gives zeros."""
        mean = F.normalize(F.embedding(batch.history, self.unit).sum(dim=1), dim=-1)
        return mean @ self.unit[:-1].T
