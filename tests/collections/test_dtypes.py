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
