"""Adam on the rows of a table that a step looked up: what a step costs does not grow with the table."""

from __future__ import annotations

import torch
from torch import Tensor

from nullrec_lib.kernels.dispatch import choose

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's defaults, in torch as in the paper (Kingma & Ba 2015)."""


def row_adam_naive(
    table: Tensor, mean: Tensor, square: Tensor, ids: Tensor, gradient: Tensor, lr: float, step: int
) -> None:
    """The reference of `row_adam`."""
    m, v = mean[ids].lerp(gradient, 1 - BETAS[0]), square[ids].lerp(gradient**2, 1 - BETAS[1])
    mean[ids], square[ids] = m, v
    unbiased = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
    table[ids] -= lr * unbiased[0] / (unbiased[1].sqrt() + EPSILON)


@torch.no_grad()
def row_adam(
    table: Tensor, mean: Tensor, square: Tensor, ids: Tensor, gradient: Tensor, lr: float, step: int,
    impl: str = "auto",
) -> None:
    """One step of Adam on the rows `ids`, in place; all other rows and their moments stay as they are.

    Torch's SparseAdam does the same (but for the place of ε) in many passes over the rows; this is one.

    Args:
        table, mean, square: (R, n) float32, the parameters and their two moments.
        ids: (U,) int64, distinct.
        gradient: (U, n) float32, that of the rows.
        step: steps so far with this one, for the corrections of the moments' start at zero.
        impl: see `dispatch.choose`; a GPU uses the naive form.
    """
    if choose(impl, table) == "cpu":
        from nullrec_lib.kernels.row_adam_cpu import update

        update(table.numpy(), mean.numpy(), square.numpy(), ids.numpy(), gradient.contiguous().numpy(), lr, step)
    else:
        row_adam_naive(table, mean, square, ids, gradient, lr, step)
