"""What the machine can do at most: the yardstick for every kernel, measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable

import torch

from nullrec_lib.bench.timing import take_turns

COPIES = {"cpu": {True: (1, 16, 128), False: (1, 16, 512)}, "cuda": {True: (16, 1024), False: (16, 4096)}}
"""Device → quick or not → MiB that a copy reads and writes together: sizes that fit caches, and one that does not."""
MATMULS = {"cpu": {True: 1024, False: 2048}, "cuda": {True: 4096, False: 8192}}
"""Rows and columns of the matrices whose product is timed."""
SECONDS = {True: 1.0, False: 4.0}
"""Quick or not → seconds for all of them."""


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device at the threads in use."""

    bandwidth: dict[int, float]
    """Bytes that a copy moves (read and written) → GB/s."""
    matmul: dict[str, float]
    """Number type → GFLOP/s of a large square matrix product."""
    rows: list[dict[str, Any]]
    """The same as rows of a report's table."""

    def share(self, seconds: float, moved: float, flops: float, kind: str = "float32") -> float:
        """Least time the machine needs for `moved` bytes and `flops` operations, over `seconds`.

        The bandwidth is that of the smallest measured copy that holds the bytes, so that work inside a cache is
        compared with the cache. `kind` is what is multiplied; float32 is IEEE's, as the kernels have it, not TF32.
        """
        size = min((size for size in self.bandwidth if size >= moved), default=max(self.bandwidth))
        return max(moved / self.bandwidth[size], flops / self.matmul[kind]) / 1e9 / seconds


def measure(device: str, quick: bool) -> Ceilings:
    """Copy and multiply on `device` (`cpu` or `cuda`) for a few seconds: the copies in turns, then the products.

    Rates are those of the fastest fifth of the readings: what the machine can do, not what it does when it is busy.
    """
    copies, products = {}, {}
    for mib in COPIES[device][quick]:
        source = torch.ones(mib * 2**20 // 8, device=device)
        copies[f"copy {mib}"] = partial(torch.empty_like(source).copy_, source)
    n = MATMULS[device][quick]
    for kind in ("float32", "float64") if device == "cpu" else ("float32", "float64", "tf32", "bfloat16"):
        products[kind] = _product(n, kind, device)
    bandwidth, matmul, rows = {}, {}, []
    half = SECONDS[quick] / 2
    for name, timing in (take_turns(copies, half, device) | take_turns(products, half, device)).items():
        if name.startswith("copy"):
            mib = int(name.split()[1])
            rate = bandwidth[mib * 2**20] = mib * 2**20 / timing.p20_s / 1e9
            about = {"shape": f"{mib} MiB read and written", "variant": "copy", "gb_per_s": rate}
        else:
            rate = matmul[name] = 2 * n**3 / timing.p20_s / 1e9
            about = {"shape": f"{n} × {n} × {n}", "variant": f"product {name}", "gflop_per_s": rate}
        rows.append({"case": "ceiling", **about, **vars(timing)})
    return Ceilings(bandwidth, matmul, rows)


def _product(n: int, kind: str, device: str) -> Callable[[], Any]:
    number = torch.float32 if kind == "tf32" else getattr(torch, kind)
    a, b = (torch.randn(n, n, device=device).to(number) for _ in range(2))
    out = torch.empty_like(a)

    def product() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        try:
            torch.mm(a, b, out=out)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return product
