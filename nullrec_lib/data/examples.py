"""A part of a split as tensors on the device: prefixes of sequences → next items, without a copy per prefix."""

from __future__ import annotations

from functools import cached_property
from typing import Iterator, NamedTuple

import torch
from torch import Tensor

from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError


class Windows(NamedTuple):
    """Histories of a batch, one row for those that begin at one place: an example's is its row up to its newest item."""

    ids: Tensor
    """(W, L) int64 item ids, oldest first, right-padded with N. None is newer than the newest history of its row."""
    ends: Tensor
    """(B,) int64: where in the W·L ids each example's history ends. Distinct."""


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
    windows: Windows | None = None
    """The same histories, or as much of them as stands together, for a model that reads them in one pass."""


AT_ONCE = 4096
"""Examples that training makes at a time, as some whole batches: on a CPU, making one takes many small operations, each
dearer than its numbers."""


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
        self._split = split
        self.context: dict[str, Tensor] = {}
        """What batches carry beside the history: name → (n_examples, …), made from visible histories only."""

    def __len__(self) -> int:
        return len(self.place)

    def shuffled(self, size: int, together: bool = False) -> Iterator[tuple[Tensor, int | None]]:
        """All examples once in random order, as what `batch` takes: `size` of them at a time, fewer at the end.

        Args:
            together: examples of one window (see `window`) stay together, so that batches are of about `size`. Else
                they come one by one, and no window is told of.
        """
        if not together:
            yield from ((index, None) for index in torch.randperm(len(self), device=self.device).split(size))
            return
        window, begin = self.window
        place = torch.randperm(len(begin), device=self.device)[window]
        order = place.argsort(stable=True)
        each = place.bincount()  # examples per window, in the new order
        step = (each.cumsum(0) - each) // size  # that a window falls in by its first example
        sizes, counts = step.bincount(each).long(), step.bincount()
        for index, count in zip(order.split(sizes.tolist()), counts.tolist()):
            if count:
                yield index, count

    def batches(self, size: int, together: bool = False) -> Iterator[Batch]:
        """The batches of `shuffled`; where examples come one by one, `AT_ONCE` of them are made at a time, or one batch."""
        if together:
            yield from (self.batch(index, count) for index, count in self.shuffled(size, together))
            return
        for index, _ in self.shuffled(max(1, AT_ONCE // size) * size):
            whole = self.batch(index)
            rows = (whole.history, whole.target, whole.user, whole.example, *whole.context.values())
            for history, target, user, example, *context in zip(*(tensor.split(size) for tensor in rows)):
                yield Batch(history, target, user, example, dict(zip(whole.context, context)))

    @cached_property
    def window(self) -> tuple[Tensor, Tensor]:
        """Which examples may be read in one pass: the window of each (n,) int64, ascending, and where in the sequences
        each window begins.

        A window is L items of one user. The next begins half of L later, and takes the histories that no longer fit:
        it sees at least half of their newest L items.

        Raises:
            InputError: an example without any history, which no window holds.
        """
        newest = self.place - 1 - self.begin
        if len(newest) and int(newest.min()) < 0:
            raise InputError("prefixes: an example has no history, so there is no item to read it from; leave prefixes "
                             "out.")
        stride = max(1, self.length // 2)
        begin = self.begin + (newest - self.length + stride).clamp(min=0) // stride * stride
        distinct, window = begin.unique_consecutive(return_inverse=True)
        return window, distinct

    def batch(self, index: Tensor, count: int | None = None) -> Batch:
        """The examples `index` (B,) int64 as a `Batch` on the device.

        Args:
            count: of the windows they are in, where they are to be read together; see `shuffled`.
        """
        index = index.to(self.device)
        return Batch(
            windows=None if count is None else self._windows(index, count),
            history=self._before(index, self.length),
            target=self.items.take(self.place.take(index)),
            user=self.user.take(index),
            example=index,
            context={name: rows[index] for name, rows in self.context.items()},
        )

    def _windows(self, index: Tensor, count: int) -> Windows:
        """Those of `index`, whose examples of one window stand side by side; `count` of them, so that a GPU need not say."""
        window, begin = self.window[0][index], self.window[1]
        row = (window.diff(prepend=window[:1]) != 0).cumsum(0)
        first = begin[window]
        newest = self.place[index] - 1
        start, end = first.new_zeros(2, count)
        start[row] = first
        end.scatter_reduce_(0, row, newest, "amax")
        source = start[:, None] + torch.arange(self.length, device=self.device)
        ids = self.items[source.clamp(max=len(self.items) - 1)].masked_fill(source > end[:, None], self.n_items)
        return Windows(ids, row * self.length + newest - first)

    def seen(self, index: Tensor) -> Tensor:
        """(B, W) int64: *all* items of the user before the target, each once, in the order of their first time,
        left-padded with N; W the most that an example has, and no more than N, however long a history is."""
        index = index.to(self.device)
        items, begin, end = self._distinct
        return self._from(items, begin.take(index), end.take(index), max(self.most_seen(index), 1))

    def most_seen(self, index: Tensor | slice = slice(None)) -> int:
        """Most distinct items before a target, over all examples or those of `index`."""
        _, begin, end = self._distinct
        return int((end[index] - begin[index]).max())

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sequences with every user's items once, in the order of their first time, and where in them what an
        example has seen begins and ends, (n_examples,) each."""
        first = torch.as_tensor(self._split.first_times(), device=self.device)
        before = torch.cat([first.new_zeros(1, dtype=torch.int64), first.cumsum(0)])
        return self.items[first], before.take(self.begin), before.take(self.place)

    def longest_history(self) -> int:
        """Most items before a target."""
        return int((self.place - self.begin).max())

    def _before(self, index: Tensor, width: int) -> Tensor:
        # `take` costs less than indexing does, and a step makes many such small calls.
        return self._from(self.items, self.begin.take(index), self.place.take(index), width)

    def _from(self, items: Tensor, begin: Tensor, end: Tensor, width: int) -> Tensor:
        """(B, width) int64: the last `width` of `items` between `begin` and `end`, (B,) each, left-padded with N."""
        source = end[:, None] - torch.arange(width, 0, -1, device=self.device)
        return items.take(source.clamp(min=0)).masked_fill(source < begin[:, None], self.n_items)
