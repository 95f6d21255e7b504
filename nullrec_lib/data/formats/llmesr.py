"""The folder `handled/` that LLM-ESR trains on (Liu et al., NeurIPS 2024): sequences and embeddings, no texts.

- `inter.txt`: lines `user item`, ids from 1, each user's in time order.
- `itm_emb_np.pkl`: a numpy array (N, d), row i = item i+1. `pca64_itm_emb_np.pkl`, its own projection, is left unread.
- `id_map.json`, optional: `id2item`, the source's item ids.

LLM-ESR holds out each user's last two items: split=leave-one-out.
"""

from __future__ import annotations

import json
from pathlib import Path

from nullrec_lib.data import pickles
from nullrec_lib.data.lines import wrong
from nullrec_lib.data.source import Source

EMBEDDINGS, IDS = "itm_emb_np.pkl", "id_map.json"


def read(source: Source) -> None:
    """Read `inter.txt` and, where they are there, the two other files.

    Raises:
        InputError: a line is malformed or names an item without a row of embeddings (file, line), a pickle asks
            for anything but an array, or `id_map.json` lacks an item.
    """
    folder, path = source.folder, source.file("inter.txt")
    pairs, largest = [], (0, 0)
    for number, line in source.lines(path):
        pair = line.split()
        if len(pair) != 2 or not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in pair):
            raise wrong(path, f"{line!r:.40} is not `user item` with ids from 1", number)
        pairs.append((int(pair[0]), int(pair[1])))
        largest = max(largest, (pairs[-1][1], -number))
    n_items = largest[0]
    if (folder / EMBEDDINGS).is_file():
        rows = pickles.matrix(folder / EMBEDDINGS)
        if len(rows) < n_items:
            what = f"item {n_items} has no row in {EMBEDDINGS}, which ends with item {len(rows)}"
            raise wrong(path, what, -largest[1])
        n_items, source.embeddings = len(rows), {Path(EMBEDDINGS).stem: rows}
    numbers = range(1, n_items + 1)
    ids = _ids(folder / IDS, n_items) if (folder / IDS).is_file() else [str(number) for number in numbers]

    if source.name == "handled":
        source.name = folder.resolve().parent.name
    source.without_text = source.without_times = True
    name_of = dict(zip(numbers, ids))
    for item_id in ids:
        source.item(item_id, path)
    lengths: dict[int, int] = {}
    for number, (user, item) in enumerate(pairs, 1):
        lengths[user] = lengths.get(user, 0) + 1
        source.event(str(user), name_of[item], lengths[user] - 1, path, number)


def _ids(path: Path, n_items: int) -> list[str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["id2item"]
        ids = [str(known[str(item)]) for item in range(1, n_items + 1)]
    except (ValueError, TypeError) as error:
        raise wrong(path, f"this is no JSON object with id2item ({error})") from None
    except KeyError as error:
        raise wrong(path, f"there is no {error} in it, though items go up to {n_items}") from None
    if len(set(ids)) != n_items:
        raise wrong(path, "two items have one id")
    return ids
