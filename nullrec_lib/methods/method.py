"""The seam every way of making item embeddings passes through. A method knows no backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.data.splits import Split
from nullrec_lib.kernels.lookup import Items, Table, Tokens

if TYPE_CHECKING:  # which reads far more than a method does
    from nullrec_lib.profiles.vectors import UserProfiles


@dataclass(frozen=True, eq=False)
class Material:
    """All that a method may look at before training: item texts' embeddings and training interactions."""

    n_items: int
    embeddings: Tensor
    """(N, d_l) float32: unit-norm language embeddings times the scale. Scaled on purpose: thresholds on the
    covariance scale with it."""
    users: Tensor
    """(n,) int64 users of the training interactions, each user's in time order; `items` beside it."""
    items: Tensor
    profiles: UserProfiles | None = None
    """Users' profiles that may stand beside histories, if the run has any."""

    @classmethod
    def of(cls, split: Split, embeddings: Tensor, profiles: UserProfiles | None = None) -> Material:
        users, items = split.training_interactions()
        return cls(split.n_items, embeddings, torch.from_numpy(users), torch.from_numpy(items), profiles)

    @property
    def popularity(self) -> Tensor:
        """(N,) int64: training interactions per item."""
        return torch.bincount(self.items, minlength=self.n_items)


class Method(nn.Module):
    """Item vectors, and if any an extra loss. Subclasses set `widths` and define `vectors`.

    A constructor takes `material` and then, by the names they have in `spec.Spec`, just the parameters
    that it reads.
    """

    n_items: int
    widths: tuple[int, ...]
    """Width of each view; a backbone encodes every view, and a table row is as wide as all of them together."""
    frozen_dim = 0
    """Leading columns of the table that training must not move; a run checks that they are bit-identical."""
    frozen_tables: tuple[str, ...] = ()
    """Names of the tables that `freeze_table` keeps."""
    extra_tokens = 0
    """Tokens that `views` puts before the history, such as a user-profile vector: right before its first item, so
    that the view is left-padded like the history itself."""

    causal = True
    """Whether `views` of the beginning of a history are the beginning of its views: no token knows of later ones, and
    none stands before the first item. Else histories cannot be read together."""

    def vectors(self, ids: Tensor) -> Tensor:
        """ids (…) int64, 0…N → (…, sum(widths)): rows of the table; the padding id N gives zeros."""
        raise NotImplementedError(f"{type(self).__name__} must define vectors(ids)")

    def table(self) -> Tensor:
        """(N, sum(widths)): the whole item table, row i = item i."""
        return self.vectors(torch.arange(self.n_items, device=self.device))

    def rows(self, ids: Tensor | None = None) -> Table:
        """The rows of distinct ids (n,) int64, or of all items, in the parts that kernels read; see `lookup.Table`.

        A method whose vectors are joined from a table and a frozen part says so here, and no copy of them is made.
        """
        ids = torch.arange(self.n_items, device=self.device) if ids is None else ids
        return Table(self.vectors(ids), None, len(ids))

    whole = False
    """Whether `rows()` of all items costs nothing, as they lie in memory: then no step picks those it reads."""

    def reads(self, batch: Batch) -> list[Tensor]:
        """The item ids that `views` and `extra_loss` look up for a batch."""
        return [batch.history, batch.target]

    def views(self, batch: Batch, items: Items) -> list[Tokens]:
        """What the backbone reads, one view per entry of `widths`; by default the history's rows of the table.

        Args:
            items: this method's rows, computed once for the whole step.
        """
        tokens = Tokens(items.table, items.place(batch.history))
        if len(self.widths) == 1:
            return [tokens]
        return [Tokens.of(part, tokens.mask) for part in tokens.vectors.split(self.widths, dim=-1)]

    def extra_loss(
        self, batch: Batch, states: Tensor, encode: Callable[[Batch], Tensor], items: Items
    ) -> Tensor | None:
        """A scalar added to the backbone's loss, or None.

        Args:
            states: (B, sum(widths)), what the backbone made of `batch`.
            encode: turns another batch (similar users' histories) into states with the same backbone.
            items: as for `views`; called with item ids it gives their vectors.
        """
        return None

    def context(self, examples: Examples) -> dict[str, Tensor]:
        """What `Batch.context` shall hold for these examples: name → a row per example, made from its visible
        history only."""
        return {}

    def facts(self) -> dict[str, float]:
        """What the result of a run should say about this method, such as its nullity."""
        return {}

    def freeze_table(self, name: str, rows: Tensor) -> None:
        """Keep rows (N, d) that are never trained under `name`, with a zero row for the padding id."""
        self.register_buffer(name, pad_row(rows))
        self.frozen_tables = (*self.frozen_tables, name)

    @property
    def device(self) -> torch.device:
        return next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))


class Learned(Method):
    """Item vector = row of the ID table `id`, which a subclass makes."""

    whole = True

    def vectors(self, ids: Tensor) -> Tensor:
        return self.id(ids)

    def rows(self, ids: Tensor | None = None) -> Table:
        # A row-wise gradient comes from a look-up only, be it of all rows.
        return super().rows(ids) if self.id.sparse or ids is not None else Table(self.id.weight, None, self.n_items)


class Fixed(Method):
    """Item vector = row of the frozen table `language`, which a subclass makes."""

    whole = True

    def vectors(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.language)

    def rows(self, ids: Tensor | None = None) -> Table:
        return Table(self.language, None, self.n_items) if ids is None else super().rows(ids)


class Adapted(Method):
    """Item vector = what a trained `adaptor` makes of the item's frozen row of a language table."""

    def __init__(self, language: Tensor, width: int, adaptor: nn.Module):
        """Take language (N, d_l) and a module (…, d_l) → (…, width)."""
        super().__init__()
        self.n_items, self.widths, self.adaptor = len(language), (width,), adaptor
        self.freeze_table("language", language)

    def vectors(self, ids: Tensor) -> Tensor:
        adapted = self.adaptor(F.embedding(ids, self.language))
        return adapted * (ids != self.n_items)[..., None]  # a bias would fill the padding row

    def rows(self, ids: Tensor | None = None) -> Table:
        """Without a copy of the language: of all items it lies there in order."""
        read = self.language[: self.n_items] if ids is None else F.embedding(ids, self.language)
        return Table(self.adaptor(read), None, len(read))


def pad_row(table: Tensor) -> Tensor:
    """(N, d) → (N+1, d): row N, the padding id's, is zero."""
    return F.pad(table, (0, 0, 0, 1))


def id_table(initial: Tensor) -> nn.Embedding:
    """A trainable table from initial rows (N, d). The padding row is zero and gets no gradient."""
    return nn.Embedding.from_pretrained(pad_row(initial), freeze=False, padding_idx=len(initial))
