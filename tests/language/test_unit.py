"""Rows of unit norm: from every type and size of number, and what is refused."""

import numpy as np
import pytest
import torch

from nullrec_lib.errors import InputError
from nullrec_lib.language.encoders import unit

ROWS = np.random.default_rng(0).standard_normal((9000, 5)) + 2


def is_unit(rows: np.ndarray, of: np.ndarray, atol: float = 1e-6) -> None:
    assert rows.dtype == np.float32 and rows.shape == of.shape
    of = of / np.abs(of).max(axis=1, keepdims=True)
    np.testing.assert_allclose(rows, of / np.linalg.norm(of, axis=1, keepdims=True), atol=atol)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", "int8", "uint64", "int64", "bool"])
def test_every_type_of_real_number(dtype):
    rows = np.abs(ROWS * 9).astype(dtype)
    rows[:, 0] = 1
    kept = rows.copy()
    is_unit(unit(rows, "e"), rows.astype(np.float64))
    assert np.array_equal(rows, kept)  # what was given is not changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.float64, torch.int32])
def test_every_type_of_tensor(dtype):
    rows = torch.from_numpy(ROWS[:50].clip(1, 9)).to(dtype)
    is_unit(unit(rows, "e"), rows.double().numpy())


@pytest.mark.parametrize("scale, dtype", [
    (1e30, "float32"), (1e-30, "float32"), (1e-44, "float32"), (3e4, "float16"), (1e-7, "float16"),
    (1e200, "float64"), (1e307, "float64"), (1e-200, "float64"), (1e-310, "float64")])
@pytest.mark.filterwarnings("error")
def test_numbers_of_every_size(scale, dtype):
    """Their squares are beyond the type, and they themselves may be beyond float32."""
    rows = (np.sign(ROWS) * np.abs(ROWS).clip(0.9, 2) * scale).astype(dtype)
    is_unit(unit(rows, "e"), rows.astype(np.float64))


def test_sizes_may_differ_from_row_to_row():
    rows = ROWS[:6] * np.array([1e-300, 1e300, 1, 1e-40, 1e40, 1e-5])[:, None]
    is_unit(unit(rows, "e"), ROWS[:6])


def put(value: float, place) -> np.ndarray:
    rows = ROWS.copy()
    rows[place] = value
    return rows


@pytest.mark.parametrize("rows, words", [
    (put(0, 8000), "row 8000 is zero"), (put(np.nan, (8000, 2)), "row 8000 is not finite"), (put(-np.inf, (3, 0)), "row 3 is not"),
    (ROWS[:, None], "shape"), (ROWS[0], "shape"), (np.float32(3), "shape"), (ROWS[:, :0], "shape"),
    (ROWS + 0j, "complex"), (ROWS.astype(str), "real"), (ROWS.astype(object), "real"), (np.zeros((2, 2), "V8"), "real"),
    ([[1.0], [1.0, 2.0]], "length"), (np.zeros((2, 3), bool), "row 0 is zero"), (torch.zeros(2, 3).bfloat16(), "row 0 is zero")])
@pytest.mark.filterwarnings("error")
def test_what_is_no_embedding_is_refused_by_name(rows, words):
    with pytest.raises(InputError, match=f"^here: .*{words}") as caught:
        unit(rows, "here")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
