"""The folder that AlphaFuse and DreamRec train on: pickled examples, already split, and embeddings, no texts.

- `train_data.df`, `val_data.df`, `test_data.df`: pandas frames, one example a row. `seq` is the history, seq_size item
  ids padded on one side, the same in all; `next` is the target. `len_seq` says how many of the ids are the history
  (1 too where there is none and all are N). Without that column, what is padded is padded with N.
- `data_statis.df`: a frame of one row, `seq_size` and `item_num` = N; ids are 0…N-1.
- `*_emb.pickle`: (N, d) embeddings, an array or a list of rows; as many files as encoders.

Rows name no users. A row whose history is the previous row's history and target, cut to seq_size, goes on with that
row's sequence; any other begins a new one with its history. So each row is one example with its own history, and
an interaction counts once where rows could be joined. (A history_length above seq_size would show a joined row more.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from nullrec_lib.data import opcodes, pickles
from nullrec_lib.data.source import Source
from nullrec_lib.errors import InputError

FILES = ("train_data.df", "val_data.df", "test_data.df")
STATISTICS = "data_statis.df"
NEVER_SEEN = 100
"""Times as many items as the ids that occur suggest may be there without embeddings."""


class _Short(Repr):
    """Values as far as they fit into a sentence: one may hold itself, or another many times over."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxlist = 2, 10

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, np.generic):
            return repr(value.item())
        return "None" if value is None else str(value) if isinstance(value, (bool, float)) else type(value).__name__


@dataclass(frozen=True)
class Frame:
    """One of the three, with whatever is padding still in it."""

    path: Path
    rows: np.ndarray
    """(n, seq_size) int64: `seq`."""
    targets: np.ndarray
    """(n,) int64: `next`."""
    lengths: np.ndarray | None
    """(n,) int64: `len_seq`, where there is one."""


def read(source: Source) -> None:
    """Read the four frames and any number of `*_emb.pickle`; their stems name the embeddings.

    Raises:
        InputError: a pickle asks for anything but frames and arrays, a frame has other columns, or a row or an
            embedding does not fit the statistics (file, row).
    """
    folder = source.folder
    width, n_items = _statistics(folder / STATISTICS)
    runs: list[list[int]] = []
    parts: list[int] = []
    frames = [_frame(folder / name, width, n_items) for name in FILES]
    side = _side(source, frames, n_items)
    for part, frame in enumerate(frames, 1):
        histories, targets = _histories(frame, side, n_items), frame.targets.tolist()
        before = len(runs)
        for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
            if not (row and history == (histories[row - 1] + [targets[row - 1]])[-width:]):
                runs.append(list(history))
                parts += [0] * len(history)
            runs[-1].append(target)
            parts.append(part)
        source.note(f"{frame.path.name}: {len(targets):,} examples, joined to {len(runs) - before:,} sequences.")
    for path in sorted(path for path in folder.iterdir() if path.name.endswith("_emb.pickle")):
        source.embeddings[path.stem] = rows = pickles.matrix(path)
        if len(rows) != n_items:
            raise InputError(f"{path}: holds {len(rows):,} rows, but {STATISTICS} says {n_items:,} items.")
    largest = max(map(max, runs))
    if not source.embeddings and n_items > NEVER_SEEN * (largest + NEVER_SEEN):
        raise InputError(f"{folder / STATISTICS}, column item_num: {n_items:,} items are far more than the ids of the frames, "
                         f"which end with {largest:,}; correct it, or add embeddings with a row for each.")
    source.without_text = source.without_times = True
    source.parts = np.array(parts, dtype=np.int8)
    for item in range(n_items):
        source.item(str(item), folder / STATISTICS)
    lengths = [len(run) for run in runs]
    users = np.repeat(np.arange(len(runs)), lengths).astype(str)
    source.events(users, np.concatenate(runs).astype(str), np.concatenate([np.arange(length) for length in lengths]))


def _statistics(path: Path) -> tuple[int, int]:
    """seq_size and item_num."""
    held = pickles.read(path)
    wanted = "expected one row with whole numbers seq_size and item_num of at least 1"
    sizes = []
    for name in ("seq_size", "item_num"):
        column = _column(held, name)
        if column is None:
            raise InputError(f"{path}: {wanted}.")
        value = column[0] if len(column) == 1 else None
        whole = _is_integer(value) or isinstance(value, (float, np.floating)) and value.is_integer()
        if not whole or not 1 <= value < 2**31:
            raise InputError(f"{path}, column {name}: {_shown(column)} was found, {wanted}.")
        sizes.append(int(value))
    return sizes[0], sizes[1]


def _column(held: Any, name: str) -> list | None:
    column = held.get(name) if isinstance(held, dict) else None
    return list(column) if isinstance(column, list) or isinstance(column, np.ndarray) and column.ndim else None


def _frame(path: Path, width: int, n_items: int) -> Frame:
    held = pickles.read(path)
    seq, following, lengths = (_column(held, name) for name in ("seq", "next", "len_seq"))
    if seq is None or following is None or lengths is None and "len_seq" in held:
        raise InputError(f"{path}: expected a frame with the columns seq and next.")
    if not seq:
        raise InputError(f"{path}: the frame has no row.")
    if not len(seq) == len(following) == len(seq if lengths is None else lengths):
        raise InputError(f"{path}: its columns are of other lengths, expected as many rows of seq as of next.")
    wanted = f"{width} item ids of 0 to {n_items - 1}, padded with {n_items} on one side"
    for row, ids in enumerate(seq):
        if not (_is_row(ids) and len(ids) == width):
            raise _wrong(path, row, "seq", ids, wanted)
    if 8 * len(seq) * width > opcodes.limit(path.stat().st_size):
        raise InputError(f"{path}, column seq: its {len(seq):,} rows of {width:,} ids are one row many times over.")
    rows = np.empty((len(seq), width), np.int64)
    for row, ids in enumerate(seq):
        rows[row] = _integers(path, row, "seq", ids, ids, wanted)
    targets = _numbers(path, "next", following, f"an id of 0 to {n_items - 1}", n_items - 1)
    sizes = None if lengths is None else _numbers(path, "len_seq", lengths, f"a length of 0 to {width}", width)
    return Frame(path, rows, targets, sizes)


def _numbers(path: Path, name: str, values: list, wanted: str, largest: int) -> np.ndarray:
    """(n,) int64 of 0 to `largest`."""
    numbers = np.array([_integers(path, row, name, [value], value, wanted)[0] for row, value in enumerate(values)])
    wrong = (numbers < 0) | (numbers > largest)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _wrong(path, row, name, values[row], wanted)
    return numbers


def _integers(path: Path, row: int, column: str, values: Any, shown: Any, wanted: str) -> np.ndarray:
    """(n,) int64 of what are whole numbers by type: 1.0 and True are none."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.int64)
    try:
        if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in set(map(type, values))):
            return np.fromiter(values, np.int64, len(values))
    except OverflowError:
        pass
    raise _wrong(path, row, column, shown, wanted)


def _side(source: Source, frames: list[Frame], n_items: int) -> int:
    """Where the padding stands: -1 behind the history, 0 in front of it. What it is, if not N, is noted.

    Raises:
        InputError: `len_seq` and `seq` disagree, or rows or frames among themselves (file, row, column).
    """
    given = [frame for frame in frames if frame.lengths is not None]
    bare = [frame for frame in frames if frame.lengths is None]
    ends = {}
    for end in (-1, 0):
        ids = np.concatenate([frame.rows[_padded(frame, n_items), end] for frame in given] or [np.empty(0, np.int64)])
        ids, counts = np.unique(ids, return_counts=True)
        padding = int(ids[np.argmax(counts)]) if len(ids) else n_items
        wrong = [_disagrees(frame, end, padding, n_items) for frame in given]
        wrong += [_not_padded(frame, end, n_items) for frame in bare]
        ends[end] = sum(int(rows.sum()) for rows in wrong), padding != n_items, padding, wrong
    side = min(ends, key=lambda end: ends[end][:2])
    count, _, padding, wrong = ends[side]
    if count:
        frame, rows = next((frame, rows) for frame, rows in zip(given + bare, wrong) if rows.any())
        raise _at_odds(frame, int(np.argmax(rows)), side, padding, n_items)
    if bare:
        _looks_padded(bare, n_items)
    if padding != n_items:
        if bare:
            raise InputError(f"{bare[0].path}: has no len_seq, and the other frames are padded with {padding} and not with "
                             f"item_num={n_items}; add len_seq.")
        if ends[0][0] == ends[-1][0] and ends[0][1] == ends[-1][1]:
            raise InputError(f"{given[0].path}, column seq: the padding may stand on either side; pad with {n_items}.")
        padded = sum(int(_padded(frame, n_items).sum()) for frame in given)
        alike = sum(int(((frame.rows == padding).all(axis=1) & (frame.lengths == 1)).sum()) for frame in given)
        source.note(f"seq is padded with {padding} and not with item_num={n_items}, in {padded:,} rows; len_seq says how "
                    "many ids are the history" + (f"; {alike:,} rows hold nothing else, and their history is item {padding}." if alike else "."))
    return side


def _empty(frame: Frame, n_items: int) -> np.ndarray:
    """(n,) bool: rows without a history, by N alone; their len_seq is 0 or 1."""
    return (frame.rows == n_items).all(axis=1) & (frame.lengths <= 1)


def _padded(frame: Frame, n_items: int) -> np.ndarray:
    return (frame.lengths < frame.rows.shape[1]) & ~_empty(frame, n_items)


def _is_history(frame: Frame, side: int, n_items: int) -> np.ndarray:
    """(n, seq_size) bool: what is no padding."""
    if frame.lengths is None:
        return frame.rows != n_items
    place = np.arange(frame.rows.shape[1])[:: 1 if side else -1]
    return (place < frame.lengths[:, None]) & ~_empty(frame, n_items)[:, None]


def _disagrees(frame: Frame, side: int, padding: int, n_items: int) -> np.ndarray:
    """(n,) bool: rows that are not len_seq item ids and padding else."""
    real, rows = _is_history(frame, side, n_items), frame.rows
    return np.where(real, (rows < 0) | (rows >= n_items), rows != padding).any(axis=1)


def _not_padded(frame: Frame, side: int, n_items: int) -> np.ndarray:
    """(n,) bool: rows that are not item ids and N else on this side."""
    rows = frame.rows if side else frame.rows[:, ::-1]
    real = rows != n_items
    return ((rows < 0) | (rows > n_items)).any(axis=1) | (~real[:, :-1] & real[:, 1:]).any(axis=1)


def _at_odds(frame: Frame, row: int, side: int, padding: int, n_items: int) -> InputError:
    ids = frame.rows[row]
    wanted = f"{len(ids)} item ids of 0 to {n_items - 1}, padded with {padding} on one side"
    if frame.lengths is not None and ((0 <= ids) & (ids <= n_items) | (ids == padding)).all():
        wanted = f"a history of len_seq={frame.lengths[row]} item ids of 0 to {n_items - 1} "
        wanted += f"{'before' if side else 'behind'} padding with {padding}, as others are"
    elif frame.lengths is None and not _not_padded(frame, -1 - side, n_items)[row]:
        wanted = f"padded {'behind' if side else 'in front of'} its history, as others are"
    return _wrong(frame.path, row, "seq", ids, wanted)


def _looks_padded(frames: list[Frame], n_items: int) -> None:
    """
    Raises:
        InputError: N is nowhere, and another id fills the same end of many rows.
    """
    rows = np.concatenate([frame.rows for frame in frames])
    if (rows == n_items).any() or rows.shape[1] < 2:
        return
    for end, beside in ((-1, -2), (0, 1)):
        ids, counts = np.unique(rows[rows[:, end] == rows[:, beside], end], return_counts=True)
        if len(ids) and counts.max() > max(len(rows) / 5, 1):
            raise InputError(f"{frames[0].path}, column seq: {counts.max():,} of {len(rows):,} rows "
                             f"{'end' if end else 'begin'} with {ids[np.argmax(counts)]} twice or more, which looks like "
                             f"padding; pad with item_num={n_items}, or add len_seq.")


def _histories(frame: Frame, side: int, n_items: int) -> list[list[int]]:
    real = _is_history(frame, side, n_items)
    return [row[mask].tolist() for row, mask in zip(frame.rows, real, strict=True)]


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim == 1


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _wrong(path: Path, row: int, column: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{path}, row {row}, column {column}: {_shown(value)} is not {wanted}.")


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value[:11].tolist()
    return _Short().repr(value)[:80]
