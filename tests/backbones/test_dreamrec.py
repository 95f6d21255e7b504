"""DreamRec: noise, denoiser, sampler and loss against numbers computed without it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nullrec_lib.backbones.dreamrec import DreamRec, _mix, _sinusoids, gaussian
from nullrec_lib.data.examples import Batch, Examples
from nullrec_lib.data.splits import Split
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.lookup import Items, Table
from nullrec_lib.preparing import Prepared, build
from nullrec_lib.spec import Spec

MASK = 2**64 - 1


def dreamrec(width=2, **chosen) -> DreamRec:
    options = dict(length=3, blocks=1, heads=1, dropout=0.0, noise_steps=50, sampling_steps=5, guidance=2.0,
                   unconditional=0.1, detach_target=False)
    torch.manual_seed(0)
    return DreamRec((width,), **options | chosen).eval()


def batch(*targets: int, examples: list[int] | None = None) -> Batch:
    target = torch.tensor(targets)
    zero = torch.zeros_like(target)
    return Batch(zero[:, None], target, zero, torch.arange(len(target)) if examples is None else torch.tensor(examples))


def loss(model: DreamRec, states: torch.Tensor, of: Batch, table: torch.Tensor) -> torch.Tensor:
    return model.loss(states, of.target, model.candidates(of, len(table)), Items(Table(table, None, len(table))))


def kept(steps: int) -> list[float]:
    """ᾱ_t by its definition, a running product of 1 − β, in Python's floats."""
    betas = [1e-4 + (0.02 - 1e-4) * t / max(steps - 1, 1) for t in range(steps)]
    return [math.exp(math.fsum(math.log1p(-b) for b in betas[: t + 1])) for t in range(steps)]


def denoised(model: DreamRec, x, state, t: int) -> np.ndarray:
    """x₀ of one example by plain arithmetic: x, state (d,) → (d,)."""
    numbers = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    half = 128
    angles = [t * 10_000 ** (-i / half) for i in range(half)]
    code = np.array([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    hidden = numbers["step.0.weight"] @ code + numbers["step.0.bias"]
    hidden = hidden / (1 + np.exp(-hidden))  # SiLU
    step = numbers["step.2.weight"] @ hidden + numbers["step.2.bias"]
    return numbers["denoiser.weight"] @ np.concatenate([x, state, step]) + numbers["denoiser.bias"]


# The forward process


def test_known_noise_levels():
    assert dreamrec(noise_steps=1, sampling_steps=1).signal.tolist() == pytest.approx([math.sqrt(0.9999)])
    two = dreamrec(noise_steps=2, sampling_steps=1)
    assert two.signal.tolist() == pytest.approx([math.sqrt(0.9999), math.sqrt(0.9999 * 0.98)])
    assert two.noise.tolist() == pytest.approx([0.01, math.sqrt(1 - 0.9999 * 0.98)], rel=1e-6)


@pytest.mark.parametrize("steps", [3, 50, 2000])
def test_signal_and_noise_preserve_variance_and_follow_the_linear_schedule(steps):
    model, expected = dreamrec(noise_steps=steps, sampling_steps=1), np.array(kept(steps))
    np.testing.assert_allclose(model.signal.double() ** 2 + model.noise.double() ** 2, 1, atol=3e-7)
    np.testing.assert_allclose(model.signal, np.sqrt(expected), rtol=1e-5)
    np.testing.assert_allclose(model.noise, np.sqrt(1 - expected), rtol=1e-5)
    if steps == 2000:  # at its end nothing but noise is left
        assert model.signal[-1] < 1e-4


def test_steps_have_a_sinusoidal_code():
    code = _sinusoids(torch.tensor([0, 7, 1999])).double().numpy()
    for row, t in zip(code, (0, 7, 1999), strict=True):
        expected = [f(t / 10_000 ** (i / 128)) for f in (math.cos, math.sin) for i in range(128)]
        np.testing.assert_allclose(row, expected, atol=5e-4)  # float32 angles of up to 2,000


# The sampler


@pytest.mark.parametrize(("noise", "sampling"), [(1, 1), (7, 1), (7, 3), (7, 7), (50, 49), (2000, 20), (2000, 2000)])
def test_times_rise_within_the_trained_steps_and_end_at_the_last(noise, sampling):
    times = dreamrec(noise_steps=noise, sampling_steps=sampling).times.tolist()
    assert len(times) == sampling and times[-1] == noise - 1
    assert 0 <= times[0] and (np.diff(times) > 0).all()
    gaps = np.diff([-1, *times])
    assert gaps.max() - gaps.min() <= 1  # evenly
    if (noise, sampling) == (2000, 20):
        assert times == list(range(99, 2000, 100))


@pytest.mark.parametrize("guidance", [0.0, 2.0, 5.0])
@pytest.mark.parametrize(("noise", "sampling"), [(1, 1), (50, 1), (50, 7), (50, 50), (2000, 20)])
def test_fast_queries_are_the_naive_ones(guidance, noise, sampling):
    model = dreamrec(6, guidance=guidance, noise_steps=noise, sampling_steps=sampling)
    states, some = torch.randn(9, 6), batch(*range(9), examples=[0, 1, 2, 3, 999, 12, 7, 5, 2])
    with torch.no_grad():
        fast, naive = model.queries(states, some), model.queries_naive(states, some)
        torch.testing.assert_close(fast, naive, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(fast, model.queries(states + 1, some), atol=1e-2)  # the state is read


@pytest.mark.parametrize("guidance", [0.0, 2.0, 5.0])
@pytest.mark.parametrize("queries", ["queries", "queries_naive"])
def test_three_guided_ddim_steps_by_hand(guidance, queries):
    model, w = dreamrec(noise_steps=50, sampling_steps=3, guidance=guidance), guidance
    times, level = [16, 32, 49], kept(50)
    assert model.times.tolist() == times
    states = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
    with torch.no_grad():
        got = getattr(model, queries)(states, batch(0, 0, examples=[4, 9])).double().numpy()
    none = model.none.detach().double().numpy()
    for row, index, state in zip(got, (4, 9), states.double().numpy(), strict=True):
        x = gaussian(torch.tensor([index]), 2)[0].double().numpy()
        for now, then in ((49, 32), (32, 16), (16, None)):
            start = (1 + w) * denoised(model, x, state, now) - w * denoised(model, x, none, now)
            if then is not None:
                remaining = (x - math.sqrt(level[now]) * start) / math.sqrt(1 - level[now])
                x = math.sqrt(level[then]) * start + math.sqrt(1 - level[then]) * remaining
        np.testing.assert_allclose(row, start, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("sampling", [1, 7, 50])
def test_a_denoiser_that_knows_the_answer_samples_exactly_it(sampling):
    model, answer = dreamrec(3, sampling_steps=sampling, guidance=5.0), torch.tensor([0.5, -2.0, 3.0])
    with torch.no_grad():
        model.denoiser.weight.zero_()
        model.denoiser.bias.copy_(answer)
        got = model.queries(torch.randn(4, 3), batch(0, 1, 2, 3))
        assert torch.equal(got, answer.expand(4, 3))
        naive = model.queries_naive(torch.randn(4, 3), batch(0, 1, 2, 3))
    torch.testing.assert_close(naive, answer.expand(4, 3))


def test_a_denoiser_that_returns_the_state_samples_the_guided_state():
    model = dreamrec(2, guidance=3.0)
    state = torch.tensor([[1.0, -2.0]])
    with torch.no_grad():
        model.denoiser.weight.copy_(torch.tensor([[0.0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]))
        model.denoiser.bias.zero_()
        model.none.copy_(torch.tensor([0.5, 1.0]))
        expected = [[4 * 1.0 - 3 * 0.5, 4 * -2.0 - 3 * 1.0]]
        assert model.queries(state, batch(0)).tolist() == expected == model.queries_naive(state, batch(0)).tolist()


# Noise that follows from the index


def test_the_mixer_is_splitmix64():
    # The published first outputs of SplitMix64 with seed 0: the k-th mixes the counter k.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [value & MASK for value in _mix(torch.tensor([1, 2, 3, 4])).tolist()] == known


def reference(index: int, column: int) -> float:
    """Box and Muller's normal of two SplitMix64 uniforms, in Python's unbounded integers."""
    uniforms = []
    for half in (0, 1):
        z = 2 * (index * 2**32 + column + 1) + half
        z = z * 0x9E3779B97F4A7C15 & MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        uniforms.append(((z ^ z >> 31) >> 11) / 2**53)
    return math.sqrt(-2 * math.log(1 - uniforms[0])) * math.cos(2 * math.pi * uniforms[1])


def test_noise_is_the_same_on_any_machine():
    index = [0, 1, 17, 2**20, 2**30 - 1]
    expected = [[reference(i, c) for c in range(5)] for i in index]
    np.testing.assert_allclose(gaussian(torch.tensor(index), 5), expected, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_noise_is_the_same_on_the_accelerator():
    index = torch.arange(500)
    torch.testing.assert_close(gaussian(index.cuda(), 64).cpu(), gaussian(index, 64), rtol=1e-6, atol=1e-6)


def test_a_row_follows_from_its_index_alone():
    together = gaussian(torch.arange(100), 16)
    assert torch.equal(gaussian(torch.tensor([57, 3, 57]), 16), together[[57, 3, 57]])
    assert torch.equal(gaussian(torch.arange(100), 5), together[:, :5])  # nor on the width
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(gaussian(torch.arange(100), 16), together)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(together.unique(dim=0)) == 100 and together.dtype == torch.float32


@pytest.mark.parametrize("first", [0, 2**30])
def test_noise_is_standard_normal(first):
    x = gaussian(torch.arange(2000) + first, 64).double().numpy()
    n = x.size
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(x, axis=None)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(x, axis=None)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    # every example and every dimension for itself, not only all together
    for axis in (0, 1):
        scores = x.mean(axis) * math.sqrt(x.shape[axis])
        assert stats.kstest(scores, "norm").pvalue > 1e-3


def test_neighbouring_rows_and_columns_are_uncorrelated():
    x = gaussian(torch.arange(2000), 64).double().numpy()
    for lag in (1, 2, 3, 4, 7, 8, 16, 32):
        for left, right in ((x[:-lag], x[lag:]), (x[:, :-lag], x[:, lag:])):
            assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 4 / math.sqrt(left.size), lag
            # nor do their sizes go together, as those of a bad generator may
            assert abs(np.corrcoef(left.ravel() ** 2, right.ravel() ** 2)[0, 1]) < 4 / math.sqrt(left.size), lag


@pytest.mark.parametrize("index", [2**31 - 1, 2**40, 2**62, 2**63 - 1])
def test_huge_indices_are_finite(index):
    assert torch.isfinite(gaussian(torch.tensor([index]), 100)).all()


# The loss


def test_loss_by_hand():
    model = dreamrec(unconditional=0.5)
    table = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 3.0], [-2.0, 0.25]])
    states, some = torch.tensor([[0.1, 0.2], [1.0, -1.0], [2.0, 0.0], [0.3, 0.3]]), batch(3, 0, 1, 3)
    torch.manual_seed(5)
    assert model.candidates(some, 4).tolist() == [[3], [0], [1], [3]]
    got = loss(model, states, some, table).item()
    torch.manual_seed(5)  # the step, the noise, and who loses the state
    steps, noise, luck = torch.randint(50, (4,)).tolist(), torch.randn(4, 2).double().numpy(), torch.rand(4, 1)
    dropped = (luck < 0.5).flatten().tolist()
    assert len(set(dropped)) == 2
    level, none, squares = kept(50), model.none.detach().double().numpy(), []
    for row in range(4):
        target = table[some.target[row]].double().numpy()
        noisy = math.sqrt(level[steps[row]]) * target + math.sqrt(1 - level[steps[row]]) * noise[row]
        state = none if dropped[row] else states[row].double().numpy()
        squares += ((denoised(model, noisy, state, steps[row]) - target) ** 2).tolist()
    assert got == pytest.approx(sum(squares) / 8, rel=1e-5)


def test_the_loss_trains_every_step():
    model, seen = dreamrec(noise_steps=5, sampling_steps=1), []
    model.denoise = lambda noisy, states, t: seen.extend(t.tolist()) or noisy
    loss(model, torch.zeros(500, 2), batch(*[0] * 500), torch.zeros(1, 2))
    assert set(seen) == set(range(5))
    assert stats.chisquare(np.bincount(seen)).pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.9])
def test_the_share_of_examples_without_a_state(share):
    model, n = dreamrec(unconditional=share), 4000
    with torch.no_grad():  # the denoiser returns the state: 1, or 0 where it was dropped
        model.denoiser.weight.copy_(torch.tensor([[0.0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]))
        model.denoiser.bias.zero_()
        model.none.zero_()
    torch.manual_seed(1)
    got = loss(model, torch.ones(n, 2), batch(*[0] * n), torch.zeros(1, 2))
    assert abs(got.item() - (1 - share)) <= 4 * math.sqrt(share * (1 - share) / n)


def test_without_unconditional_examples_none_is_never_used():
    for share, used in ((0.0, False), (0.5, True)):
        model = dreamrec(unconditional=share)
        torch.manual_seed(2)
        loss(model, torch.randn(50, 2), batch(*[0] * 50), torch.ones(1, 2)).backward()
        assert bool(model.none.grad.any()) == used


# Trained on items


N = 30
EMBEDDINGS = (np.random.default_rng(1).standard_normal((N, 12)) * np.linspace(2, 0.2, 12)).astype(np.float32)


def shop(targets_only: tuple[int, ...] = ()) -> Split:
    """Twelve users, ten of them train; `targets_only` are the targets of the first users and in no history."""
    rng = np.random.default_rng(0)
    others = np.setdiff1d(np.arange(N), targets_only)
    sequences = [rng.choice(others, 5, replace=False) for _ in range(12)]
    for sequence, target in zip(sequences, targets_only, strict=False):
        sequence[-1] = target
    items, offsets = np.concatenate(sequences), np.arange(0, 61, 5)
    place = np.arange(60)
    inner, user = place % 5 > 0, place // 5
    return Split("cold-start", N, items, offsets, place[inner & (user < 10)], place[inner & (user == 10)],
                 place[inner & (user == 11)], user < 10)


def recommender(method: str, split: Split, **chosen):
    options = {"method": method, "backbone": "dreamrec", "width": 8, "history_length": 4, "noise_steps": 50,
               "sampling_steps": 5, "dropout": 0.0} | chosen
    return build(Spec(**options), Prepared(None, split, EMBEDDINGS))


def everything(split: Split) -> Batch:
    train = Examples(split, "train", 4)
    return train.batch(torch.arange(len(train)))


@pytest.mark.parametrize("detach", [True, False])
def test_detached_targets_get_no_gradient(detach):
    only = (3, 14, 27)
    split = shop(only)
    model, some = recommender("base", split, detach_target=detach), everything(split)
    assert not np.isin(only, some.history).any() and np.isin(only, some.target).all()
    torch.manual_seed(3)
    model.loss(some).backward()
    moved = model.method.id.weight.grad.abs().sum(1) > 0
    in_history = np.setdiff1d(some.history, [N])
    assert moved[in_history].all()  # histories are read with gradient either way
    assert moved[list(only)].tolist() == [not detach] * 3


def spread(table: torch.Tensor) -> float:
    return float(table.detach().double().var(dim=0, correction=0).sum())


def train(model, some: Batch, steps: int = 120) -> None:
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    torch.manual_seed(4)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(some).backward()
        optimiser.step()


def test_trainable_targets_collapse_and_a_frozen_row_space_does_not():
    split = shop()
    some = everything(split)
    trained_on = np.unique(some.target)
    left = {}
    for name, method, chosen in (("attached", "base", {"detach_target": False}),
                                 ("detached", "base", {"detach_target": True}),
                                 ("alphafuse", "alphafuse", {"detach_target": False})):
        model = recommender(method, split, noise_steps=2000, **chosen)
        before = model.method.table().detach().clone()
        train(model, some)
        after = model.method.table().detach()
        left[name] = spread(after[trained_on]) / spread(before[trained_on])
        if method == "alphafuse":
            row = model.method.frozen_dim
            assert row == 4 and torch.equal(before[:, :row], after[:, :row])
            null = before[trained_on, row:], after[trained_on, row:]
            assert spread(null[1]) < 0.3 * spread(null[0])  # its IDs do collapse, onto the language beneath them
    assert left["attached"] < 0.1 and left["alphafuse"] > 0.3 and left["detached"] > 0.5


def test_similarity_ranks_by_euclidean_distance():
    torch.manual_seed(6)
    table, queries = torch.randn(50, 4) * torch.rand(50, 1) * 5, torch.randn(7, 4)
    factor, summand = dreamrec(4).similarity(table)
    assert factor.tolist() == [1.0] * 50 and summand.shape == (50,)
    score = (queries @ table.T * factor + summand).double().numpy()
    distance = [[math.dist(q, e) for e in table.double().tolist()] for q in queries.double().tolist()]
    assert np.array_equal(np.argsort(-score, axis=1), np.argsort(distance, axis=1))
    # up to what all items of a query share: −½‖query‖²
    shared = score + 0.5 * np.square(distance)
    np.testing.assert_allclose(shared, shared[:, :1].repeat(50, axis=1), atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [
    ("noise_steps", 0), ("noise_steps", 4), ("sampling_steps", 0), ("sampling_steps", 51),
    ("guidance", -0.1), ("guidance", math.inf), ("guidance", math.nan),
    ("unconditional", -0.1), ("unconditional", 1.0), ("unconditional", math.nan),
    ("heads", 3), ("blocks", 0), ("length", 0), ("dropout", 1.0),
])
def test_numbers_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=name):
        dreamrec(**{name: value})
