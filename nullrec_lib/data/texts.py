"""Where text is cleaned: markup, entities and stray white space out of titles and descriptions, for every reader."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from typing import Any

_INLINE = "a|abbr|acronym|b|big|cite|code|del|em|font|i|ins|kbd|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_BLOCK = (
    "address|article|aside|blockquote|body|br|button|caption|center|col|colgroup|dd|details|div|dl|dt|embed|fieldset|"
    "figcaption|figure|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|label|legend|li|link|main|meta|nav|"
    "noscript|ol|option|p|param|pre|script|section|select|source|style|summary|svg|table|tbody|td|textarea|tfoot|"
    "th|thead|title|tr|ul|video"
)
# Only elements of HTML, so that "<3" and "a < b > c" stay. A tag may be cut off by the end of the text.
_TAG = r"</?(?:{})(?:(?:\s[^<>]*|/)?>|\s[^<>]*=[^<>]*\Z)"
_INLINE_TAG, _BLOCK_TAG = (re.compile(_TAG.format(names), re.IGNORECASE) for names in (_INLINE, _BLOCK))
_HIDDEN = re.compile(r"<!--|-->|<(/?)(script|style|noscript|iframe|svg)\b[^<>]*>", re.IGNORECASE)
# With a semicolon: "AT&T" and "R&copy" are no entities.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
TIMES_ESCAPED = 3
"""Entities are resolved so often at most: copies of copies hold `&amp;quot;`."""


def clean(text: str) -> str:
    """A text on one line as a reader sees it: entities resolved, HTML's tags, comments and scripts gone, white space
    single, no control or invisible characters."""
    if "&" in text:
        for _ in range(TIMES_ESCAPED):
            text = _ENTITY.sub(lambda entity: html.unescape(entity.group()), text)
    if "<" in text:
        text = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", _shown(text)))
    if not text.isprintable():
        text = _CONTROL.sub(" ", _UNSEEN.sub("", text))
    return " ".join(text.split())


def _shown(text: str) -> str:
    """The text without comments, and without elements that a browser does not show as text. One pass, whatever opens."""
    marks = [(mark.start(), mark.end(), mark[0] in ("<!--", "-->") and "comment" or mark[2].lower(), mark[0] == "-->" or
              bool(mark[1])) for mark in _HIDDEN.finditer(text)]
    last = {name: start for start, _, name, closes in marks if closes}
    pieces, place, inside = [], 0, None
    for start, end, name, closes in marks:
        if inside is None and not closes and last.get(name, -1) > start:
            pieces.append(text[place:start])
            inside = name
        elif closes and name == inside:
            place, inside = end, None
    return " ".join([*pieces, text[place:]])


def words(value: Any, separator: str = ", ") -> str:
    """The distinct texts and numbers of nested lists or mappings, or a text, in one. As they are: see `clean`."""
    return separator.join(dict.fromkeys(_texts(value)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value) if isinstance(value, float) else abs(value) < 10**15:
            yield str(value)  # a film may be called 1984
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def holds_text(value: Any) -> bool:
    """Whether somewhere in a field of a record there are letters to read."""
    if isinstance(value, str):
        return any(map(str.isalpha, value[:1000]))
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and any(map(holds_text, value[:100]))


def description(text: str = "", **attributes: str) -> str:
    """`name: value` of each attribute that is not empty, and then the text: item texts have attributes in front."""
    return ". ".join([f"{name}: {value}" for name, value in attributes.items() if value] + ([text] if text else []))
