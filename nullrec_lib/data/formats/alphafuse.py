"""The folder that AlphaFuse and DreamRec train on: pickled examples, already split, and embeddings, no texts.

- `train_data.df`, `val_data.df`, `test_data.df`: pandas frames, one example a row. `seq` is the history, seq_size item
  ids padded with N on either side; `next` is the target. `len_seq` is left unread: the padding says the same.
- `data_statis.df`: a frame of one row, `seq_size` and `item_num` = N; ids are 0…N-1.
- `*_emb.pickle`: (N, d) embeddings, an array or a list of rows; as many files as encoders.

Rows name no users. A row whose history is the previous row's history and target, cut to seq_size, goes on with that
row's sequence; any other begins a new one with its history. So each row is one example with its own history, and
an interaction counts once where rows could be joined. (A history_length above seq_size would show a joined row more.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nullrec_lib.data import pickles
from nullrec_lib.data.source import Source
from nullrec_lib.errors import InputError

FILES = ("train_data.df", "val_data.df", "test_data.df")
STATISTICS = "data_statis.df"


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
    for part, name in enumerate(FILES, 1):
        histories, targets = _rows(folder / name, width, n_items)
        before = len(runs)
        for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
            if not (row and history == (histories[row - 1] + [targets[row - 1]])[-width:]):
                runs.append(list(history))
                parts += [0] * len(history)
            runs[-1].append(target)
            parts.append(part)
        source.note(f"{name}: {len(targets):,} examples, joined to {len(runs) - before:,} sequences.")
    for path in sorted(path for path in folder.iterdir() if path.name.endswith("_emb.pickle")):
        source.embeddings[path.stem] = rows = pickles.matrix(path)
        if len(rows) != n_items:
            raise InputError(f"{path}: holds {len(rows):,} rows, but {STATISTICS} says {n_items:,} items.")
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
    try:
        sizes = [np.asarray(held[name])[0] for name in ("seq_size", "item_num")]
        if all(int(size) == size and size >= 1 for size in sizes):
            return int(sizes[0]), int(sizes[1])
    except (TypeError, ValueError, KeyError, IndexError):
        pass
    raise InputError(f"{path}: expected one row with whole numbers seq_size and item_num of at least 1.")


def _rows(path: Path, width: int, n_items: int) -> tuple[list[list[int]], list[int]]:
    """Histories without their padding, and targets."""
    held = pickles.read(path)
    if not isinstance(held, dict) or not {"seq", "next"} <= set(held):
        raise InputError(f"{path}: expected a frame with the columns seq and next.")
    lengths = [len(row) if isinstance(row, (list, tuple, np.ndarray)) else -1 for row in held["seq"]]
    if not lengths:
        raise InputError(f"{path}: the frame has no row.")
    wanted = f"{width} item ids of 0 to {n_items - 1}, padded with {n_items} on one side"
    fits = [row if length == width else [-1] * width for row, length in zip(held["seq"], lengths, strict=True)]
    histories = np.array(fits)
    targets = np.array(list(held["next"]))
    if histories.ndim != 2 or histories.dtype.kind not in "iu":
        raise InputError(f"{path}, column seq: a row is not {wanted}.")
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise InputError(f"{path}, column next: a row is not one item id.")
    real = histories != n_items
    wrong_history = ((histories < 0) | (histories > n_items)).any(axis=1) | (np.diff(real, axis=1).sum(axis=1) > 1)
    wrong_target = (targets < 0) | (targets >= n_items)
    for column, wrong, what in (("seq", wrong_history, wanted), ("next", wrong_target, f"an id of 0 to {n_items - 1}")):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(f"{path}, row {row}, column {column}: {held[column][row]!r:.80} is not {what}.")
    return [row[mask].tolist() for row, mask in zip(histories, real, strict=True)], targets.tolist()
