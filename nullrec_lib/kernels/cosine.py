"""Cosine similarity of each state with its own candidates: the inner operation of InfoNCE."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8
"""Norms below this count as this, so that a zero vector has cosine 0 with everything."""


def cosine_naive(candidates: Tensor, states: Tensor) -> Tensor:
    """The reference: candidates (B, n, d), states (B, d) → cosines (B, n), by normalising both."""
    return (F.normalize(candidates, dim=-1, eps=EPSILON) * F.normalize(states, dim=-1, eps=EPSILON)[:, None]).sum(-1)


def cosine(candidates: Tensor, states: Tensor) -> Tensor:
    """The same as `cosine_naive`, without a normalised copy of the (B, n, d) candidates and with few passes over
    them: two forward (products, norms) and three backward."""
    return _Cosine.apply(candidates, F.normalize(states, dim=-1, eps=EPSILON))


class _Cosine(torch.autograd.Function):
    """cos = c·q / ‖c‖ for unit q. ∂cos/∂c = q/‖c‖ − cos·c/‖c‖², ∂cos/∂q = c/‖c‖."""

    @staticmethod
    def forward(ctx, c: Tensor, q: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(c, dim=-1).clamp(min=EPSILON).reciprocal()
        cos = (c * q[:, None]).sum(-1) * inverse
        ctx.save_for_backward(c, q, inverse, cos)
        return cos

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        c, q, inverse, cos = ctx.saved_tensors
        scaled = gradient * inverse
        buffer = scaled[..., None] * c
        to_q = buffer.sum(1)
        torch.mul(c, (scaled * inverse * cos).neg()[..., None], out=buffer)  # the buffer's second use
        return buffer.addcmul_(scaled[..., None], q[:, None]), to_q
