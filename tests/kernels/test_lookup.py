"""The fused lookup against its naive form."""

import pytest
import torch
from compiled import compile_kernel
from interpreter import compiling, implementations, interpret
from truth import compare, poisoned  # noqa: F401  (a fixture)

from nullrec_lib.kernels.dropout import kept
from nullrec_lib.kernels.lookup import Items, Table, Tokens, gather, lookup, lookup_naive, read

pytestmark = pytest.mark.usefixtures("poisoned")

SEED = 0x3ABCDEF087654321

CASES = {  # batch, length, positions, rows of the table, items, d, n, has a frozen part
    "everything": (3, 4, 6, 9, 7, 5, 3, True),
    "one number": (1, 1, 1, 1, 1, 1, 1, False),
    "one token": (1, 1, 3, 3, 2, 3, 2, True),
    "one row": (1, 7, 7, 8, 8, 3, 3, False),
    "ids only": (4, 5, 5, 12, 11, 16, 16, False),
    "nothing trained": (3, 4, 4, 6, 6, 5, 0, True),
    "all columns in both parts": (3, 3, 4, 6, 5, 5, 5, True),
    "odd and wide": (2, 3, 5, 5, 4, 129, 64, True),
    "few items, many times": (9, 4, 4, 3, 2, 8, 3, True),
}


def made(batch, length, positions, rows, size, d, n, frozen):
    """→ the differentiable inputs, the frozen part, the ids with padding among them."""
    torch.manual_seed(1)
    inputs = {"trained": torch.randn(rows, n), "positions": torch.randn(positions, d)}
    ids = torch.randint(size, (batch, length))
    padding = torch.rand(batch, length) < 0.3
    if batch > 1:
        padding[1] = True  # a row of nothing else
    padding[0, -1] = False
    return inputs, torch.randn(rows, d) if frozen else None, torch.where(padding, size + ids % 3, ids)


def both(inputs, frozen, size, ids, p, impl, device, upstream):
    def naive(trained, positions):
        part = None if frozen is None else frozen.to(trained)
        return lookup_naive(Table(trained, part, size), ids, positions, p, SEED)

    def fast(trained, positions):
        part = None if frozen is None else frozen.to(trained)
        return lookup(Table(trained, part, size), ids.to(device), positions, p, SEED, impl)

    compare(naive, fast, inputs, upstream, device)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
@implementations("lookup")
def test_equals_naive(case, p, impl, device):
    inputs, frozen, ids = made(*CASES[case])
    both(inputs, frozen, CASES[case][4], ids, p, impl, device, torch.randn(*ids.shape, CASES[case][5]))


@implementations("lookup")
def test_views_are_read_as_what_they_show(impl, device):
    inputs, frozen, ids = made(3, 8, 6, 9, 7, 5, 3, True)
    wide = torch.randn(9, 10)
    wide[:, ::2] = frozen
    both(inputs, wide[:, ::2], 7, ids[:, 1::2], 0.3, impl, device, upstream=None)


@implementations("lookup")
def test_only_what_needs_a_gradient_gets_one(impl, device):
    inputs, frozen, ids = made(*CASES["everything"])
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    for wanted in inputs:
        for name, tensor in inputs.items():
            inputs[name] = tensor.detach().requires_grad_(name == wanted)
        table = Table(inputs["trained"], frozen.to(device), 7)
        lookup(table, ids.to(device), inputs["positions"], 0.3, SEED, impl).sum().backward()
        assert {name for name, tensor in inputs.items() if tensor.grad is not None} == {wanted}


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**62 - 1, SEED])
@pytest.mark.parametrize("p", [0.3, 0.999, 1 - 1e-11])
@implementations("lookup")
def test_dropout_takes_the_same_places(seed, p, impl, device):
    table = Table(torch.ones(2, 33, device=device), None, 2)
    ids = torch.ones(3, 5, dtype=torch.int64, device=device)
    x = lookup(table, ids, torch.zeros(5, 33, device=device), p, seed, impl)
    assert torch.equal(x.cpu().flatten() != 0, kept(x.numel(), p, seed))


@implementations("lookup")
def test_the_same_bits_twice(impl, device):
    torch.manual_seed(2)
    ids = torch.randint(3, (16, 4), device=device)
    positions, gradient = torch.randn(4, 8, device=device), torch.randn(16, 4, 8, device=device)
    found = []
    for _ in range(2):
        trained = torch.ones(3, 8, device=device, requires_grad=True)
        lookup(Table(trained, None, 3), ids, positions, 0.3, SEED, impl).backward(gradient)
        found.append(trained.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 0, 3)])
@pytest.mark.parametrize("case", CASES)
def test_reading_rows_is_gathering_them(case, shape):
    _, _, _, rows, size, d, n, with_frozen = CASES[case]
    torch.manual_seed(3)
    trained, frozen = torch.randn(rows, n), torch.randn(rows, d) if with_frozen else None
    ids, upstream = torch.randint(size + 2, shape), torch.randn(*shape, d)
    found = {}
    for impl in ("naive", "cpu"):
        leaf = trained.clone().requires_grad_()
        out = read(Table(leaf, frozen, size), ids, impl)
        found[impl] = out.detach(), torch.autograd.grad(out, leaf, upstream)[0]
    assert torch.equal(found["cpu"][0], found["naive"][0])
    torch.testing.assert_close(found["cpu"][1], found["naive"][1])


def test_tokens_and_items_read_the_rows():
    trained = torch.randn(5, 3)
    ids = torch.tensor([[4, 5], [0, 2]])
    table = Table(trained, None, 5)
    assert torch.equal(Tokens(table, ids).vectors, gather(table, ids))
    assert torch.equal(Items(table._replace(size=3), torch.tensor([1, 4, 6]), 9)(torch.tensor([6, 1, 9])),
                       torch.stack([trained[2], trained[0], torch.zeros(3)]))


@compiling
def test_in_the_interpreter():
    interpret(__file__)


@compiling
@pytest.mark.parametrize(("d", "n"), [(64, 32), (128, 128)])
@pytest.mark.parametrize("kernel", ["forward", "positions", "items"])
def test_compiles(kernel, d, n, tmp_path, monkeypatch):
    from nullrec_lib.kernels import lookup_gpu as gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    part = {} if n < d else {"frozen": None}
    if kernel == "forward":
        made = compile_kernel(gpu.forward_kernel, ("tokens", "length", "first", "size"), tmp_path,
                              d=d, n=n, DROP=True, ROWS=gpu.tile_rows(d, 10**4), COLUMNS=d, **part)  # fmt: skip
    elif kernel == "positions":
        made = compile_kernel(gpu.positions_kernel, ("batch", "length", "size"), tmp_path,
                              d=d, DROP=True, ROWS=gpu.tile_rows(32, 10**4), COLUMNS=32)  # fmt: skip
    else:
        made = compile_kernel(gpu.items_kernel, ("size",), tmp_path, d=d, n=n, DROP=True, ROWS=16, COLUMNS=n)
    made.check()
    assert made.registers <= 128, made.registers  # four programs of 128 threads at a time on a multiprocessor


@pytest.mark.parametrize("impl", ["naive", "cpu"])
@pytest.mark.parametrize("reading", ["lookup", "read"])
def test_a_negative_id_is_refused(impl, reading):
    """It is nobody's last row, as it would be in NumPy."""
    table, ids = Table(torch.randn(5, 3), torch.randn(5, 4), 4), torch.tensor([[0, 3], [-1, 2]])
    with pytest.raises(IndexError):
        lookup(table, ids, torch.zeros(2, 4), impl=impl) if reading == "lookup" else read(table, ids, impl)
