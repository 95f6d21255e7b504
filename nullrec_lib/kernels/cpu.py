"""What the CPU kernels share: how they are compiled and kept, and rows of a table fetched ahead of their use.

They run on one thread. Products run on as many as torch has, but at the sizes of a training step a second thread costs
more than it gives, and two runs side by side use two cores better than one run does.

Look-up and InfoNCE index rows, `table[i, k]`, where they could name a view of one, `row = table[i]`: Numba counts the
references of a view with locked instructions wherever it cannot show that this is needless, and in look-up that costs as
much as the rows do (in attention and row-wise Adam next to nothing). An index that is neither a loop's variable nor plainly
above 0 is made unsigned, or every use of it asks whether it is negative and counts from the end.
"""

from __future__ import annotations

import hashlib
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Callable

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from nullrec_lib.files import cache_folder

_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
_COMPILED = str(cache_folder() / "kernels" / hashlib.sha256(_SOURCES).hexdigest()[:12])


def compiled(**options) -> Callable:
    """Decorator: compile with Numba when first called, release the interpreter while running, keep the machine code.

    It is kept under a hash of all kernels' sources. Numba would look at the function's own file alone, and go on with
    old code after a change to a constant or an inlined function of another. Where it cannot be kept or read again (a full
    disk, a damaged file), the function is compiled all the same.

    Args:
        options: further ones of `numba.njit`.
    """

    def compile(function: Callable) -> Callable:
        before, config.CACHE_DIR = config.CACHE_DIR, _COMPILED
        try:
            return _forgiving(njit(nogil=True, cache=True, **options)(function))
        except RuntimeError:  # no folder to keep it in can be written
            return njit(nogil=True, **options)(function)
        finally:
            config.CACHE_DIR = before

    return compile


def _forgiving(kernel: Callable) -> Callable:
    """A kernel whose kept code may be missing or damaged, and need not be kept. Four bytes behind it are its checksum,
    where Numba looks at none of its own; a changed bit of machine code could do anything."""
    if (cache := getattr(kernel, "_cache", None)) is None:  # Numba is switched off
        return kernel
    save, load, files = cache.save_overload, cache.load_overload, cache._cache_file
    dump, load_file = files._dump, files._load_data

    def keep(*code) -> None:
        with suppress(Exception):  # of the system, and of an index that cannot be read
            save(*code)

    def fetch(*signature):
        try:
            return load(*signature)
        except Exception:  # of unpickling and of linking
            with suppress(OSError):
                cache.flush()
            return None

    def signed(content) -> bytes:
        code = dump(content)
        return code + zlib.crc32(code).to_bytes(4, "little")

    def checked(name: str):
        code = Path(files._data_path(name)).read_bytes()
        if zlib.crc32(code[:-4]).to_bytes(4, "little") != code[-4:]:
            raise ValueError(f"{name} is damaged")
        return load_file(name)

    cache.save_overload, cache.load_overload = keep, fetch
    files._dump, files._load_data = signed, checked
    return kernel


FAST = {"reassoc", "contract", "nsz"}
"""Option `fastmath` of kernels that add up: sums may be reordered; infinities and NaN keep their meaning.

An innermost loop then adds up or writes arrays, never both. The compiler makes a loop that writes twice, with vectors and
without, and takes the second where arrays lie so near to each other that they might overlap: a sum in it would change its
order, and so its last bits, with the addresses of the day.
"""

AHEAD = 6
"""Rows between a fetch and its use: a table's rows are read in random order, which no hardware foresees."""

_LINE = 16  # float32 numbers in a cache line


@intrinsic
def _fetch(typingctx, rows, i, column):
    """_fetch(rows, i, column): bring the cache line of rows[i, column] nearer."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        strides = cgutils.unpack_tuple(builder, array.strides)
        places = [context.cast(builder, value, kind, types.intp) for value, kind in zip(args[1:], signature.args[1:])]
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        offset = builder.add(*(builder.mul(place, stride) for place, stride in zip(places, strides)))
        line = builder.gep(builder.bitcast(array.data, byte), [offset])
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [line, number(0), number(3), number(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(rows, i, column), codegen


@njit(inline="always")
def prefetch(rows, i):
    """Bring row i of a two-dimensional float32 array nearer."""
    for column in range(0, rows.shape[1], _LINE):
        _fetch(rows, i, column)


@njit(fastmath=False)  # said, or it takes over what the kernel that calls it has
def exponentials(x, powers):
    """x (n,) float32 → exp(x), in place, many at a time where `np.exp` takes one after the other; `powers` (n,) int32 is
    scratch. Off by two units in the last place at most; below -87 it is exp(-87), above 88 exp(88), of NaN NaN.

    exp(x) = 2ⁿ·exp(r) with the nearest whole n = x / log 2, so |r| ≤ (log 2)/2: Taylor's sum to r⁷/7!. The first part of
    log 2 has few digits, so that n times it is exact (Cody & Waite); sums must keep their order for that.
    """
    log2e, first, second = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
    for j in range(len(x)):
        value = x[j]
        value = np.float32(-87) if value < np.float32(-87) else value  # a comparison with NaN is false
        value = np.float32(88) if value > np.float32(88) else value
        n = np.floor(value * log2e + np.float32(0.5))
        r = (value - n * first) - n * second
        total = np.float32(1 / 5040)
        total = total * r + np.float32(1 / 720)
        total = total * r + np.float32(1 / 120)
        total = total * r + np.float32(1 / 24)
        total = total * r + np.float32(1 / 6)
        total = total * r + np.float32(1 / 2)
        total = total * r + np.float32(1)
        x[j] = total * r + np.float32(1)
        powers[j] = (np.int32(n) + np.int32(127)) << np.int32(23)
    two_to_the = powers.view(np.float32)
    for j in range(len(x)):
        x[j] *= two_to_the[j]
