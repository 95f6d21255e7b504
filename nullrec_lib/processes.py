"""Calls side by side in processes: any may fail or be killed and takes no other with it; none outlives this one."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

PRELOADED = "nullrec_lib.experiments"
"""What nearly every call needs: two seconds to import, once for all processes where the system lets them be copied."""

DIED = "the process died (killed or out of memory)"
LAST_WORDS_S = 5
"""How long a worker that is no longer needed may take to end by itself."""


def outcomes(
    call: Callable[[Item], Any], items: list[Item], jobs: int, apart: bool = False
) -> Iterator[tuple[Item, Any, str | None]]:
    """Call each item in one of `jobs` processes (1: in this one, unless `apart`); yield it with what the call gave and
    None, or with None and its error in one line.

    A call whose process died is tried once more, alone, after all others: it may have been a neighbour that took
    the memory. Interrupts are not errors of an item and are raised; no process is then waited for, all are ended.
    """
    died = []
    for item, result, error in _here(call, items) if jobs == 1 and not apart else _elsewhere(call, items, jobs):
        if error == DIED:
            died.append(item)
        else:
            yield item, result, error
    yield from _elsewhere(call, died, 1)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _here(call: Callable, items: list) -> Iterator[tuple[Any, Any, str | None]]:
    for item in items:
        try:
            result = call(item)
        except Exception as error:  # whatever broke this call must not take the others with it
            yield item, None, _line(error)
        else:
            yield item, result, None


def _elsewhere(call: Callable, items: list, jobs: int) -> Iterator[tuple[Any, Any, str | None]]:
    quiet = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # read by the children when they import tqdm: one bar is enough
    waiting, idle, busy = deque(items), [], {}
    calm = False
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                item = waiting.popleft()
                try:
                    task = ForkingPickler.dumps((dict(os.environ), call, item))
                except Exception as error:
                    yield item, None, _line(error)
                    continue
                worker = idle.pop() if idle else _Worker()
                busy[worker] = item
                worker.give(task)
            ready = set(wait([source for worker in busy for source in worker.sources]))
            for worker in [worker for worker in busy if ready.intersection(worker.sources)]:
                result, error, interrupt = worker.answer()
                if interrupt is not None:
                    raise interrupt
                item = busy.pop(worker)
                if error == DIED:
                    worker.end()
                else:
                    idle.append(worker)
                yield item, result, error
        calm = True
    finally:
        # An interrupt does not wait for what has begun: it is stored by the epoch.
        for worker in [*idle, *busy]:
            worker.end(LAST_WORDS_S if calm else 0)
        os.environ.pop("TQDM_DISABLE") if quiet is None else os.environ.update(TQDM_DISABLE=quiet)


class _Worker:
    """A process that answers one call at a time. It ends with this one, whatever ends this one."""

    def __init__(self):
        context = _context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,))
        atexit.register(self.end)  # before multiprocessing's own exit hook, which would wait for the call
        self.process.start()
        theirs.close()

    @property
    def sources(self) -> tuple[Connection, int]:
        """What `wait` looks at: an answer, or the end of the process."""
        return self.connection, self.process.sentinel

    def give(self, task: bytes) -> None:
        try:
            self.connection.send_bytes(task)
        except OSError:
            pass  # it has died, as `answer` will say

    def answer(self) -> tuple[Any, str | None, BaseException | None]:
        """Result, error in one line, interrupt; of the three at most one."""
        try:
            if self.connection.poll():
                return ForkingPickler.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            pass
        except Exception as error:  # what came cannot be made here
            return None, _line(error), None
        return None, DIED, None

    def end(self, seconds: float = 0) -> None:
        """End the process: let it go by itself in this time, or else kill it."""
        self.connection.close()
        if self.process.pid is not None:
            self.process.join(seconds)
            self.process.kill()
            self.process.join()
        atexit.unregister(self.end)


def _context():
    """Children are copies of a clean process that has imported and nothing else: no threads, no device, no state of
    this one. Where there is no such thing (Windows), each imports for itself."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


# In the child


def _serve(connection: Connection) -> None:
    """Answer calls until the other end is closed. Interrupts from the terminal are the parent's to deal with."""
    for name in {"SIGINT", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own lock is the system's, which a killed process leaves behind
    while True:
        try:
            connection.send_bytes(_answer(connection.recv_bytes()))
        except (EOFError, OSError):
            return


def _end_with_parent() -> None:
    """A parent that was killed closes nothing and tells nobody; the system does, also in the middle of a call."""
    parent_process().join()
    os._exit(1)


def _answer(task: bytes) -> bytes:
    """The call, in the environment that the parent has now: that of the process copied is as old as its first child."""
    try:
        environment, call, item = ForkingPickler.loads(task)
        os.environ.clear()
        os.environ.update(environment)
        return ForkingPickler.dumps((call(item), None, None))
    except Exception as error:
        return ForkingPickler.dumps((None, _line(error), None))
    except (KeyboardInterrupt, SystemExit) as interrupt:
        return ForkingPickler.dumps((None, None, interrupt))
