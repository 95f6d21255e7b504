"""What is written: prompts → texts, by keywords, by a local language model, or by a server's.

A writer knows nothing of users and items. What is asked twice (same writer, revision, prompt and seed) is answered
the same, as far as the writer can promise it; a store in front of it then never asks twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Sequence


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

        Raises:
            WriterError: it cannot write any more; one sentence that says why and what to do.
        """


class WriterError(RuntimeError):
    """The writer cannot go on, through no fault of the prompts: a server that is gone, a key that is refused."""
