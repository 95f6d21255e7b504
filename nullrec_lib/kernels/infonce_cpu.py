"""InfoNCE on a CPU: an example's candidates are read once from the table, and from the cache after that."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from nullrec_lib.kernels.cpu import AHEAD, FAST, compiled, exponentials, prefetch
from nullrec_lib.kernels.infonce import EPSILON
from nullrec_lib.kernels.lookup_cpu import EMPTY

_EPSILON = np.float32(EPSILON)

OFTEN = 4
"""From so many look-ups per row on, rows are joined and measured once before, not wherever they are met. What they take is
then at most a quarter of all candidates' vectors, which nobody wants in memory."""


@njit(inline="always")
def _join(frozen, trained, i, out, j):
    """out[j] = frozen[i], with trained[i] added to its last columns."""
    d, n = frozen.shape[1], trained.shape[1]
    for k in range(d):
        out[j, k] = frozen[i, k]
    for k in range(n):
        out[j, np.uint64(d - n + k)] += trained[i, k]


@njit(inline="always")
def _length(rows, i):
    square = np.float32(0)
    for k in range(rows.shape[1]):
        square += rows[i, k] * rows[i, k]
    return np.sqrt(square)


@njit(inline="always")
def _products(rows, places, q, out):
    """out[j] = rows[places[j]] · q, four at a time: q is then read once for four."""
    n, d = len(places), len(q)
    for j in range(0, n - 3, 4):
        one, two, three, four = places[j], places[j + 1], places[j + 2], places[j + 3]
        first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for k in range(d):
            first += rows[one, k] * q[k]
            second += rows[two, k] * q[k]
            third += rows[three, k] * q[k]
            fourth += rows[four, k] * q[k]
        out[j], out[j + 1], out[j + 2], out[j + 3] = first, second, third, fourth
    for j in range(n - n % 4, n):
        place, dot = places[j], np.float32(0)
        for k in range(d):
            dot += rows[place, k] * q[k]
        out[j] = dot


@njit(inline="always")
def _sum(rows, places, factors, out):
    """out = Σ_j factors[j] · rows[places[j]], four at a time."""
    n, d = len(places), len(out)
    out[:] = 0
    for j in range(0, n - 3, 4):
        one, two, three, four = places[j], places[j + 1], places[j + 2], places[j + 3]
        first, second, third, fourth = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
        for k in range(d):
            out[k] += (first * rows[one, k] + second * rows[two, k]) + (third * rows[three, k] + fourth * rows[four, k])
    for j in range(n - n % 4, n):
        place, factor = places[j], factors[j]
        for k in range(d):
            out[k] += factor * rows[place, k]


@compiled(fastmath=FAST, error_model="numpy")
def _whole(trained, frozen, out, lengths):
    """The rows of the table whole, in `out`, and their lengths; without a frozen part they are so, `out` is left alone."""
    for i in range(len(trained)):
        if len(frozen):
            _join(frozen, trained, i, out, i)
            lengths[i] = _length(out, i)
        else:
            lengths[i] = _length(trained, i)


@compiled(fastmath=FAST, error_model="numpy")
def _forward(trained, frozen, lengths, states, ids, temperature, losses, to_states, to_candidate, to_length):
    """Losses (B,), and what the backward pass needs, per unit of upstream gradient to the *sum* of losses:
    ∂/∂q in `to_states`, and for candidate c the factors of ∂/∂c = a·q − s·c in `to_candidate` and `to_length`.

    cos = c·q / (‖c‖‖q‖): ∂cos/∂c = q/(‖c‖‖q‖) − cos·c/‖c‖² and likewise for q. A norm below ε counts as ε, a constant:
    there the second term is gone. `frozen` and `lengths` may be empty: without the one, rows are whole; without the
    other, they are measured wherever they are met.
    """
    B, d = states.shape
    n = ids.shape[1]
    flat, joined = ids.ravel(), np.empty((n if len(frozen) else 0, d), np.float32)
    places = np.arange(n).astype(np.uint64)
    cosines, inverse, shares, factors = np.empty((4, n), np.float32)
    powers = np.empty(n, np.int32)
    for b in range(B):
        q, own = states[b], to_states[b]
        norm = _length(states, b)
        of_q = np.float32(1) / max(norm, _EPSILON)
        for j in range(n):
            ahead = flat[min(b * n + j + AHEAD, flat.size - 1)]
            prefetch(trained, ahead)
            i = np.uint64(ids[b, j])
            if i >= np.uint64(len(trained)):
                raise IndexError("ids: a candidate is no row of the table.")
            if len(frozen):
                prefetch(frozen, ahead)
                _join(frozen, trained, i, joined, j)
                length = _length(joined, j)
            else:
                places[j] = i
                length = lengths[i] if len(lengths) else _length(trained, i)
            inverse[j] = np.float32(1) / max(length, _EPSILON)
            to_length[b, j] = inverse[j] * inverse[j] if length > _EPSILON else np.float32(0)
        if len(frozen):
            _products(joined, places, q, cosines)
        else:
            _products(trained, places, q, cosines)
        highest = np.float32(-2)
        for j in range(n):
            cosines[j] *= inverse[j] * of_q
            highest = max(highest, cosines[j])
        for j in range(n):
            shares[j] = (cosines[j] - highest) / temperature
        exponentials(shares, powers)
        total = np.float32(0)
        for j in range(n):
            total += shares[j]
        losses[b] = np.log(total) + (highest - cosines[0]) / temperature
        along = np.float32(0)
        for j in range(n):
            g = shares[j] / total
            g = (g - np.float32(1) if j == 0 else g) / temperature
            shares[j] = g
            factors[j] = g * inverse[j] * of_q
            to_candidate[b, j] = factors[j]
            to_length[b, j] *= g * cosines[j]
        for j in range(n):
            along += shares[j] * cosines[j]
        if len(frozen):
            _sum(joined, places, factors, own)
        else:
            _sum(trained, places, factors, own)
        along = along * of_q * of_q if norm > _EPSILON else np.float32(0)
        for k in range(d):
            own[k] -= along * q[k]


@compiled(fastmath=FAST)
def _backward(trained, frozen, states, ids, to_candidate, to_length, scale, to_trained):
    """Scatter scale·(a·q − s·c). The second term is the same vector at all of an item's places: their s are summed
    before."""
    B, d = states.shape
    n, columns = ids.shape[1], trained.shape[1]
    flat = ids.ravel()
    total = np.zeros(len(trained), np.float32)
    for b in range(B):
        tail = states[b, d - columns :]
        for j in range(n):
            prefetch(to_trained, flat[min(b * n + j + AHEAD, flat.size - 1)])
            i, a = np.uint64(ids[b, j]), to_candidate[b, j] * scale
            total[i] += to_length[b, j] * scale
            for k in range(columns):
                to_trained[i, k] += a * tail[k]
    for i in range(len(trained)):
        s = total[i]
        if s != 0:
            for k in range(columns):
                to_trained[i, k] -= s * trained[i, k]
            if len(frozen):
                for k in range(columns):
                    to_trained[i, k] -= s * frozen[i, np.uint64(d - columns + k)]


class InfoNCE(torch.autograd.Function):
    """See `infonce.infonce`."""

    @staticmethod
    def forward(ctx, trained: Tensor, frozen: Tensor | None, states: Tensor, ids: Tensor, temperature: float):
        states, ids = states.contiguous(), ids.contiguous()
        losses, to_states = torch.empty(len(ids)), torch.empty_like(states)
        to_candidate, to_length = torch.empty(2, *ids.shape)
        rows, language, lengths = trained.detach().numpy(), EMPTY if frozen is None else frozen.numpy(), EMPTY.ravel()
        if OFTEN * len(rows) <= ids.numel():
            whole, lengths = (rows if frozen is None else np.empty_like(language)), np.empty(len(rows), np.float32)
            _whole(rows, language, whole, lengths)
            rows, language = whole, EMPTY
        _forward(rows, language, lengths, states.detach().numpy(), ids.numpy(), np.float32(temperature),
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
