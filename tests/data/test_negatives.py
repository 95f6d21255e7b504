"""Negatives: which items can be drawn, how often, and when there is none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from nullrec_lib.data.negatives import draw

N = 7


def allowed(target, exclude=()) -> list[int]:
    return [item for item in range(N) if item != target and item not in exclude]


@pytest.mark.parametrize("target", [0, 3, N - 1])
def test_never_the_target_and_uniform_over_the_rest(target):
    torch.manual_seed(0)
    drawn = draw(torch.full((300,), target), N, 100)
    assert drawn.shape == (300, 100) and drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=N)
    assert counts[target] == 0 and len(counts) == N
    assert chisquare(counts[allowed(target)]).pvalue > 1e-3


@pytest.mark.parametrize(
    "exclude",
    [[N], [3], [1, 1, N], [0, 1, 2], [6, 5, N, N, 5, 3, 0], [N, N, N]],
    ids=str,
)
def test_exclude_with_duplicates_padding_and_the_target_itself(exclude):
    torch.manual_seed(1)
    drawn = draw(torch.full((200,), 3), N, 150, torch.tensor(exclude).expand(200, -1))
    counts = torch.bincount(drawn.flatten(), minlength=N)
    open_to = allowed(3, exclude)
    assert len(counts) == N and counts.sum() == counts[open_to].sum() == 30_000
    assert chisquare(counts[open_to]).pvalue > 1e-3


def test_without_exclude_the_history_can_be_drawn():
    torch.manual_seed(2)
    assert set(draw(torch.tensor([0]), N, 500).flatten().tolist()) == set(range(1, N))


def test_consecutive_draws_are_independent():
    torch.manual_seed(3)
    drawn = draw(torch.zeros(20_000, dtype=torch.int64), 5, 2) - 1
    pairs = torch.bincount((drawn[:, 0] * 4 + drawn[:, 1]), minlength=16)
    assert chisquare(pairs).pvalue > 1e-3


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_each_row_is_a_bijection_from_the_drawn_numbers_to_its_allowed_items(data):
    # The random numbers are replaced by 0, 1, 2, …: k allowed items must come out once each, in order. With
    # uniform numbers that is exact uniformity, for every row by its own list.
    rows = data.draw(st.integers(1, 5))
    width = data.draw(st.integers(0, 5))
    targets = data.draw(st.lists(st.integers(0, N - 1), min_size=rows, max_size=rows))
    row = st.lists(st.integers(0, N), min_size=width, max_size=width)
    lists = data.draw(st.lists(row, min_size=rows, max_size=rows))
    exclude = torch.tensor(lists, dtype=torch.int64).reshape(rows, width)
    counting = lambda high, size, device=None: (torch.arange(size[1]) % high).repeat(size[0], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", counting)
        drawn = draw(torch.tensor(targets), N, 2 * N, exclude if width or data.draw(st.booleans()) else None)
    for got, target, banned in zip(drawn.tolist(), targets, lists, strict=True):
        wanted = allowed(target, banned)
        assert got == (wanted * 2 * N)[: 2 * N]


def test_the_only_item_left_is_drawn():
    assert draw(torch.tensor([1]), 2, 4).tolist() == [[0, 0, 0, 0]]
    left = draw(torch.tensor([4, 0]), N, 3, torch.tensor([[0, 1, 2, 3, 6, 6], [1, 2, 3, 4, 5, N]]))
    assert left.tolist() == [[5, 5, 5], [6, 6, 6]]


@pytest.mark.parametrize(
    ("targets", "n_items", "exclude"),
    [
        ([0], 1, None),
        ([0], 1, [[1]]),
        ([2], 3, [[0, 1]]),
        ([2], 3, [[0, 1, 1, 2, 3]]),
        ([0, 2], 3, [[1, 3], [0, 1]]),  # one bad row is enough
    ],
)
def test_nothing_left_is_an_error(targets, n_items, exclude):
    exclude = None if exclude is None else torch.tensor(exclude)
    with pytest.raises(ValueError, match="bans every item"):
        draw(torch.tensor(targets), n_items, 4, exclude)


def test_catalogues_beyond_32_bits():
    torch.manual_seed(4)
    n_items = 2**45
    drawn = draw(torch.tensor([2**44]), n_items, 20_000, torch.tensor([[0, 2**45 - 1, n_items]]))
    assert drawn.min() > 0 and drawn.max() < n_items - 1
    assert chisquare(torch.bincount((drawn[0] >> 41), minlength=16)).pvalue > 1e-3  # the top bits
    assert chisquare(torch.bincount(drawn[0] % 16, minlength=16)).pvalue > 1e-3  # and the bottom ones


def test_the_seed_decides_and_the_arguments_stay_as_they_are():
    target, exclude = torch.tensor([1, 5]), torch.tensor([[4, 4, 0], [7, 2, 2]])
    kept = target.clone(), exclude.clone()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(draw(target, N, 50, exclude))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(target, kept[0]) and torch.equal(exclude, kept[1])
