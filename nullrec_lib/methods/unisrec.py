"""UniSRec: a mixture of whitening experts turns frozen language into item vectors (Hou et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.dropout import draw_seed, dropout
from nullrec_lib.methods.method import Adapted, Material


class UniSRec(Adapted):
    """Item vector = Σ_k g_k (e − b_k) W_k over the experts k, gates g = softmax(e W_g + ε · softplus(e W_n)).

    Parametric whitening and noisy gating as in UniSRec's code: expert weights N(0, 0.02²); gate weights zero, so that
    the experts start with equal shares; ε ~ N(0, 1) in training only, its factor at least 0.01. Unlike there, all
    experts share one dropout mask, as drawing eight cost more than all else. Its pre-training on several domains is
    not part of the comparison.
    """

    def __init__(self, material: Material, width: int, experts: int, adaptor_dropout: float):
        """Experts, and the probability with which each drops a component of e before it whitens."""
        language = material.embeddings
        super().__init__(language, width, Mixture(language.shape[1], width, experts, adaptor_dropout))


class Mixture(nn.Module):
    """The adaptor, (…, d_l) → (…, width)."""

    def __init__(self, language: int, width: int, experts: int, dropout: float):
        super().__init__()
        if experts < 1 or not 0 <= dropout < 1:
            raise InputError(f"experts must be at least 1 ({experts}) and adaptor_dropout in [0, 1) ({dropout}).")
        self.weights = nn.Parameter(0.02 * torch.randn(experts, language, width))
        self.biases = nn.Parameter(torch.zeros(experts, language))
        self.gate, self.gate_noise = (nn.Parameter(torch.zeros(language, experts)) for _ in range(2))
        self.dropout = dropout

    def gates(self, e: Tensor) -> Tensor:
        """(…, d_l) → (…, experts), positive, with sum 1."""
        logits = e @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(e @ self.gate_noise) + 1e-2)
        return logits.softmax(dim=-1)

    def forward(self, e: Tensor) -> Tensor:
        gates = self.gates(e)
        # (e - b) W as e W - b W: the frozen e then needs no gradient, which saves a third of the work.
        shifts = (self.biases[:, None] @ self.weights)[:, 0]
        if self.training and self.dropout:
            e = dropout(e, self.dropout, draw_seed())
        experts, language, width = self.weights.shape
        # One product for all experts: in bfloat16 e would be converted for each.
        whitened = e @ self.weights.transpose(0, 1).reshape(language, experts * width)
        mixed = torch.einsum("...k,...kd->...d", gates, whitened.unflatten(-1, (experts, width)))
        return mixed - gates @ shifts
