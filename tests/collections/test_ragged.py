"""Lists of unequal length in tables."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from builders import make_model, node, value
from onnx import TensorProto

import dask_onnx as dx

LENGTHS = [3, 1, 5, 0, 2, 3]
ROWS = [list(range(10 * n, 10 * n + length)) for n, length in enumerate(LENGTHS)]
TABLE = pd.DataFrame(
    {"x": pd.Series(ROWS, range(10, 16), dtype=pd.ArrowDtype(pa.list_(pa.int64())))}
)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def model():
    """Return a model of the sum of a row, and of twice each element, also in pairs."""
    return dx.load(
        make_model(
            [
                node("ReduceSum", "x a", "total", keepdims=0),
                node("Add", "x x", "twice"),
                node("Unsqueeze", "twice e", "u"),
                node("Concat", "u u", "pairs", axis=2),
            ],
            [value("x", ["N", "T"], TensorProto.INT64)],
            [
                value("total", ["N"], TensorProto.INT64),
                value("twice", ["N", "T"], TensorProto.INT64),
                value("pairs", ["N", "T", 2], TensorProto.INT64),
            ],
            {"a": np.array([1]), "e": np.array([2])},
        )
    )


@pytest.mark.parametrize("npartitions", [None, 1, 3])
@pytest.mark.parametrize("batch_size", ["auto", None, 2])
@pytest.mark.parametrize("is_object", [False, True])
def test_rows_come_back_in_order_and_without_padding(npartitions, batch_size, is_object):
    table = TABLE.astype(object) if is_object else TABLE
    if npartitions is not None:
        with dask.config.set({"dataframe.convert-string": False}):
            table = dd.from_pandas(table, npartitions=npartitions)
    lazy = model().predict(table, columns="x", length_buckets=[2, 8], batch_size=batch_size)
    (found,) = dask.compute(lazy)
    assert (lazy.dtypes == found.dtypes).all()
    assert found.index.equals(TABLE.index)
    assert found["total"].to_list() == [sum(row) for row in ROWS]
    assert [list(row) for row in found["twice"]] == [[2 * x for x in row] for row in ROWS]
    pairs = [[list(pair) for pair in row] for row in found["pairs"]]
    assert pairs == [[[2 * x, 2 * x] for x in row] for row in ROWS]


def test_without_buckets_lists_must_be_equally_long():
    with pytest.raises(dx.InputError) as caught:
        model().predict(TABLE, columns="x")
    assert (caught.value.input, caught.value.column) == ("x", "x")
    numbers = caught.value.numbers
    assert numbers["list_length"] != numbers["expected_length"] and numbers["rows"] == 6


def test_a_list_beyond_the_longest_bucket_is_a_bad_row():
    with pytest.raises(dx.InputError, match="with index 12: ") as caught:
        model().predict(TABLE, columns="x", length_buckets=[4])
    assert caught.value.option == "length_buckets"
    assert caught.value.numbers == {
        "row": 2,
        "rows": 6,
        "bad_rows": 1,
        "longest": 5,
        "longest_bucket": 4,
    }
    assert caught.value.suggestions[0].value == [4, 5]
    good, bad = model().predict_checked(TABLE, columns="x", length_buckets=[4])
    assert list(bad.index) == [12] and len(good) == 5
    found = model().predict(TABLE, columns="x", length_buckets=[4], on_error="null")
    assert found["total"].isna().to_list() == found["twice"].isna().to_list()
    assert found["pairs"].isna().sum() == 1 and found["total"].dtype == pd.Int64Dtype()


def test_lists_of_a_row_must_be_equally_long():
    two = dx.load(
        make_model(
            [node("Mul", "x m", "p"), node("ReduceSum", "p a", "y", keepdims=0)],
            [value("x", ["N", "T"], TensorProto.INT64), value("m", ["N", "T"], TensorProto.INT64)],
            [value("y", ["N"], TensorProto.INT64)],
            {"a": np.array([1])},
        )
    )
    table = TABLE.assign(m=TABLE["x"])
    expected = [sum(x * x for x in row) for row in ROWS]
    assert two.predict(table, length_buckets=[8])["y"].to_list() == expected
    table["m"] = [*table["m"].to_list()[:5], [1]]
    good, bad = two.predict_checked(table, length_buckets=[8])
    assert list(bad.index) == [15] and "must be equally long" in bad["error"].iloc[0]
    assert good["y"].to_list() == expected[:5]


def test_rows_are_padded_to_their_bucket():
    counting = dx.load(
        make_model(
            [
                node("Mul", "x z", "no"),
                node("Add", "no o", "ones"),
                node("ReduceSum", "ones a", "y", keepdims=0),
            ],
            [value("x", ["N", "T"], TensorProto.INT64)],
            [value("y", ["N"], TensorProto.INT64)],
            {"z": np.array(0), "o": np.array(1), "a": np.array([1])},
        )
    )
    table = pd.DataFrame({"x": [[1], [2, 3], [4, 5, 6]]})
    found = counting.predict(table, columns="x", length_buckets=[2, 8])
    assert found["y"].to_list() == [2, 2, 8]
