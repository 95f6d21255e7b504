"""Calls side by side in processes, of which any may fail or be killed without taking the others with it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

Item = TypeVar("Item")

PRELOADED = "nullrec_lib.experiments"
"""What nearly every call needs: two seconds to import, once for all processes where the system lets them be copied."""


def outcomes(call: Callable[[Item], Any], items: list[Item], jobs: int) -> Iterator[tuple[Item, Any, str | None]]:
    """Call each item in one of `jobs` processes (1: in this one); yield it with what the call gave and None, or with
    None and its error in one line.

    A call whose process died is tried once more, alone, after all others: it may have been a neighbour that took
    the memory. Interrupts are not errors of an item and are raised.
    """
    died = []
    for item, result, error in _here(call, items) if jobs == 1 else _elsewhere(call, items, jobs):
        if isinstance(error, BrokenProcessPool):
            died.append(item)
        else:
            yield item, result, _said(error)
    for item, result, error in _elsewhere(call, died, 1):
        yield item, result, _said(error)


def _said(error: BaseException | None) -> str | None:
    if isinstance(error, BrokenProcessPool):
        return "the process died (killed or out of memory)"
    if error is None or isinstance(error, Exception):
        return " ".join(f"{type(error).__name__}: {error}".split()) if error else None
    raise error


def _here(call: Callable, items: list) -> Iterator[tuple[Any, Any, BaseException | None]]:
    for item in items:
        try:
            result = call(item)
        except Exception as error:  # whatever broke this call must not take the others with it
            yield item, None, error
        else:
            yield item, result, None


def _elsewhere(call: Callable, items: list, jobs: int) -> Iterator[tuple[Any, Any, BaseException | None]]:
    """A process that dies breaks its whole pool, so each has a pool of its own: then it is known whose call it was."""
    quiet = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # read by the children when they import tqdm: one bar is enough
    fresh = partial(ProcessPoolExecutor, 1, mp_context=_context())
    idle = [fresh() for _ in range(min(jobs, len(items)))]
    waiting, flying = deque(items), {}
    try:
        while waiting or flying:
            while waiting and idle:
                pool, item = idle.pop(), waiting.popleft()
                flying[pool.submit(_called, dict(os.environ), call, item)] = pool, item
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                pool, item = flying.pop(future)
                error = future.exception()
                idle.append(fresh() if isinstance(error, BrokenProcessPool) else pool)
                yield item, None if error else future.result(), error
    finally:
        # An interrupt stops what has not begun, and does not wait for what has: it is stored by the epoch.
        for pool in [*idle, *(pool for pool, _ in flying.values())]:
            pool.shutdown(wait=not flying, cancel_futures=True)
        os.environ.pop("TQDM_DISABLE") if quiet is None else os.environ.update(TQDM_DISABLE=quiet)


def _context():
    """Children are copies of a clean process that has imported and nothing else: no threads, no device, no state of
    this one. Where there is no such thing (Windows), each imports for itself."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _called(environment: dict[str, str], call: Callable, item: Any) -> Any:
    """The call, in the environment that the parent has now: that of the process copied is as old as its first child."""
    os.environ.clear()
    os.environ.update(environment)
    return call(item)
