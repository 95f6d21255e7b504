"""What the CPU kernels share: exponentials of many numbers at once, and results that do not depend on addresses."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit
from torch import nn

from nullrec_lib import kernels
from nullrec_lib.backbones.sasrec import Block
from nullrec_lib.kernels import attend_cpu, cpu, infonce_cpu, lookup_cpu, row_adam_cpu, state_cpu
from nullrec_lib.kernels.attend import attend
from nullrec_lib.kernels.cpu import FAST, exponentials
from nullrec_lib.kernels.infonce import infonce
from nullrec_lib.kernels.lookup import Table, lookup
from nullrec_lib.kernels.row_adam import row_adam


def of(x) -> np.ndarray:
    x = np.array(x, np.float32)
    exponentials(x, np.empty(len(x), np.int32))
    return x


@njit(fastmath=FAST)
def within_a_kernel(x, powers):
    """Numba would hand a kernel's freedom to reorder sums on to what it calls."""
    exponentials(x, powers)


@pytest.mark.parametrize("kernel", [False, True])
def test_exponentials_are_right_to_two_units_in_the_last_place(kernel):
    x = np.concatenate([np.linspace(-87, 88, 300_001), np.linspace(-1e-3, 1e-3, 2001)]).astype(np.float32)
    true, found = np.exp(x.astype(np.float64)), x.copy()
    if kernel:
        found = np.repeat(x, 2)[::2]  # strided: compiled for this call, whatever was compiled before
        within_a_kernel(found, np.empty(len(x), np.int32))
    else:
        exponentials(found, np.empty(len(x), np.int32))
    assert (np.abs(found - true) <= 2 * np.spacing(true.astype(np.float32))).all()


def test_exponentials_at_the_edges():
    assert of([0.0, -0.0]).tolist() == [1, 1]
    low, high = np.exp(np.float32(-87)), np.exp(np.float32(88))
    np.testing.assert_allclose(of([-88.0, -1e30, -np.inf]), low, rtol=1e-6)
    np.testing.assert_allclose(of([89.0, 1e30, np.inf]), high, rtol=1e-6)
    assert np.isnan(of([np.nan, 0.0])[0])
    assert len(of([])) == 0


# Where arrays happen to lie

KERNELS = {
    state_cpu: "_query _inner _relu _outer _outer_gradients _relu_gradients _inner_gradients _query_gradients",
    attend_cpu: "forward gradients",
    infonce_cpu: "_whole _forward _backward",
    lookup_cpu: "_forward _backward",
    row_adam_cpu: "_update",
}


def one_step(B: int, L: int, d: int, columns: int, heads: int, candidates: int, p: float) -> None:
    """What a training step asks of the kernels, at a size of a few numbers."""
    torch.manual_seed(0)
    items = 12
    trained, frozen = torch.randn(items, columns, requires_grad=True), torch.randn(items, d)
    table, block, norm = Table(trained, frozen, items), Block(d, heads, p), nn.LayerNorm(d)
    positions = torch.randn(L, d, requires_grad=True)
    ids, asked = torch.randint(items + 1, (B, L)), torch.randint(items, (B, candidates))
    mask = ids < items
    states = block.state(lookup(table, ids, positions, p, seed=7), mask, norm)
    (infonce(table, states, asked, 0.1) + infonce(Table(frozen, None, items), states, asked, 0.1)).backward()
    pooled, sums = attend(torch.randn(B, heads, d, requires_grad=True), torch.randn(B, L, d), mask, 0.3, p, seed=8)
    (pooled.sum() + sums.square().sum()).backward()
    row_adam(trained.detach(), torch.zeros(items, columns), torch.zeros(items, columns), torch.arange(4),
             torch.randn(4, columns), 0.01, 1)


@njit(fastmath=FAST)
def norms_of_one_row(row, hat, gain, bias, out):
    """As kernels take them of rows that they keep for themselves, of which `packed` knows nothing."""
    for b in range(len(hat)):
        state_cpu._norm(row, hat[b], gain, bias, out[b])


@njit(fastmath=FAST)
def gradients_of_one_row(told, hat, gain, to_gain, to_bias, row):
    for b in range(len(hat)):
        state_cpu._norm_gradient(told[b], hat[b], gain, np.float32(0.7), to_gain, to_bias, row)


def packed(arrays: list[np.ndarray], rng) -> list[np.ndarray]:
    """Copies one after the other in a block of memory, in any order, with next to nothing between them."""
    block, places, at = np.zeros(sum(a.nbytes + 192 for a in arrays) + 64, np.uint8), {}, 0
    for index in rng.permutation(len(arrays)):
        array = arrays[index]
        at += -at % 8 + 8 * int(rng.integers(0, 24)) * int(rng.integers(0, 2))
        place = block[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array
        places[index], at = place, at + array.nbytes
    return [places[index] for index in range(len(arrays))]


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("d, columns, heads", [(8, 5, 2), (16, 5, 1), (16, 16, 2), (32, 7, 4)])
def test_results_are_the_same_bits_wherever_arrays_lie(B, d, columns, heads, monkeypatch):
    """A run that goes on elsewhere in memory must go on alike."""
    calls = []

    def kept(kernel):
        def called(*given):
            calls.append((kernel, [np.copy(a) if isinstance(a, np.ndarray) else a for a in given]))
            return kernel(*given)

        return called

    whole = [(module, name, getattr(module, name)) for module, names in KERNELS.items() for name in names.split()]
    for module, name, kernel in whole:
        monkeypatch.setattr(module, name, kept(kernel))
    for p, candidates in ((0.0, 9), (0.4, 50)):  # of many candidates rows are made whole before
        one_step(B, L=3, d=d, columns=columns, heads=heads, candidates=candidates, p=p)
    assert {kernel for kernel, _ in calls} == {kernel for *_, kernel in whole}
    rng = np.random.default_rng(B)
    row, gain, bias, rows, others = (rng.standard_normal(shape, np.float32) for shape in (d, d, d, (3, d), (3, d)))
    calls += [(norms_of_one_row, [row, rows, gain, bias, others]),
              (gradients_of_one_row, [others, rows, gain, bias, np.zeros_like(bias), row])]
    for kernel, given in calls:
        arrays = [index for index, a in enumerate(given) if isinstance(a, np.ndarray)]
        expected = None
        for _ in range(200):
            places = packed([given[index] for index in arrays], rng)
            moved = list(given)
            for index, place in zip(arrays, places):
                moved[index] = place
            kernel(*moved)
            found = [place.tobytes() for place in places]
            expected = expected or found
            assert found == expected, kernel.__name__


def test_no_loop_of_a_reordering_kernel_both_sums_and_writes():
    """Of rows that a kernel keeps for itself too, wherever they lie: see `FAST`."""
    looked_at = 0
    for path in sorted(Path(kernels.__file__).parent.glob("*_cpu.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = " ".join(map(ast.unparse, function.decorator_list)) if isinstance(function, ast.FunctionDef) else ""
            if "FAST" not in said and "njit" not in said:  # what is inlined takes over a kernel's freedom
                continue
            for loop in ast.walk(function):
                inside = [node for node in ast.walk(loop) if node is not loop]
                if not isinstance(loop, ast.For) or any(isinstance(node, ast.For) for node in inside):
                    continue
                looked_at += 1
                sums = [node for node in inside if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)]
                writes = [node for node in inside if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)]
                assert not (sums and writes), f"{path.name}, line {loop.lineno}"
    assert looked_at > 40


@pytest.mark.parametrize("damaged", [lambda code: b"", lambda code: code[:100], lambda code: code[:-1],
                                     lambda code: code[:-99] + bytes([code[-99] ^ 1]) + code[-98:]])
def test_kept_code_that_is_damaged_is_compiled_again(tmp_path, monkeypatch, damaged):
    monkeypatch.setattr(cpu, "_COMPILED", str(tmp_path))

    def twice(x):
        return 2 * x

    for hits in (0, 0, 1):  # made; damaged and made again; read
        kernel = cpu.compiled()(twice)
        assert kernel(3) == 6
        if not hasattr(kernel, "stats"):
            pytest.skip("Numba is switched off")
        assert sum(kernel.stats.cache_hits.values()) == hits
        files = list(tmp_path.rglob("*.nb?"))
        assert files
        if not hits and not (tmp_path / "damaged").exists():
            (tmp_path / "damaged").touch()
            for path in files:
                path.write_bytes(damaged(path.read_bytes()))
