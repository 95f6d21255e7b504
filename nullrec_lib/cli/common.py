"""What all commands share: common options, and errors and ends from outside as one line."""

from __future__ import annotations

import functools
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import WriterError

Data = Annotated[str, typer.Option(
    help="A generated set (shop, shop-tiny, …), a folder of data, or a folder's name under $NULLREC_DATA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a command to end: by `kill`, a scheduler or a shutdown, and by a terminal that is closed."""


_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory|[Ss]torage size calculation overflow")
"""In what torch raises where memory runs out, on a CPU and on a GPU."""


class Ended(KeyboardInterrupt):
    """One of `ENDING` has come; its number is the argument."""


def speaks(command: Callable) -> Callable:
    """Turn errors meant for people into one line on stderr.

    Status 2: wrong input, or a file that cannot be read or written. 1: a run that failed. 130: interrupted; 128 and the
    signal's number: ended by one of `ENDING`.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            with _signals():
                return command(*args, **kwargs)
        except (InputError, OSError) as error:
            said, status = str(error), 2
        except FloatingPointError as error:
            said, status = f"the run failed: {error}", 1
        except WriterError as error:
            said, status = str(error), 1
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            said, status = "out of memory; ask for less: smaller lengths, widths, batches or numbers of negatives.", 1
        except KeyboardInterrupt as interrupt:
            number = interrupt.args[0] if isinstance(interrupt, Ended) else signal.SIGINT
            what = f"ended by {signal.Signals(number).name}" if isinstance(interrupt, Ended) else "interrupted"
            said, status = f"{what}; the same command goes on from the last whole epoch.", 128 + number
        with suppress(OSError):  # the terminal may be gone
            typer.secho(f"nullrec: {said}", err=True, fg="red")
        raise typer.Exit(status)

    return wrapped


@contextmanager
def _signals() -> Iterator[None]:
    """While a command runs, `ENDING` unwinds it as Ctrl-C does. Signals that somebody handles or ignores (nohup) are
    left alone, and so are all of them outside the main thread, where none can be handled."""
    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _) -> None:
    raise Ended(number)
