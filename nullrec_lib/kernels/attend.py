"""Attention of one query per history: softmax, dropout and the weighted sum of tokens in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from nullrec_lib.kernels.dispatch import choose
from nullrec_lib.kernels.dropout import dropout_naive


class Last(torch.autograd.Function):
    """x (B, L, d) → x, and its last tokens (B, d). As x[:, -1], whose gradient would fill a (B, L, d) with zeros."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x[:, -1].contiguous()

    @staticmethod
    def backward(ctx, of_x: Tensor, of_last: Tensor) -> Tensor:
        of_x = of_x.clone()  # it may be another branch's too
        of_x[:, -1] += of_last
        return of_x


def attend_naive(
    queries: Tensor, x: Tensor, mask: Tensor, scale: float, p: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The reference of `attend`."""
    scores = (queries @ x.transpose(1, 2)) * scale
    # A large negative number, not -inf: a row without any token (empty history) stays finite.
    weights = scores.masked_fill(~mask[:, None], -1e9).softmax(dim=-1)
    weights = dropout_naive(weights, p, seed) if p else weights
    return weights @ x, weights.sum(-1)


def attend(
    queries: Tensor, x: Tensor, mask: Tensor, scale: float, p: float = 0.0, seed: int = 0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """weights = dropout(softmax over tokens of scale · query·token); a row without tokens weighs all alike.

    Args:
        queries: (B, H, d) float32, one query per head.
        x: (B, L, d) float32, tokens that all heads read whole.
        mask: (B, L) bool, True where there is a token.
        p, seed: of `dropout`, whose element is the place in the (B, H, L) weights.
        impl: see `dispatch.choose`; a GPU uses the naive form.

    Returns: weighted sums of the tokens (B, H, d), and sums of the weights (B, H) (not 1 after dropout).
    """
    if choose(impl, x) == "cpu":
        from nullrec_lib.kernels.attend_cpu import Attend

        return Attend.apply(queries, x, mask, scale, p, seed)
    return attend_naive(queries, x, mask, scale, p, seed)
