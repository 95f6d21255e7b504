"""Neighbours by shared items: exact counts, ties by id, partial histories."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from nullrec_lib import data
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.overlap import Queries, overlap, overlap_naive

quick = settings(max_examples=150, deadline=None, derandomize=True)

SETS = [{0, 1, 2}, {1, 2, 3}, {2}, {7}, set(), {0, 1, 2, 3, 7, 8}, {2}]


def pairs(sets) -> tuple[torch.Tensor, torch.Tensor]:
    having = [(user, item) for user, has in enumerate(sets) for item in has]
    return tuple(torch.tensor(column) for column in zip(*having))


def asked(sets, own=None) -> Queries:
    offsets = torch.tensor([0, *np.cumsum([len(one) for one in sets])])
    items = torch.tensor([item for one in sets for item in one], dtype=torch.int64)
    return Queries(offsets, items, None if own is None else torch.tensor(own))


def same(got, wanted):
    assert got.ids.dtype == torch.int64 and got.score.dtype == torch.float64
    assert got.ids.tolist() == wanted.ids.tolist() and got.score.tolist() == wanted.score.tolist()


@pytest.mark.parametrize("function", [overlap, overlap_naive])
def test_by_hand(function):
    got = function(*pairs(SETS), 3)
    assert got.ids.tolist() == [
        [5, 1, 2],  # shares 3, 2, and 1 with users 2 and 6: the smaller id
        [5, 0, 2],
        [0, 1, 5],  # all share the one item; user 6 too, later
        [5, -1, -1],
        [-1, -1, -1],  # no items
        [0, 1, 2],  # 3, 3, and 1 with users 2, 3 and 6
        [0, 1, 2],
    ]
    third, sixth = 1 / 3, 1 / 6
    assert got.score[0].tolist() == [1.0, 2 / 3, third] and got.score[3].tolist() == [1.0, 0.0, 0.0]
    assert got.score[5].tolist() == [0.5, 0.5, sixth] and got.score[4].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("function", [overlap, overlap_naive])
def test_queries_by_hand(function):
    # a partial history of user 5, without and with leaving it out; an item nobody has; repeated items; nothing at all
    visible = asked([[2, 7], [2, 7], [2, 999], [7, 7, 7], []], own=[-1, 5, 3, -1, 0])
    got = function(*pairs(SETS), 3, visible)
    assert got.ids.tolist() == [[5, 0, 1], [0, 1, 2], [0, 1, 2], [3, 5, -1], [-1, -1, -1]]
    assert got.score.tolist() == [[1, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [1, 1, 0], [0, 0, 0]]
    nobody_left_out = function(*pairs(SETS), 1, visible._replace(own=None))
    assert nobody_left_out.ids.tolist() == [[5], [5], [0], [3], [-1]]


histories = st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=14)


@quick
@given(histories, histories, st.integers(1, 16), st.randoms(use_true_random=False))
def test_fast_equals_naive_and_order_and_repeats_do_not_matter(sets, wanted, k, random):
    having = [(user, item) for user, has in enumerate(sets) for item in has]
    users, items = (torch.tensor([pair[side] for pair in having], dtype=torch.int64) for side in (0, 1))
    queries = asked(wanted, [random.randrange(-1, len(sets) + 2) for _ in wanted])
    shuffled = random.sample(having, len(having)) + random.choices(having, k=5) if having else []
    mixed = [torch.tensor([pair[side] for pair in shuffled], dtype=torch.int64) for side in (0, 1)]
    for one in (None, queries, queries._replace(own=None)):
        reference = overlap_naive(users, items, k, one)
        same(overlap(users, items, k, one), reference)
        same(overlap(*mixed, k, one), reference)


@quick
@given(histories, st.integers(1, 5))
def test_own_sets_as_queries_are_the_default(sets, k):
    sets[-1].append(3)  # the last user has an item, so that there are as many users as sets
    users, items = pairs(sets)
    same(overlap(users, items, k, asked(sets, list(range(len(sets))))), overlap(users, items, k))


def test_a_smaller_k_is_the_beginning_of_a_larger_one():
    rng = np.random.default_rng(0)
    users, items = torch.from_numpy(rng.integers(300, size=4000)), torch.from_numpy(rng.integers(80, size=4000))
    all_of_them = overlap(users, items, 400)
    assert (all_of_them.ids[:, 299:] == -1).all()
    for k in (1, 2, 31, 32, 33, 299, 300):
        got = overlap(users, items, k)
        assert torch.equal(got.ids, all_of_them.ids[:, :k]) and torch.equal(got.score, all_of_them.score[:, :k])


def test_equals_a_sparse_product_on_the_generated_shop():
    frame = data.load("shop-tiny").interactions
    users, items = (torch.from_numpy(frame[name].to_numpy().copy()) for name in ("user", "item"))
    matrix = sparse.csr_matrix((np.ones(len(users)), (users.numpy(), items.numpy())))
    matrix.data[:] = 1
    shared = (matrix @ matrix.T).toarray()
    np.fill_diagonal(shared, 0)
    order = np.argsort(-shared, axis=1, kind="stable")[:, :10]
    counts = np.take_along_axis(shared, order, axis=1)
    got = overlap(users, items, 10)
    np.testing.assert_array_equal(got.ids, np.where(counts > 0, order, -1))
    np.testing.assert_array_equal(got.score, counts / matrix.getnnz(axis=1)[:, None])


def test_edges():
    empty = torch.tensor([], dtype=torch.int64)
    assert overlap(empty, empty, 2).ids.shape == (0, 2)
    same(overlap(empty, empty, 2, asked([[4], []])), overlap_naive(empty, empty, 2, asked([[4], []])))
    assert overlap(*pairs([{3}]), 2).ids.tolist() == [[-1, -1]]
    assert overlap(*pairs([{3}, {3}]), np.int64(1)).ids.tolist() == [[1], [0]]
    assert overlap(*pairs(SETS), 2, asked([])).ids.shape == (0, 2)
    small = [ids.to(torch.int32) for ids in pairs(SETS)]
    same(overlap(*small, 3), overlap(*pairs(SETS), 3))


USERS, ITEMS = pairs(SETS)


@pytest.mark.parametrize(
    ("users", "items", "k", "queries", "words"),
    [
        (USERS, ITEMS, 0, None, "k: 0 is not a whole number of at least 1"),
        (USERS, ITEMS, 1.5, None, "k: 1.5 is not"),
        (USERS.float(), ITEMS, 1, None, r"users: torch.float32 of shape \(\d+,\) is not \(n,\) integers"),
        (USERS, ITEMS[None], 1, None, "items: torch.int64 of shape"),
        (USERS[1:], ITEMS, 1, None, "users and items: 14 and 15 ids are not pairs"),
        (USERS - 1, ITEMS, 1, None, "users: row 0 is -1, not an id"),
        (USERS, ITEMS - 2, 1, None, "items: row 0 is -2, not an id"),
        (USERS, ITEMS, 1, asked([[1]])._replace(items=torch.tensor([-1])), "queries.items: row 0 is -1"),
        (USERS, ITEMS, 1, asked([[1]])._replace(offsets=torch.tensor([0, 2])), "queries.offsets: .* to the 1 items"),
        (USERS, ITEMS, 1, asked([[1]])._replace(offsets=torch.tensor([1, 1])), "queries.offsets"),
        (USERS, ITEMS, 1, asked([[1]])._replace(offsets=torch.tensor([0, 1, 0, 1])), "queries.offsets"),
        (USERS, ITEMS, 1, asked([])._replace(offsets=ITEMS[:0]), "queries.offsets"),
        (USERS, ITEMS, 1, asked([[1]], [0, 1]), "queries.own: 2 ids are not one for each of the 1 queries"),
        (USERS, ITEMS, 1, asked([[1]], [-2]), "queries.own: row 0 is -2"),
    ],
)
def test_wrong_input_is_one_sentence(users, items, k, queries, words):
    with pytest.raises(InputError, match=words) as caught:
        overlap(users, items, k, queries)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_a_gpu_come_back_to_it():
    got = overlap(USERS.cuda(), ITEMS.cuda(), 3)
    assert got.ids.is_cuda and got.score.is_cuda
    same(got, overlap(USERS, ITEMS, 3))
