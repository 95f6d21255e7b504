import pytest
import torch

from nullrec_lib.kernels.cosine import cosine, cosine_naive


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 5), (1, 7, 2), (5, 65, 33)])
def test_fast_equals_naive_forward_and_backward(shape):
    torch.manual_seed(0)
    upstream = torch.randn(shape[:2], dtype=torch.float64)
    results = []
    for function in (cosine_naive, cosine):
        torch.manual_seed(1)
        candidates = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        states = torch.randn(shape[0], shape[2], dtype=torch.float64, requires_grad=True)
        out = function(candidates, states)
        out.backward(upstream)
        results.append((out.detach(), candidates.grad, states.grad))
    for name, naive, fast in zip(("cosine", "to candidates", "to states"), *results):
        torch.testing.assert_close(fast, naive, rtol=1e-12, atol=1e-12, msg=name)


def test_gradients_against_finite_differences():
    torch.manual_seed(2)
    inputs = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True),
              torch.randn(2, 4, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradcheck(cosine, inputs)


def test_a_zero_candidate_has_cosine_zero_and_finite_gradients():
    candidates = torch.zeros(1, 2, 3, requires_grad=True)
    states = torch.ones(1, 3, requires_grad=True)
    out = cosine(candidates, states)
    out.sum().backward()
    assert out.tolist() == [[0.0, 0.0]]
    assert candidates.grad.isfinite().all() and states.grad.isfinite().all()
