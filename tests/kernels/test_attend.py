"""One-query attention: the fast path against the reference in double precision, values and every gradient."""

import math

import pytest
import torch

from nullrec_lib.kernels.attend import Last, attend, attend_naive
from nullrec_lib.kernels.dropout import kept


def inputs(B: int, H: int, L: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, tokens and masks, from no token at all to a full history; tokens under the mask are zeros."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(L) >= L - (torch.arange(B) % (L + 1))[:, None]
    x = torch.randn(B, L, d, generator=generator) * mask[..., None]
    return torch.randn(B, H, d, generator=generator), x, mask


def worked(impl: str, queries, x, mask, upstream, p: float, scale: float, dtype=torch.float32) -> list[torch.Tensor]:
    """Values, and the gradients of the queries and the tokens."""
    queries, x = (t.to(dtype).requires_grad_() for t in (queries, x))
    found = attend(queries, x, mask, scale, p, 17, impl)
    told = torch.autograd.grad(found, (queries, x), [t.to(dtype) for t in upstream])
    return [t.detach() for t in (*found, *told)]


NAMES = ("pooled", "sums", "gradient of queries", "gradient of tokens")


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("d", [1, 3, 129])
@pytest.mark.parametrize("L", [1, 2, 10])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_cpu_is_as_near_to_the_truth_as_the_reference(heads, L, d, p):
    B = 23
    given = inputs(B, heads, L, d)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(B, heads, d, generator=generator), torch.randn(B, heads, generator=generator)
    of = (*given, upstream, p, d**-0.5)
    truth, fast, naive = worked("naive", *of, torch.float64), worked("cpu", *of), worked("naive", *of)
    for name, true, ours, theirs in zip(NAMES, truth, fast, naive, strict=True):
        assert ours.shape == true.shape and ours.dtype == torch.float32
        allowed = 4 * (theirs - true).abs().max() + 2e-6 * true.abs().max() + 1e-12
        assert (ours - true).abs().max() <= allowed, name


@pytest.mark.parametrize("impl", ["naive", "cpu"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_by_hand(impl, p):
    B, H, L, d, scale = 7, 2, 4, 3, 0.7
    queries, x, mask = inputs(B, H, L, d, seed=2)
    pooled, sums = attend(queries, x, mask, scale, p, 5, impl)
    stay = kept(B * H * L, p, 5).view(B, H, L)
    for b in range(B):
        for h in range(H):
            tokens = mask[b].nonzero().flatten().tolist() or range(L)  # a row without tokens weighs all alike
            powers = {t: math.exp(scale * float(queries[b, h] @ x[b, t])) if mask[b].any() else 1.0 for t in tokens}
            weights = {t: power / sum(powers.values()) * bool(stay[b, h, t]) / (1 - p) for t, power in powers.items()}
            expected = sum(weight * x[b, t] for t, weight in weights.items())
            torch.testing.assert_close(pooled[b, h], expected, rtol=1e-5, atol=1e-6)
            assert float(sums[b, h]) == pytest.approx(sum(weights.values()), rel=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_row_without_tokens_is_finite_and_moves_nothing(p):
    queries, x, mask = inputs(6, 2, 5, 4)
    assert not mask[0].any() and mask[1:].any(1).all()
    for impl in ("naive", "cpu"):
        upstream = torch.ones(6, 2, 4), torch.ones(6, 2)
        pooled, sums, to_queries, to_x = worked(impl, queries, x, mask, upstream, p, 1.0)
        assert (pooled[0] == 0).all() and torch.isfinite(sums).all() and (to_queries[0] == 0).all()
        assert torch.isfinite(to_x).all()
    _, sums = attend(queries, x, mask, 1.0)
    torch.testing.assert_close(sums, torch.ones(6, 2))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_padding_may_stand_anywhere(p):
    queries, x, _ = inputs(40, 3, 7, 5)
    mask = torch.rand(40, 7, generator=torch.Generator().manual_seed(6)) < 0.4
    x = torch.where(mask[..., None], torch.randn(x.shape, generator=torch.Generator().manual_seed(7)), 0.0)
    assert (mask[:, :-1] & ~mask[:, 1:]).any() and not mask.any(1).all()
    given = queries, x, mask, (torch.ones(40, 3, 5), torch.ones(40, 3)), p, 0.7
    for name, ours, theirs in zip(NAMES, worked("cpu", *given), worked("naive", *given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("used", [0, 1], ids=["pooled", "sums"])
def test_one_of_the_two_results_may_be_left_unread(used):
    queries, x, mask = inputs(9, 2, 5, 4)
    told = {}
    for impl in ("naive", "cpu"):
        leaves = [queries.clone().requires_grad_(), x.clone().requires_grad_()]
        read = attend(*leaves, mask, 0.5, 0.3, 8, impl)[used]
        told[impl] = torch.autograd.grad(read.sum(), leaves)  # an upstream gradient without strides
    torch.testing.assert_close(told["cpu"], told["naive"])


def test_scores_far_apart_do_not_overflow():
    queries, x, mask = inputs(9, 2, 5, 4)
    upstream = torch.ones(9, 2, 4), torch.ones(9, 2)
    for scale in (1e4, 1e6):
        fast, truth = (worked(impl, queries, x, mask, upstream, 0.0, scale, dtype)
                       for impl, dtype in (("cpu", torch.float32), ("naive", torch.float64)))
        assert all(torch.isfinite(t).all() for t in fast)
        torch.testing.assert_close(fast[0].double(), truth[0], rtol=1e-4, atol=1e-4)


def test_strides_do_not_matter():
    """Queries come out of a product with exchanged dimensions."""
    queries, x, mask = inputs(8, 2, 5, 4)
    other = queries.transpose(0, 1).contiguous().transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2), mask
    assert not other[0].is_contiguous() and not other[1].is_contiguous()
    for one, two in zip(attend(queries, x, mask, 1.0, impl="cpu"), attend(*other, 1.0, impl="cpu"), strict=True):
        assert torch.equal(one, two)


def test_dropout_needs_its_seed_and_its_share():
    given = (*inputs(30, 2, 10, 4), 0.5)
    drawn = [attend(*given, 0.3, seed, "cpu")[1] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.isclose(drawn[0], torch.ones(30, 2)).all()
    torch.testing.assert_close(attend_naive(*given, 0.3, 1)[1], drawn[0])


def test_the_inputs_stay_as_they_are():
    given = inputs(9, 2, 5, 4)
    before = [t.clone() for t in given]
    worked("cpu", *given, (torch.ones(9, 2, 4), torch.ones(9, 2)), 0.3, 1.0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(given, before, strict=True))


# Last


@pytest.mark.parametrize("L", [1, 4])
@pytest.mark.parametrize("used", ["both", "all", "last"])
def test_last_is_a_slice(used, L):
    x = torch.randn(6, L, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(5)
    of_all, of_last = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, L, 5), (6, 5)))

    def read(every, newest):
        loss = (every.square() * of_all).sum() if used != "last" else 0
        return loss + ((newest**3 * of_last).sum() if used != "all" else 0)

    every, newest = Last.apply(x * 1)
    assert torch.equal(every, x) and torch.equal(newest, x[:, -1]) and newest.is_contiguous()
    (fast,) = torch.autograd.grad(read(every, newest), x)
    (slow,) = torch.autograd.grad(read(x, x[:, -1]), x)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-14)


def test_last_within_attention_has_the_gradients_of_a_slice():
    queries, x, mask = inputs(9, 2, 5, 4)
    told = []
    for impl in ("naive", "cpu"):
        for split in (Last.apply, lambda t: (t, t[:, -1])):
            leaf = x.clone().requires_grad_()
            every, newest = split(leaf)
            pooled, sums = attend(queries + newest[:, None], every, mask, 0.5, 0.3, 8, impl)
            loss = pooled.square().sum() + (sums[..., None] * newest[:, None]).sum()
            told.append(torch.autograd.grad(loss, leaf)[0])
    for other in told[1:]:
        torch.testing.assert_close(other, told[0], rtol=1e-4, atol=1e-5)
