"""Full softmax cross-entropy over all items, without the (B, N) logits in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.dispatch import choose
from nullrec_lib.kernels.infonce import EPSILON
from nullrec_lib.kernels.lookup import Table, gather


def full_softmax_naive(table: Table, states: Tensor, target: Tensor, temperature: float) -> Tensor:
    """The reference: cosines of all states with all items, then cross-entropy."""
    rows = F.normalize(gather(table, torch.arange(table.size, device=states.device)), dim=-1, eps=EPSILON)
    return F.cross_entropy(F.normalize(states, dim=-1, eps=EPSILON) @ rows.T / temperature, target)


def full_softmax(table: Table, states: Tensor, target: Tensor, temperature: float, impl: str = "auto") -> Tensor:
    """−log softmax(cos/τ) of the target among all `table.size` items, mean over B (scalar float32).

    Args:
        table: see `lookup.Table`; the gradient goes to `trained`.
        states: (B, d) float32.
        target: (B,) int64.
        temperature: τ > 0.
        impl: see `dispatch.choose`.

    Raises:
        InputError: states of another width than the table.
    """
    if states.shape[1] != table.width:
        raise InputError(f"states: width {states.shape[1]} is not the table's {table.width}.")
    impl = choose(impl, states)
    if impl == "naive":
        return full_softmax_naive(table, states, target, temperature)
    if impl == "cpu":
        from nullrec_lib.kernels.softmax_cpu import FullSoftmax
    else:
        from nullrec_lib.kernels.softmax_gpu import FullSoftmax
    return FullSoftmax.apply(table.trained, table.frozen, table.size, states, target, temperature)
