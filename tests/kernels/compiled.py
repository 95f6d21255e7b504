"""Triton kernels compiled for a GPU on a machine without one."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

TYPES = {
    "ids": "*i64", "ordered": "*i64", "places": "*i64", "ends": "*i64", "targets": "*i64",
    "low": "i32", "high": "i32", "threshold": "i32", "scale": "fp32", "temperature": "fp32",
}  # fmt: skip
"""Types of the arguments that are not pointers to float32, and not in `counts`."""


class Compiled(NamedTuple):
    ptx: str
    registers: int
    spilled: int
    """Bytes of a thread's stack, where what does not fit into registers goes."""
    shared: int
    """Bytes of shared memory of a program."""

    def check(self) -> None:
        """It reads and writes memory, spills next to nothing, rounds nothing to TF32 and does without atomics."""
        assert "ld.global" in self.ptx and "st.global" in self.ptx
        assert not re.search(r"tf32|\batom\.|\bred\.", self.ptx)
        assert self.spilled <= 64, self.spilled


def compile_kernel(kernel, counts: tuple[str, ...], folder: Path, warps: int = 4, **constants) -> Compiled:
    """`kernel` for compute capability 9.0 (H100, H200).

    Args:
        counts: its arguments that are integers; pointers, and those of `TYPES`, are known.
        constants: its compile-time arguments; an argument that is None too.
        folder: for the cubin.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    for name in kernel.arg_names:
        kind = "constexpr" if name in constants else "i32" if name in counts else "*fp32"
        signature[name] = TYPES.get(name, kind) if kind == "*fp32" else kind
    aligned = {(k,): [["tt.divisibility", 16]] for k, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps})
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))
    return Compiled(made.asm["ptx"], registers, stack, made.metadata.shared)
