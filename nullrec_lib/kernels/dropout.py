"""Dropout whose mask follows from a seed and the element's place, so that every implementation draws the same one.

`torch`'s own Bernoulli draw costs a CPU more than the rest of a training step does; a hash costs almost nothing, needs
no memory, and is made again in the backward pass instead of being kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nullrec_lib.kernels.dispatch import choose

ODD, FIRST, SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
"""Multipliers of the hash: the golden ratio's, and those of MurmurHash3's 32-bit finaliser."""


def draw_seed() -> int:
    """A seed in 0…2⁶²-1 from torch's global CPU generator: reproducible, and no round trip to a GPU."""
    return int(torch.randint(2**62, ()))


def kept(count: int, p: float, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) bool, the naive reference: element i stays where its hash is at least p·2³².

    hash(i) = mix(i·ODD ⊕ high) with `low` added halfway, all modulo 2³²; low and high are the seed's halves.
    """
    word = 0xFFFFFFFF
    low, high = seed & word, seed >> 32 & word
    h = (torch.arange(count, device=device) * ODD & word) ^ high
    h = ((h ^ h >> 16) * FIRST + low) & word
    h = (h ^ h >> 13) * SECOND & word
    return (h ^ h >> 16) >= threshold(p)


def threshold(p: float) -> int:
    """The hash below which an element is dropped: at most 2³²-1, so that it is a 32-bit number like the hashes."""
    return min(round(p * 2**32), 2**32 - 1)


def dropout_naive(x: Tensor, p: float, seed: int) -> Tensor:
    """The reference: elements dropped with probability p, the others divided by 1-p."""
    return x * kept(x.numel(), p, seed, x.device).view_as(x) / (1 - p)


def dropout(x: Tensor, p: float, seed: int, impl: str = "auto") -> Tensor:
    """x (…) float32 → the same shape; each element is dropped with probability p in [0, 1), the others divided by
    1-p. p = 0 is the identity. What is bfloat16 comes back as float32.

    Args:
        seed: see `draw_seed`; the same seed drops the same places.
        impl: see `dispatch.choose`. On a GPU `auto` is torch's own dropout, which is fast there and has seeds of its
            own (torch.manual_seed sets them).
    """
    if p == 0:
        return x
    x = x.float() if x.dtype == torch.bfloat16 else x
    if impl == "auto" and x.is_cuda:
        return F.dropout(x, p)
    if choose(impl, x) == "cpu":
        from nullrec_lib.kernels.dropout_cpu import Dropout

        return Dropout.apply(x, p, seed)
    return dropout_naive(x, p, seed)
