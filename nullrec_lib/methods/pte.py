"""PtE: profiles in place of item texts, and the user's own profile before the history (Profile-then-Embedding)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.lookup import Items, Tokens
from nullrec_lib.methods.method import Adapted, Material
from nullrec_lib.methods.whitenrec import whitened
from nullrec_lib.profiles.visible import served

NOBODY = -1


class PtE(Adapted):
    """Item vector = W z of the whitened item embedding z; one token W_u p before the history, of the user's profile.

    The embeddings are those of item profiles where the run has a folder of profiles, or of item texts: then it is the
    variant without profiles, the same model with E from text. The head has no ID, the same for every variant. The
    user's profile is the longest that was made from the visible history alone (a cut of at most its length); a history
    without one, and a run without users' profiles, has no such token.
    """

    def __init__(self, material: Material, width: int):
        language = whitened(material.embeddings)
        super().__init__(language, width, nn.Linear(language.shape[1], width))
        self.profiles = material.profiles
        if self.profiles is not None:
            self.extra_tokens, self.causal = 1, False
            (user, cut), rows = self.profiles.cuts.T, self.profiles.rows
            # Centred, as profiles begin alike; by the mean of those that were made of training interactions alone,
            # since a longer cut of a held-out user knows the targets of a shorter one.
            trained = torch.bincount(material.users, minlength=int(user.max()) + 1)
            if not (trains := cut <= trained[user]).any():
                raise InputError("profiles: no user's is made of training interactions alone; build them for more users.")
            self.register_buffer("mean", rows[trains].mean(dim=0), persistent=False)
            self.freeze_table("spoken", self.spoken_of(rows))
            self.read = nn.Linear(rows.shape[1], width)

    def spoken_of(self, rows: Tensor) -> Tensor:
        """(n, d) unit-norm embeddings of users' profiles → as the model reads them."""
        return (rows - self.mean) * rows.shape[1] ** 0.5

    def context(self, examples: Examples) -> dict[str, Tensor]:
        """`profile` (n,) int64: the row of `spoken` that may stand beside each example; `NOBODY` where none may."""
        if self.profiles is None:
            return {}
        before = torch.stack([examples.user, examples.place - examples.begin], dim=1).cpu().numpy()
        return {"profile": torch.from_numpy(served(before, self.profiles.cuts.numpy())).to(examples.place.device)}

    def views(self, batch: Batch, items: Items) -> list[Tokens]:
        if self.profiles is None:
            return super().views(batch, items)
        profile = batch.context["profile"]
        mask = F.pad(batch.history != self.n_items, (1, 0))
        first = (~mask).sum(dim=1, keepdim=True) - 1  # the place right before the first item
        said = self.read(F.embedding(profile.clamp(min=0), self.spoken))[:, None]
        vectors = F.pad(items(batch.history), (0, 0, 1, 0)).scatter(1, first[..., None].expand(-1, -1, said.shape[-1]), said)
        return [Tokens.of(vectors, mask.scatter(1, first, (profile != NOBODY)[:, None]))]
