"""Losses that pull two sets of vectors of the same items together: RLMRec's and LLM-ESR's extra terms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.errors import InputError

ALIGNMENTS = ("contrastive", "cosine")


def contrastive(x: Tensor, y: Tensor, temperature: float, both_ways: bool = False) -> Tensor:
    """InfoNCE with in-batch negatives: −log softmax over j of cos(xᵢ, yⱼ)/τ at j = i, mean over i; x, y (n, d).

    Rows must be distinct items: an item that came twice would be its own negative.

    Args:
        both_ways: the mean of this and of the same with x and y exchanged.
    """
    logits = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T / temperature
    own = torch.arange(len(x), device=x.device)
    loss = F.cross_entropy(logits, own)
    return (loss + F.cross_entropy(logits.T, own)) / 2 if both_ways else loss


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 − mean cosine of the rows of x and y (n, d): alignment without negatives."""
    return 1 - F.cosine_similarity(x, y, dim=-1).mean()


def check(temperature: float, **weights: float) -> None:
    """InputError for a temperature or a loss weight out of range."""
    if not 0 < temperature < float("inf"):
        raise InputError(f"align_temperature: {temperature} is not a positive, finite number.")
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}: {value} is not a finite number of at least 0.")
