"""How long and how much: variants of one operation take turns, so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import ctypes
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from nullrec_lib.errors import InputError

LEAST, MOST = 3, 200
"""Rounds of taking turns: at least (where time allows one at all), and at most."""
SHORTEST = 2e-3
"""Seconds that one reading lasts at least; calls that are shorter are made several times per reading."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, 20th and 80th percentile over `repeats` readings."""

    median_s: float
    p20_s: float
    p80_s: float
    repeats: int

    @classmethod
    def of(cls, readings: list[float]) -> Timing:
        low, middle, high = np.quantile(readings, (0.2, 0.5, 0.8))
        return cls(float(middle), float(low), float(high), len(readings))


def take_turns(works: dict[str, Callable[[], Any]], seconds: float, device: str = "cpu",
               shortest: float = SHORTEST) -> dict[str, Timing]:
    """Time every work in rounds a-b-c, a-b-c, … until `seconds` are over.

    Each is called once before, untimed: compilers are done then and memory is there. A work of which one call takes
    longer than all of `seconds` is timed once, the others at least `LEAST` times.

    Args:
        works: name → what is timed; results are thrown away.
        seconds: for all of them together, without the untimed calls.
        device: on `cuda` a reading lies between two events of the GPU's own clock.
        shortest: seconds of a reading at least.
    """
    calls, once = {}, {}
    for name, work in works.items():
        work()
        once[name] = _reading(work, 1, device)
        for _ in range(4 if once[name] < 0.05 else 0):  # one reading may have met a busy moment
            once[name] = min(once[name], _reading(work, 1, device))
        calls[name] = max(1, math.ceil(shortest / max(once[name], 1e-7)))
    readings: dict[str, list[float]] = {name: [] for name in works}
    started = time.perf_counter()
    for turn in range(MOST):
        if turn >= LEAST and time.perf_counter() - started > seconds:
            break
        for name, work in works.items():
            if once[name] > seconds:
                readings[name] = readings[name] or [once[name]]
            else:
                readings[name].append(_reading(work, calls[name], device))
    return {name: Timing.of(taken) for name, taken in readings.items()}


def _reading(work: Callable[[], Any], calls: int, device: str) -> float:
    """Seconds of one call, over `calls` in a row."""
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - started) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / calls


def extra_memory_mb(work: Callable[[], Any], device: str = "cpu") -> float | None:
    """Most memory in MiB that one call takes beyond what was in use before it, its result included.

    On a GPU what torch allocates. On a CPU the resident memory of this process, whose high-water mark Linux lets a
    process set back; a resolution of about half a MiB. A lower bound where the C library keeps freed memory that it
    cannot give back, which a long-lived process may come to. None where that cannot be done.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        # Memory that the allocator keeps for later would hide what the call takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident_kb("VmRSS")
        work()
        return max(0, _resident_kb("VmHWM") - before) / 1024
    except (OSError, AttributeError):  # not Linux, or not its usual C library
        return None


def _resident_kb(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Within the block, torch and the numeric libraries use `count` threads.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError(f"threads: {count} is below 1.")
    before = torch.get_num_threads()
    try:
        with threadpool_limits(count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)
