"""Which implementation of a kernel runs."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from nullrec_lib.errors import InputError

IMPLEMENTATIONS = ("naive", "cpu", "triton")


def choose(impl: str, tensor: Tensor) -> str:
    """`auto` → `cpu` or `triton` by the tensor's device; another name of `IMPLEMENTATIONS` → itself.

    The fast paths are for float32; `auto` takes `naive` for other types, and on a GPU without Triton: slower, never
    wrong.

    Raises:
        InputError: no such implementation, or one that does not run on this device. Triton takes CPU tensors only
            in its interpreter (TRITON_INTERPRET=1 in the environment before it is imported).
    """
    if impl == "auto":
        if tensor.dtype != torch.float32:
            return "naive"
        if tensor.device.type == "cpu":
            return "cpu"
        return "triton" if importlib.util.find_spec("triton") else "naive"
    if impl not in IMPLEMENTATIONS:
        raise InputError(f"impl: {impl!r} is not one of auto, {', '.join(IMPLEMENTATIONS)}.")
    if impl == "cpu" and tensor.device.type != "cpu":
        raise InputError(f"impl: cpu does not take tensors on {tensor.device}; use auto.")
    if impl == "triton" and tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError("impl: triton needs a GPU, or its interpreter: set TRITON_INTERPRET=1 before starting.")
    return impl
