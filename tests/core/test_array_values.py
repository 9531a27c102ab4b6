"""Arrays made of values in memory, without changing a value."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dask_onnx.core.array_values import without_mask
from dask_onnx.core.errors import InputError


def masked(dtype):
    return np.ma.masked_array(np.array([1, 0, 1]).astype(dtype), mask=[False, True, False])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.complex64])
def test_nan_stands_for_what_is_masked(dtype):
    given = masked(dtype)
    found = without_mask(given, "x")
    assert type(found) is np.ndarray and found.dtype == dtype
    assert np.isnan(found).tolist() == [False, True, False]
    assert given.data[1] == 0  # the caller's array is as it was


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, "M8[s]", "U1", object])
def test_masked_values_of_types_without_nan_are_refused(dtype):
    with pytest.raises(InputError) as raised:
        without_mask(masked(dtype), "x", option="post")
    assert raised.value.numbers == {"bad_values": 1, "values": 3}
    assert raised.value.option == "post"


def test_an_array_of_which_nothing_is_masked_is_not_copied():
    array = np.arange(3)
    assert without_mask(array, "x") is array
    assert np.shares_memory(without_mask(np.ma.masked_array(array), "x"), array)
