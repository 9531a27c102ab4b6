"""Options of predictions: their values, and the collections and faces that take them."""

from __future__ import annotations

import dask.bag as db
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, make_model, node, value

import dask_onnx as dx

ROWS = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
TABLE = pd.DataFrame(ROWS, columns=list("abcdefgh"))


@pytest.fixture(scope="module")
def model():
    return dx.load(dense_model())


@pytest.mark.parametrize(
    "options",
    [
        {"columns": {"a"}},
        {"columns": {"x": {"a"}}},
        {"append": 3},
        {"append": None},
        {"max_columns": -1},
        {"max_columns": "8"},
        {"length_buckets": 8},
        {"length_buckets": [1.5]},
        {"length_buckets": ["8"]},
        {"length_buckets": []},
        {"outputs": 3},
        {"outputs": [None]},
        {"batch_size": 0},
        {"batch_size": 2.0},
        {"batch_size": True},
        {"batch_size": np.array([1, 2])},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_every_verb_with_the_name_of_its_option(model, options):
    (option,) = options
    for run in (model.predict, model.check, model.predict_checked, model):
        with pytest.raises(dx.InputError) as caught:
            run(TABLE, **options)
        assert caught.value.option == option
        assert "row" not in caught.value.numbers


def test_a_batch_size_for_rows_that_meet_is_no_fault_of_the_rows():
    model = dx.load(
        make_model(
            [node("Softmax", "x", "y", axis=0)], [value("x", ("N", 3))], [value("y", ("N", 3))]
        )
    )
    table = pd.DataFrame(np.arange(12, dtype="f4").reshape(4, 3), columns=[*"abc"])
    for run, options in (
        (model.predict, {}),
        (model.predict, {"on_error": "null"}),
        (model.predict_checked, {}),
        (model, {"on_error": "null"}),
    ):
        with pytest.raises(dx.InputError) as caught:
            run(table, batch_size=2, **options)
        assert caught.value.option == "rows"
        assert "row" not in caught.value.numbers
    np.testing.assert_allclose(model.predict(table).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("retries", [-1, 1.5, "2"])
def test_retries_are_a_count(model, retries):
    with pytest.raises(dx.InputError) as caught:
        model.predict(ROWS, retries=retries)
    assert caught.value.option == "retries"


@pytest.mark.parametrize("kind", [pd.Index, np.array, iter, tuple])
def test_columns_may_come_in_any_ordered_collection(model, kind):
    names = [*"hgfedcba"]
    expected = model.predict(TABLE, columns=names)
    pd.testing.assert_frame_equal(model.predict(TABLE, columns=kind(names)), expected)
    pd.testing.assert_frame_equal(model.predict(TABLE, columns={"x": kind(names)}), expected)


def test_numbers_of_numpy_are_batch_sizes(model):
    found = model.predict(ROWS, batch_size=np.int64(3))
    np.testing.assert_allclose(found, model.predict(ROWS), rtol=1e-5)


@pytest.mark.parametrize(
    ("option", "given"),
    [("columns", ["a"]), ("append", True), ("on_error", "null"), ("require_finite", True)],
)
def test_options_of_rows_are_refused_for_arrays_on_every_face(model, option, given):
    for run in (model, model.predict, model.check):
        with pytest.raises(dx.InputError) as caught:
            run(ROWS, **{option: given})
        assert caught.value.option == option


@pytest.mark.parametrize("x", [ROWS, TABLE, db.from_sequence(list(ROWS))], ids=["a", "t", "b"])
def test_check_refuses_the_plans_that_predict_refuses(model, x):
    other = dx.load(dense_model(hidden=8)).plan()
    for plan in (other, "whole"):
        for run in (model.check, model.predict):
            with pytest.raises(dx.PlanError) as caught:
                run(x, plan=plan)
            assert caught.value.option == "plan"
    if x is ROWS:
        model.check(x, plan=model.plan("per_node"))
        return
    for run in (model.check, model.predict):
        with pytest.raises(dx.InputError) as caught:
            run(x, plan=model.plan("per_node"))
        assert caught.value.option == "plan"


def test_a_model_without_inputs_takes_no_array():
    constant = dx.load(
        make_model([node("Identity", "k", "y")], [], [value("y", (3,))], {"k": np.ones(3, "f4")})
    )
    for run in (constant.delayed, constant.predict):
        with pytest.raises(dx.InputError) as caught:
            run(ROWS)
        assert caught.value.numbers == {"inputs": 0}


@pytest.mark.parametrize("size", [(), ("K",)], ids=["scalar", "vector"])
def test_rows_do_not_feed_an_input_that_has_one_value_for_all_rows(size):
    model = dx.load(
        make_model(
            [node("Mul", "x s", "y")],
            [value("x", ("N", 3)), value("s", size)],
            [value("y", ("N", 3))],
        ),
        rows={"x": 0},
    )
    # As many rows as a row has elements: together the values of "s" look like one vector.
    bag = db.from_sequence([{"x": np.ones(3, "f4"), "s": np.float32(i)} for i in range(3)])
    table = pd.DataFrame({"x": [[1.0, 1, 1]] * 3, "s": [0.0, 1, 2]})
    for rows in (bag, table):
        with pytest.raises(dx.InputError) as caught:
            model.predict(rows)
        assert caught.value.input == "s"
