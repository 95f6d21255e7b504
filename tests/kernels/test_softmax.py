"""Full softmax against its naive form."""

import importlib

import pytest
import torch
from compiled import compile_kernel
from interpreter import compiling, implementations, interpret
from truth import compare, poisoned  # noqa: F401  (a fixture)

from nullrec_lib.kernels.infonce import EPSILON
from nullrec_lib.kernels.lookup import Table
from nullrec_lib.kernels.softmax import full_softmax, full_softmax_naive

pytestmark = pytest.mark.usefixtures("poisoned")

CASES = {  # batch, rows of the table, items, d, n, has a frozen part, temperature
    "one item": (1, 1, 1, 1, 1, False, 0.1),
    "one negative": (1, 3, 2, 3, 3, False, 0.1),
    "nothing trained": (4, 8, 8, 5, 0, True, 0.2),
    "all columns in both parts": (4, 8, 7, 5, 5, True, 0.2),
    "odd and wide": (3, 9, 7, 129, 64, True, 0.1),
    "several blocks": (35, 70, 66, 16, 8, True, 1.0),
    "sharp": (6, 20, 18, 16, 8, True, 0.01),
}


def made(batch, rows, size, d, n, frozen):
    torch.manual_seed(1)
    inputs = {"trained": torch.randn(rows, n), "states": torch.randn(batch, d)}
    language = torch.randn(rows, d) if frozen else torch.zeros(rows, d)
    inputs["states"][0] += 3 * vectors(inputs, language)[size - 1]  # the largest logit comes last
    return inputs, language if frozen else None, torch.randint(size, (batch,))


def vectors(inputs, frozen):
    """All item vectors."""
    n = inputs["trained"].shape[1]
    rows = inputs["trained"].clone() if frozen is None else frozen.clone()
    if frozen is not None:
        rows[:, rows.shape[1] - n :] += inputs["trained"]
    return rows


def both(inputs, frozen, size, target, temperature, impl, device):
    def naive(trained, states):
        part = None if frozen is None else frozen.to(trained)
        return full_softmax_naive(Table(trained, part, size), states, target, temperature)

    def fast(trained, states):
        part = None if frozen is None else frozen.to(trained)
        return full_softmax(Table(trained, part, size), states, target.to(device), temperature, impl)

    upstream = torch.tensor(-1.7)
    force = upstream.abs() / temperature
    scales = {name: force / rows.norm(dim=1, keepdim=True).clamp(min=EPSILON).double()
              for name, rows in (("trained", vectors(inputs, frozen)), ("states", inputs["states"]))}  # fmt: skip
    compare(naive, fast, inputs, upstream, device, scales, extra=1 + 1 / temperature)


@pytest.mark.parametrize("case", CASES)
@implementations("softmax")
def test_equals_naive(case, impl, device):
    *shape, temperature = CASES[case]
    inputs, frozen, target = made(*shape)
    both(inputs, frozen, shape[2], target, temperature, impl, device)


@implementations("softmax")
def test_many_tiles(impl, device, monkeypatch):
    """Several tiles one after the other, and on a GPU several chunks of them, the last ones not full."""
    module = importlib.import_module(f"nullrec_lib.kernels.softmax_{'cpu' if impl == 'cpu' else 'gpu'}")
    for name, value in {"TILE": 12, "LEAST": 5, "PROGRAMS": 2}.items():
        monkeypatch.setattr(module, name, value, raising=False)
    inputs, frozen, target = made(3, 110, 103, 20, 7, True)
    target[1] = 102
    both(inputs, frozen, 103, target, 0.1, impl, device)


@implementations("softmax")
def test_vectors_of_no_length(impl, device):
    inputs, frozen, target = made(5, 6, 6, 7, 3, True)
    frozen[:3], inputs["trained"][:3] = 0, 0
    inputs["trained"][2, 1] = EPSILON * 0.9  # shorter than what counts as a length
    target[:3] = torch.tensor([0, 2, 0])
    inputs["states"][0] = 0
    inputs["states"][1] = EPSILON * 0.3
    both(inputs, frozen, 6, target, 1.0, impl, device)


@implementations("softmax")
def test_views_are_read_as_what_they_show(impl, device):
    inputs, frozen, target = made(3, 6, 5, 7, 7, False)
    both({"trained": inputs["trained"].T.contiguous().T, "states": inputs["states"].T.contiguous().T}, frozen, 5,
         target.repeat_interleave(2)[::2], 0.1, impl, device)  # fmt: skip


@pytest.mark.parametrize("answer", [1.0, -1.0])
@implementations("softmax")
def test_extreme_logits_stay_finite(answer, impl, device):
    """The target at cosine ±1, all others at ∓1, temperature 0.01: logits 200 apart."""
    trained = torch.full((3, 4), -answer, device=device)
    trained[0] = answer
    trained.requires_grad_()
    states = torch.ones(2, 4, device=device, requires_grad=True)
    target = torch.zeros(2, dtype=torch.int64, device=device)
    loss = full_softmax(Table(trained, None, 3), states, target, 0.01, impl)
    loss.backward()
    torch.testing.assert_close(loss.item(), 0.0 if answer > 0 else 200 + torch.tensor(2.0).log().item())
    assert trained.grad.isfinite().all() and states.grad.isfinite().all()


@pytest.mark.parametrize("outside", [-1, 3])
@implementations("softmax")
def test_a_target_that_is_no_item_is_not_trained_on(outside, impl, device):
    table = Table(torch.ones(4, 2, device=device), None, 3)
    target = torch.tensor([0, outside], device=device)
    if impl == "cpu":
        with pytest.raises(IndexError, match="target"):
            full_softmax(table, torch.ones(2, 2), target, 0.1, impl)
    else:  # looking would wait for the GPU
        assert full_softmax(table, torch.ones(2, 2, device=device), target, 0.1, impl).isnan()


@implementations("softmax")
def test_only_what_needs_a_gradient_gets_one(impl, device):
    inputs, frozen, target = made(4, 6, 5, 5, 3, True)
    for wanted in inputs:
        leaves = {name: tensor.to(device).detach().requires_grad_(name == wanted) for name, tensor in inputs.items()}
        table = Table(leaves["trained"], frozen.to(device), 5)
        full_softmax(table, leaves["states"], target.to(device), 0.1, impl).backward()
        assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {wanted}


@compiling
def test_in_the_interpreter():
    interpret(__file__)


@compiling
@pytest.mark.parametrize(("d", "n"), [(64, 32), (128, 128)])
@pytest.mark.parametrize("kernel", ["forward", "items"])
def test_compiles(kernel, d, n, tmp_path, monkeypatch):
    from nullrec_lib.kernels import softmax_gpu as gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    part = {} if n < d else {"frozen": None}
    blocks = {"ROWS": gpu.BLOCK, "ITEMS": gpu.BLOCK, "STEP": gpu.STEP, "warps": gpu.WARPS}
    if kernel == "forward":
        made = compile_kernel(gpu.forward_kernel, ("batch", "size", "chunk"), tmp_path,
                              d=d, n=n, COLUMNS=d, **blocks, **part)  # fmt: skip
    else:
        made = compile_kernel(gpu.items_kernel, ("batch", "size"), tmp_path,
                              d=d, n=n, COLUMNS=n, **blocks, **part)  # fmt: skip
    made.check()
    assert made.shared <= 48 * 1024, made.shared
