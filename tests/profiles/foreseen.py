"""A shop of four users and a writer whose every word can be foreseen."""

import hashlib

import numpy as np
import pandas as pd

from nullrec_lib.data.interactions import assemble
from nullrec_lib.data.splits import Split
from nullrec_lib.language.writers import Usage


LETTERS = str.maketrans("0123456789", "ghijklmnop")


class Echo:
    """Answers with the hash of the prompt: a text changes exactly when its prompt does."""

    name, revision, batch, context = "echo", "1", 3, None

    def __init__(self):
        self.asked, self.usage = [], Usage()

    def count(self, text):
        return len(text.split())

    def write(self, prompts, seed):
        self.asked += [prompt.text for prompt in prompts]
        digests = [hashlib.sha256(f"{prompt.text}{seed}".encode()).hexdigest() for prompt in prompts]
        return [f"says {digest.translate(LETTERS)}" for digest in digests]


def flat(texts):
    """Embeddings that only tell texts apart."""
    rows = np.stack([np.random.default_rng(list(text.encode())).standard_normal(8) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def toy(sequences: list[list[int]], owned: list[int], n_items: int = 8):
    """→ data set and cold-start split: the first `len(owned)` users train; every prefix is an example."""
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(n_items)], "title": [f"thing {n}" for n in range(n_items)],
                          "description": [f"made of stuff {n}" for n in range(n_items)]})
    rows = [(f"u{user}", f"i{item}", float(place)) for user, one in enumerate(sequences)
            for place, item in enumerate(one)]
    dataset = assemble("toy", items, pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]), clock="position")
    lengths = [len(one) for one in sequences]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.arange(offsets[-1])
    owner = np.repeat(np.arange(len(sequences)), lengths)
    target = place - offsets[owner] > 0
    train = np.isin(owner, owned)
    held = [user for user in range(len(sequences)) if user not in owned]
    valid, test = target & np.isin(owner, held[:1]), target & np.isin(owner, held[1:])
    return dataset, Split("cold-start", n_items, np.concatenate(sequences).astype(np.int64), offsets,
                          place[target & train], place[valid], place[test], train)
