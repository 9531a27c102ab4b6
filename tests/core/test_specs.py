"""Specs of values, compared."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from dask_onnx.core.specs import TensorSpec, same_dtype

DOUBLE = np.dtype(np.float64)


def test_an_unknown_dtype_is_not_float64():
    assert not same_dtype(None, DOUBLE) and not same_dtype(DOUBLE, None)
    assert same_dtype(None, None) and same_dtype(DOUBLE, np.dtype("<f8"))
    assert TensorSpec("x", None, None) != TensorSpec("x", DOUBLE, None)


@pytest.mark.parametrize("dtype", [None, DOUBLE])
def test_equal_specs_have_equal_hashes(dtype):
    spec = TensorSpec("x", dtype, ("N", 3))
    twin = pickle.loads(pickle.dumps(spec))
    assert spec == twin and hash(spec) == hash(twin)
    assert spec != TensorSpec("x", dtype, ("N", 4)) and spec != "x"
