"""Which implementation runs, and what is said where none can."""

import importlib.util

import pytest
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.kernels.attend import attend
from nullrec_lib.kernels.dispatch import choose
from nullrec_lib.kernels.dropout import dropout
from nullrec_lib.kernels.infonce import infonce
from nullrec_lib.kernels.lookup import Table, lookup, read
from nullrec_lib.kernels.softmax import full_softmax


def made(dtype=torch.float32, device="cpu") -> dict:
    """Every operation on small inputs: name → (impl) → what it gives."""
    generator = torch.Generator().manual_seed(0)
    rows, states = (torch.randn(n, 4, generator=generator).to(device, dtype) for n in (6, 3))
    x = torch.randn(3, 2, 4, generator=generator).to(device, dtype)
    ids, mask = torch.tensor([[0, 1], [5, 2], [6, 3]], device=device), torch.ones(3, 2, dtype=bool, device=device)
    table, target = Table(rows, None, 6), torch.tensor([0, 5, 3], device=device)
    return {
        "attend": lambda impl: attend(x, x, mask, 0.5, 0.3, 1, impl)[0],
        "dropout": lambda impl: dropout(x, 0.3, 1, impl),
        "lookup": lambda impl: lookup(table, ids, rows, 0.3, 1, impl),
        "read": lambda impl: read(table, ids, impl),
        "infonce": lambda impl: infonce(table, states, ids.clamp(max=5), 0.1, impl),
        "full_softmax": lambda impl: full_softmax(table, states, target, 0.1, impl),
    }


NAMES = list(made())
CPU = torch.ones(1)


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_is_the_fast_path_of_the_device(monkeypatch):
    assert choose("auto", CPU) == "cpu"
    elsewhere = torch.ones(1, device="meta")
    for found, expected in ((object(), "triton"), (None, "naive")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        assert choose("auto", elsewhere) == expected
    assert choose("auto", CPU) == "cpu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_auto_is_naive_for_other_types(dtype, device):
    assert choose("auto", torch.ones(1, dtype=dtype, device=device)) == "naive"


def test_a_name_is_itself():
    assert choose("naive", CPU) == "naive" and choose("cpu", CPU) == "cpu"
    assert choose("naive", torch.ones(1, device="meta")) == "naive"
    assert choose("triton", torch.ones(1, device="meta")) == "triton"


def test_triton_on_a_cpu_runs_in_its_interpreter_only(monkeypatch):
    for value in (None, "", "0"):
        if value is not None:
            monkeypatch.setenv("TRITON_INTERPRET", value)
        with pytest.raises(InputError):
            choose("triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", CPU) == "triton"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("impl", "device", "said"), [
    ("fast", "cpu", "impl: 'fast' is not one of auto, naive, cpu, triton."),
    ("", "cpu", "impl: '' is not one of auto, naive, cpu, triton."),
    ("cpu", "meta", "impl: cpu does not take tensors on meta; use auto."),
    ("triton", "cpu", "impl: triton needs a GPU, or its interpreter: set TRITON_INTERPRET=1 before starting."),
])
def test_what_cannot_run_is_said_in_one_sentence(name, impl, device, said):
    with pytest.raises(InputError) as error:
        made(device=device)[name](impl)
    assert str(error.value) == said


@pytest.mark.parametrize("name", NAMES)
def test_auto_runs_the_fast_path_on_float32_and_the_reference_on_float64(name):
    single, double = made()[name], made(torch.float64)[name]
    assert torch.equal(single("auto"), single("cpu"))
    assert double("auto").dtype == torch.float64 and torch.equal(double("auto"), double("naive"))
    torch.testing.assert_close(single("cpu").double(), double("naive"), rtol=1e-5, atol=1e-6)
