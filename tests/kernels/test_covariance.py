"""Blockwise mean and covariance: as good as exact arithmetic, in little memory."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullrec_lib import nullspace
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.covariance import covariance, covariance_naive

quick = settings(max_examples=60, deadline=None, derandomize=True)


def rows(n, d, seed=0, mean=1.0, dtype=np.float64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * np.linspace(2, 0.3, d) + mean * rng.choice([-1, 1], d)).astype(dtype)


def exact(E: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """In fractions: no rounding before the last step."""
    w = [Fraction(1)] * len(E) if weights is None else [Fraction(float(weight)) for weight in weights]
    columns = [[Fraction(float(value)) for value in column] for column in E.T]
    total = sum(w)
    mean = [sum(a * b for a, b in zip(w, column)) / total for column in columns]
    centred = [[value - middle for value in column] for column, middle in zip(columns, mean)]
    sigma = [[float(sum(a * b * c for a, b, c in zip(w, x, y)) / total) for y in centred] for x in centred]
    return np.array([float(middle) for middle in mean]), np.array(sigma)


def check(got, wanted, tolerance=2e-15):
    """The mean to the last digits; the covariance to `tolerance` of the spreads, not of the values' size."""
    spread = np.sqrt(np.diag(wanted[1]))
    assert (np.abs(got[0] - wanted[0]) <= 1e-15 * np.maximum(np.abs(wanted[0]), spread)).all()
    assert (np.abs(got[1] - wanted[1]) <= tolerance * np.outer(spread, spread)).all()


@pytest.mark.parametrize("function", [covariance, covariance_naive])
def test_by_hand(function):
    E = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]])
    mean, sigma = function(E)
    np.testing.assert_allclose(mean, [3, 4], rtol=1e-15)
    np.testing.assert_allclose(sigma, [[8 / 3, 4], [4, 8]], rtol=1e-15)
    mean, sigma = function(E, np.array([1, 1, 0]))
    np.testing.assert_allclose(mean, [2, 2], rtol=1e-15)
    np.testing.assert_allclose(sigma, [[1, 0], [0, 0]], atol=1e-15)


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4, 1e10])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block", [7, 2048])
def test_against_exact_arithmetic(mean, weighted, block):
    E = rows(300, 3, mean=mean)
    weights = np.random.default_rng(1).random(300) if weighted else None
    check(covariance(E, weights, block), exact(E, weights))


@pytest.mark.parametrize("weighted", [False, True])
def test_float32_rows_with_a_mean_10000_times_their_spread(weighted):
    E = rows(20_000, 6, mean=1e4, dtype=np.float32)
    weights = np.random.default_rng(1).random(20_000) if weighted else np.ones(20_000)
    wide, w = E.astype(np.longdouble), weights.astype(np.longdouble) / weights.astype(np.longdouble).sum()
    mean = w @ wide
    sigma = ((wide - mean) * w[:, None]).T @ (wide - mean)
    check(covariance(E, weights if weighted else None), (mean.astype(float), sigma.astype(float)), 5e-15)


@quick
@given(n=st.integers(2, 40), d=st.integers(1, 6), block=st.integers(1, 45), seed=st.integers(0, 99), data=st.data())
def test_equals_the_textbook_in_blocks_of_any_size(n, d, block, seed, data):
    E = rows(n, d, seed)
    weights = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=n, max_size=n).map(np.array))
    if weights is not None:
        weights[seed % n] += 1
    for dtype in (np.float64, np.float32, np.float16):
        typed = E.astype(dtype)
        for got, wanted in zip(covariance(typed, weights, block), covariance_naive(typed, weights), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-13)
    mean, sigma = covariance(E, weights, block)
    assert mean.shape == (d,) and sigma.shape == (d, d) and mean.dtype == sigma.dtype == np.float64
    assert np.linalg.eigvalsh(sigma).min() > -1e-13


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 5), (2047, 3), (2048, 3), (2049, 129), (5, 129)])
def test_awkward_shapes_and_memory_orders(n, d):
    E = rows(n, d)
    wanted = covariance_naive(E)
    for same in (E, np.asfortranarray(E), np.repeat(E, 2, axis=1)[:, ::2], E.tolist()):
        for got, reference in zip(covariance(same), wanted, strict=True):
            np.testing.assert_allclose(got, reference, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(E, rows(n, d))  # the input stays
    for got, reference in zip(covariance((10 * E).astype(int)), covariance_naive((10 * E).astype(int)), strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tensors_give_tensors(dtype, weighted):
    # bfloat16, which NumPy does not know, takes the way of tensors on a GPU
    E = torch.from_numpy(rows(100, 4)).to(dtype).requires_grad_()
    weights = torch.arange(100) if weighted else None
    wanted = covariance_naive(E.detach().double().numpy(), weights)
    for got, reference in zip(covariance(E, weights, 33), wanted, strict=True):
        assert isinstance(got, torch.Tensor) and got.dtype == torch.float64 and not got.requires_grad
        np.testing.assert_allclose(got, reference, rtol=1e-12, atol=1e-13)


def test_a_file_is_read_in_little_memory(tmp_path):
    E = rows(40_000, 64, dtype=np.float32)  # 10 MB, 20 in float64
    E.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=E.shape)
    weights = np.arange(40_000) % 5
    wanted = covariance(E, weights), covariance(E)
    tracemalloc.start()
    got = covariance(mapped), covariance(mapped, block=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    weighted = covariance(mapped, weights)
    weighted_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6 and weighted_peak < 5e6  # some blocks of 1 MB; the weighted one has shares of 0.3 MB too
    for one in got:
        np.testing.assert_allclose(one[1], wanted[1][1], rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(weighted[1], wanted[0][1])


def test_the_null_space_uses_it():
    E = rows(3000, 5, dtype=np.float32)
    for got, wanted in zip(nullspace.covariance(E), covariance(E), strict=True):
        np.testing.assert_array_equal(got, wanted)


INFINITE, MISSING, CANCELLED = rows(5000, 3), rows(5000, 3), rows(5000, 3)
INFINITE[2048, 1] = np.inf
MISSING[4999, 0] = np.nan
CANCELLED[3, 2], CANCELLED[9, 2] = np.inf, -np.inf


@pytest.mark.parametrize(
    ("embeddings", "weights", "words"),
    [
        (rows(1, 3), None, r"embeddings: shape \(1, 3\) is not \(N, d\) with N of at least 2"),
        (rows(5, 3)[0], None, r"embeddings: shape \(3,\)"),
        (INFINITE, None, "embeddings: row 2048 is not finite"),
        (MISSING, None, "embeddings: row 4999 is not finite"),
        (CANCELLED, None, "embeddings: row 3 is not finite"),
        (INFINITE, np.arange(5000) < 9, "embeddings: row 2048 is not finite"),  # of weight 0
        (torch.from_numpy(MISSING), None, "embeddings: row 4999 is not finite"),
        (torch.from_numpy(MISSING).bfloat16(), None, "embeddings: row 4999 is not finite"),
        (rows(5, 3), np.ones(4), "weights: need 5 finite, non-negative numbers with a positive sum"),
        (rows(5, 3), np.array([1, 1, 1, 1, -1]), "weights: need 5"),
        (rows(5, 3), np.zeros(5), "weights: need 5"),
        (rows(5, 3), np.array([1, 1, 1, 1, np.nan]), "weights: need 5"),
    ],
)
def test_wrong_input_is_one_sentence(embeddings, weights, words):
    with pytest.raises(InputError, match=words) as caught:
        covariance(embeddings, weights)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_numbers_whose_sum_is_infinite_are_finite():
    E = np.array([[1e308, 0.0], [1e308, 1.0], [1e308, 5.0]])
    with np.errstate(all="ignore"):
        assert covariance(E)[0][1] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("weighted", [False, True])
def test_on_a_gpu(weighted):
    E = rows(5000, 129, mean=1e4, dtype=np.float32)
    weights = np.random.default_rng(1).random(5000) if weighted else None
    got = covariance(torch.from_numpy(E).cuda(), weights)
    assert all(part.is_cuda for part in got)
    check([part.cpu().numpy() for part in got], covariance(E, weights), 1e-13)
