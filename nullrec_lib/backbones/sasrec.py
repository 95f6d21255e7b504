"""SASRec: self-attention over the history, state at its last position (Kang & McAuley 2018)."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch
from nullrec_lib.data.negatives import draw
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.attend import Last, attend
from nullrec_lib.kernels.dispatch import choose
from nullrec_lib.kernels.dropout import draw_seed, dropout
from nullrec_lib.kernels.infonce import EPSILON, infonce
from nullrec_lib.kernels.lookup import Items, Tokens, lookup
from nullrec_lib.kernels.softmax import full_softmax


class Dropping(nn.Module):
    """A module with a dropout probability, which is 0 outside of training."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = dropout

    @property
    def p(self) -> float:
        return self.dropout if self.training else 0.0

    def drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, draw_seed()) if self.p else x


class Block(Dropping):
    """Pre-norm causal self-attention and a feed-forward layer of the same width.

    As in the SASRec that AlphaFuse's authors use: queries are layer-normed and keys and values are not, the
    residual is the normed query, there is no output projection, and the feed-forward residual is normed too.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(dropout)
        self.heads = heads
        self.norm_query, self.norm_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, d), mask (B, L) bool → (B, L, d): every position attends to itself and earlier tokens."""
        normed = self.norm_query(x)
        return self._feed_forward(normed + self._attend(self.query(normed), self.key(x), x, mask))

    def at(self, x: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
        """The same function at some positions only: x (B, L, d), ends (n,) int64, distinct places of the B·L → (n, d)."""
        flat = x.flatten(0, 1)
        normed = self.norm_query(flat[ends])
        queries = torch.zeros_like(flat).index_copy(0, ends, self.query(normed).to(flat.dtype))
        keys = F.linear(x, self.key.weight)  # their bias shifts all scores of a query alike
        attended = self._attend(queries.view_as(x), keys, x, mask).flatten(0, 1)[ends]
        return self._feed_forward(normed + attended)

    def _attend(self, queries: Tensor, keys: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        B, L, d = x.shape
        split = lambda t: t.view(B, L, self.heads, d // self.heads).transpose(1, 2)
        q, k, v = split(queries), split(keys), split(self.value(x))
        causal = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
        # A large negative number, not -inf: a row without any token (empty history) stays finite.
        allowed = (causal & mask[:, None, :])[:, None]
        scores = (q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5).masked_fill(~allowed, -1e9)
        return (self.drop(scores.softmax(dim=-1)) @ v).transpose(1, 2).reshape(B, L, d)

    def last(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same function at the last position only, (B, L, d) → (B, d), for about a fifth of the work.

        With one query the key and value projections move out of the sum over positions:
        q·(K xⱼ + b) = (Kᵀq)·xⱼ + q·b and Σ aⱼ(V xⱼ + b) = V(Σ aⱼxⱼ) + b Σ aⱼ, so 2·L·d² becomes 2·d². And q·b is the
        same for all j, which a softmax does not see: the bias of the keys is never read.
        """
        B, _, d = x.shape
        H = self.heads
        x, newest = Last.apply(x)
        normed = self.norm_query(newest)
        q = self.query(normed).view(B, H, -1)
        asked = (q.transpose(0, 1) @ self.key.weight.view(H, -1, d)).transpose(0, 1)
        seed = draw_seed() if self.p else 0
        pooled, sums = attend(asked.to(x.dtype), x, mask, (d // H) ** -0.5, self.p, seed)
        attended = (pooled.transpose(0, 1) @ self.value.weight.view(H, -1, d).transpose(1, 2)).transpose(0, 1)
        attended = attended + sums[..., None] * self.value.bias.view(H, -1)
        return self._feed_forward(normed + attended.reshape(B, d))

    def state(self, x: Tensor, mask: Tensor, norm: nn.LayerNorm, impl: str = "auto") -> Tensor:
        """norm(self.last(x, mask)), (B, L, d) float32 → (B, d); on a CPU what lies between two products is one pass.

        Args:
            mask: (B, L) bool.
            impl: see `kernels.dispatch.choose`; a GPU, and products in bfloat16, use the naive form.
        """
        if choose(impl, x) != "cpu" or torch.is_autocast_enabled("cpu"):
            return norm(self.last(x, mask))
        from nullrec_lib.kernels.state_cpu import State

        seeds = [draw_seed() if self.p else 0 for _ in range(3)]
        layers = self.norm_query, self.query, self.norm_inner, self.inner, self.outer, norm
        of_query, query, of_inner, inner, outer, after = ((layer.weight, layer.bias) for layer in layers)
        return State.apply(x, mask, self.heads, self.p, seeds, *of_query, *query, self.key.weight, self.value.weight,
                           self.value.bias, *of_inner, *inner, *outer, *after)

    def _feed_forward(self, x: Tensor) -> Tensor:
        normed = self.norm_inner(x)
        return normed + self.drop(self.outer(self.drop(self.inner(normed).relu())))


class Encoder(Dropping):
    """Attention over a history: views in, states out.

    Several views are read by the same weights, one after the other, and their states concatenated.
    """

    together = False
    """Histories of one user are read in one causal pass while training, and positions count from a history's oldest
    item. Else each is read for itself, and they count from its newest."""

    def __init__(self, width: int, length: int, blocks: int, heads: int, dropout: float):
        """Set the shape.

        Args:
            width: d of one view.
            length: longest view, in tokens.
            blocks: attention blocks (the authors' code runs one whatever it is told).
            heads: attention heads; must divide `width`.
            dropout: probability, on inputs, attention weights and feed-forward.

        Raises:
            InputError: a number out of range.
        """
        super().__init__(dropout)
        if heads < 1 or width % heads:
            raise InputError(f"heads: {heads} does not divide the width {width}.")
        for name, value in (("blocks", blocks), ("length", length)):
            if value < 1:
                raise InputError(f"{name}: {value} is below 1.")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout: {dropout} is not in [0, 1).")
        self.positions = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, views: Sequence[Tokens], ends: Tensor | None = None) -> Tensor:
        """Views of (B, L') tokens → states (B, number of views · d); with `ends`, views of windows → a state per end.

        Args:
            ends: (n,) int64, see `data.examples.Windows`; only where histories are read `together`.
        """
        states = [self._read(view) if ends is None else self._read_windows(view, ends) for view in views]
        return states[0] if len(states) == 1 else torch.cat(states, dim=-1)

    def _read(self, view: Tokens) -> Tensor:
        mask = view.mask
        torch._assert_async((mask[:, 1:] >= mask[:, :-1]).all(), "histories must be left-padded")
        x = self._from_oldest(view) if self.together else self._tokens(view, self.positions)
        for block in self.blocks[:-1]:
            x = block(x, mask) * mask[..., None]
        return self.blocks[-1].state(x, mask, self.norm)

    def _read_windows(self, view: Tokens, ends: Tensor) -> Tensor:
        mask = view.mask
        x = self._tokens(view, self.positions[: mask.shape[1]])
        for block in self.blocks[:-1]:
            x = block(x, mask) * mask[..., None]
        return self.norm(self.blocks[-1].at(x, mask, ends))

    def _tokens(self, view: Tokens, positions: Tensor) -> Tensor:
        return lookup(view.table, view.ids, positions, self.p, draw_seed() if self.p else 0)

    def _from_oldest(self, view: Tokens) -> Tensor:
        """Tokens of left-padded histories whose positions count from the oldest: turned to the left end and back."""
        L = view.ids.shape[1]
        places, padding = torch.arange(L, device=view.ids.device), (~view.mask).sum(dim=1, keepdim=True)
        x = self._tokens(Tokens(view.table, view.ids.gather(1, (places + padding) % L)), self.positions[:L])
        return x.gather(1, ((places - padding) % L)[..., None].expand_as(x))


class SASRec(Encoder):
    """The state is the query; InfoNCE on cosine similarity."""

    def __init__(
        self,
        widths: tuple[int, ...],
        length: int,
        blocks: int,
        heads: int,
        dropout: float,
        temperature: float,
        negatives: int,
        exclude_history: bool,
        prefixes: str | None,
    ):
        """Set the shape and the loss.

        Args:
            widths: of the views, all equal.
            length, blocks, heads, dropout: see `Encoder`.
            temperature: τ of InfoNCE; similarities are divided by it.
            negatives: uniform negatives per example; 0 takes all items instead (full softmax).
            exclude_history: draw no negative from the visible history (the authors exclude the target only).
            prefixes: `together` trains on all histories of a user in one causal pass, as Kang & McAuley do; positions
                then count from a history's oldest item (theirs are places in a padded sequence), and of a long history
                a window of at least the newer half is read (`Examples.window`). None reads each for itself, its newest
                `length` items, as AlphaFuse's authors do.

        Raises:
            InputError: a number out of range.
        """
        super().__init__(widths[0], length, blocks, heads, dropout)
        if negatives < 0:
            raise InputError(f"negatives: {negatives} is below 0 (which is all items).")
        if not temperature > 0:
            raise InputError(f"temperature: {temperature} is not positive.")
        if prefixes not in (None, "together"):
            raise InputError(f"prefixes: {prefixes!r} is not one of none, together.")
        self.temperature, self.negatives, self.exclude_history = temperature, negatives, exclude_history
        self.together = prefixes == "together"

    def candidates(self, batch: Batch, n_items: int) -> Tensor | None:
        """(B, 1 + negatives) int64 item ids that the loss compares, the target first; None is all items."""
        if not self.negatives:
            return None
        drawn = draw(batch.target, n_items, self.negatives, batch.history if self.exclude_history else None)
        return torch.cat([batch.target[:, None], drawn], dim=1)

    def loss(self, states: Tensor, target: Tensor, candidates: Tensor | None, items: Items) -> Tensor:
        """InfoNCE over the target and its negatives: −log softmax(cos/τ) of the target, mean over B.

        Args:
            target: (B,) int64.
            candidates: what `candidates` drew.
            items: the item vectors.
        """
        states = states.float()
        if candidates is None:
            return full_softmax(items.table, states, items.place(target), self.temperature)
        return infonce(items.table, states, items.place(candidates), self.temperature)

    def queries(self, states: Tensor, batch: Batch) -> Tensor:
        """(B, d) vectors whose product with the item table scores the items: here the states themselves."""
        return states

    def similarity(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and summand per item, (N,) each, that turn raw dot products into the similarity trained with, up to
        what all items of a query share: 1/‖item‖ and 0 for cosine."""
        return 1 / table.norm(dim=-1).clamp(min=EPSILON), table.new_zeros(len(table))
