"""What the number of items costs a training step: all rows updated, or those that it read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nullrec_lib.bench.engine import Ours, turn
from nullrec_lib.bench.timing import extra_memory_mb, take_turns
from nullrec_lib.data.examples import Examples
from nullrec_lib.data.splits import Split
from nullrec_lib.preparing import Prepared, build
from nullrec_lib.spec import Spec

SIZES = {True: (10_000, 100_000), False: (10_000, 100_000, 1_000_000)}
"""Items, quick or not."""

LENGTH, USERS = 11, 4096


def measure(n_items: int, device: str, seconds: float) -> list[dict[str, Any]]:
    """One row per way of updating: seconds of a step of Base on SASRec over a made-up catalogue (uniform histories)."""
    items = np.random.default_rng(0).integers(0, n_items, USERS * LENGTH)
    places = np.arange(USERS * LENGTH).reshape(USERS, LENGTH)[:, 1:].ravel()
    split = Split("cold-start", n_items, items, np.arange(0, USERS * LENGTH + 1, LENGTH), places, places[:0],
                  places[:0], np.ones(USERS, bool))
    prepared, spec = Prepared(None, split, np.zeros((n_items, 0), np.float32)), Spec(method="base")
    steps, memory = {}, {}
    for engine in ("all rows", "rows read"):
        model = build(spec, prepared).to(device)
        model.row_updates = engine == "rows read"
        ours = Ours(model, Examples(split, "train", spec.history_length, device), spec.batch_size, spec.lr)
        ours.step()  # what a first step alone makes is no step's memory
        steps[engine], memory[engine] = ours.step, extra_memory_mb(ours.step, device)
    state = torch.random.get_rng_state()
    timings = take_turns(steps, seconds, device, turn(seconds))
    torch.random.set_rng_state(state)
    return [{"data": f"{n_items:,} made-up items", "keep": None, "method": "base", "engine": engine,
             "training_examples": len(places), "step_s": timing.median_s, "repeats": timing.repeats,
             "peak_mb": memory[engine]} for engine, timing in timings.items()]
