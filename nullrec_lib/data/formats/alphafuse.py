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

import numpy as np

from nullrec_lib.data import pickles
from nullrec_lib.data.formats.alphafuse_frames import read_frame, read_statistics
from nullrec_lib.data.formats.alphafuse_padding import histories_of, padding_side
from nullrec_lib.data.source import Source
from nullrec_lib.errors import InputError

FILES = ("train_data.df", "val_data.df", "test_data.df")
STATISTICS = "data_statis.df"
NEVER_SEEN = 100
"""Times as many items as the ids that occur suggest may be there without embeddings."""


def read(source: Source) -> None:
    """Read the four frames and any number of `*_emb.pickle`; their stems name the embeddings.

    Raises:
        InputError: a pickle asks for anything but frames and arrays, a frame has other columns, or a row or an
            embedding does not fit the statistics (file, row).
    """
    folder = source.folder
    width, n_items = read_statistics(folder / STATISTICS)
    runs: list[list[int]] = []
    parts: list[int] = []
    frames = [read_frame(folder / name, width, n_items) for name in FILES]
    side = padding_side(source, frames, n_items)
    for part, frame in enumerate(frames, 1):
        histories, targets = histories_of(frame, side, n_items), frame.targets.tolist()
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
        raise InputError(f"{folder / STATISTICS}, column item_num: {n_items:,} items are far more than the ids of the "
                         f"frames, which end with {largest:,}; correct it, or add embeddings with a row for each.")
    source.without_text = source.without_times = True
    source.parts = np.array(parts, dtype=np.int8)
    for item in range(n_items):
        source.item(str(item), folder / STATISTICS)
    lengths = [len(run) for run in runs]
    users = np.repeat(np.arange(len(runs)), lengths).astype(str)
    source.events(users, np.concatenate(runs).astype(str), np.concatenate([np.arange(length) for length in lengths]))
