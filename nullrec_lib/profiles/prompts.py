"""The questions that a writer is asked: versioned templates, filled with data that cannot pass for instructions."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Sequence

from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import Prompt, Writer

FOLDER = Path(__file__).parent / "templates"
VERSION = 1
"""Of the templates in use. A changed wording is a new file with the next number: stored profiles name theirs."""
WORDS = 40
"""Words of one text in a prompt; what is longer is cut there."""
NOTHING = "(none)"
CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Japanese and Chinese: each is about a word."""


@dataclass(frozen=True)
class Template:
    """The wording for one kind of subject, or of asking once more."""

    name: str
    """File name without ending: `user-1`."""
    text: str
    """With the places `{own}` and `{others}`, where it is of a subject."""

    @property
    def sha256(self) -> str:
        """Of the wording: part of a stored text's key, should a file be changed without a new number."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@lru_cache
def template(kind: str) -> Template:
    """The present template of `user` or `item`; or what is added to one: `again` where an answer was no use, `variant`
    for another candidate."""
    name = f"{kind}-{VERSION}"
    return Template(name, (FOLDER / f"{name}.txt").read_text(encoding="utf-8"))


def clean(text: str) -> str:
    """A text as one line of data: no line breaks, control characters or angle brackets (a tag of its own could end the
    data and begin instructions), at most `WORDS` words."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f<>]+", " ", text).split()[:WORDS])


def make(kind: str, own: Sequence[str], others: Sequence[str], writer: Writer, title: str = "") -> Prompt:
    """The prompt of one subject, as much of it as the writer can read.

    What does not fit is left out in this order: of `others` the last, so they come nearest first; then of `own` the
    first, so histories come oldest first.

    Args:
        kind: `user` or `item`.
        own: what is said of the subject: its history's items, or its text.
        others: what is said of those around it.
        title: of an item.

    Raises:
        InputError: not even one line of `own` fits.
    """
    own, others = [clean(text) for text in own], [clean(text) for text in others]
    wording = template(kind)
    if writer.context is not None:
        added = sum(writer.count(template(kind).text) for kind in ("again", "variant"))
        spent = writer.count(wording.text) + added
        cost = lambda line: writer.count(line) + 2  # the dash and the line break
        # From the newest item back, then from the nearest other on, while there is room.
        kept = _prefix([cost(line) for line in reversed(own)], writer.context - spent)
        if own and not kept:
            raise InputError(f"context: {writer.name} reads {writer.context} tokens; a prompt of {kind}-{VERSION} with "
                             f"one item needs {spent + cost(own[-1])}. Choose a model that reads more.")
        own = own[len(own) - kept :]
        spent += sum(map(cost, own))
        others = others[: _prefix([cost(line) for line in others], writer.context - spent)]
    lines = lambda texts: "\n".join(f"- {text}" for text in texts) or NOTHING
    # In one pass, since what is filled in may hold braces.
    filled = {"{own}": lines(own), "{others}": lines(others)}
    text = re.sub(r"\{own\}|\{others\}", lambda place: filled[place.group()], wording.text)
    return Prompt(text, tuple(own), tuple(others), clean(title))


def again(prompt: Prompt) -> Prompt:
    """The prompt with which a useless answer is asked for once more. It reads differently, since a model that always
    takes the likeliest token would answer the same to the same."""
    return replace(prompt, text=f"{prompt.text}\n{template('again').text}")


def varied(prompt: Prompt) -> Prompt:
    """The prompt in other words, so that candidates differ by more than chance."""
    return replace(prompt, text=f"{prompt.text}\n{template('variant').text}")


def _prefix(costs: list[int], room: int) -> int:
    """How many from the front fit into `room`."""
    for place, cost in enumerate(costs):
        room -= cost
        if room < 0:
            return place
    return len(costs)


def answered(text: str) -> str:
    """An answer without the thoughts that some models write before it."""
    return re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()


def degenerate(text: str) -> bool:
    """Whether an answer is no profile: hardly a word, hardly a letter, one phrase over and over, or the prompt's own
    tags. A long text without spaces is none of these: not every script parts its words."""
    words = re.findall(f"[{CHARACTERS}]|[^\\s{CHARACTERS}]+", text.lower())
    few = len(words) < 2 and (len(text) < 20 or len(set(text)) < 6)
    letters = sum(unicodedata.category(sign)[0] in "LM" for sign in text)
    looped = len(words) >= 12 and len(set(words)) < 0.34 * len(words)
    return few or letters < 0.5 * len(text) or looped or bool(re.search(r"</?[a-z]+>", text))
