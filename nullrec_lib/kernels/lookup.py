"""Fused item lookup: ids → item vectors, frozen and trained parts joined, positions added, dropout, padding zeroed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.dispatch import choose
from nullrec_lib.kernels.dropout import dropout_naive


class Table(NamedTuple):
    """Item vectors as kernels read them: row i = frozen[i] with trained[i] added to its last n columns.

    An ID table has no frozen part; AlphaFuse's has its language, whose null-space columns (the last n) hold zeros
    where the ID part replaces them. Ids of `size` or more are padding and read as zeros.
    """

    trained: Tensor
    """(R, n) float32, R ≥ size; what gets a gradient. n may be 0."""
    frozen: Tensor | None
    """(R, d) float32, d ≥ n, or None: then d = n."""
    size: int

    @property
    def width(self) -> int:
        """d."""
        return (self.trained if self.frozen is None else self.frozen).shape[1]


class Tokens(NamedTuple):
    """Histories as rows of a table: what `lookup` reads in one pass."""

    table: Table
    ids: Tensor
    """(B, L) int64 rows of the table, oldest first, left-padded (windows right-padded, see `data.examples.Windows`)."""

    @property
    def mask(self) -> Tensor:
        """(B, L) bool: True where there is a token."""
        return self.ids < self.table.size

    @property
    def vectors(self) -> Tensor:
        """(B, L, d): the rows themselves."""
        return read(self.table, self.ids)

    @classmethod
    def of(cls, vectors: Tensor, mask: Tensor) -> Tokens:
        """Vectors (B, L, d) that are no rows of an item table, as a table of their own; mask (B, L) bool."""
        count = mask.numel()
        ids = torch.arange(count, device=mask.device).view_as(mask).masked_fill(~mask, count)
        return cls(Table(vectors.reshape(count, -1).float(), None, count), ids)


class Items:
    """The item vectors that one step reads: rows of all items, or only of those that it looks up."""

    def __init__(self, table: Table, ids: Tensor | None = None, n_items: int | None = None):
        """A table whose row i is item i, or with `ids` (ascending, distinct, no padding) item ids[i] of `n_items`."""
        self.table, self.ids, self.n_items = table._replace(trained=table.trained.float()), ids, n_items

    def place(self, ids: Tensor) -> Tensor:
        """Item ids (…) → rows of the table; the padding id stays padding.

        Raises:
            RuntimeError: an id that is not among those of the table (on a GPU, the assertion comes later).
        """
        if self.ids is None:
            return ids
        place = torch.searchsorted(self.ids, ids)
        # Another item's row would go unnoticed.
        known = (self.ids[place.clamp(max=len(self.ids) - 1)] == ids) | (ids == self.n_items)
        torch._assert_async(known.all(), "an item is looked up that Method.reads does not name")
        return place

    def __call__(self, ids: Tensor) -> Tensor:
        """Item ids (…) → item vectors (…, d), zeros for padding."""
        return read(self.table, self.place(ids))


def gather(table: Table, ids: Tensor) -> Tensor:
    """The naive lookup: ids (…) int64 → vectors (…, d), zeros for padding."""
    place = ids.clamp(max=len(table.trained) - 1)
    vectors = F.embedding(place, table.trained)
    if table.frozen is not None:
        frozen = F.embedding(place, table.frozen)
        vectors = frozen + F.pad(vectors, (frozen.shape[-1] - vectors.shape[-1], 0))
    return torch.where((ids < table.size)[..., None], vectors, 0.0)


def read(table: Table, ids: Tensor, impl: str = "auto") -> Tensor:
    """`gather`; on a CPU in one pass, forward and back. `impl`: see `dispatch.choose`; a GPU uses the naive form."""
    if choose(impl, table.trained) != "cpu":
        return gather(table, ids)
    from nullrec_lib.kernels.lookup_cpu import Lookup

    nowhere = table.trained.new_zeros(1, table.width)  # every id is a history of its own, whose position adds nothing
    return Lookup.apply(table.trained, table.frozen, table.size, ids.reshape(-1, 1), nowhere, 0.0,
                        0).view(*ids.shape, table.width)


def lookup_naive(table: Table, ids: Tensor, positions: Tensor, p: float = 0.0, seed: int = 0) -> Tensor:
    """The reference of `lookup`."""
    x = gather(table, ids) + positions[-ids.shape[1] :]
    x = dropout_naive(x, p, seed) if p else x
    return torch.where((ids < table.size)[..., None], x, 0.0)


def lookup(
    table: Table, ids: Tensor, positions: Tensor, p: float = 0.0, seed: int = 0, impl: str = "auto"
) -> Tensor:
    """What attention reads, in one pass: dropout(item vector + position) where there is a token, zeros elsewhere.

    Args:
        ids: (B, L) int64.
        positions: (P, d) float32, P ≥ L; the last L rows are those of the L tokens.
        p, seed: of `dropout`, whose element is the place in the (B, L, d) result.
        impl: see `dispatch.choose`.

    Returns: (B, L, d) float32. The gradient goes to `positions` and to `table.trained` only, whose rows it touches
        where ids point; the frozen columns cost the backward pass nothing.

    Raises:
        InputError: more tokens than positions, or positions of another width than the table.
        IndexError: a negative id, on a CPU.
    """
    if ids.shape[1] > len(positions) or positions.shape[1] != table.width:
        shape = tuple(positions.shape)
        raise InputError(f"positions: {shape} do not fit {ids.shape[1]} tokens of width {table.width}.")
    impl = choose(impl, table.trained)
    if impl == "naive":
        return lookup_naive(table, ids, positions, p, seed)
    if impl == "cpu":
        from nullrec_lib.kernels.lookup_cpu import Lookup
    else:
        from nullrec_lib.kernels.lookup_gpu import Lookup
    return Lookup.apply(table.trained, table.frozen, table.size, ids, positions, p, seed)
