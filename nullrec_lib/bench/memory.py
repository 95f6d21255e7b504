"""All users ranked in one call, as an evaluation does: the memory it takes must not grow with users × items."""

from __future__ import annotations

import time
from typing import Any

from nullrec_lib.bench import variants
from nullrec_lib.bench.ceilings import Ceilings
from nullrec_lib.bench.timing import Timing, extra_memory_mb
from nullrec_lib.kernels.rank import rank_naive

SIZES = {True: {"N": 20_000, "B": 2_000, "d": 128}, False: {"N": 1_000_000, "B": 20_000, "d": 128}}
"""Shape, quick or not: items, users, dimensions."""
CHECKED = 32
"""Users whose ranks are compared with the naive ones, which cannot be had for all."""


def measure(device: str, quick: bool, ceilings: Ceilings) -> dict[str, Any]:
    """One row: seconds and extra memory of one call of `rank`; `check` says whether the first users' ranks are the
    naive ones, up to rounding; if not, there are no times."""
    shape = SIZES[quick]
    inputs, found = variants.rank_inputs(device, **shape), []

    def work() -> None:
        started = time.perf_counter()
        ranks = variants.rank(inputs, impl="auto")
        found[:] = [tuple(place[:CHECKED].cpu() for place in ranks), time.perf_counter() - started]

    peak = extra_memory_mb(work, device)
    some = [part[:CHECKED] for part in (inputs.queries, inputs.target, inputs.seen)]
    naive = rank_naive(some[0], inputs.items, some[1], (inputs.factor, inputs.summand), some[2])
    wrong = variants.near_ranks(found[0], tuple(place.cpu() for place in naive))
    flops = 2.0 * shape["B"] * shape["N"] * shape["d"]
    about = {"case": "rank, all users", "shape": " ".join(f"{name} {size:,}" for name, size in shape.items()),
             "variant": "cpu" if device == "cpu" else "triton", "check": f"failed: {wrong}" if wrong else "ok"}
    if wrong:
        return about
    return about | vars(Timing.of([found[1]])) | {
        "peak_mb": peak, "gflop_per_s": flops / found[1] / 1e9,
        "share_of_ceiling": ceilings.share(found[1], 4.0 * shape["N"] * shape["d"], flops)}
