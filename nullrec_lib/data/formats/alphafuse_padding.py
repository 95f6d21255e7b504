"""What is history and what is padding in AlphaFuse's frames: `len_seq` says it, or else the padding id N."""

from __future__ import annotations

import numpy as np

from nullrec_lib.data.formats.alphafuse_frames import Frame, wrong
from nullrec_lib.data.source import Source
from nullrec_lib.errors import InputError


def padding_side(source: Source, frames: list[Frame], n_items: int) -> int:
    """Where the padding stands: -1 behind the history, 0 in front of it. What it is, if not N, is noted.

    Raises:
        InputError: `len_seq` and `seq` disagree, or rows or frames among themselves (file, row, column).
    """
    given = [frame for frame in frames if frame.lengths is not None]
    bare = [frame for frame in frames if frame.lengths is None]
    ends = {end: _fit(given, bare, end, n_items) for end in (-1, 0)}
    side = min(ends, key=lambda end: ends[end][:2])
    count, _, padding, odd = ends[side]
    if count:
        frame, rows = next((frame, rows) for frame, rows in zip(given + bare, odd) if rows.any())
        raise _at_odds(frame, int(np.argmax(rows)), side, padding, n_items)
    if bare:
        _looks_padded(bare, n_items)
    if padding != n_items:
        if bare:
            raise InputError(f"{bare[0].path}: has no len_seq, and the other frames are padded with {padding} and not "
                             f"with item_num={n_items}; add len_seq.")
        if ends[0][:2] == ends[-1][:2]:
            raise InputError(f"{given[0].path}, column seq: the padding may stand on either side; pad with {n_items}.")
        source.note(_other(given, padding, n_items))
    return side


def _fit(given: list[Frame], bare: list[Frame], end: int, n_items: int) -> tuple[int, bool, int, list[np.ndarray]]:
    """How well rows fit with padding at an end: how many do not, whether it is another id than N, which, the rows."""
    ids = np.concatenate([frame.rows[_padded(frame, n_items), end] for frame in given] or [np.empty(0, np.int64)])
    ids, counts = np.unique(ids, return_counts=True)
    padding = int(ids[np.argmax(counts)]) if len(ids) else n_items
    odd = [_disagrees(frame, end, padding, n_items) for frame in given]
    odd += [_not_padded(frame, end, n_items) for frame in bare]
    return sum(int(rows.sum()) for rows in odd), padding != n_items, padding, odd


def _other(frames: list[Frame], padding: int, n_items: int) -> str:
    padded = sum(int(_padded(frame, n_items).sum()) for frame in frames)
    alike = sum(int(((frame.rows == padding).all(axis=1) & (frame.lengths == 1)).sum()) for frame in frames)
    more = f"; {alike:,} rows hold nothing else, and their history is item {padding}" if alike else ""
    return (f"seq is padded with {padding} and not with item_num={n_items}, in {padded:,} rows; len_seq says how many "
            f"ids are the history{more}.")


def _empty(frame: Frame, n_items: int) -> np.ndarray:
    """(n,) bool: rows without a history, by N alone; their len_seq is 0 or 1."""
    return (frame.rows == n_items).all(axis=1) & (frame.lengths <= 1)


def _padded(frame: Frame, n_items: int) -> np.ndarray:
    """(n,) bool: rows with padding and a history, or with none by len_seq alone."""
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
    return wrong(frame.path, row, "seq", ids, wanted)


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
                             f"{'end' if end else 'begin'} with {ids[np.argmax(counts)]} twice or more, which looks "
                             f"like padding; pad with item_num={n_items}, or add len_seq.")


def histories_of(frame: Frame, side: int, n_items: int) -> list[list[int]]:
    """Each row's history, without its padding."""
    real = _is_history(frame, side, n_items)
    return [row[mask].tolist() for row, mask in zip(frame.rows, real, strict=True)]
