"""Popularity: the same list for everyone. The row that keeps every table honest."""

from __future__ import annotations

from torch import Tensor

from nullrec_lib.data.examples import Batch
from nullrec_lib.methods.method import Material


class Popularity:
    """Scores are training interaction counts."""

    reads_language = False

    def __init__(self, material: Material):
        self.counts = material.popularity.float()

    def scores(self, batch: Batch) -> Tensor:
        """(B, N) float32."""
        return self.counts.repeat(len(batch.target), 1)
