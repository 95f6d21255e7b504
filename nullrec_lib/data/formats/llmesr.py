"""The folder `handled/` that LLM-ESR trains on (Liu et al., NeurIPS 2024): sequences and embeddings, no texts.

- `inter.txt`: lines `user item`, ids from 1, each user's in time order.
- `itm_emb_np.pkl`: a numpy array (N, d), row i = item i+1. `pca64_itm_emb_np.pkl`, its own projection, is left unread.
- `id_map.json`, optional: `id2item`, the source's item ids.

LLM-ESR holds out each user's last two items: split=leave-one-out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from nullrec_lib.data import pickles
from nullrec_lib.data.formats.lines import Log, lines, one, wrong
from nullrec_lib.data.interactions import Dataset

EMBEDDINGS, IDS = "itm_emb_np.pkl", "id_map.json"


def read(folder: Path | str, clock: str = "auto") -> Dataset:
    """Read a folder with `inter.txt` and, where they are there, the two other files.

    Raises:
        InputError: a line is malformed or names an item without a row of embeddings (file, line), a pickle asks
            for anything but an array, or `id_map.json` lacks an item.
    """
    folder = Path(folder).resolve()
    path = one(folder, "inter.txt")
    log, lengths, largest = Log(), {}, (0, 0)
    for number, line in lines(path):
        pair = line.split()
        if len(pair) != 2 or not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in pair):
            raise wrong(path, f"{line!r:.40} is not `user item` with ids from 1", number)
        user, item = (str(int(part)) for part in pair)
        largest = max(largest, (int(item), -number))
        lengths[user] = lengths.get(user, 0) + 1
        log.add(user, item, lengths[user] - 1)
    n_items, embeddings = largest[0], {}
    if (folder / EMBEDDINGS).is_file():
        rows = pickles.matrix(folder / EMBEDDINGS)
        if len(rows) < n_items:
            what = f"item {n_items} has no row in {EMBEDDINGS}, which ends with item {len(rows)}"
            raise wrong(path, what, -largest[1])
        n_items, embeddings = len(rows), {Path(EMBEDDINGS).stem: rows}

    name = folder.parent.name if folder.name == "handled" else folder.name
    dataset = log.dataset(name, map(str, range(1, n_items + 1)), None, path.name, clock)
    if (folder / IDS).is_file():
        dataset = replace(dataset, items=dataset.items.assign(item_id=_ids(folder / IDS, n_items)))
    return replace(dataset, embeddings=embeddings)


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
