"""Streamed ranks and best items against plain ones. On its own, as a script, this file checks what needs a process of
its own: Triton in its interpreter, and the memory that ranking takes."""

import math
import os
import resource
import subprocess
import sys

import pytest
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.kernels import rank as module
from nullrec_lib.kernels.rank import rank, rank_naive, score_some, top_k

INF, NAN = math.inf, math.nan
IMPLEMENTATIONS = ("naive", "cpu")


def case(users, n, d, width=4, seed=0, values=3):
    """Whole numbers, so that every order of summing gives the same; few of them, so that ties are everywhere."""
    g = torch.Generator().manual_seed(seed)
    whole = lambda *shape: torch.randint(-values, values + 1, shape, generator=g).float()
    similarity = torch.randint(1, 4, (n,), generator=g).float() / 2, whole(n) / 4
    target, hidden = torch.randint(n, (users,), generator=g), torch.randint(n + 1, (users, width), generator=g)
    if width > 2:
        hidden[:, 0], hidden[:, 1] = target, hidden[:, 2]  # the target itself, and a repeat
    return whole(users, d), whole(n, d), target, similarity, hidden


def same(ranks, wanted):
    for name in ranks._fields:
        ours, theirs = getattr(ranks, name), getattr(wanted, name)
        assert ours.dtype == torch.int64 and torch.equal(ours, theirs), name


def lists(ranks):
    return ranks.authors.tolist(), ranks.consistent.tolist()


# Known answers


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_by_hand(impl):
    items = torch.tensor([[4.0], [3.0], [3.0], [2.0], [1.0]])
    users, target = torch.tensor([[1.0], [1.0], [-1.0], [0.0]]), torch.tensor([1, 3, 3, 0])
    assert lists(rank(users, items, target, impl=impl)) == ([3, 4, 2, 5], [3, 4, 2, 5])
    # One at a time: similarity turns the first user's scores into 4, 3, 6, 8, -1; then items are hidden.
    similarity = torch.tensor([1.0, 1.0, 2.0, 2.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 4.0, -2.0])
    assert lists(rank(users[:1], items, target[:1], similarity, impl=impl)) == ([3], [4])
    for hidden, want in (([0, 5, 5, 5], 3), ([2, 2, 3, 2], 2), ([1, 4, 1, 1], 4), ([3, 2, 0, 1], 1)):
        assert lists(rank(users[:1], items, target[:1], similarity, torch.tensor([hidden]), impl)) == ([3], [want])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_infinite_scores_have_ranks(impl):
    items = torch.tensor([[0.0], [INF], [-INF], [INF], [1.0]])
    users = torch.ones(5, 1)
    assert lists(rank(users, items, torch.arange(5), impl=impl))[0] == [4, 2, 5, 2, 3]
    # What a similarity rules out by -inf ties with a target that it rules out.
    similarity = torch.ones(5), torch.tensor([-INF, 0.0, -INF, 0.0, 0.0])
    assert lists(rank(users, items, torch.arange(5), similarity, impl=impl))[1] == [5, 2, 5, 2, 3]


# Against the reference

SHAPES = [
    (1, 1, 1), (1, 600, 3), (2, 2, 129), (3, 63, 3), (64, 64, 16), (65, 511, 129), (300, 512, 7), (511, 513, 1),
    (512, 1024, 5), (513, 1025, 3), (1100, 1537, 2),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [0, 1, 40])
def test_whole_numbers_rank_as_the_reference(shape, width):
    inputs = case(*shape, width)
    same(rank(*inputs), rank_naive(*inputs))
    same(rank(*inputs[:3]), rank_naive(*inputs[:3]))
    same(rank(*inputs[:3], hidden=inputs[4]), rank_naive(*inputs[:3], hidden=inputs[4]))


def test_all_items_hidden_but_the_target():
    users, items, target, similarity, _ = case(70, 600, 8)
    hidden = torch.arange(600).repeat(70, 1).flip(1)
    assert rank(users, items, target, similarity, hidden).consistent.tolist() == [1] * 70


def test_real_numbers_differ_only_where_scores_almost_tie():
    g = torch.Generator().manual_seed(3)
    users, items = torch.randn(200, 128, generator=g), torch.randn(3000, 128, generator=g)
    target, factor = torch.randint(3000, (200,), generator=g), 1 / items.norm(dim=1)
    ours = rank(users, items, target, (factor, torch.zeros(3000)))
    exact = users.double() @ items.double().T
    tolerance = 128 * 2**-24 * users.norm(dim=1, keepdim=True).double() * items.norm(dim=1).double()
    scaled = ours.consistent, exact * factor, tolerance * factor * (1 + 2**-20)
    for got, scores, margin in ((ours.authors, exact, tolerance), scaled):
        own, both = scores.gather(1, target[:, None]), margin + margin.gather(1, target[:, None])
        least, most = (scores > own + both).sum(1) + 1, (scores >= own - both).sum(1)
        assert (least <= got).all() and (got <= most).all() and (most - least).float().mean() < 0.5


def test_strided_inputs():
    users, items, target, similarity, hidden = case(90, 700, 10, 6)
    wanted = rank_naive(users, items, target, similarity, hidden)
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in (users, items, target, *similarity, hidden)]
    same(rank(*strided[:3], tuple(strided[3:5]), strided[5]), wanted)
    same(rank(users.T.contiguous().T, items.T.contiguous().T, target, similarity, hidden.T.contiguous().T), wanted)


def test_neither_arguments_nor_gradients_are_touched():
    inputs = case(20, 100, 8)
    copies = [t.clone() for t in (*inputs[:3], *inputs[3], inputs[4])]
    rank(inputs[0].requires_grad_(), *inputs[1:])
    top_k(*inputs[:2], 3, *inputs[3:])
    assert all(torch.equal(a, b) for a, b in zip((*inputs[:3], *inputs[3], inputs[4]), copies, strict=True))


# Ties


@pytest.mark.parametrize("d", [1, 3, 48, 128, 129, 200])
@pytest.mark.parametrize(("users", "n"), [(1, 5), (3, 17), (7, 130), (200, 1300)])
def test_equal_item_vectors_tie_exactly(users, n, d):
    g = torch.Generator().manual_seed(d)
    queries, target = torch.randn(users, d, generator=g), torch.randint(n, (users,), generator=g)
    collapsed = torch.randn(1, d, generator=g).repeat(n, 1)
    similarity = 1 / collapsed.norm(dim=1), torch.zeros(n)
    assert lists(rank(queries, collapsed, target, similarity)) == ([n] * users, [n] * users)
    twice = torch.randn(n, d, generator=g).repeat(2, 1)[torch.randperm(2 * n, generator=g)]
    assert (rank(queries, twice, target).authors % 2 == 0).all()  # each with its copy
    some = score_some(queries, collapsed, torch.arange(n).repeat(users, 1))
    assert (some == some[:, :1]).all()


@pytest.mark.parametrize("d", [1, 128])
def test_a_constant_scorer_ranks_last(d):
    users, items = torch.zeros(600, d), torch.randn(1030, d)
    assert lists(rank(users, items, torch.arange(600))) == ([1030] * 600,) * 2


# What the streaming could get wrong


@pytest.mark.parametrize(("rows", "tile"), [(64, 64), (64, 1024), (512, 64), (128, 192)])
def test_ranks_do_not_depend_on_the_tiles(rows, tile, monkeypatch):
    from nullrec_lib.kernels import rank_cpu

    inputs = case(200, 700, 6, 20)
    monkeypatch.setattr(rank_cpu, "ROWS", rows)
    monkeypatch.setattr(rank_cpu, "TILE", tile)
    monkeypatch.setattr(module, "NAIVE_SCORES", 2000)
    wanted = rank_naive(*inputs)
    same(rank(*inputs), wanted)
    same(rank(*inputs, impl="naive"), wanted)
    same(rank(*inputs, impl="cpu"), type(wanted)(*(torch.cat(parts) for parts in zip(*(
        rank(*(t[i : i + 33] for t in inputs[:1]), inputs[1], inputs[2][i : i + 33], inputs[3], inputs[4][i : i + 33])
        for i in range(0, 200, 33))))))


def test_ranks_do_not_depend_on_the_threads():
    inputs, before = case(1100, 700, 6, 20), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        same(rank(*inputs), rank_naive(*inputs))
        assert torch.get_num_threads() == 2
        inputs[0][1050] = NAN
        with pytest.raises(FloatingPointError, match="row 1050"):
            rank(*inputs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [-1.0, -2**-20, 2**-20, 50.0, NAN])
def test_a_tile_that_disagrees_with_the_first_product_is_counted_again(wrong, monkeypatch):
    from nullrec_lib.kernels import rank_cpu

    inputs, first = case(600, 1300, 4, 20), rank_cpu.provisional
    seen = []

    def off(*arguments):
        scores = first(*arguments)
        seen.append(scores.clone())
        scores[::7] += wrong
        return scores

    monkeypatch.setattr(rank_cpu, "provisional", off)
    same(rank(*inputs), rank_naive(*inputs))
    assert len(seen) == 2


def test_scratch_memory_is_never_read_before_it_is_written(monkeypatch):
    from nullrec_lib.kernels import rank_cpu

    inputs = [case(*shape, 5) for shape in ((3, 17, 3), (70, 600, 9), (600, 70, 1))]
    wanted = [rank_naive(*arguments) for arguments in inputs]
    poisoned = []
    monkeypatch.setattr(rank_cpu.torch, "empty", lambda *shape: poisoned.append(torch.full(shape, NAN)) or poisoned[-1])
    for arguments, want in zip(inputs, wanted, strict=True):
        same(rank(*arguments), want)
    assert poisoned


# Errors


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("where", ["query", "item", "target", "hidden", "factor", "product"])
def test_nan_is_an_error_wherever_it_is(impl, where):
    users, items = torch.ones(600, 3), torch.ones(700, 3)
    target, hidden = torch.zeros(600, dtype=torch.int64), torch.full((600, 1), 5)
    similarity, row = (torch.ones(700), torch.zeros(700)), 0
    if where == "query":
        users[577, 1], row = NAN, 577
    elif where == "product":
        users[577, 1], items[3, 1], row = INF, 0.0, 577
    elif where == "factor":
        similarity[0][699] = NAN
    else:
        items[{"item": 699, "target": 0, "hidden": 5}[where], 2] = NAN
    with pytest.raises(FloatingPointError, match=rf"^row {row} of the scores holds NaN: the model has diverged"):
        rank(users, items, target, similarity, hidden, impl)
    if where not in ("target", "hidden"):
        with pytest.raises(FloatingPointError, match=f"row {row} "):
            top_k(users, items, 3, similarity)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"queries": torch.zeros(2, 4)}, "queries and items: expected"),
        ({"queries": torch.zeros(3)}, "queries and items: expected"),
        ({"items": torch.zeros(0, 3)}, "queries and items: expected"),
        ({"items": torch.zeros(5, 3, dtype=torch.float64)}, "expected float32"),
        ({"similarity": (torch.ones(5), torch.zeros(4))}, "a factor and a summand for each of 5"),
        ({"target": torch.tensor([0, 5])}, "target: expected one id below 5"),
        ({"target": torch.tensor([0, -1])}, "target: expected one id below 5"),
        ({"target": torch.tensor([0])}, "target: expected"),
        ({"target": torch.tensor([0.0, 1.0])}, "target: expected"),
        ({"hidden": torch.tensor([[6], [0]])}, "hidden: expected rows of ids up to 5"),
        ({"hidden": torch.tensor([[-1], [0]])}, "hidden: expected"),
        ({"hidden": torch.tensor([[1]])}, "hidden: expected"),
        ({"impl": "fast"}, "impl: 'fast' is not one of"),
    ],
)
def test_wrong_inputs_say_so(change, told):
    right = {"queries": torch.zeros(2, 3), "items": torch.zeros(5, 3), "target": torch.tensor([0, 4])}
    with pytest.raises(InputError, match=told):
        rank(**(right | change))


def test_nobody_to_rank():
    for impl in IMPLEMENTATIONS:
        found = rank(torch.zeros(0, 3), torch.zeros(5, 3), torch.zeros(0, dtype=torch.int64), impl=impl)
        assert found.authors.shape == found.consistent.shape == (0,) and found.authors.dtype == torch.int64


# The best items


def best_by_sorting(queries, items, k, similarity=None, hidden=None):
    scores = queries @ items.T
    if similarity is not None:
        scores = scores * similarity[0] + similarity[1]
    order = scores.sort(dim=1, descending=True, stable=True).indices.tolist()
    hidden = [[]] * len(queries) if hidden is None else hidden.tolist()
    ids = [[i for i in row if i not in gone][:k] for row, gone in zip(order, hidden, strict=True)]
    return ids, [[float(scores[b, i]) for i in row] for b, row in enumerate(ids)]


@pytest.mark.parametrize("scores_at_once", [1, 2**21])
@pytest.mark.parametrize(("shape", "k"), [((1, 1, 1), 1), ((3, 2500, 2), 40), ((5, 1024, 3), 1), ((4, 1025, 1), 2000)])
def test_the_best_are_the_first_of_the_sorted(shape, k, scores_at_once, monkeypatch):
    monkeypatch.setattr(module, "TOP_SCORES", scores_at_once)
    queries, items, _, similarity, hidden = case(*shape, 30)
    for arguments in ((), (similarity,), (None, hidden), (similarity, hidden)):
        ids, scores = top_k(queries, items, k, *arguments)
        assert ids.shape == scores.shape == (len(queries), min(k, len(items)))
        assert ids.dtype == torch.int64 and scores.dtype == torch.float32
        for b, (want, of_want) in enumerate(zip(*best_by_sorting(queries, items, k, *arguments), strict=True)):
            left = len(items) - len(want)
            assert ids[b].tolist() == (want + [len(items)] * left)[: ids.shape[1]]
            assert scores[b].tolist() == (of_want + [-INF] * left)[: ids.shape[1]]


def test_zeros_of_both_signs_tie_and_infinities_have_places():
    items = torch.tensor([[-0.0], [0.0], [-INF], [INF], [-1e-45], [1e-45], [-3.0], [0.5]])
    ids, scores = top_k(torch.ones(1, 1), items, 8)
    assert ids.tolist() == [[3, 7, 5, 0, 1, 4, 6, 2]] and scores[0, [0, -1]].tolist() == [INF, -INF]
    # Hidden is not the same as -inf.
    ids, _ = top_k(torch.ones(1, 1), items, 8, hidden=torch.tensor([[3, 7, 3, 8]]))
    assert ids.tolist() == [[5, 0, 1, 4, 6, 2, 8, 8]]
    with pytest.raises(InputError, match="k: 0"):
        top_k(torch.ones(1, 1), items, 0)


# Triton


def test_triton_in_its_interpreter_and_memory():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, __file__], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_triton_compiles_for_a_gpu_and_sums_products_with_fused_multiply_adds(tmp_path, monkeypatch):
    compiler = pytest.importorskip("triton.compiler")
    from triton.backends.compiler import GPUTarget

    from nullrec_lib.kernels import rank_gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(("queries", "items", "factor", "summand"), "*fp32") | {"found": "*i32"}
    types |= dict.fromkeys(("target", "hidden", "place"), "*i64") | dict.fromkeys(("BLOCK", "WIDE"), "constexpr")
    source = compiler.ASTSource(
        rank_gpu._count, {name: types.get(name, "i32") for name in rank_gpu._count.arg_names},
        {"BLOCK": rank_gpu.BLOCK, "WIDE": rank_gpu.WIDE},
    )
    code = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}).asm["ptx"]
    # Full float32 precision, and factor and summand rounded one by one.
    assert "fma.rn.f32" in code and "mul.rn.f32" in code and "tf32" not in code


def check_triton():
    for seed, (shape, width) in enumerate([((1, 1, 1), 1), ((3, 65, 3), 5), ((65, 129, 33), 12), ((5, 320, 129), 30)]):
        inputs = case(*shape, width, seed)
        same(rank(*inputs, impl="triton"), rank_naive(*inputs))
        same(rank(*inputs[:3], impl="triton"), rank_naive(*inputs[:3]))
    # One column, so that nothing is summed: NumPy, which multiplies in the interpreter, sums some columns another way.
    users, items, target = torch.randn(3, 1), torch.randn(1, 1).repeat(130, 1), torch.tensor([0, 64, 129])
    assert lists(rank(users, items, target, impl="triton")) == ([130] * 3,) * 2
    items = torch.tensor([[0.0], [INF], [-INF], [INF], [1.0]])
    assert rank(torch.ones(5, 1), items, torch.arange(5), impl="triton").authors.tolist() == [4, 2, 5, 2, 3]
    for row, column in ((0, 99), (2, 0)):
        users, items = torch.ones(3, 2), torch.ones(100, 2)
        (items if column else users)[column or row, 0] = NAN
        with pytest.raises(FloatingPointError, match=f"row {row} of the scores"):
            rank(users, items, torch.zeros(3, dtype=torch.int64), impl="triton")


def check_memory():
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rank(*case(2, 2, 2))
    inputs = case(2048, 100_000, 2)
    before = peak()
    rank(*inputs)
    assert peak() - before < 60, peak() - before  # all scores are 781 MB


if __name__ == "__main__":
    check_triton()
    check_memory()
