"""LLM-ESR: a semantic and a collaborative view that look at each other, and similar users as teachers
(Liu et al. 2024)."""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.attend import attend
from nullrec_lib.kernels.lookup import Items, Tokens
from nullrec_lib.methods.alignment import check, contrastive
from nullrec_lib.methods.method import Material, Method, id_table
from nullrec_lib.nullspace import decompose
from nullrec_lib.progress import bar

HEADS = 2  # of the cross-attention, as in LLM-ESR's code


class LLMESR(Method):
    """Item vector = ID ⊕ A(language), half of the width each; the ID starts from the language's PCA.

    - *Views*: each half of the history, after attention that asks with the other half (its queries) about this one
      (keys and values). The same backbone reads both; states and item vectors are their concatenations.
    - *Item loss*: β · InfoNCE between the two halves of the batch's items, both ways. This is the paper's form on
      cosines; its code uses unnormalised dot products against soft targets.
    - *Self-distillation*: α · mean squared error between the state and the mean state, without gradient, of the
      `similar_users` training users whose language profile (mean of their items' embeddings) is most like that of
      the visible history. The original asks a language model for the users' embeddings; the user itself is never its
      own teacher, as its later items would tell the target.

    The adapter is two linear layers, d_l → d_l/2 → d/2, without activation, as in the code. The code adds positions
    before the cross-attention; here they are the backbone's, after it.
    """

    causal = False  # the attention of a view goes over all of the history

    def __init__(
        self, material: Material, width: int, alpha: float, beta: float, align_temperature: float,
        similar_users: int, history_length: int,
    ):
        """Weights α of self-distillation and β of the item loss, τ of the latter, and the number of teachers.

        Raises:
            InputError: a width that is not a multiple of four (two views, two heads), a weight out of range, or too
                few training users to learn from.
        """
        super().__init__()
        check(align_temperature, alpha=alpha, beta=beta)
        if width % (2 * HEADS):
            raise InputError(f"width: {width} does not split into two views with {HEADS} attention heads each.")
        users = material.users.unique()
        if not 1 <= similar_users < len(users):
            raise InputError(f"similar_users: {similar_users} is not between 1 and {len(users) - 1}, the other "
                             "training users.")
        E = material.embeddings
        half, d_l = width // 2, E.shape[1]
        self.n_items, self.widths = material.n_items, (half, half)
        self.alpha, self.beta, self.temperature, self.k = alpha, beta, align_temperature, similar_users
        space = decompose(E.numpy(), null_dim=0, width=half, standardise="none")
        self.id = id_table(torch.from_numpy(space.project(E.numpy())))
        self.freeze_table("language", E)
        self.adapter = nn.Sequential(nn.Linear(d_l, d_l // 2), nn.Linear(d_l // 2, half))
        self.to_id, self.to_language = CrossAttention(half), CrossAttention(half)
        # Training users, their newest training items, and the mean language of all of them.
        row = torch.searchsorted(users, material.users)
        place = torch.bincount(row).cumsum(0)[row] - torch.arange(len(row))  # 1 for the newest
        histories = torch.full((len(users), history_length), self.n_items)
        recent = place <= history_length
        histories[row[recent], history_length - place[recent]] = material.items[recent]
        visits = sparse.csr_matrix((np.ones(len(row), np.float32), (row, material.items)), shape=(len(users), len(E)))
        profiles = torch.from_numpy(visits @ E.numpy())
        for name, rows in (("users", users), ("histories", histories), ("profiles", F.normalize(profiles, dim=-1))):
            self.register_buffer(name, rows, persistent=False)

    def vectors(self, ids: Tensor) -> Tensor:
        # Two linear layers in a row are one: their small product is made first, and each item pays for one layer.
        first, second = self.adapter
        adapted = F.linear(F.embedding(ids, self.language), second.weight @ first.weight, second(first.bias))
        adapted = adapted * (ids != self.n_items)[..., None]
        return torch.cat([self.id(ids), adapted], dim=-1)

    def reads(self, batch: Batch) -> list[Tensor]:
        similar = batch.context.get("similar")
        return super().reads(batch) + ([] if similar is None else [self.histories[similar]])

    def views(self, batch: Batch, items: Items) -> list[Tokens]:
        mask = batch.history != self.n_items
        identity, language = items(batch.history).split(self.widths, dim=-1)
        return [Tokens.of(self.to_id(language, identity, mask), mask),
                Tokens.of(self.to_language(identity, language, mask), mask)]

    def context(self, examples: Examples) -> dict[str, Tensor]:
        """For training examples `similar` (n, k) int64: rows of `histories`, the most alike first."""
        if examples.part != "train":
            return {}
        found = []
        with bar(what="similar users", total=len(examples), unit="example") as progress:
            for index in torch.arange(len(examples)).split(1024):
                batch = examples.batch(index)
                alike = F.normalize(F.embedding(batch.history, self.language).sum(1), dim=-1) @ self.profiles.T
                alike.masked_fill_(batch.user[:, None] == self.users, -torch.inf)
                found.append(alike.topk(self.k).indices)
                progress.update(len(index))
        return {"similar": torch.cat(found)}

    def extra_loss(
        self, batch: Batch, states: Tensor, encode: Callable[[Batch], Tensor], items: Items
    ) -> Tensor:
        ids = torch.cat([batch.history.flatten(), batch.target]).unique()
        identity, language = items(ids[ids < self.n_items]).split(self.widths, dim=-1)
        loss = self.beta * contrastive(identity, language, self.temperature, both_ways=True)
        if "similar" not in batch.context:
            return loss
        similar, place = batch.context["similar"].unique(return_inverse=True)  # users teach many: each is read once
        nobody = torch.zeros_like(similar)
        with torch.no_grad():
            taught = encode(Batch(self.histories[similar], nobody, nobody, nobody))
        return loss + self.alpha * F.mse_loss(states, taught[place].mean(1))


class CrossAttention(nn.Module):
    """Attention with queries from one view and keys and values from the other, over all of the history."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, asking: Tensor, told: Tensor, mask: Tensor) -> Tensor:
        """asking, told (B, L, d), zeros where mask (B, L) is False → (B, L, d).

        Per head, (W_q a)·(W_k t) = a·(W_qᵀW_k t) and W_o Σ w W_v t = W_oW_v Σ w t: two small products of weights
        first, and each token pays for two layers instead of four.
        """
        B, L, d = asking.shape
        heads = lambda weight: weight.view(HEADS, -1, d)  # (H, d/H, d)
        ask = heads(self.query.weight).transpose(1, 2) @ heads(self.key.weight)  # (H, d, d)
        tell = self.output.weight.view(d, HEADS, -1).transpose(0, 1) @ heads(self.value.weight)
        queries = asking @ ask.transpose(0, 1).reshape(d, HEADS * d)
        pooled, _ = attend(queries.to(told.dtype).view(B, L * HEADS, d), told, mask, (d // HEADS) ** -0.5)
        return F.linear(pooled.view(B, L, HEADS * d), tell.transpose(0, 1).reshape(d, HEADS * d), self.output.bias)
