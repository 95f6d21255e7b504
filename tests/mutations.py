"""Ways to spoil a file: bytes, lines, fields and values, drawn from one generator of random numbers."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TOKENS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\r\n", b"\t", b"::", b"|", b",", b'"', b'""', b"'", b"\\", b"{", b"}",
    b"[", b"]", b"[]", b"{}", b"null", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"1_000", b"9" * 30, b"9" * 5000, b"\\ud83d", b"\xc3",
    b"\xe9", "é".encode(), "\u2028".encode(), "日本".encode(), b"&amp;", b"<script>", b"</p>", b"<!--", b"%s", b"{0}", b"__class__",
    b"1500000000", b"1500000000000", b"2018-07-07", b"2018-07-07T00:00:00+25:00", b"0001-01-01", b"9999-12-31T23:59:59-12:00", b"true",
    b"item_id:token", b"user_id", b" ", b"  \n", b"\x1f\x8b", b"1500000000\t1500000000", b"30000000", b"-0", b".5", b"0x10", b"022",
    b"&a [*a]", b"*a", b"!!python/name:os.system", b"? ", b"- ", b": ", b"#", b"<<: *a", b"!!binary", b"~", b"1:30", b"yes",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**6, 10**30, 0.5, -0.5, 1e-45, 1e308, float("nan"), float("inf"), "", " ", "x", "0", "none", "é" * 50,
    [], [1], [[1]], {}, {"a": 1}, "first:1", "last:0", "a,b", "../..", "{title}", "{title:>99}", "\0", "1e-3", "022", (), b"x", 2**63, -(2**63), 10**400, 10**5000, "\ud800",
]  # fmt: skip


def spoil_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, cut, doubled, moved, or a token put in."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place, other = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
        match rng.randrange(8):
            case 0 if raw:
                at = rng.randrange(len(raw))
                raw = raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
            case 1:
                raw = raw[:place]
            case 2:
                raw = raw[:place] + raw[other:]
            case 3:
                raw = raw[:other] + raw[place:other][:4096] + raw[other:]
            case 4:
                raw = raw[:place] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + raw[place:]
            case _:
                raw = raw[:place] + rng.choice(TOKENS) + raw[rng.choice((place, other)) :]
    return raw


def spoil_lines(raw: bytes, rng: random.Random) -> bytes:
    """Lines doubled, left out, exchanged, joined or emptied, and fields likewise."""
    lines = raw.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            lines.insert(a, lines[b])
        case 1:
            del lines[a]
        case 2:
            lines[a], lines[b] = lines[b], lines[a]
        case 3:
            lines[a] = lines[a] + lines[b]
        case 4:
            lines[a] = b""
        case _:
            for separator in (b"\t", b"::", b"|", b",", b": ", b" "):
                if separator in lines[a]:
                    fields = lines[a].split(separator)
                    place = rng.randrange(len(fields))
                    fields[place] = rng.choice((rng.choice(TOKENS), fields[rng.randrange(len(fields))], b"", fields[place] * 2))
                    lines[a] = separator.join(fields)
                    break
    return b"\n".join(lines)


def spoil_json(raw: bytes, rng: random.Random) -> bytes:
    """One value of one record, or a whole record, by another."""
    lines = raw.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        record = json.loads(lines[at])
    except ValueError:
        return spoil_bytes(raw, rng)
    if isinstance(record, dict) and record and rng.randrange(5):
        name = rng.choice(list(record))
        if rng.randrange(4):
            record[name] = spoil_value(record[name], rng)
        else:
            del record[name]
    else:
        record = rng.choice(VALUES)
    try:
        lines[at] = json.dumps(record).encode()
    except (TypeError, ValueError):  # bytes; and whole numbers that Python does not write out
        lines[at] = b"[" + b"9" * 5000 + b"]"
    return b"\n".join(lines)


def spoil_value(value: Any, rng: random.Random) -> Any:
    """Another value, or one inside it."""
    if isinstance(value, list) and value and rng.randrange(2):
        value = list(value)
        place = rng.randrange(len(value))
        value[place] = spoil_value(value[place], rng)
        return value
    if isinstance(value, dict) and value and rng.randrange(2):
        name = rng.choice(list(value))
        return {**value, name: spoil_value(value[name], rng)}
    return rng.choice(VALUES)


def spoil_file(path: Path, rng: random.Random) -> None:
    """Spoil one file where it lies."""
    raw = path.read_bytes()
    match rng.randrange(12):
        case 0:
            raw = b""
        case 1:
            raw = gzip.compress(raw)
        case 2 | 3 | 4 if path.suffix in (".json", ".jsonl"):
            raw = spoil_json(raw, rng)
        case 5 | 6 | 7 if path.suffix not in (".safetensors", ".sqlite", ".pkl", ".pickle", ".df"):
            raw = spoil_lines(raw, rng)
        case 8 if path.suffix not in (".safetensors", ".sqlite", ".pkl", ".pickle", ".df"):
            raw = raw.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-8-sig", "cp1252", "utf-16-le")), "replace")
        case _:
            raw = spoil_bytes(raw, rng)
    path.write_bytes(raw)


def spoil_folder(folder: Path, rng: random.Random) -> None:
    """Spoil one or two files of a folder; now and then one goes, gets another name or a copy beside it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(files)
        if not path.exists():
            continue
        match rng.randrange(20):
            case 0:
                path.unlink()
            case 1:
                path.rename(path.with_name("other" + path.suffix))
            case 2:
                rng.choice(files).with_name(path.name + ".gz").write_bytes(path.read_bytes())
            case _:
                spoil_file(path, rng)


def spoil_values(folder: Path, rng: random.Random) -> None:
    """As `spoil_folder`, or whole pickles with other values: cells of frames, other arrays of embeddings."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".df", ".pkl", ".pickle"))
    if rng.randrange(2) or not files:
        spoil_folder(folder, rng)
        return
    path = rng.choice(files)
    value = pickle.loads(path.read_bytes())  # our own
    if isinstance(value, np.ndarray):
        value = odd_array(rng, len(value) + rng.choice((-1, 0, 0, 1)), value.shape[1])
        value = np.asarray(value).tolist() if rng.randrange(3) == 0 else value
    else:
        value = {name: list(column) for name, column in value.items()}
        name = rng.choice(list(value))
        place = rng.randrange(len(value[name]))
        value[name][place] = spoil_value(value[name][place], rng)
        if rng.randrange(6) == 0:
            del value[rng.choice(list(value))]
        with suppress(Exception):  # pandas takes no half of a surrogate pair, and columns of one length alone
            value = pd.DataFrame(value) if rng.randrange(8) else value
    path.write_bytes(pickle.dumps(value, rng.randrange(2, 6)))


def odd_array(rng: random.Random, rows: int, columns: int) -> np.ndarray:
    numbers = np.random.default_rng(rng.randrange(10**6))
    shape = rng.choice([(rows, columns)] * 6 + [(rows,), (), (rows, 1, columns), (0, columns), (rows, 0), (1, columns), (2, columns)])
    array = numbers.standard_normal(shape) * 10.0 ** rng.choice([0, 0, 0, -30, 30, 200])
    if array.size and rng.randrange(4) == 0:
        array.flat[numbers.integers(array.size)] = rng.choice([np.nan, np.inf, 1e300])
    if rng.randrange(6) == 0:
        array = array * 0
        if array.size:
            array.flat[numbers.integers(array.size)] = 1
    with np.errstate(all="ignore"):
        return array.astype(rng.choice(["f8"] * 5 + ["f4", "f2", "i8", "?", "c8", "O"]))
