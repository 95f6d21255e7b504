"""What reading a user's histories in one causal pass saves a training step, by the number of blocks."""

from __future__ import annotations

from typing import Any

import torch

from nullrec_lib.bench import engine
from nullrec_lib.bench.timing import extra_memory_mb, take_turns

BLOCKS = (1, 2)


def measure(blocks: int, device: str, seconds: float, data: str, keep: str | None, **fields: Any) -> list[dict[str, Any]]:
    """One row per way of reading: seconds of a step and of an epoch of AlphaFuse on SASRec with so many blocks.

    Args:
        seconds: for timing the steps of both, which take turns.
    """
    state = torch.random.get_rng_state()
    ours, memory, cases = {}, {}, {}
    for way, prefixes in (("one by one", None), ("together", "together")):
        cases[way] = case = engine.prepare_case("alphafuse", device, data, keep, **fields | {
            "blocks": blocks, "prefixes": prefixes})
        ours[way] = engine.Ours(case.model, case.train, case.spec.batch_size, case.spec.lr)
        ours[way].step()  # what a first step alone makes is no step's memory
        memory[way] = extra_memory_mb(ours[way].step, device)
    timings = take_turns({way: one.step for way, one in ours.items()}, seconds, device, engine.turn(seconds))
    rows = []
    for way, timing in timings.items():
        train, size = cases[way].train, cases[way].spec.batch_size
        steps = len(list(train.shuffled(size, way == "together")))
        rows.append({"data": data, "keep": keep, "method": f"alphafuse, {blocks} block" + "s" * (blocks > 1), "engine": way,
                     "training_examples": len(train), "steps": steps, "step_s": timing.median_s,
                     "epoch_s": timing.median_s * steps, "epoch_p20_s": timing.p20_s * steps,
                     "epoch_p80_s": timing.p80_s * steps, "repeats": timing.repeats, "peak_mb": memory[way]})
    torch.random.set_rng_state(state)
    return rows
