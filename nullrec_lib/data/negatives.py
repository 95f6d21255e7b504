"""Uniform negative items, drawn on the device without rejection."""

from __future__ import annotations

import torch
from torch import Tensor

from nullrec_lib.errors import InputError


def draw(target: Tensor, n_items: int, count: int, exclude: Tensor | None = None) -> Tensor:
    """(B, count) int64 items, uniform over all items but the target and, if given, `exclude`.

    Each is drawn from 0…(number of allowed items)-1 and then moved past the banned ids below it, so there is
    no rejection loop and the draw is exactly uniform. Uses torch's global generator of the target's device.

    Args:
        target: (B,) int64.
        exclude: (B, W) int64 item ids, duplicates and the padding id N allowed: the history, for example.
            The authors' code excludes the target only; that is the default.

    Raises:
        InputError: an example bans every item.
    """
    none_left = "negatives: an example bans every item, so none can be drawn; set exclude_history=false."
    if n_items < 2:
        raise InputError(none_left)
    if exclude is None:
        drawn = torch.randint(n_items - 1, (len(target), count), device=target.device)
        return past_banned(drawn, target[:, None])
    banned = torch.cat([target[:, None], exclude], dim=1).sort(dim=1).values
    repeated = torch.zeros_like(banned, dtype=torch.bool)
    repeated[:, 1:] = banned[:, 1:] == banned[:, :-1]
    banned = banned.masked_fill(repeated, n_items).sort(dim=1).values
    allowed = n_items - (banned < n_items).sum(dim=1, keepdim=True)
    if bool((allowed < 1).any()):
        raise InputError(none_left)
    return past_banned(torch.randint(2**62, (len(target), count), device=target.device) % allowed, banned)


def past_banned(drawn, banned):
    """Draws from 0…(number of allowed items)-1 → item ids, in place: each moves past the banned ids below it.

    Args:
        drawn: (B, count) int64, a tensor or an array.
        banned: (B, W) int64 of the same kind, ascending and distinct in each row; ids from N on ban nothing.
    """
    for column in range(banned.shape[1]):
        drawn += drawn >= banned[:, column, None]
    return drawn
