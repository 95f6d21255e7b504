"""InfoNCE against its naive form."""

import math
from functools import partial

import pytest
import torch
from compiled import compile_kernel
from interpreter import compiling, implementations, interpret
from truth import compare, poisoned  # noqa: F401  (a fixture)

from nullrec_lib.kernels.infonce import EPSILON, infonce, infonce_naive
from nullrec_lib.kernels.lookup import Table

pytestmark = pytest.mark.usefixtures("poisoned")

CASES = {  # batch, candidates, items, d, n, has a frozen part, temperature
    "one number": (1, 2, 3, 1, 1, False, 0.1),
    "target only": (2, 1, 3, 4, 4, False, 0.1),
    "one negative": (3, 2, 4, 3, 3, False, 1.0),
    "nothing trained": (4, 5, 6, 5, 0, True, 0.2),
    "all columns in both parts": (4, 5, 6, 5, 5, True, 0.2),
    "odd and wide": (2, 9, 5, 129, 64, True, 0.1),
    "many candidates": (3, 70, 40, 64, 32, True, 0.07),
    "few items, many times": (5, 9, 2, 8, 3, True, 0.1),
    "more items than candidates": (3, 6, 40, 9, 4, True, 0.1),
    "more items, ids only": (3, 7, 40, 9, 9, False, 0.1),
    "sharp": (4, 20, 12, 16, 8, True, 0.01),
}


def made(batch, candidates, items, d, n, frozen):
    torch.manual_seed(1)
    inputs = {"trained": torch.randn(items + 1, n), "states": torch.randn(batch, d)}
    language = torch.randn(items + 1, d) if frozen else torch.zeros(items + 1, d)
    ids = torch.randint(items, (batch, candidates))
    inputs["states"][0] += 3 * vectors(inputs, language)[ids[0, -1]]  # the largest logit comes last
    return inputs, language if frozen else None, ids


def vectors(inputs, frozen):
    """All item vectors."""
    n = inputs["trained"].shape[1]
    rows = inputs["trained"].clone() if frozen is None else frozen.clone()
    if frozen is not None:
        rows[:, rows.shape[1] - n :] += inputs["trained"]
    return rows


def both(inputs, frozen, ids, temperature, impl, device):
    def naive(trained, states):
        part = None if frozen is None else frozen.to(trained)
        return infonce_naive(Table(trained, part, len(trained)), states, ids, temperature)

    def fast(trained, states):
        part = None if frozen is None else frozen.to(trained)
        return infonce(Table(trained, part, len(trained)), states, ids.to(device), temperature, impl)

    upstream = torch.tensor(-1.7)
    force = upstream.abs() / temperature
    scales = {name: force / rows.norm(dim=1, keepdim=True).clamp(min=EPSILON).double()
              for name, rows in (("trained", vectors(inputs, frozen)), ("states", inputs["states"]))}  # fmt: skip
    compare(naive, fast, inputs, upstream, device, scales, extra=1 + 1 / temperature)


@pytest.mark.parametrize("case", CASES)
@implementations("infonce")
def test_equals_naive(case, impl, device):
    *shape, temperature = CASES[case]
    both(*made(*shape), temperature, impl, device)


@implementations("infonce")
def test_vectors_of_no_length(impl, device):
    inputs, frozen, ids = made(4, 6, 5, 7, 3, True)
    ids[0, 0], ids[1, 1] = 0, 1
    frozen[:3], inputs["trained"][:3] = 0, 0  # items 0 and 1: zeros, the target of a row and a negative of another
    inputs["trained"][2, 1] = EPSILON * 0.9  # item 2: shorter than what counts as a length
    ids[2, 0] = ids[3, 2] = 2
    inputs["states"][0] = 0
    inputs["states"][1] = EPSILON * 0.3
    both(inputs, frozen, ids, 1.0, impl, device)


@implementations("infonce")
def test_views_are_read_as_what_they_show(impl, device):
    inputs, frozen, ids = made(3, 8, 5, 7, 7, False)
    both({"trained": inputs["trained"].T.contiguous().T, "states": inputs["states"].T.contiguous().T}, frozen,
         ids[:, ::2], 0.1, impl, device)  # fmt: skip


@pytest.mark.parametrize("answer", [1.0, -1.0])
@implementations("infonce")
def test_extreme_logits_stay_finite(answer, impl, device):
    """The target at cosine ±1, all others at ∓1, temperature 0.01: logits 200 apart."""
    trained = torch.full((3, 4), -answer, device=device)
    trained[0] = answer
    trained.requires_grad_()
    states = torch.ones(2, 4, device=device, requires_grad=True)
    ids = torch.tensor([[0, 1, 2], [0, 2, 2]], device=device)
    loss = infonce(Table(trained, None, 3), states, ids, 0.01, impl)
    loss.backward()
    torch.testing.assert_close(loss.item(), 0.0 if answer > 0 else 200 + torch.tensor(2.0).log().item())
    assert trained.grad.isfinite().all() and states.grad.isfinite().all()


@implementations("infonce")
def test_only_what_needs_a_gradient_gets_one(impl, device):
    inputs, frozen, ids = made(4, 5, 6, 5, 3, True)
    for wanted in inputs:
        leaves = {name: tensor.to(device).detach().requires_grad_(name == wanted) for name, tensor in inputs.items()}
        table = Table(leaves["trained"], frozen.to(device), 7)
        infonce(table, leaves["states"], ids.to(device), 0.1, impl).backward()
        assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {wanted}


@pytest.mark.parametrize("often", [0, math.inf], ids=["before", "where they are met"])
@pytest.mark.parametrize("test", [
    *(pytest.param(partial(test_equals_naive, case), id=case) for case in CASES),
    *(pytest.param(partial(test_extreme_logits_stay_finite, answer), id=f"extreme {answer}") for answer in (1.0, -1.0)),
    test_vectors_of_no_length, test_views_are_read_as_what_they_show, test_only_what_needs_a_gradient_gets_one,
])
def test_rows_may_be_joined_and_measured_before_or_where_they_are_met(test, often, monkeypatch):
    from nullrec_lib.kernels import infonce_cpu

    monkeypatch.setattr(infonce_cpu, "OFTEN", often)
    test("cpu", "cpu")


@compiling
def test_in_the_interpreter():
    interpret(__file__)


@compiling
@pytest.mark.parametrize(("d", "n"), [(64, 32), (128, 128)])
@pytest.mark.parametrize("kernel", ["forward", "items"])
def test_compiles(kernel, d, n, tmp_path, monkeypatch):
    from nullrec_lib.kernels import infonce_gpu as gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    part = {} if n < d else {"frozen": None}
    if kernel == "forward":
        made = compile_kernel(gpu.forward_kernel, ("count",), tmp_path,
                              d=d, n=n, ROWS=gpu.tile_rows(d, 100), COLUMNS=d, **part)  # fmt: skip
    else:
        made = compile_kernel(gpu.items_kernel, ("batch", "count"), tmp_path, d=d, n=n, ROWS=16, COLUMNS=n, **part)
    made.check()
    assert made.registers <= 128, made.registers  # four programs of 128 threads at a time on a multiprocessor


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("items", [2, 40])  # rows that are joined before, and as they are met
@pytest.mark.parametrize("wrong", [-1, 41])
def test_a_candidate_that_is_no_row_is_refused(wrong, items, frozen):
    """A fast loop that reads on would take whatever is in memory there."""
    ids = torch.zeros(3, 7, dtype=torch.int64)
    ids[2, 6] = wrong
    table = Table(torch.randn(items + 1, 4), torch.randn(items + 1, 8) if frozen else None, items + 1)
    with pytest.raises(IndexError, match="no row of the table"):
        infonce(table, torch.randn(3, table.width), ids, 0.1, impl="cpu")
