"""What a kernel is compared with: the naive reference in float64, and how far the naive one in float32 is from it."""

import pytest
import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written to reads as NaN."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


def run(function, inputs: dict[str, Tensor], upstream: Tensor | None) -> dict[str, Tensor]:
    """`function(**inputs)` and the gradient to each input, on the CPU in float64."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    out = function(**leaves)
    if upstream is None:
        out.sum().backward()  # an upstream gradient without memory of its own
    else:
        out.backward(upstream.to(out))
    found = {"output": out} | {f"gradient to {name}": leaf.grad for name, leaf in leaves.items()}
    missing = [name for name, tensor in found.items() if tensor is None]
    assert not missing, missing
    return {name: tensor.detach().cpu().double() for name, tensor in found.items()}


def compare(naive, fast, inputs: dict[str, Tensor], upstream: Tensor | None, device: str, scales=None, extra=1.0):
    """`fast` on `device` must be as near to the naive result in float64 as the naive one in float32 is, times 4, plus
    a few units in the last place.

    Rows are judged one by one: in a row with a zero vector numbers are huge, and must not excuse the others.

    Args:
        naive, fast: functions of the inputs by name; `naive` gets float64 and float32.
        scales: name → (rows, 1) the size of what is added up to a row's numbers; otherwise the row's own size.
        extra: by how much the operation itself enlarges an error of its inputs.
    """
    truth = run(naive, {name: tensor.double() for name, tensor in inputs.items()}, upstream)
    rough = run(naive, inputs, upstream)
    found = run(fast, {name: tensor.to(device) for name, tensor in inputs.items()}, upstream)
    for name, true in truth.items():
        assert found[name].shape == true.shape, name
        assert found[name].isfinite().all(), f"{name}: not finite"
        if not true.numel():
            continue
        true, near, fine = (tensor.reshape(-1, true.shape[-1] if true.ndim else 1)
                            for tensor in (true, rough[name], found[name]))  # fmt: skip
        size = (scales or {}).get(name.removeprefix("gradient to "), true.abs().amax(1, keepdim=True) + 1)
        allowed = 4 * (near - true).abs().amax(1, keepdim=True) + 8 * EPS * extra * size
        excess = ((fine - true).abs() / allowed).max().item()
        assert excess <= 1, f"{name}: {excess:.3g} times the error that is allowed"
