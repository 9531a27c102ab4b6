"""Conversion of inputs to the dtypes of the model."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.core.specs import converts

WIDE = np.random.default_rng(0).standard_normal((6, 8))
NARROW = WIDE.astype(np.float32)


@pytest.fixture(autouse=True)
def sync():
    with dask.config.set(scheduler="sync"):
        yield


def table(rows):
    return pd.DataFrame(rows, columns=list("abcdefgh"))


COLLECTIONS = {
    "array": lambda rows: rows,
    "dask array": lambda rows: da.from_array(rows, chunks=(4, 8)),
    "delayed": dask.delayed,
    "bag": lambda rows: db.from_sequence(list(rows), npartitions=2),
    "list": lambda rows: rows.tolist(),
    "delayed list": lambda rows: dask.delayed(rows.tolist()),
    "DataFrame": table,
    "dask DataFrame": lambda rows: dd.from_pandas(table(rows), npartitions=2),
}


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
@pytest.mark.parametrize("kind", COLLECTIONS)
def test_float64_gives_the_results_of_float32(kind, strategy):
    model = dx.load(dense_model())
    plan = model.plan(strategy) if "array" in kind or "delayed" in kind else None
    x = COLLECTIONS[kind](WIDE)
    model.check(x)
    (found,) = dask.compute(model.predict(x, plan=plan))
    found = np.asarray(found)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, model.predict(NARROW, plan=plan))


@pytest.mark.parametrize("batch_size", ["auto", None, 2])
def test_float64_is_converted_for_every_batch_size(batch_size):
    model = dx.load(dense_model())
    found = model.predict(WIDE, batch_size=batch_size)
    np.testing.assert_allclose(found, model.predict(NARROW), rtol=1e-6)
    np.testing.assert_allclose(model(WIDE), found, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "element", "wanted"),
    [
        (np.float32, TensorProto.DOUBLE, np.float64),
        (np.float64, TensorProto.FLOAT16, np.float16),
        (ml_dtypes.bfloat16, TensorProto.FLOAT, np.float32),
    ],
)
def test_floating_point_arrays_take_the_precision_of_the_model(given, element, wanted):
    model = make_model(
        [node("Neg", "x", "y")], [value("x", ["N"], element)], [value("y", ["N"], element)]
    )
    x = WIDE[0].astype(given)
    found = dx.load(model).predict(da.from_array(x, chunks=4)).compute()
    assert found.dtype == wanted
    np.testing.assert_array_equal(found, -x.astype(wanted))


@pytest.mark.parametrize("kind", ["array", "dask array", "delayed", "bag"])
def test_an_array_of_integers_is_refused_by_a_floating_point_input(kind):
    x = COLLECTIONS[kind](WIDE.astype(np.int64))
    with pytest.raises(dx.InputError, match="dtype int64; the model takes float32") as caught:
        dask.compute(dx.load(dense_model()).predict(x))
    assert caught.value.input == "x"


@pytest.mark.parametrize(
    ("dtype", "wanted", "expected"),
    [
        (np.float64, np.float32, True),
        (np.float16, np.float64, True),
        (ml_dtypes.bfloat16, np.float32, True),
        (np.float64, ml_dtypes.float8_e4m3fn, True),
        (np.int64, np.float32, False),
        (np.float64, np.int64, False),
        (np.float64, ml_dtypes.int4, False),
        (np.complex64, np.float32, False),
        (bool, np.float32, False),
        (object, np.float32, False),
    ],
)
def test_only_floating_point_dtypes_convert_to_each_other(dtype, wanted, expected):
    assert converts(np.dtype(dtype), np.dtype(wanted)) is expected


def test_python_integers_must_fit_the_dtype_of_the_model():
    model = dx.load(
        make_model(
            [node("Identity", "x", "y")],
            [value("x", ["N"], TensorProto.UINT8)],
            [value("y", ["N"], TensorProto.UINT8)],
        )
    )
    assert model.predict([0, 255]).dtype == np.uint8
    with pytest.raises(dx.InputError) as caught:
        model.predict([-1, 7, 300])
    assert caught.value.input == "x"
    assert caught.value.numbers == {"lowest": -1, "highest": 300}
