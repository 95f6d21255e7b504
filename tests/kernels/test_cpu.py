"""What the CPU kernels share: exponentials of many numbers at once."""

import numpy as np
import pytest
from numba import njit

from nullrec_lib.kernels.cpu import FAST, exponentials


def of(x) -> np.ndarray:
    x = np.array(x, np.float32)
    exponentials(x, np.empty(len(x), np.int32))
    return x


@njit(fastmath=FAST)
def within_a_kernel(x, powers):
    """Numba would hand a kernel's freedom to reorder sums on to what it calls."""
    exponentials(x, powers)


@pytest.mark.parametrize("kernel", [False, True])
def test_exponentials_are_right_to_two_units_in_the_last_place(kernel):
    x = np.concatenate([np.linspace(-87, 88, 300_001), np.linspace(-1e-3, 1e-3, 2001)]).astype(np.float32)
    true, found = np.exp(x.astype(np.float64)), x.copy()
    if kernel:
        found = np.repeat(x, 2)[::2]  # strided: compiled for this call, whatever was compiled before
        within_a_kernel(found, np.empty(len(x), np.int32))
    else:
        exponentials(found, np.empty(len(x), np.int32))
    assert (np.abs(found - true) <= 2 * np.spacing(true.astype(np.float32))).all()


def test_exponentials_at_the_edges():
    assert of([0.0, -0.0]).tolist() == [1, 1]
    low, high = np.exp(np.float32(-87)), np.exp(np.float32(88))
    np.testing.assert_allclose(of([-88.0, -1e30, -np.inf]), low, rtol=1e-6)
    np.testing.assert_allclose(of([89.0, 1e30, np.inf]), high, rtol=1e-6)
    assert np.isnan(of([np.nan, 0.0])[0])
    assert len(of([])) == 0
