"""The cases: which operation, at which shapes, and the least that any implementation of it must move and compute.

In shapes, N counts items (users for overlap), B examples of a batch, L tokens of a history, C candidates of an example,
and d numbers of a vector. A further case is one `Operation` here; its inputs and calls are in `variants`.
"""

from __future__ import annotations

import difflib
import math
from functools import partial

from nullrec_lib.bench import variants as v
from nullrec_lib.bench.case import Case, Operation, close
from nullrec_lib.errors import InputError

_RANKED = {
    "quick": ({"N": 10_000, "B": 256, "d": 128}, {"N": 9_973, "B": 255, "d": 65}),
    "full": ({"N": 100_000, "B": 1024, "d": 128}, {"N": 1_000_000, "B": 256, "d": 64},
             {"N": 10_000, "B": 256, "d": 3072}),
    "gpu": ({"N": 1_000_000, "B": 2048, "d": 128}, {"N": 10_000_000, "B": 256, "d": 64}),
}
_TOKENS = {
    "quick": ({"B": 256, "L": 10, "d": 128}, {"B": 255, "L": 7, "d": 65}),
    "full": ({"B": 4096, "L": 10, "d": 128}, {"B": 1023, "L": 50, "d": 257}),
    "gpu": ({"B": 4096, "L": 50, "d": 768},),
}

def distinct(rows: int, read: int) -> float:
    """How many different rows `read` draws among `rows` meet, as they may be expected to: these at least must be read."""
    return rows * -math.expm1(read * math.log1p(-1 / rows))


def tokens(L: int) -> float:
    """Mean length of the histories that the cases draw: uniform over 1 to L. Nobody must read padding."""
    return (L + 1) / 2


# Bytes: 4 for a float32, 8 for an id. AlphaFuse's table trains half of the columns, so its gradients have d/2.
OPERATIONS = (
    Operation(
        "dropout", v.dropout_inputs, partial(v.dropout, impl="naive"), v.dropout, v.dropout_plain,
        moved=lambda B, L, d: 4 * 4 * B * L * d, flops=lambda B, L, d: 0, **_TOKENS,
        unchecked=("plain",), fast_devices=("cpu",),
    ),
    Operation(
        "attend", v.attend_inputs, partial(v.attend, impl="naive"), v.attend, v.attend_plain,
        moved=lambda B, L, d: 4 * B * d * (2 * tokens(L) + L + 6), flops=lambda B, L, d: 10 * B * tokens(L) * d, **_TOKENS,
        unchecked=("plain",), fast_devices=("cpu",),
    ),
    Operation(
        "state", v.state_inputs, partial(v.state, impl="naive"), v.state, v.state_plain,
        # Four matrices meet every row, forward and twice backward, beside attention: queries' and keys' may be multiplied
        # before. Each of the five is read, its gradient written.
        moved=lambda B, L, d: 4 * (B * d * (tokens(L) + L + 2) + 10 * d * d),
        flops=lambda B, L, d: B * (24 * d * d + 10 * tokens(L) * d),
        **_TOKENS, unchecked=("plain",), fast_devices=("cpu",),
    ),
    Operation(
        "lookup", v.lookup_inputs, partial(v.lookup, impl="naive"), v.lookup, v.lookup_plain,
        # Forward: ids, rows, output; backward: ids, what comes back, and the gradient's rows.
        moved=lambda N, B, L, d: B * (L * (8 + 4 * d + 8) + tokens(L) * 4 * d)
        + 4 * distinct(N, round(B * tokens(L))) * (d + d // 2 + d // 2),
        flops=lambda N, B, L, d: 0,
        quick=({"N": 10_000, "B": 256, "L": 10, "d": 128}, {"N": 9_973, "B": 255, "L": 7, "d": 65}),
        full=({"N": 100_000, "B": 1024, "L": 50, "d": 256}, {"N": 1_000_000, "B": 256, "L": 10, "d": 128}),
        gpu=({"N": 10_000_000, "B": 4096, "L": 50, "d": 64},), unchecked=("plain",),
    ),
    Operation(
        "infonce", v.infonce_inputs, partial(v.infonce, impl="naive"), v.infonce, v.infonce_plain,
        moved=lambda N, B, C, d: 8 * B * C + 4 * distinct(N, B * C) * (d + d // 2 + d // 2) + 4 * 3 * B * d,
        flops=lambda N, B, C, d: B * C * (4 * d + 2 * (d // 2)) + distinct(N, B * C) * 2 * d,  # lengths once per row
        quick=({"N": 10_000, "B": 256, "C": 65, "d": 128}, {"N": 9_973, "B": 255, "C": 64, "d": 65}),
        full=({"N": 100_000, "B": 1024, "C": 65, "d": 256}, {"N": 1_000_000, "B": 256, "C": 257, "d": 128},
              {"N": 10_000, "B": 256, "C": 65, "d": 3072}),
        gpu=({"N": 10_000_000, "B": 4096, "C": 257, "d": 64},),
    ),
    Operation(
        "full_softmax", v.full_softmax_inputs, partial(v.full_softmax, impl="naive"), v.full_softmax,
        v.full_softmax_plain,
        moved=lambda N, B, d: 4 * (N * (d + 2 * (d // 2)) + 3 * B * d),
        flops=lambda N, B, d: 2 * B * N * (2 * d + d // 2),
        quick=_RANKED["quick"], full=({"N": 100_000, "B": 256, "d": 128}, {"N": 10_000, "B": 256, "d": 3072}),
        gpu=({"N": 1_000_000, "B": 1024, "d": 128}, {"N": 5_000_000, "B": 256, "d": 64}),
        # A softmax over N cosines at τ = 0.07, in float32: rounding of sums of very unlike terms.
        same=partial(close, tolerance=1e-3),
    ),
    Operation(
        "rank", v.rank_inputs, partial(v.rank, impl="naive"), v.rank, v.rank_plain,
        moved=lambda N, B, d: 4 * (N + B) * d, flops=lambda N, B, d: 2 * B * N * d, **_RANKED,
        same=v.near_ranks, others={"product": v.product}, unchecked=("product",),
    ),
    Operation(
        "top_k", v.rank_inputs, v.top_k_naive, v.top_k, None,
        moved=lambda N, B, d: 4 * (N + B) * d, flops=lambda N, B, d: 2 * B * N * d, **_RANKED,
        others={"product": v.product}, unchecked=("product",), own_name="tiles",
    ),
    Operation(
        "cosine_histogram", v.rows_inputs, partial(v.cosine_histogram, impl="naive"), v.cosine_histogram,
        v.cosine_histogram_plain, moved=lambda N, d: 4 * N * d, flops=lambda N, d: N * (N - 1) * d,
        quick=({"N": 2_000, "d": 128}, {"N": 1_999, "d": 65}), full=({"N": 10_000, "d": 384}, {"N": 9_973, "d": 257}),
        gpu=({"N": 30_000, "d": 384},), same=v.near_counts,
    ),
    Operation(
        "covariance", v.rows_inputs, partial(v.covariance, impl="naive"), v.covariance, v.covariance_plain,
        moved=lambda N, d: 4 * N * d + 8 * d * d, flops=lambda N, d: N * d * d,
        quick=({"N": 10_000, "d": 128}, {"N": 9_973, "d": 65}),
        full=({"N": 100_000, "d": 384}, {"N": 10_000, "d": 3072}, {"N": 1_000_000, "d": 128}),
        same=partial(close, tolerance=1e-9), own_name="blocks", number="float64",
    ),
    Operation(
        "overlap", v.overlap_inputs, partial(v.overlap, impl="naive"), v.overlap, v.overlap_plain,
        moved=lambda N, items, each: 2 * 8 * N * each, flops=lambda N, items, each: 0,
        quick=({"N": 400, "items": 1_000, "each": 20},), full=({"N": 2_000, "items": 5_000, "each": 50},),
        unchecked=("plain",), devices=("cpu",),  # equal shares: which user comes first is open there
    ),
    Operation(
        "ddim", v.ddim_inputs, lambda i: i.model.queries_naive(i.states, i.batch),
        lambda i, impl: i.model.queries(i.states, i.batch), None,
        # The map is affine: of noise and of state. (Making it of its steps is not avoided, and not counted.)
        moved=lambda B, d: 4 * (2 * B * d + 2 * d * d), flops=lambda B, d: 4 * B * d * d,
        quick=({"B": 256, "d": 128}, {"B": 255, "d": 65}), full=({"B": 4096, "d": 128}, {"B": 1024, "d": 384}),
        gpu=({"B": 4096, "d": 384}, {"B": 1024, "d": 3072}), own_name="one product",
        same=partial(close, tolerance=1e-3),
    ),
)
NAMES = tuple(operation.name for operation in OPERATIONS)


def check_names(only: list[str], names: tuple[str, ...]) -> None:
    """Raises InputError for a name that is not among `names`."""
    for name in only:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" (meant {near[0]}?)" if near else ""
            raise InputError(f"--only {name}: there is no such case{hint}; there are {', '.join(names)}.")


def cases(device: str, quick: bool, only: tuple[str, ...]) -> list[Case]:
    """All cases of the operations named in `only`, in the order of `OPERATIONS`."""
    return [case for operation in OPERATIONS if operation.name in only for case in operation.cases(device, quick)]
