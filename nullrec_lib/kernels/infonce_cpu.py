"""InfoNCE on a CPU: each row's candidates are read once from the table and once from the cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nullrec_lib.kernels.cpu import AHEAD, FAST, compiled, exponentials, prefetch
from nullrec_lib.kernels.infonce import EPSILON
from nullrec_lib.kernels.lookup_cpu import EMPTY

_EPSILON = np.float32(EPSILON)


@compiled(fastmath=FAST, error_model="numpy")
def _forward(trained, frozen, states, ids, temperature, losses, to_states, to_candidate, to_length):
    """Losses (B,), and what the backward pass needs, per unit of upstream gradient to the *sum* of losses:
    ∂/∂q in `to_states`, and for candidate c the factors of ∂/∂c = a·q − s·c in `to_candidate` and `to_length`.

    cos = c·q / (‖c‖‖q‖): ∂cos/∂c = q/(‖c‖‖q‖) − cos·c/‖c‖² and likewise for q. A norm below ε counts as ε, a constant:
    there the second term is gone.
    """
    B, d = states.shape
    n = ids.shape[1]
    start = d - trained.shape[1]
    flat, rows = ids.ravel(), np.empty((n, d), np.float32)
    cosines, inverse, shares = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    powers = np.empty(n, np.int32)
    for b in range(B):
        q = states[b]
        square = np.float32(0)
        for k in range(d):
            square += q[k] * q[k]
        norm = np.sqrt(square)
        of_q = np.float32(1) / max(norm, _EPSILON)
        highest = np.float32(-2)
        for j in range(n):
            ahead = flat[min(b * n + j + AHEAD, flat.size - 1)]
            prefetch(trained, ahead)
            if len(frozen):
                prefetch(frozen, ahead)
            i, c = ids[b, j], rows[j]
            learned, tail = trained[i], c[start:]
            if len(frozen):
                language = frozen[i]
                for k in range(d):
                    c[k] = language[k]
                for k in range(d - start):
                    tail[k] += learned[k]
            else:
                for k in range(d):
                    c[k] = learned[k]
            dot, length = np.float32(0), np.float32(0)
            for k in range(d):
                dot += c[k] * q[k]
                length += c[k] * c[k]
            inverse[j] = np.float32(1) / max(np.sqrt(length), _EPSILON)
            to_length[b, j] = inverse[j] * inverse[j] if np.sqrt(length) > _EPSILON else np.float32(0)
            cosines[j] = dot * inverse[j] * of_q
            highest = max(highest, cosines[j])
        for j in range(n):
            shares[j] = (cosines[j] - highest) / temperature
        exponentials(shares, powers)
        total = np.float32(0)
        for j in range(n):
            total += shares[j]
        losses[b] = np.log(total) + (highest - cosines[0]) / temperature
        own = to_states[b]
        own[:] = 0
        along = np.float32(0)
        for j in range(n):
            g = shares[j] / total
            g = (g - np.float32(1) if j == 0 else g) / temperature
            a, c = g * inverse[j] * of_q, rows[j]
            to_candidate[b, j] = a
            to_length[b, j] *= g * cosines[j]
            along += g * cosines[j]
            for k in range(d):
                own[k] += a * c[k]
        along = along * of_q * of_q if norm > _EPSILON else np.float32(0)
        for k in range(d):
            own[k] -= along * q[k]


@compiled(fastmath=FAST)
def _backward(trained, frozen, states, ids, to_candidate, to_length, scale, to_trained):
    """Scatter scale·(a·q − s·c). The second term is the same vector at all of an item's places: their s are summed
    before."""
    B, d = states.shape
    n = ids.shape[1]
    start = d - trained.shape[1]
    flat = ids.ravel()
    total = np.zeros(len(trained), np.float32)
    for b in range(B):
        tail = states[b, start:]
        for j in range(n):
            prefetch(to_trained, flat[min(b * n + j + AHEAD, flat.size - 1)])
            i, a = ids[b, j], to_candidate[b, j] * scale
            total[i] += to_length[b, j] * scale
            row = to_trained[i]
            for k in range(d - start):
                row[k] += a * tail[k]
    for i in range(len(trained)):
        if total[i] != 0:
            row, learned, s = to_trained[i], trained[i], total[i]
            for k in range(d - start):
                row[k] -= s * learned[k]
            if len(frozen):
                language = frozen[i, start:]
                for k in range(d - start):
                    row[k] -= s * language[k]


class InfoNCE(torch.autograd.Function):
    """See `infonce.infonce`."""

    @staticmethod
    def forward(ctx, trained: Tensor, frozen: Tensor | None, states: Tensor, ids: Tensor, temperature: float):
        states, ids = states.contiguous(), ids.contiguous()
        losses, to_states = torch.empty(len(ids)), torch.empty_like(states)
        to_candidate, to_length = torch.empty(2, *ids.shape)
        language = EMPTY if frozen is None else frozen.numpy()
        _forward(trained.detach().numpy(), language, states.detach().numpy(), ids.numpy(), np.float32(temperature),
                 losses.numpy(), to_states.numpy(), to_candidate.numpy(), to_length.numpy())
        ctx.save_for_backward(trained, frozen, states, ids, to_states, to_candidate, to_length)
        return losses.mean()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        trained, frozen, states, ids, to_states, to_candidate, to_length = ctx.saved_tensors
        scale = float(gradient) / len(ids)
        to_trained = None
        if ctx.needs_input_grad[0]:
            to_trained = torch.zeros_like(trained)
            language = EMPTY if frozen is None else frozen.numpy()
            _backward(trained.detach().numpy(), language, states.detach().numpy(), ids.numpy(), to_candidate.numpy(),
                      to_length.numpy(), np.float32(scale), to_trained.numpy())
        return to_trained, None, to_states * scale, None, None
