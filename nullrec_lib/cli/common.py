"""What all commands share: common options, and errors as one line."""

from __future__ import annotations

import functools
from typing import Annotated, Callable

import typer

from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import WriterError

Data = Annotated[str, typer.Option(
    help="A generated set (shop, shop-tiny, …), a folder of data, or a folder's name under $NULLREC_DATA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def speaks(command: Callable) -> Callable:
    """Turn errors meant for people into one line on stderr.

    Status 2: wrong input, or a file that cannot be read or written. 1: a run that failed. 130: interrupted.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (InputError, OSError) as error:
            said, status = str(error), 2
        except FloatingPointError as error:
            said, status = f"the run failed: {error}", 1
        except WriterError as error:
            said, status = str(error), 1
        except KeyboardInterrupt:
            said, status = "interrupted; the same command goes on from the last whole epoch.", 130
        typer.secho(f"nullrec: {said}", err=True, fg="red")
        raise typer.Exit(status)

    return wrapped
