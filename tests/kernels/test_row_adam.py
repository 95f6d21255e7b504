"""Row-wise Adam: torch's own Adam on the rows that were read, nothing on the others."""

import pytest
import torch

from nullrec_lib.kernels.row_adam import row_adam


@pytest.mark.parametrize("impl", ["naive", "cpu"])
@pytest.mark.parametrize(("rows", "n", "read"), [(1, 1, 1), (9, 3, 9), (50, 129, 17), (300, 64, 255)])
def test_it_is_adam_on_the_rows_and_nothing_elsewhere(impl, rows, n, read):
    torch.manual_seed(rows)
    table, mean, square = torch.randn(rows, n), torch.zeros(rows, n), torch.zeros(rows, n)
    ids = torch.randperm(rows)[:read]
    start, theirs = table.clone(), torch.nn.Parameter(table[ids].clone())
    optimiser = torch.optim.Adam([theirs], lr=0.03)
    for step in range(1, 6):
        theirs.grad = torch.randn(read, n) * 10.0 ** -step  # down to where ε counts
        row_adam(table, mean, square, ids, theirs.grad, 0.03, step, impl)
        optimiser.step()
        torch.testing.assert_close(table[ids], theirs.detach(), rtol=1e-5, atol=1e-6)
    others = torch.ones(rows, dtype=torch.bool)
    others[ids] = False
    assert torch.equal(table[others], start[others]) and not mean[others].any() and not square[others].any()


@pytest.mark.parametrize("impl", ["naive", "cpu"])
def test_a_row_read_again_later_goes_on_from_its_own_moments(impl):
    """As torch's SparseAdam: the step count is everybody's, the moments are the row's."""
    torch.manual_seed(0)
    table = torch.randn(4, 8)
    theirs = torch.nn.Parameter(table.clone())
    mean, square = torch.zeros_like(table), torch.zeros_like(table)
    optimiser = torch.optim.SparseAdam([theirs], lr=0.1)
    for step, ids in enumerate(([0, 2], [1], [2, 3], [0]), 1):
        ids, gradient = torch.tensor(ids), torch.randn(len(ids), 8)
        theirs.grad = torch.sparse_coo_tensor(ids[None], gradient, theirs.shape, check_invariants=True)
        optimiser.step()
        row_adam(table, mean, square, ids, gradient, 0.1, step, impl)
        torch.testing.assert_close(table, theirs.detach(), rtol=1e-4, atol=1e-5)
