"""One operation at one shape: its variants are compared with the naive one first, and timed only if they agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable

import torch
from torch import Tensor

from nullrec_lib.bench.ceilings import Ceilings
from nullrec_lib.bench.timing import extra_memory_mb, take_turns

Variant = Callable[[SimpleNamespace], Any]
Shape = dict[str, int]


def close(found: Any, expected: Any, tolerance: float = 2e-4) -> str | None:
    """None where two results agree, else one sentence. Whole numbers must be equal; the largest difference of floats
    may be `tolerance` times the largest number expected."""
    found, expected = _tensors(found), _tensors(expected)
    if len(found) != len(expected):
        return f"{len(found)} tensors came instead of {len(expected)}"
    for place, (one, other) in enumerate(zip(found, expected)):
        if one.shape != other.shape:
            return f"result {place} has shape {tuple(one.shape)} instead of {tuple(other.shape)}"
        if not other.is_floating_point():
            if not torch.equal(one.to(other), other):
                wrong = int((one.to(other) != other).sum())
                return f"result {place} differs in {wrong} of {other.numel()} whole numbers"
            continue
        error = float((one.to(other) - other).abs().max() / other.abs().max().clamp(min=1e-30))
        if not error <= tolerance:  # NaN included
            return f"result {place} is off by {error:.2g} of its largest number, more than {tolerance:g}"
    return None


def _tensors(result: Any) -> list[Tensor]:
    """The tensors of a result (a tensor, an array, or a sequence of them), dense."""
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in _tensors(part)]
    tensor = torch.as_tensor(result).detach()
    return [tensor.to_dense() if tensor.is_sparse else tensor]


@dataclass(frozen=True)
class Operation:
    """What is measured, at which shapes. A further one is a further line in `cases.OPERATIONS`."""

    name: str
    make: Callable[..., SimpleNamespace]
    """`make(device, **shape)` → inputs, the same ones for all variants."""
    naive: Variant
    """The reference by which the others are checked."""
    fast: Callable[[SimpleNamespace, str], Any]
    """`fast(inputs, impl)`, with impl `cpu` or `triton`."""
    plain: Variant | None
    """The usual way to write it in PyTorch; None where that is what naive is."""
    moved: Callable[..., float]
    """`moved(**shape)`: least bytes that any implementation must read and write, every array once."""
    flops: Callable[..., float]
    """`flops(**shape)`: least floating-point operations, a multiplication and an addition counted as two."""
    quick: tuple[Shape, ...]
    full: tuple[Shape, ...] = ()
    gpu: tuple[Shape, ...] = ()
    """Shapes of a full run that only a GPU is asked for."""
    same: Callable[[Any, Any], str | None] = close
    """Compares a result with the naive one: None, or what is wrong."""
    unchecked: tuple[str, ...] = ()
    """Variants that rightly differ from naive, such as one that draws other random numbers."""
    others: dict[str, Variant] = field(default_factory=dict)
    """Further variants to compare with."""
    fast_devices: tuple[str, ...] = ("cpu", "cuda")
    """Where `fast` is something else than naive."""
    own_name: str | None = None
    """Of the fast variant, where it is neither Numba nor Triton."""
    number: str = "float32"
    """What is multiplied: which matrix product is the ceiling."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where there is anything to measure."""

    def cases(self, device: str, quick: bool) -> list[Case]:
        """The cases of a run on `device`."""
        if device not in self.devices:
            return []
        shapes = self.quick if quick else self.quick + self.full + (self.gpu if device == "cuda" else ())
        impl = "cpu" if device == "cpu" else "triton"
        variants = {"naive": self.naive} | ({"plain": self.plain} if self.plain else {}) | self.others
        if device in self.fast_devices:
            variants[self.own_name or impl] = partial(self.fast, impl=impl)
        return [Case(self, shape, variants) for shape in shapes]


@dataclass(frozen=True)
class Case:
    """An operation at one shape, with the variants that its device has."""

    operation: Operation
    shape: Shape
    variants: dict[str, Variant]

    @property
    def label(self) -> str:
        return " ".join(f"{name} {size:,}" for name, size in self.shape.items())


@dataclass(frozen=True)
class Measured:
    """Rows of one case, and a sentence for each variant that disagrees."""

    rows: list[dict[str, Any]]
    failures: list[str] = field(default_factory=list)


def measure(case: Case, device: str, seconds: float, ceilings: Ceilings) -> Measured:
    """Check every variant against naive, then time those that agree in turns.

    If one disagrees or raises, nothing of the case is timed: its rows say `failed: …` in the column `check`.

    Args:
        seconds: for the timing of all variants together.
    """
    operation, place = case.operation, f"{case.operation.name} ({case.label})"
    checks, works = {}, {}
    inputs = operation.make(device, **case.shape)
    expected = operation.naive(inputs)
    for name, variant in case.variants.items():
        try:
            wrong = None if name == "naive" else _compare(operation, name, variant, inputs, expected)
        except Exception as error:  # a kernel under test may raise anything; the other cases go on
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        checks[name] = f"failed: {wrong}" if wrong else "unchecked" if name in operation.unchecked else "ok"
        works[name] = partial(variant, inputs)
    del expected
    about = {"case": operation.name, "shape": case.label}
    failures = [f"{place}: {name} {check}" for name, check in checks.items() if check.startswith("failed")]
    if failures:
        rows = [about | {"variant": name, "check": check} for name, check in checks.items()]
        return Measured(rows, failures)
    timings = take_turns(works, seconds, device)
    moved, flops = operation.moved(**case.shape), operation.flops(**case.shape)
    rows = [
        about | {"variant": name, **vars(timing), "peak_mb": extra_memory_mb(works[name], device),
                 "gb_per_s": moved / timing.median_s / 1e9, "gflop_per_s": flops / timing.median_s / 1e9,
                 "share_of_ceiling": ceilings.share(timing.median_s, moved, flops, operation.number),
                 "check": checks[name]}
        for name, timing in timings.items()
    ]
    return Measured(rows, failures)


def _compare(operation: Operation, name: str, variant: Variant, inputs: SimpleNamespace, expected: Any) -> str | None:
    found = variant(inputs)
    return None if name in operation.unchecked else operation.same(found, expected)

