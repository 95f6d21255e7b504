"""Counts of pairwise cosines: known answers, edges, and that no implementation counts a pair twice or not at all."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.kernels import cosine_histogram_cpu
from nullrec_lib.kernels.cosine_histogram import MOST_BINS, cosine_histogram, cosine_histogram_naive, unit_rows

TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def exact(n, d, seed=0) -> torch.Tensor:
    """Rows of 0, 1, 4, 16 or 64 entries of ±1 and zeros elsewhere: norms and cosines are exact in float32."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, d), np.float32)
    for row, size in zip(rows, rng.choice([size for size in (0, 1, 4, 16, 64) if size <= d], size=n)):
        row[rng.permutation(d)[:size]] = rng.choice([-1.0, 1.0], size=size)
    return torch.from_numpy(rows)


def check_counts(counts: np.ndarray, vectors: np.ndarray) -> None:
    """Up to every edge there are as many pairs as float64 says, give or take those within 10⁻⁶ of it."""
    rows = vectors.astype(np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norm > 0, norm, 1)
    cosines = np.sort((unit @ unit.T)[np.triu_indices(len(rows), 1)])
    edges = np.linspace(-1, 1, len(counts) + 1)[1:-1]
    assert counts.sum() == len(cosines) and (counts >= 0).all()
    assert (np.searchsorted(cosines, edges - 1e-6) <= np.cumsum(counts)[:-1]).all()
    assert (np.cumsum(counts)[:-1] <= np.searchsorted(cosines, edges + 1e-6)).all()


@pytest.mark.parametrize("impl", ["naive", "cpu", "auto"])
def test_by_hand(impl):
    vectors = torch.tensor([[3.0, 0.0], [-0.5, 0.0], [0.0, 8.0], [0.0, 0.0], [7.0, 0.0]])
    # -1 twice (rows 0-1, 1-4), 1 once (0-4), 0 for the seven others
    assert cosine_histogram(vectors, 4, impl).tolist() == [2, 0, 7, 1]
    assert cosine_histogram(vectors, 3, impl).tolist() == [2, 7, 1]
    assert cosine_histogram(vectors, 1, impl).tolist() == [10]
    assert cosine_histogram(vectors, 4, impl).dtype == torch.int64


@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_a_cosine_on_an_edge_belongs_to_the_bin_that_begins_there(impl):
    signs = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1], [-1, -1, -1, -1]])
    for row, place in zip(signs[1:], (6, 4, 2, 0)):  # cosines 1/2, 0, -1/2, -1 in eight bins of a quarter
        counts = cosine_histogram(torch.stack([signs[0], row]), 8, impl)
        assert counts.nonzero().tolist() == [[place]]
    assert cosine_histogram(signs[[0, 0]], 8, impl).nonzero().tolist() == [[7]]  # and 1 to the last


@pytest.mark.parametrize("d", [1, 3, 64, 129])
@pytest.mark.parametrize("n", [2, 3, 511, 512, 513, 1025])
def test_fast_equals_naive_where_cosines_are_exact(n, d):
    vectors = exact(n, d)
    for bins in (1, 2, 7, 100, 128):
        fast = cosine_histogram(vectors, bins, "cpu")
        assert fast.tolist() == cosine_histogram_naive(vectors, bins).tolist()
        assert fast.sum() == n * (n - 1) // 2


@pytest.mark.parametrize(("n", "d"), [(2, 1), (40, 3), (700, 129)])
@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_any_data_up_to_rounding_at_the_edges(n, d, impl):
    vectors = torch.randn(n, d, generator=torch.Generator().manual_seed(n)) + 0.4
    for bins in (1, 5, 100, MOST_BINS):
        check_counts(cosine_histogram(vectors, bins, impl).numpy(), vectors.numpy())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        typed = vectors.to(dtype)
        check_counts(cosine_histogram(typed, 100, impl).numpy(), typed.double().numpy())


def test_scratch_memory_is_not_read_before_it_is_written(monkeypatch):
    vectors = exact(600, 16)
    wanted = cosine_histogram_naive(vectors)
    monkeypatch.setattr(torch, "empty", lambda *shape: torch.full(shape, torch.nan))
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, -(10**6), dtype))
    assert torch.equal(cosine_histogram(vectors), wanted)


def test_tiles_change_nothing(monkeypatch):
    vectors = exact(97, 16, seed=3)
    wanted = cosine_histogram_naive(vectors)
    for tile in (1, 5, 96, 97, 98):
        monkeypatch.setattr(cosine_histogram_cpu, "TILE", tile)
        assert torch.equal(cosine_histogram(vectors), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_types_and_strides(dtype):
    vectors = exact(50, 64).to(dtype)
    wanted = cosine_histogram_naive(vectors.float())
    assert torch.equal(cosine_histogram(vectors), wanted)
    assert torch.equal(cosine_histogram(vectors.T.contiguous().T), wanted)
    assert torch.equal(cosine_histogram(vectors.clone().requires_grad_()), wanted)
    assert torch.equal(vectors, exact(50, 64).to(dtype))  # the input stays


def test_lengths_do_not_matter_however_large_or_small():
    vectors = exact(60, 64).double()
    wanted = cosine_histogram(vectors)
    scale = 2.0 ** torch.arange(-60, 60, 2, dtype=torch.float64)[:, None]
    assert torch.equal(cosine_histogram((vectors * scale).float()), wanted)
    assert torch.equal(cosine_histogram(vectors * scale**8), wanted)
    assert unit_rows(vectors * scale**8).dtype == torch.float32


@pytest.mark.parametrize(
    ("vectors", "bins", "words"),
    [
        (torch.zeros(1, 3), 10, r"vectors: torch.float32 of shape \(1, 3\) is not \(N, d\) floats, N at least 2"),
        (torch.zeros(3, 0), 10, r"shape \(3, 0\)"),
        (torch.zeros(3), 10, r"shape \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int64), 10, "vectors: torch.int64"),
        (torch.tensor([[1.0, 2], [3, 4], [5, torch.nan]]), 10, "vectors: row 2 is not finite"),
        (torch.tensor([[1.0, 2], [-torch.inf, 4], [5, torch.nan]]), 10, "vectors: row 1 is not finite"),
        (torch.ones(3, 2), 0, r"bins: 0 is not a whole number in 1…1024"),
        (torch.ones(3, 2), 1025, "bins: 1025 is not"),
        (torch.ones(3, 2), 2.5, "bins: 2.5 is not"),
    ],
)
@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_wrong_input_is_one_sentence(vectors, bins, words, impl):
    with pytest.raises(InputError, match=words) as caught:
        cosine_histogram(vectors, bins, impl)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def in_interpreter() -> None:
    """Runs where TRITON_INTERPRET=1 was set before Triton was imported. A program costs milliseconds: few of them."""
    from nullrec_lib.kernels.cosine_histogram_gpu import count

    for n, d, bins in ((2, 1, 1), (64, 3, 7), (65, 33, 128), (129, 129, 100)):
        vectors = exact(n, d)
        got = cosine_histogram(vectors, bins, "triton")
        assert got.tolist() == cosine_histogram_naive(vectors, bins).tolist(), (n, d, bins)
    vectors = torch.randn(130, 40, generator=torch.Generator().manual_seed(0)) + 0.4
    for grid in (1, 2):  # launches of so many tiles beside each other, as a catalogue of millions needs them
        check_counts(count(unit_rows(vectors), MOST_BINS, tile=128, grid=grid).numpy(), vectors.numpy())


@TRITON
def test_triton_in_its_interpreter():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_cosine_histogram as t; t.in_interpreter()"
    done = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__)], capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr


@TRITON
def test_triton_compiles_for_a_gpu_that_is_not_there(tmp_path):
    # In a process of its own: compiling leaves a cache and a driver behind.
    code = textwrap.dedent("""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from nullrec_lib.kernels.cosine_histogram_gpu import DEPTH, TILE, _count

        types = {"unit": "*fp32", "counts": "*i64", "n": "i32", "d": "i32", "bins": "i32", "first": "i32"}
        source = ASTSource(_count, types, {"TILE": TILE, "DEPTH": DEPTH, "ROOM": 128})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"] and "tf32" not in compiled.asm["ptx"]
        assert compiled.metadata.shared <= 48 * 1024, compiled.metadata.shared
    """)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_triton_without_a_gpu_says_so():
    with pytest.raises(InputError, match="needs a GPU"):
        cosine_histogram(torch.ones(3, 2), impl="triton")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    for n, d, bins in ((2, 1, 1), (513, 129, 100), (1000, 64, MOST_BINS)):
        vectors = exact(n, d)
        for impl in ("auto", "naive"):
            got = cosine_histogram(vectors.cuda(), bins, impl)
            assert got.is_cuda and got.tolist() == cosine_histogram_naive(vectors, bins).tolist()
