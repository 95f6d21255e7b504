"""InfoNCE on cosine similarity: the target against sampled items, without a (B, candidates, d) tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.dispatch import choose
from nullrec_lib.kernels.lookup import Table, gather

EPSILON = 1e-8
"""Norms below this count as this, so that a zero vector has cosine 0 with everything."""


def infonce_naive(table: Table, states: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The reference: gather all candidates, normalise, multiply, cross-entropy with the first one as the answer."""
    candidates = F.normalize(gather(table, ids), dim=-1, eps=EPSILON)
    cosines = (candidates * F.normalize(states, dim=-1, eps=EPSILON)[:, None]).sum(-1)
    return F.cross_entropy(cosines / temperature, torch.zeros_like(ids[:, 0]))


def infonce(table: Table, states: Tensor, ids: Tensor, temperature: float, impl: str = "auto") -> Tensor:
    """−log softmax(cos/τ) of the first candidate among all of its row, mean over B (scalar float32).

    Args:
        table: of the items, see `lookup.Table`; the gradient goes to `trained`.
        states: (B, d) float32.
        ids: (B, 1 + negatives) int64, the target first; no padding.
        temperature: τ > 0.
        impl: see `dispatch.choose`.

    Raises:
        InputError: states of another width than the table.
        IndexError: an id that is no row of the table, on a CPU; `naive` refuses negative ids alone.
    """
    if states.shape[1] != table.width:
        raise InputError(f"states: width {states.shape[1]} is not the table's {table.width}.")
    impl = choose(impl, states)
    if impl == "naive":
        return infonce_naive(table, states, ids, temperature)
    if impl == "cpu":
        from nullrec_lib.kernels.infonce_cpu import InfoNCE
    else:
        from nullrec_lib.kernels.infonce_gpu import InfoNCE
    return InfoNCE.apply(table.trained, table.frozen, states, ids, temperature)
