"""A part of a split as tensors on the device: prefixes of sequences → next items, without a copy per prefix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nullrec_lib.data.splits import Split


class Batch(NamedTuple):
    """B examples. Everything but `target` is known before the target is."""

    history: Tensor
    """(B, L) int64 item ids, oldest first, left-padded with N."""
    target: Tensor
    """(B,) int64 item ids."""
    user: Tensor
    """(B,) int64."""
    example: Tensor
    """(B,) int64: index within the part. Seeds noise per example, so results do not depend on batch size."""
    context: dict[str, Tensor] = {}
    """What else is known before the target, by name; rows aligned with the batch. Examples: a user-profile
    vector (B, d), similar users' histories (B, k, L)."""


class Examples:
    """The examples of one part of a split.

    Memory is the flat sequences plus two integers per example, whatever the history length: a history is
    gathered from the flat sequence when a batch asks for it, and only from places before its target.
    """

    def __init__(
        self,
        split: Split,
        part: str,
        length: int = 10,
        device: torch.device | str = "cpu",
    ):
        """Take `part` (`train`, `valid` or `test`) of `split`.

        Args:
            length: L, the newest items of a history that a model sees.
        """
        places = getattr(split, part)
        user = split.user_of(places)
        self.part, self.n_items, self.length, self.device = part, split.n_items, length, torch.device(device)
        as_tensor = lambda array: torch.as_tensor(array, dtype=torch.int64, device=device)
        self.items, self.place, self.user = as_tensor(split.items), as_tensor(places), as_tensor(user)
        self.begin = as_tensor(split.offsets[user])
        self.context: dict[str, Tensor] = {}
        """What batches carry beside the history: name → (n_examples, …), made from visible histories only."""

    def __len__(self) -> int:
        return len(self.place)

    def batch(self, index: Tensor) -> Batch:
        """The examples `index` (B,) int64 as a `Batch` on the device."""
        index = index.to(self.device)
        return Batch(
            history=self._before(index, self.length),
            target=self.items[self.place[index]],
            user=self.user[index],
            example=index,
            context={name: rows[index] for name, rows in self.context.items()},
        )

    def seen(self, index: Tensor) -> Tensor:
        """(B, W) int64: *all* items of the user before the target, left-padded with N; W the longest."""
        index = index.to(self.device)
        longest = self.longest_history(index)
        return self._before(index, max(longest, 1))

    def longest_history(self, index: Tensor | slice = slice(None)) -> int:
        """Most items before a target, over all examples or those of `index`."""
        return int((self.place[index] - self.begin[index]).max())

    def _before(self, index: Tensor, width: int) -> Tensor:
        source = self.place[index, None] - torch.arange(width, 0, -1, device=self.device)
        return self.items[source.clamp(min=0)].masked_fill(source < self.begin[index, None], self.n_items)
