"""Hash dropout: the same places everywhere, as many as asked for, and no pattern among them."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from nullrec_lib.kernels.dropout import draw_seed, dropout, kept

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**62 - 1, 1234567890123456789 % 2**62]


def stays(index: int, p: float, seed: int) -> bool:
    """The definition in Python's unbounded integers."""
    word = 2**32
    h = index * 0x9E3779B1 % word ^ seed // word
    h = ((h ^ h >> 16) * 0x85EBCA6B + seed) % word
    h = (h ^ h >> 13) * 0xC2B2AE35 % word
    return (h ^ h >> 16) >= round(p * word)


def mask(count: int, p: float, seed: int, impl: str = "cpu") -> np.ndarray:
    """(count,) bool: which places of a vector stay."""
    return (dropout(torch.ones(count), p, seed, impl) != 0).numpy()


def correlated(left: np.ndarray, right: np.ndarray, p: float) -> bool:
    """Whether two rows of coins with chance p agree more or less often than independent ones do."""
    covariance = np.mean((left - (1 - p)) * (right - (1 - p)))
    return abs(covariance) > 4.5 * p * (1 - p) / math.sqrt(left.size)


# The mask


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_the_mask_is_its_definition(p, seed):
    expected = [stays(index, p, seed) for index in range(2000)]
    assert kept(2000, p, seed).tolist() == expected
    assert mask(2000, p, seed).tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 2, 31, 1000, 65_537])
def test_cpu_drops_what_the_reference_drops(count, seed):
    for p in (1e-12, 0.1, 0.3, 0.999):
        assert np.array_equal(mask(count, p, seed), kept(count, p, seed).numpy())


@pytest.mark.parametrize("count", [2**22, 4_194_305, 5_000_001])
def test_cpu_drops_what_the_reference_drops_beyond_a_few_million(count):
    assert np.array_equal(mask(count, 0.1, SEEDS[-1]), kept(count, 0.1, SEEDS[-1]).numpy())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_the_share_that_is_dropped(p, seed):
    n = 300_001
    assert abs(1 - mask(n, p, seed).mean() - p) < 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_of_two_seeds_have_nothing_in_common(p):
    """Seeds as they are drawn, and those that differ in the high half only; also when one mask is shifted."""
    n = 300_000
    torch.manual_seed(1)
    seed, *others = (draw_seed() for _ in range(8))
    first = mask(n, p, seed)
    for other in [*others, seed ^ 2**32, seed ^ 2**61, seed ^ 2**48, (seed + 2**32) % 2**62]:
        second = mask(n, p, other)
        both = np.mean(~first & ~second)
        assert abs(both - p**2) < 4.5 * math.sqrt(p**2 * (1 - p**2) / n), other
        for lag in (0, 1, 2, 8, 64, 128, 1280):
            assert not correlated(first[: n - lag], second[lag:], p), (other, lag)
            assert not correlated(second[: n - lag], first[lag:], p), (other, lag)


@pytest.mark.parametrize("seed", [0, 1, SEEDS[-1]])
def test_neighbouring_places_are_uncorrelated(seed):
    """Next to each other, and at the distance of rows of usual widths and histories."""
    for p in (0.1, 0.5):
        coins = mask(500_000, p, seed)
        for lag in (1, 2, 3, 4, 5, 7, 8, 10, 16, 32, 50, 64, 100, 128, 129, 256, 640, 1024, 1280, 4096, 2**16):
            assert not correlated(coins[:-lag], coins[lag:], p), lag


@pytest.mark.parametrize("seed", [0, 5, SEEDS[-1]])
def test_every_pattern_of_eight_neighbours_is_as_likely(seed):
    coins = mask(400_000, 0.5, seed).reshape(-1, 8)
    assert chisquare(np.bincount(coins @ (1 << np.arange(8)), minlength=256)).pvalue > 1e-3


def test_masks_of_one_place_over_seeds_are_fair_too():
    """What one weight meets over the steps of a training."""
    torch.manual_seed(0)
    coins = np.array([mask(64, 0.3, draw_seed()) for _ in range(10_000)])
    share = 1 - coins.mean(axis=0)
    assert np.abs(share - 0.3).max() < 4.5 * math.sqrt(0.3 * 0.7 / len(coins))
    for lag in (1, 2, 3, 4, 8):  # the other places of a step, and the same place in the next
        assert not correlated(coins[:-lag], coins[lag:], 0.3), lag


# The operation


@pytest.mark.parametrize("impl", ["naive", "cpu"])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
def test_what_stays_is_scaled_and_what_goes_is_zero(impl, p):
    x = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(1))
    stay, got = kept(x.numel(), p, 9).view_as(x), dropout(x, p, 9, impl)
    assert got.shape == x.shape and got.dtype == torch.float32
    assert (got[~stay] == 0).all()
    torch.testing.assert_close(got[stay].double(), x[stay].double() / (1 - p), rtol=2e-7, atol=0)


@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_a_place_is_counted_row_by_row_whatever_the_strides(impl):
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1))
    for other in (x.transpose(0, 2), x[::2], x[:, 1:3], x[..., None].expand(-1, -1, -1, 3)):
        before = other.clone()
        assert torch.equal(dropout(other, 0.4, 3, impl), dropout(other.contiguous(), 0.4, 3, impl))
        assert torch.equal(other, before)


@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_the_mean_over_seeds_is_the_input(impl):
    x, p, count = torch.linspace(-3, 3, 40), 0.3, 2000
    torch.manual_seed(2)
    mean = torch.stack([dropout(x, p, draw_seed(), impl) for _ in range(count)]).double().mean(0)
    assert ((mean - x).abs() <= 4.5 * x.abs() * math.sqrt(p / (1 - p) / count)).all()


@pytest.mark.parametrize("impl", ["naive", "cpu"])
@pytest.mark.parametrize("shape", [(1,), (13,), (4, 5, 6), (0, 3)], ids=str)
def test_the_gradient_goes_where_the_value_came_from(impl, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), requires_grad=True)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad(dropout(x, 0.4, 11, impl), x, upstream)
    assert torch.equal(gradient, dropout(upstream, 0.4, 11, impl))
    (of_sum,) = torch.autograd.grad(dropout(x, 0.4, 11, impl).sum(), x)  # its upstream gradient has no strides
    assert torch.equal(of_sum, dropout(torch.ones(shape), 0.4, 11, impl))


@pytest.mark.parametrize("impl", ["auto", "naive", "cpu"])
def test_no_dropout_is_the_identity(impl):
    x = torch.randn(5)
    assert dropout(x, 0.0, 7, impl) is x


@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_the_same_seed_gives_the_same_bits(impl):
    x = torch.randn(100, 9)
    assert torch.equal(dropout(x, 0.5, 4, impl), dropout(x, 0.5, 4, impl))
    assert not torch.equal(dropout(x, 0.5, 4, impl), dropout(x, 0.5, 5, impl))


def test_seeds_follow_from_torch_s():
    torch.manual_seed(6)
    drawn = [draw_seed() for _ in range(200)]
    torch.manual_seed(6)
    assert [draw_seed() for _ in range(200)] == drawn
    assert len(set(drawn)) == 200 and all(0 <= seed < 2**62 for seed in drawn)
    assert min(drawn) < 2**60 and max(drawn) > 2**61  # of the whole range
