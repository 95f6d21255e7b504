"""AlphaFuse: ID embeddings learned in the null space of the language embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.lookup import Table
from nullrec_lib.methods.method import Material, Method, id_table, pad_row
from nullrec_lib.nullspace import decompose


class AlphaFuse(Method):
    """Item vector = standardised language in the row space ⊕ trainable ID in the null space (AF Eq. 10).

    Row-space columns are a buffer: no optimiser ever sees them (but for the ablation `freeze=False`). The defaults
    of `spec.Spec` follow the authors' code: first `width` principal directions, all standardised, ID added to the
    last `null_dim`.
    Unlike it, exactly-null directions carry 0 and nullity is counted in the kept width.
    """

    def __init__(
        self,
        material: Material,
        width: int,
        threshold: float | None,
        relative_threshold: float | None,
        null_dim: int | None,
        standardise: str,
        basis: str,
        weighting: str,
        inject: str,
        init: str,
        cold: str,
        freeze: bool | None,
        seed: int,
    ):
        """Decompose, project, and start the ID part.

        Args:
            threshold, relative_threshold, null_dim, standardise, basis: see `nullspace.decompose`. Without any
                of the first three, half of the width is null space (64 of 128, as in the authors' code).
            weighting: `uniform`, or items weighted by training `popularity` in the covariance.
            inject: `add` the ID part to the language in the null space, or `replace` it.
            init: of the ID part, `normal` N(0, 1) or `zeros`.
            cold: items without training interactions have an ID part like any other (`init`), or `zero`
                and kept there (negatives would else still move it).
            freeze: the row space; False trains it from where it starts (an ablation: LLMInit from a standardised
                start). None is True.

        Raises:
            InputError: an unknown option, or options under which every item would start at zero.
        """
        super().__init__()
        options = {"weighting": (weighting, ("uniform", "popularity")), "inject": (inject, ("add", "replace")),
                   "init": (init, ("normal", "zeros")), "cold": (cold, ("init", "zero"))}
        for name, (value, allowed) in options.items():
            if value not in allowed:
                raise InputError(f"{name}: {value!r} is not one of {', '.join(allowed)}.")
        embeddings = material.embeddings.numpy()
        if threshold is None and relative_threshold is None and null_dim is None:
            null_dim = width // 2
        weights = material.popularity.numpy() if weighting == "popularity" else None
        self.space = decompose(
            embeddings, threshold=threshold, relative_threshold=relative_threshold, null_dim=null_dim, width=width,
            standardise=standardise, basis=basis, weights=weights, seed=seed,
        )
        self.n_items, self.widths = material.n_items, (width,)
        self.row_dim, self.nullity = self.space.row_dim, self.space.nullity
        if self.row_dim == 0 and inject == "replace" and init == "zeros":
            raise InputError("init: zeros with inject=replace and no row space starts every item at zero; use normal.")
        language = torch.from_numpy(self.space.project(embeddings))
        if inject == "replace":
            language[:, self.row_dim :] = 0
        self.frozen_dim = 0 if freeze is False else self.row_dim
        self.row = None
        if freeze is False and self.row_dim:
            self.row = id_table(language[:, : self.row_dim].contiguous())
            language = language[:, self.row_dim :].contiguous()
        self.freeze_table("language", language)
        if self.nullity:
            start = torch.randn if init == "normal" else torch.zeros
            self.id = id_table(start(material.n_items, self.nullity))
            warm = (material.popularity > 0).float()[:, None]
            self.register_buffer("warm", pad_row(warm) if cold == "zero" else None, persistent=False)

    def vectors(self, ids: Tensor) -> Tensor:
        language = F.embedding(ids, self.language)
        if self.row is not None:
            language = torch.cat([self.row(ids), language], dim=-1)
        if not self.nullity:
            return language
        row, null = language.split([self.row_dim, self.nullity], dim=-1)
        learned = self.id(ids)
        if self.warm is not None:
            learned = learned * F.embedding(ids, self.warm)
        return torch.cat([row, null + learned], dim=-1)

    whole = True

    def rows(self, ids: Tensor | None = None) -> Table:
        """Row space and null space apart, as in the paper: kernels join them as they read them."""
        if self.row is not None:
            return super().rows(ids)
        size = self.n_items if ids is None else len(ids)
        language = self.language if ids is None else F.embedding(ids, self.language)
        if not self.nullity:
            return Table(language[:, :0], language, size)
        if ids is None and self.id.sparse:  # a row-wise gradient comes from a look-up only, be it of all rows
            ids = torch.arange(size, device=self.device)
        learned = self.id.weight if ids is None else self.id(ids)
        if self.warm is not None:
            learned = learned * (self.warm if ids is None else F.embedding(ids, self.warm))
        return Table(learned, language, size)

    def facts(self) -> dict[str, float]:
        return {"nullity": self.nullity, "full_nullity": self.space.full_nullity}
