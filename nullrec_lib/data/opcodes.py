"""Pickles measured before they are loaded: whatever a pickle would make is at most some times as large as its file.

A few bytes can ask a pickle's machine for gigabytes (a memo entry with a large number, a text of a declared length) or
for hours (a dict whose key is a tuple of tuples of tuples, each of them the same one twice). Here the program is
followed without making anything: of each value on the stack only the steps to hash it are kept. Runs of numbers, which
are nearly all of a file of embeddings, are passed over by one regular expression.
"""

from __future__ import annotations

import re

TIMES, SPARE = 16, 1 << 20
DIGITS = 999
"""Longest number in text."""
INTEGER = 255
"""Longest integer in bytes."""
_CAP = 1 << 60

_NUMBER = rb"(?:G........|K.|M..|J....|N|\x88|\x89|[IFL][^\n]{1,%d}\n)" % DIGITS
_FRAME = rb"\x95........"
# Numbers that go into the list before them, all at once or singly: the stack is as it was.
_APPENDED = rb"(?:\((?:(?:G........)++|%b|%b)*+e|%ba)" % (_NUMBER, _FRAME, _NUMBER)
_LIST = re.compile(rb"(\])?(\x94)?%b*+" % _APPENDED, re.DOTALL)
_NUMBERS = re.compile(rb"%b++" % _NUMBER, re.DOTALL)
_EACH = re.compile(_NUMBER, re.DOTALL)

_COUNTED = {b"U": 1, b"C": 1, b"\x8c": 1, b"\x8a": 1, b"T": 4, b"B": 4, b"X": 4, b"\x8b": 4,
            b"\x8d": 8, b"\x8e": 8, b"\x96": 8}  # fmt: skip
"""Bytes in which an opcode declares its length."""
_LINES = {b"S": 1, b"V": 1, b"P": 1, b"c": 2, b"i": 2}
"""Lines of text that an opcode takes, apart from numbers."""
_SKIPPED = {b"\x80": 2, b"\x95": 9, b"\x98": 1}
_CALLS = {b"R": 2, b"\x81": 2, b"\x92": 3, b"\x93": 2, b"Q": 1}
"""Values that an opcode takes off the stack to put another there."""
_MARKED = {bytes([op]) for op in b"tldeu\x90\x911oi"}
_EMPTY = {b"}", b"\x8f", b"\x97"}
_GET, _PUT = {b"h": 1, b"j": 4}, {b"q": 1, b"r": 4}
_PUTS = {*_PUT, b"p", b"g"}
_RUNS = {bytes([op]) for op in b"]\x94(GKMJN\x88\x89\x95IFL"}
_TUPLES = {b")": 0, b"\x85": 1, b"\x86": 2, b"\x87": 3}


def limit(size: int) -> int:
    """Bytes, or values, that a pickle of `size` bytes may copy altogether."""
    return TIMES * size + SPARE


def check(data: bytes) -> None:
    """Follow the program in `data` up to its end.

    Raises:
        ValueError, IndexError, KeyError: it breaks off, declares a length that the file does not have, numbers a memo
            entry beyond what can have been made, holds a number of more than `DIGITS` digits or `INTEGER` bytes, or
            hashes more than `limit` values.
    """
    stack: list[int] = []
    """Steps to hash each value, counted twice for each tuple around it, so that depth counts too."""
    marks: list[int] = []
    memo: dict[int, int] = {}
    left, place = limit(len(data)), 0
    while True:
        op = data[place : place + 1]
        if op in _RUNS:  # a list, an entry of the memo, numbers: by far the most
            if (run := _LIST.match(data, place)).end() > place:
                if run[1]:
                    stack.append(1)
                if run[2]:
                    memo[len(memo)] = stack[-1]
                place = run.end()
                continue
            if run := _NUMBERS.match(data, place):
                stack += [1] * _EACH.subn(b"", run[0])[1]
                place = run.end()
                continue
        place += 1
        if op in _GET:
            stack.append(memo[int.from_bytes(data[place : place + _GET[op]], "little")])
            place += _GET[op]
        elif op in _COUNTED:
            width = _COUNTED[op]
            size = int.from_bytes(data[place : place + width], "little")
            place += width + size
            if place > len(data) or size > INTEGER and op in b"\x8a\x8b":
                raise ValueError(f"a value of {size:,} bytes is declared")
            stack.append(1)
        elif op in _TUPLES:
            size = len(stack) - _TUPLES[op]
            stack[size:] = [_tuple(stack[size:])]
        elif op == b"(":
            marks.append(len(stack))
        elif op in _PUTS:
            place, number = _memo_number(data, place, op)
            if op == b"g":
                stack.append(memo[number])
            else:
                memo[number] = stack[-1]
        elif op in _CALLS:
            del stack[len(stack) - _CALLS[op] :]
            stack.append(1)
        elif op == b"s":
            left -= stack[-2]
            del stack[-2:]
        elif op == b"a" or op == b"b":
            stack.pop()
        elif op in _EMPTY:
            stack.append(1)
        elif op in _MARKED:
            values = stack[(mark := marks.pop()) :]
            del stack[mark:]
            left -= sum(values[::2] if op in b"du" else values) if op in b"du\x90\x91" else 0
            if op in b"tld\x91oi":
                stack.append(_tuple(values) if op == b"t" else 1)
            if op == b"i":
                place = _lines(data, place, 2)
        elif op in _LINES:
            place = _lines(data, place, _LINES[op])
            stack.append(1)
        elif op in _SKIPPED:
            place += _SKIPPED[op] - 1
        elif op == b"2":
            stack.append(stack[-1])
        elif op == b"0":
            (marks if marks and marks[-1] == len(stack) else stack).pop()
        elif op == b".":
            return
        else:
            if not op:
                raise ValueError("it breaks off")
            what = f"a number has more than {DIGITS} digits" if op in b"IFL" else f"{op!r} is no opcode of data"
            raise ValueError(what)
        if left < 0:
            raise ValueError("its keys would take too long to hash")


def _tuple(values: list[int]) -> int:
    return min(1 + 2 * sum(values), _CAP)


def _memo_number(data: bytes, place: int, op: bytes) -> tuple[int, int]:
    """(place after it, number) of an entry: at most as many have been made as there are bytes so far."""
    if op in _PUT:
        end = place + _PUT[op]
        number = int.from_bytes(data[place:end], "little")
    else:
        end = _lines(data, place, 1)
        number = int(data[place : min(end, place + 20)])
    if not 0 <= number <= end:
        raise ValueError(f"memo entry {number:,} is numbered")
    return end, number


def _lines(data: bytes, place: int, count: int) -> int:
    for _ in range(count):
        place = data.index(b"\n", place) + 1
    return place
