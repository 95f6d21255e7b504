"""Where a result was made: versions, commit, device, memory, threads."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import nullrec_lib
from nullrec_lib.errors import InputError


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch and the libraries of numpy and scikit-learn on one thread; as it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def environment() -> dict[str, Any]:
    """What a result depends on besides its spec: versions, machine, the checkout's commit if there is one."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "nullrec": nullrec_lib.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": gpu or platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
    }


def _commit() -> str | None:
    """The commit of the code that runs, with `-dirty` if it was changed since; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def choose_device(name: str) -> str:
    """`auto` → cuda where there is one, else cpu; InputError for a device that is unknown or not there."""
    there = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if there else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"device: {name!r} is not one of auto, cpu, cuda.")
    if name == "cuda" and not there:
        raise InputError("device: there is no CUDA device here; use auto or cpu.")
    return name


def processor(device: str) -> str:
    """The model name of the GPU or the CPU, as its maker writes it where that can be read."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_mb(device: str) -> float:
    """Most memory so far: of the tensors on a GPU, or resident of the whole process (earlier runs included)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
