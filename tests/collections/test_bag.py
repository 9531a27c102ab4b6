"""Predictions for bags of rows."""

from __future__ import annotations

import dask
import dask.bag as db
import numpy as np
import pandas as pd
import pytest
from builders import branching_model, dense_model, make_model, node, run_onnx, value
from onnx import TensorProto

import dask_onnx as dx

ROWS = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
EXPECTED = run_onnx(dense_model(), {"x": ROWS})[0]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.mark.parametrize("batch_size", ["auto", None, 3])
@pytest.mark.parametrize("as_list", [False, True])
def test_each_row_gives_a_result_in_order(batch_size, as_list):
    bag = db.from_sequence([row.tolist() if as_list else row for row in ROWS], npartitions=3)
    lazy = dx.load(dense_model()).predict(bag, batch_size=batch_size)
    assert isinstance(lazy, db.Bag)
    np.testing.assert_allclose(np.stack(lazy.compute()), EXPECTED, rtol=1e-5)


def test_several_outputs_are_a_dict_for_each_row():
    model = dx.load(branching_model())
    names = [spec.name for spec in model.inputs]
    sizes = [tuple(d for d in spec.shape[1:]) for spec in model.inputs]
    feeds = {n: np.ones((4, *s), np.float32) for n, s in zip(names, sizes, strict=True)}
    rows = [{name: array[i] for name, array in feeds.items()} for i in range(4)]
    found = model.predict(db.from_sequence(rows, npartitions=2)).compute()
    expected = model.predict(feeds)
    for i, row in enumerate(found):
        for name, result in row.items():
            np.testing.assert_allclose(result, expected[name][i], rtol=1e-5)


def test_rows_of_equal_shape_run_together():
    model = dx.load(
        make_model(
            [node("ReduceSum", "x a", "y", keepdims=0)],
            [value("x", ["N", "T"])],
            [value("y", ["N"])],
            {"a": np.array([1])},
        )
    )
    rows = [np.ones(length, np.float32) for length in (3, 1, 3, 2, 0, 1)]
    found = model.predict(db.from_sequence(rows, npartitions=2)).compute()
    assert [float(y) for y in found] == [3, 1, 3, 2, 0, 1]


def test_rows_without_an_input_are_refused():
    bag = db.from_sequence([{"z": 1}], npartitions=1)
    with pytest.raises(dx.InputError) as caught:
        dx.load(dense_model()).predict(bag).compute()
    assert caught.value.fields == {"input": "x", "numbers": {"row": 0, "rows": 1}}


def test_a_plan_of_several_stages_is_refused():
    model = dx.load(dense_model())
    with pytest.raises(dx.InputError) as caught:
        model.predict(db.from_sequence([ROWS[0]]), plan=model.plan("per_node"))
    assert caught.value.option == "plan"


def test_records_of_single_values_are_rows_as_those_of_a_table():
    columns = [value("age", ["N", 1]), value("town", ["N", 1], TensorProto.STRING)]
    nodes = [node("Identity", "age", "a"), node("Identity", "town", "t")]
    model = dx.load(
        make_model(nodes, columns, [value("a", ["N", 1]), value("t", ["N", 1], TensorProto.STRING)])
    )
    records = [{"age": 3, "town": "Ulm"}, {"age": None, "town": "Bern"}, {"age": [5], "town": "x"}]
    found = model.predict(db.from_sequence(records, npartitions=2)).compute()
    np.testing.assert_array_equal([row["a"] for row in found], [[3], [np.nan], [5]])
    assert [row["t"].tolist() for row in found] == [["Ulm"], ["Bern"], ["x"]]
    table = model.predict(pd.DataFrame(records[:2]))
    np.testing.assert_array_equal([row["a"][0] for row in found[:2]], table["a"])
    good, bad = model.predict_checked(
        db.from_sequence([*records, {"age": "7", "town": "y"}, {"age": [1, 2], "town": "z"}])
    )
    assert len(good.compute()) == 3 and len(bad.compute()) == 2


def test_a_single_value_is_no_row_of_an_axis_of_any_length():
    model = dx.load(make_model([node("Relu", "x", "y")], [value("x", "NT")], [value("y", "NT")]))
    with pytest.raises(dx.InputError) as raised:
        model.predict(db.from_sequence([1.0])).compute()
    assert raised.value.numbers["rank"] == 0
