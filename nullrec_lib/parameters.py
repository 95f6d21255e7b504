"""What a notebook declares as its parameters, and which values it takes for them."""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullrec_lib.errors import InputError, shown

_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
_WORDS = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class Parameter:
    """A name, its default value, and the notebook that declares it."""

    name: str
    default: Any
    optional: bool
    """The default is None, or the comment beside it says what None means."""
    notebook: str

    def taken(self, value: Any) -> Any:
        """The value as the notebook gets it: of the default's type, a list's elements of the type of the default's own.
        An int will do for a float, a tuple for a list, and anything but a list for None.

        Raises:
            InputError: a value of another type, a number that is not finite, or text that is not Unicode.
        """
        if value is None:
            if not self.optional:
                raise InputError(f"{self.name}: {self.notebook} gives None no meaning here; write {self._wanted()}.")
            return None
        if not isinstance(self.default, (list, tuple)):
            if isinstance(value, (list, tuple, dict, set)):
                raise InputError(f"{self.name}: {shown(value)} is not a single value; write {self._wanted()}.")
            return self._one(value, type(self.default))
        if isinstance(value, (dict, set)):
            raise InputError(f"{self.name}: {shown(value)} is not a list; write {self._wanted()}.")
        kind = type(self.default[0]) if self.default else type(None)
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{self.name}: {shown(value)} is not a list; write [{shown(self._one(value, kind))}].")
        if not len(value) and self.name.endswith("seeds"):
            raise InputError(f"{self.name}: an empty list leaves nothing to run; write {self._wanted()}.")
        elements = [self._one(element, kind) for element in value]
        if self.name.endswith("seeds") and len(set(elements)) < len(elements):
            raise InputError(f"{self.name}: {shown(value)} holds a seed twice; write each once.")
        return elements

    def _one(self, value: Any, kind: type) -> Any:
        """A value of this type; for that of None, of any of `_KINDS`."""
        allowed = {float: (float, int), type(None): tuple(_KINDS)}.get(kind, kind)
        fits = isinstance(value, allowed) and not (isinstance(value, bool) and kind in (int, float))
        if not fits or not _is_sound(value, kind):
            raise InputError(f"{self.name}: {shown(value)} is not {_KINDS.get(kind, 'a plain value')}; "
                             f"write {self._wanted()}.")
        return value

    def _wanted(self) -> str:
        """An example: the default."""
        return f"for example {shown(self.default)}" if self.default is not None else "text or a number"


def declared(source: str, path: Path) -> dict[str, Parameter]:
    """Name → parameter, of the source of a notebook's cell tagged `parameters`.

    Raises:
        InputError: it is not Python, or holds anything but assignments of literals to single names.
    """
    parameters: dict[str, Parameter] = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{path}: line {error.lineno} of the parameters cell is not Python") from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    for statement in statements:
        plain = isinstance(statement, ast.Assign)
        targets = statement.targets if plain else [getattr(statement, "target", None)]
        try:
            if len(targets) != 1 or not isinstance(targets[0], ast.Name):
                raise ValueError
            name, default = targets[0].id, ast.literal_eval(statement.value)
        except (ValueError, TypeError, AttributeError):
            # New values are injected after this cell: what it computed from the old ones would stay behind.
            raise InputError(f"{path}: line {statement.lineno} of the parameters cell must be "
                             "`name = literal`; derive values in a later cell") from None
        beside = " ".join(comments.get(line, "") for line in range(statement.lineno, statement.end_lineno + 1))
        optional = default is None or re.search(r"\bNone\b", beside) is not None
        parameters[name] = Parameter(name, default, optional, Path(path).name)
    return parameters


def read(text: str) -> Any:
    """What a value on a command line means: none, true and false in any case, a Python literal, or else plain text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _is_sound(value: Any, kind: type) -> bool:
    """Whether a number is finite, as a float where that is wanted, and a text can be written to a file."""
    try:
        if isinstance(value, str):
            value.encode()
        return not (isinstance(value, float) or kind is float) or math.isfinite(float(value))
    except (UnicodeEncodeError, OverflowError):
        return False
