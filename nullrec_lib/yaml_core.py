"""YAML as its version 1.2 reads it (core schema): 022 is 22, 1:30, yes and 2024-01-01 are text, 1e-3 is a number.

PyYAML follows version 1.1. Left out is what a short file of settings does not need and a long one can be misused for:
anchors and aliases, merge keys, tags of other types, and nesting without end.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

from nullrec_lib.errors import InputError, shown

LARGEST, DEEPEST, LONGEST_NUMBER = 1_000_000, 20, 100
"""Characters of a file, levels of nesting, characters of a number."""

_TAG = "tag:yaml.org,2002:"
_WORDS = {word: value for name, value in (("null", None), ("true", True), ("false", False))
          for word in (name, name.title(), name.upper())} | {"~": None, "": None}
_KINDS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_PATTERNS = {kind: re.compile(rf"(?:{pattern})\Z") for kind, pattern in _KINDS.items()}
_PREFIXES = {"0o": 8, "0x": 16}


class Loader(yaml.SafeLoader):
    """The core schema: its four kinds of plain scalars, and no type beyond text, sequences and mappings."""

    yaml_implicit_resolvers: dict = {}
    yaml_constructors: dict = {}

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:  # of an alias too
            self._refuse("anchors and aliases are not read, write the value itself", event)
        self.depth += 1
        if self.depth > DEEPEST:
            self._refuse(f"nested more than {DEEPEST} levels deep, a grid needs three", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        if not isinstance(node, MappingNode):
            self._refuse("expected a mapping, `key: value`", node)
        mapping = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._refuse("a key must be a single word", key_node)
            key = self.construct_object(key_node)
            if key in mapping:
                self._refuse(f"{key} is given twice, leave one of the two out", key_node)
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_core(self, node) -> Any:
        """null, bool, int or float, also where a tag asks for it."""
        kind, text = node.tag.removeprefix(_TAG), self.construct_scalar(node)
        if not _PATTERNS[kind].match(text):
            self._refuse(f"{text[:40]!r} is not {kind}", node)
        if kind in ("null", "bool"):
            return _WORDS[text]
        if len(text) > LONGEST_NUMBER:
            self._refuse(f"a number of {len(text):,} characters, write at most {LONGEST_NUMBER}", node)
        if kind == "int":
            base = _PREFIXES.get(text[:2], 10)
            return int(text if base == 10 else text[2:], base)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def construct_undefined(self, node):
        self._refuse(f"the tag {node.tag.replace(_TAG, '!!')} is not read, leave it out", node)

    def _refuse(self, problem: str, at) -> None:
        raise ConstructorError(None, None, problem, at.start_mark)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads: quotes around text that would be another kind, no anchors."""

    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _first in (("null", ["~", "n", "N", ""]), ("bool", list("tTfF")), ("int", list("-+0123456789")),
                      ("float", list("-+.0123456789"))):
    Loader.add_constructor(_TAG + _kind, Loader.construct_core)
    for _side in (Loader, Dumper):
        _side.add_implicit_resolver(_TAG + _kind, _PATTERNS[_kind], _first)
for _kind in ("str", "seq", "map"):
    Loader.add_constructor(_TAG + _kind, getattr(yaml.SafeLoader, f"construct_yaml_{_kind}"))
Loader.add_constructor(None, Loader.construct_undefined)


def read(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says.

    Raises:
        InputError: too long, or in another encoding; names the line.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise InputError(f"more than {LARGEST:,} bytes are too much for a file of settings; split it.")
    encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wanted = encoding.removesuffix("-sig").upper()
        raise InputError(f"line {line}: the text is not {wanted}; save it as UTF-8.") from None


def parse(text: str) -> Any:
    """The one document of a text, in dicts, lists and scalars; None of an empty text.

    Raises:
        InputError: not YAML, or more of it than `Loader` reads; names the line.
    """
    try:
        loader = Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"line {mark.line + 1}: {' '.join(said.split())}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        name = f"U+{error.character:04X}"
        raise InputError(f"line {line}: the character {name} is not allowed in YAML; remove it.") from None


def dump(content: Any) -> str:
    """A text from which `parse` makes the same content.

    Raises:
        InputError: it holds something that YAML has no word for.
    """
    try:
        return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        value = shown(error.args[-1])
        raise InputError(f"{value} cannot be written as YAML; use text, numbers, lists and mappings.") from None
