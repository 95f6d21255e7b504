"""What is written: prompts → texts, by keywords, by a local language model, or by a server's.

A writer knows nothing of users and items. What is asked twice (same writer, revision, prompt and seed) is answered
the same, as far as the writer can promise it; a store in front of it then never asks twice.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol, Sequence

from nullrec_lib.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """One text to be written."""

    text: str
    """The whole request, as a language model reads it: one user message, without a chat template."""
    own: tuple[str, ...] = ()
    """The same as data, for a writer that reads no instructions: what is said of the subject itself, …"""
    others: tuple[str, ...] = ()
    """… and of those around it, nearest first."""
    title: str = ""
    """The subject's own name, if it has one."""


@dataclass
class Usage:
    """What a writer has spent so far."""

    prompts: int = 0
    prompt_tokens: int = 0
    written_tokens: int = 0
    seconds: float = 0.0
    """Wall clock inside `write`."""


class Writer(Protocol):
    """What writes."""

    name: str
    """As the user asked for it: `extractive`, `local:PATH`, `server:URL`; never with a key in it."""
    revision: str
    """What it is: changes whenever the same prompt may be answered differently (weights, settings, model name)."""
    batch: int
    """Prompts of one call of `write`. Answers may depend on who shares a batch, so callers keep batches the same."""
    context: int | None
    """Most tokens of a prompt; None where there is no limit."""
    usage: Usage

    def count(self, text: str) -> int:
        """Tokens of a text, or a safe estimate."""

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """One text per prompt, stripped of white space around it; may be empty or nonsense, which the caller finds.

        A writer whose answers do not depend on who shares a batch may also have `stream(prompts, seed)`, which yields
        (index, text) as they come.

        Raises:
            WriterError: it cannot write any more; one sentence that says why and what to do.
        """


class WriterError(RuntimeError):
    """The writer cannot go on, through no fault of the prompts: a server that is gone, a key that is refused."""


def writer(name: str, corpus: Sequence[str], **settings: Any) -> Writer:
    """The writer that a name asks for: `extractive`, `local:PATH_OR_HUB_NAME` or `server:URL`.

    Args:
        corpus: the catalogue's texts, from which the extractive writer learns what is common.
        settings: of that writer; see its class.

    Raises:
        InputError: no such writer, a setting that it has not, or what its class says.
    """
    kind, _, where = name.partition(":")
    if kind == "extractive" and not where:
        from nullrec_lib.language.writers.extractive import Extractive as chosen
        given = (corpus,)
    elif kind == "local" and where:
        from nullrec_lib.language.writers.local import Local as chosen
        given = (where,)
    elif kind == "server" and where:
        from nullrec_lib.language.writers.server import Server as chosen
        given = (where,)
    else:
        raise InputError(f"writer: {name!r} is not extractive, local:PATH or server:URL.")
    known = inspect.signature(chosen).parameters
    if idle := [setting for setting in settings if setting not in known]:
        raise InputError(f"{idle[0]}: the {kind} writer does not read it, so it would change nothing.")
    return chosen(*given, **settings)
