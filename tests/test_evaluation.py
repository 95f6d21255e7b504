"""Ranks and metrics: by hand, against a plain loop, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from nullrec_lib.data.examples import Examples
from nullrec_lib.data.splits import Split
from nullrec_lib.evaluation import CUTOFFS, PROTOCOLS, metrics, rank_all
from nullrec_lib.kernels.rank import target_ranks

INF, NAN = math.inf, math.nan


def ranks(scores, target, hidden=None) -> list[int]:
    hidden = None if hidden is None else torch.tensor(hidden)
    return target_ranks(torch.tensor(scores), torch.tensor(target), hidden).tolist()


# Metrics


@pytest.mark.parametrize(
    ("rank", "at_10", "at_20"),
    [  # R, N, M
        (1, (1, 1.0, 1.0), (1, 1.0, 1.0)),
        (2, (1, 0.6309297535714574, 0.5), (1, 0.6309297535714574, 0.5)),
        (3, (1, 0.5, 1 / 3), (1, 0.5, 1 / 3)),
        (10, (1, 0.2890648263178879, 0.1), (1, 0.2890648263178879, 0.1)),
        (11, (0, 0.0, 0.0), (1, 0.27894294565112987, 1 / 11)),
        (20, (0, 0.0, 0.0), (1, 0.22767024869695302, 0.05)),
        (21, (0, 0.0, 0.0), (0, 0.0, 0.0)),
    ],
)
def test_metrics_of_one_user_by_hand(rank, at_10, at_20):
    got = metrics(torch.tensor([rank]))
    assert list(got) == ["R@10", "N@10", "M@10", "R@20", "N@20", "M@20"]
    assert tuple(got.values()) == pytest.approx(at_10 + at_20, abs=1e-15)


def test_metrics_are_means_over_examples():
    got = metrics(torch.tensor([1, 3, 15, 400]))
    assert got == pytest.approx({
        "R@10": 0.5, "N@10": 1.5 / 4, "M@10": (1 + 1 / 3) / 4,
        "R@20": 0.75, "N@20": (1.5 + 0.25) / 4, "M@20": (1 + 1 / 3 + 1 / 15) / 4,
    })
    assert all(type(value) is float for value in got.values())


def test_metrics_agree_with_scikit_learn_where_no_scores_tie():
    rng = np.random.default_rng(11)
    scores = rng.permuted(np.tile(np.arange(40.0), (200, 1)), axis=1)
    target = rng.integers(0, 40, 200)
    got_ranks = target_ranks(torch.from_numpy(scores), torch.from_numpy(target))
    got = metrics(got_ranks)
    truth = np.eye(40)[target]
    for k in CUTOFFS:
        assert got[f"N@{k}"] == pytest.approx(ndcg_score(truth, scores, k=k), abs=1e-12)
        assert got[f"R@{k}"] == pytest.approx(top_k_accuracy_score(target, scores, k=k, labels=np.arange(40)))
        cut = np.where(scores >= np.sort(scores, axis=1)[:, [-k]], scores, -1)  # the reference has no cut-off
        found = cut[np.arange(200), target] >= 0
        reference = label_ranking_average_precision_score(truth[found], cut[found]) * found.mean()
        assert got[f"M@{k}"] == pytest.approx(reference, abs=1e-12)


# Ranks


@pytest.mark.parametrize(
    ("scores", "target", "want"),
    [
        ([[0.5]], [0], [1]),  # one item
        ([[0.1, 0.9, 0.5]], [1], [1]),
        ([[0.1, 0.9, 0.5]], [2], [2]),
        ([[0.1, 0.9, 0.5]], [0], [3]),
        ([[0.9, 0.9, 0.5]], [0], [2]),  # a tie costs a place, whichever comes first
        ([[0.9, 0.9, 0.5]], [1], [2]),
        ([[0.0, -0.0, -1.0]], [0], [2]),
        ([[3.0] * 7] * 2, [0, 6], [7, 7]),  # a constant scorer ranks every target last
        ([[0.0, INF, -INF, INF]], [0], [3]),
        ([[0.0, INF, -INF, INF]], [1], [2]),
        ([[0.0, INF, -INF, INF]], [2], [4]),
        ([[-INF] * 3], [1], [3]),
        ([[1.0, 2.0], [2.0, 1.0]], [0, 0], [2, 1]),
    ],
)
def test_ranks_by_hand(scores, target, want):
    assert ranks(scores, target) == want
    assert ranks(scores, target, [[len(scores[0])] * 2] * len(scores)) == want  # hidden padding only


@pytest.mark.parametrize(
    ("target", "hidden", "want"),
    [
        (3, [4, 4, 4], 4),  # padding
        (3, [0, 4, 4], 3),
        (3, [0, 0, 0], 3),  # a repeat hides once
        (3, [2, 0, 1], 1),
        (3, [3, 0, 3], 3),  # the target was seen before and still competes
        (0, [0, 0, 4], 1),
        (1, [2, 3, 4], 2),  # those behind it are no help
    ],
)
def test_hidden_items_do_not_compete_and_never_hide_the_target(target, hidden, want):
    assert ranks([[4.0, 3.0, 2.0, 1.0]], [target], [hidden]) == [want]
    # A tie with a hidden item does not count either.
    if set(hidden) >= {0, 1, 2}:
        assert ranks([[1.0, 1.0, 1.0, 1.0]], [target], [hidden]) == [1]


def test_hidden_items_do_not_compete_with_a_target_at_minus_infinity():
    # As a scorer gives that rules out what was seen, when the target is a repeat.
    assert ranks([[-INF, -INF, 0.0, -INF]], [0], [[0, 1]]) == [3]


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("hidden", [None, [[3, 3], [3, 3]], [[3, 1], [1, 0]]])
def test_a_nan_score_is_an_error_wherever_it_is(column, hidden):
    scores = [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    scores[1][column] = NAN  # the target is 0; with hidden items, 0 and 1 are hidden
    with pytest.raises(FloatingPointError, match=r"^row 1 of the scores holds NaN"):
        ranks(scores, [0, 0], hidden)


def test_a_nan_is_found_among_infinities():
    with pytest.raises(FloatingPointError, match="row 0"):
        ranks([[NAN, INF, -INF]], [1])


def test_scores_stay_as_they_are_where_nothing_is_hidden():
    scores = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    target_ranks(scores, torch.tensor([0, 1]))
    assert scores.tolist() == [[1.0, 2.0], [4.0, 3.0]]


def plain_rank(scores, target, hidden) -> int:
    rank = 1
    for item, score in enumerate(scores):
        if item != target and item not in hidden and score >= scores[target]:
            rank += 1
    return rank


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 7), st.integers(1, 4), st.data())
def test_ranks_equal_a_plain_loop(n_items, rows, data):
    # Few distinct scores, so that ties are everywhere; -inf at a target has its own test.
    score = st.sampled_from([-2.0, -0.0, 0.0, 1.0, 1.0 + 2**-23, INF])
    scores = [data.draw(st.lists(score, min_size=n_items, max_size=n_items)) for _ in range(rows)]
    target = data.draw(st.lists(st.integers(0, n_items - 1), min_size=rows, max_size=rows))
    width = data.draw(st.integers(1, 5))
    row = st.lists(st.integers(0, n_items), min_size=width, max_size=width)
    hidden = [data.draw(row) for _ in range(rows)]
    assert ranks(scores, target) == [plain_rank(s, t, ()) for s, t in zip(scores, target, strict=True)]
    wanted = [plain_rank(s, t, set(h)) for s, t, h in zip(scores, target, hidden, strict=True)]
    assert ranks(scores, target, hidden) == wanted


# All examples


class Table:
    """A ranker that has a row of scores for every example and notes what it was asked for."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def scores(self, batch):
        assert not torch.is_grad_enabled()
        self.asked.append(len(batch.target))
        return self.rows[batch.example].clone()


def shop(sequences, n_items) -> Examples:
    """Every place of every sequence is an example of the test part."""
    items = np.array(sum(sequences, []), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    none = np.zeros(0, np.int64)
    parts = Split("cold-start", n_items, items, offsets, none, none, np.arange(len(items)), items < 0)
    return Examples(parts, "test", length=1)


def random_case(users=60, length=5, n_items=1000, seed=0):
    rng = np.random.default_rng(seed)
    sequences = rng.integers(0, n_items, (users, length)).tolist()
    scores = torch.from_numpy(rng.integers(0, 50, (users * length, n_items)).astype(np.float32))
    return sequences, scores


def test_both_protocols_by_hand():
    # Items 0 and 1 are long vectors: 1/norm moves them behind. The user repeats item 3.
    examples = shop([[3, 0, 3]], n_items=4)
    raw = torch.tensor([[8.0, 9.0, 1.0, 2.0]]).repeat(3, 1)
    scale = torch.tensor([0.1, 0.1, 1.0, 1.0])  # 0.8, 0.9, 1, 2
    got = rank_all(Table(raw), examples, (scale, torch.zeros(4)))
    assert tuple(got) == PROTOCOLS == ("authors", "consistent")
    assert got["authors"].tolist() == [3, 2, 3]
    # Target 3; then 0 with 3 hidden; then 3 with 0 and 3 seen, which still competes.
    assert got["consistent"].tolist() == [1, 3, 1]
    # A summand comes after the factor: (8, 9, 1, 2) · (½, ½, 1, 1) + (½, 0, 0, -1½) = (4½, 4½, 1, ½).
    both = torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([0.5, 0.0, 0.0, -1.5])
    got = rank_all(Table(raw), examples, both)
    assert got["authors"].tolist() == [3, 2, 3]
    assert got["consistent"].tolist() == [4, 2, 3]
    # Without a similarity the raw scores are the similarity: only what was seen goes.
    assert rank_all(Table(raw), examples)["consistent"].tolist() == [3, 2, 2]
    assert raw[0].tolist() == [8.0, 9.0, 1.0, 2.0]


def test_consistent_hides_the_whole_prefix_and_not_only_the_model_s_window():
    examples = shop([[0, 1, 2, 3, 4]], n_items=5)  # the window is one item
    raw = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(5, 1)
    got = rank_all(Table(raw), examples)
    assert got["authors"].tolist() == [1, 2, 3, 4, 5]
    assert got["consistent"].tolist() == [1, 1, 1, 1, 1]


def test_consistent_equals_a_plain_loop():
    sequences, scores = random_case(users=20, n_items=40)
    scale = torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.5
    summand = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 20
    got = rank_all(Table(scores), shop(sequences, 40), (scale, summand))
    example = 0
    for items in sequences:
        for k, target in enumerate(items):
            assert got["authors"][example] == plain_rank(scores[example].tolist(), target, ())
            scaled = (scores[example] * scale + summand).tolist()
            assert got["consistent"][example] == plain_rank(scaled, target, set(items[:k]))
            example += 1


@pytest.mark.parametrize("n_items", [1, 2])
def test_tiny_catalogues(n_items):
    got = rank_all(Table(torch.zeros(3, n_items)), shop([[0, 0, 0]], n_items))
    assert got["authors"].tolist() == [n_items] * 3
    assert got["consistent"].tolist() == [n_items] * 3


def test_memory_does_not_change_the_ranks_and_is_kept_to():
    sequences, scores = random_case()
    examples, similarity = shop(sequences, 1000), (torch.linspace(0.5, 2, 1000), torch.linspace(9, -9, 1000))
    results = {}
    for memory_mb in (0, 1, 2, 256):
        table = Table(scores)
        results[memory_mb] = rank_all(table, examples, similarity, memory_mb=memory_mb)
        assert sum(table.asked) == len(examples)
        # float32 scores with comparison, mask and NaN test: 7 bytes a score at least
        assert max(table.asked) == 1 or max(table.asked) * 1000 * 7 <= memory_mb * 2**20
        assert len(table.asked) == {0: 300, 1: 3, 2: 2, 256: 1}[memory_mb]  # and it is used
    for other in results.values():
        for protocol in PROTOCOLS:
            assert torch.equal(other[protocol], results[256][protocol])
            assert other[protocol].dtype == torch.int64 and other[protocol].shape == (300,)


@pytest.mark.parametrize("memory_mb", [0, 256])
def test_sampled_ranks_equal_a_plain_loop_with_ties_against_the_model(memory_mb):
    sequences, scores = random_case(users=8, n_items=30)
    scores = scores % 4  # ties everywhere
    factor, summand = torch.tensor([1.0, 2.0]).repeat(15), torch.arange(30.0) % 3
    examples = shop(sequences, 30)
    rng = np.random.default_rng(5)
    # as `groups.untouched` makes them: distinct, and never the user's
    free = [np.setdiff1d(np.arange(30), items) for items in sequences for _ in items]
    sampled = torch.from_numpy(np.stack([rng.choice(items, 9, replace=False) for items in free]))
    got = rank_all(Table(scores), examples, (factor, summand), memory_mb, sampled=sampled)
    assert set(got) == {*PROTOCOLS, *(f"{name}_sampled" for name in PROTOCOLS)}
    for example, target in enumerate(sum(sequences, [])):
        few = sampled[example].tolist()
        for name, row in (("authors", scores[example]), ("consistent", scores[example] * factor + summand)):
            ahead = sum(float(row[item]) >= float(row[target]) for item in few)
            assert int(got[f"{name}_sampled"][example]) == 1 + ahead
    # What all items are ranked by stays as it is without the sample.
    alone = rank_all(Table(scores), examples, (factor, summand), memory_mb)
    assert tuple(alone) == PROTOCOLS and all(torch.equal(alone[name], got[name]) for name in PROTOCOLS)


def test_a_constant_scorer_is_last_among_the_sampled():
    sampled = torch.tensor([[1, 2, 3]])
    got = rank_all(Table(torch.zeros(1, 9)), shop([[0]], 9), sampled=sampled)
    assert got["authors_sampled"].tolist() == got["consistent_sampled"].tolist() == [4]


def test_an_example_without_a_sample_is_left_out_of_sampled_figures_alone():
    scores = torch.tensor([[5.0, 9, 1, 0, 3], [0, 9, 1, 7, 3], [2, 9, 1, 0, 2]])
    sampled = torch.tensor([[1, 2], [5, 5], [3, 4]])  # of three examples with target 0; 5 is padding
    examples = shop([[0, 0, 0]], 5)
    got = rank_all(Table(scores.clone()), examples, (torch.full((5,), -1.0), torch.zeros(5)), sampled=sampled)
    assert got["authors"].tolist() == [2, 5, 3] and got["authors_sampled"].tolist() == [2, 0, 2]
    assert got["consistent_sampled"].tolist() == [2, 0, 3]
    products = rank_all(Products(torch.eye(3), scores.T.contiguous()), examples, sampled=sampled)
    assert products["authors_sampled"].tolist() == [2, 0, 2] and products["authors"].tolist() == [2, 5, 3]


@pytest.mark.parametrize("places", [[0], [2, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_rank_0_is_left_out_of_every_metric(places):
    ranks = torch.tensor([1, 4, 30, 11])
    more = torch.zeros(4 + len(places), dtype=torch.int64)
    more[torch.tensor([place for place in range(len(more)) if place not in places])] = ranks
    assert metrics(more) == metrics(ranks)
    assert set(metrics(torch.zeros(3, dtype=torch.int64)).values()) == {None}


def test_a_row_larger_than_the_memory_is_ranked_alone():
    table = Table(torch.arange(200_000.0).repeat(3, 1))
    got = rank_all(table, shop([[0, 199_999, 7]], 200_000), memory_mb=1)
    assert table.asked == [1, 1, 1]
    assert got["authors"].tolist() == [200_000, 1, 199_993]
    assert got["consistent"].tolist() == [200_000, 1, 199_992]


def test_constant_scorers_get_no_credit_and_nan_stops_the_ranking():
    sequences, scores = random_case(users=8, n_items=50)
    got = metrics(rank_all(Table(torch.ones_like(scores)), shop(sequences, 50))["authors"])
    assert set(got.values()) == {0.0}
    scores[17, 3] = NAN
    with pytest.raises(FloatingPointError, match="row 17 "):
        rank_all(Table(scores), shop(sequences, 50))


class Products:
    """A ranker whose scores are dot products, and that is asked for nothing else."""

    def __init__(self, rows, table):
        self.rows, self.table, self.asked = rows, table, []

    def queries(self, batch):
        assert not torch.is_grad_enabled()
        self.asked.append(len(batch.target))
        return self.rows[batch.example]

    def scores(self, batch):
        raise AssertionError("all scores at once")


@pytest.mark.parametrize("similar", [False, True])
def test_products_rank_as_their_scores_do_whatever_the_memory(similar):
    sequences, _ = random_case(users=50, n_items=900)
    examples, rng = shop(sequences, 900), np.random.default_rng(8)
    whole = lambda *shape: torch.from_numpy(rng.integers(-2, 3, shape).astype(np.float32))  # ties everywhere
    rows, table, sampled = whole(250, 6), whole(900, 6), torch.from_numpy(rng.integers(0, 900, (250, 7)))
    similarity = (torch.tensor([1.0, 0.5, 2.0]).repeat(300), whole(900)) if similar else None
    want = rank_all(Table(rows @ table.T), examples, similarity, sampled=sampled)
    for memory_mb in (0, 256):
        ranker = Products(rows, table)
        got = rank_all(ranker, examples, similarity, memory_mb, sampled=sampled)
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
        assert ranker.asked == {0: [1] * 250, 256: [250]}[memory_mb]
    rows[17, 3] = NAN
    with pytest.raises(FloatingPointError, match="row 17 of the scores holds NaN"):
        rank_all(Products(rows, table), examples, similarity)
