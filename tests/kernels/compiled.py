"""Triton kernels compiled for a GPU on a machine without one."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

POINTERS = {
    "ids": "*i64", "ordered": "*i64", "places": "*i64", "tokens": "*i64", "ends": "*i64", "targets": "*i64",
    "low": "i32", "high": "i32", "threshold": "i64", "scale": "fp32", "temperature": "fp32",
}  # fmt: skip
"""Types of arguments that are neither a pointer to float32 nor, in `counts`, an int32."""


class Compiled(NamedTuple):
    ptx: str
    registers: int
    spilled: int
    """Bytes of a thread's stack, where what does not fit into registers goes."""
    shared: int
    """Bytes of shared memory of a program."""


def compile_kernel(kernel, counts: tuple[str, ...], folder: Path, warps: int = 4, **constants) -> Compiled:
    """`kernel` for compute capability 9.0 (H100, H200).

    Args:
        counts: its arguments that are integers; pointers, and those of `POINTERS`, are known.
        constants: its compile-time arguments; an argument that is None too.
        folder: for the cubin.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    for name in kernel.arg_names:
        kind = "constexpr" if name in constants else "i32" if name in counts else "*fp32"
        signature[name] = POINTERS.get(name, kind) if kind == "*fp32" else kind
    made = triton.compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", 90, 32), {"num_warps": warps})
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))
    return Compiled(made.asm["ptx"], registers, stack, made.metadata.shared)
