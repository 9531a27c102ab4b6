"""Options that cannot be used are refused with values that can, before anything runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import dense_model, layers_model, make_model, node, value

import dask_onnx as dx
from dask_onnx.core.errors import Suggestion
from dask_onnx.planning.recipe import Strategy


@pytest.fixture(scope="module")
def model():
    return dx.load(layers_model([16] * 4))


@pytest.mark.parametrize("number", [2.5, 2.0, "two", "2", [2], True, math.inf])
@pytest.mark.parametrize("option", ["n_stages", "n_workers", "batches"])
def test_counts_are_whole_numbers(model, option, number):
    strategy = {"n_stages": "pipeline", "n_workers": "branches", "batches": "auto"}[option]
    with pytest.raises(dx.PlanError) as caught:
        model.plan(strategy, **{option: number})
    assert caught.value.option == option
    assert caught.value.suggestions == (Suggestion(option, 2),)


@pytest.mark.parametrize("option", ["n_stages", "n_workers", "batches"])
@pytest.mark.parametrize("number", [0, -1])
def test_counts_are_one_or_more(model, option, number):
    strategy = {"n_stages": "fused", "n_workers": "branches", "batches": "auto"}[option]
    with pytest.raises(dx.PlanError) as caught:
        model.plan(strategy, **{option: number})
    assert caught.value.numbers == {option: number, "least": 1}
    assert caught.value.suggestions == (Suggestion(option, 1),)


def test_numpy_integers_are_whole_numbers(model):
    assert len(model.plan("pipeline", n_stages=np.int64(2)).stages) == 2


@pytest.mark.parametrize(
    "limit", ["1 parsec", "nan", "", -1, "-1GB", 0, math.nan, math.inf, [1], True]
)
def test_memory_is_a_number_of_bytes(model, limit):
    with pytest.raises(dx.PlanError) as caught:
        model.plan("pipeline", memory_limit=limit)
    assert caught.value.option == "memory_limit"
    assert caught.value.suggestions == (Suggestion("memory_limit", "1.5GiB"),)


@pytest.mark.parametrize("seconds", ["x", 0, -1, math.nan, math.inf])
def test_seconds_are_a_number_above_zero(model, seconds):
    with pytest.raises(dx.PlanError) as caught:
        model.plan("fused", min_seconds=seconds)
    assert caught.value.option == "min_seconds"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"strategy": "at_values"}, "strategy"),
        ({"strategy": ["whole"]}, "strategy"),
        ({"strategy": "nope"}, "strategy"),
        ({"aim": "speed"}, "aim"),
        ({"session": 3}, "session"),
        ({"client": "tcp://127.0.0.1:1"}, "client"),
        ({"strategy": "auto", "n_stages": 2}, "n_stages"),
    ],
)
def test_a_request_is_checked_before_anything_is_measured(model, monkeypatch, arguments, option):
    monkeypatch.setattr("dask_onnx.api.planner.measure_nodes", None)
    with pytest.raises(dx.PlanError) as caught:
        model.plan(**arguments, measure=np.ones((4, 8), np.float32))
    assert caught.value.option == option


@pytest.mark.parametrize(
    ("shapes", "name", "axis"),
    [
        ({"nope": (1, 2)}, "nope", None),
        ({"x": (4,)}, "x", None),
        ({"x": (4, 9)}, "x", 1),
        ({"x": (0, 8)}, "x", 0),
        ({"x": (-1, 8)}, "x", 0),
        ({"x": ("N", 8)}, "x", None),
        ({"x": 4}, "x", None),
        ([(4, 8)], None, None),
    ],
)
def test_shapes_fit_the_model(model, shapes, name, axis):
    for ask in (model.plan, model.analyse):
        with pytest.raises(dx.InputError) as caught:
            ask(shapes=shapes)
        assert caught.value.option == "shapes"
        assert (caught.value.input, caught.value.axis) == (name, axis)


def test_the_rows_of_one_input_hold_for_all_inputs():
    source = make_model(
        [node("Add", "a b", "y")],
        [value("a", ["N", 4]), value("b", ["N", 4])],
        [value("y", ["N", 4])],
    )
    model = dx.load(source)
    assert model.analyse({"a": (7, 4)}).shapes == {"a": (7, 4), "b": (7, 4)}
    # Also where the exporter gave each its own symbol.
    source.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "M"
    assert dx.load(source).analyse({"a": (7, 4)}).shapes["b"] == (7, 4)


@pytest.mark.parametrize("values", [[1], None, 3, [["y0", 2]], [[]]])
def test_values_to_cut_at_are_names(values):
    with pytest.raises(dx.PlanError) as caught:
        dx.at_values(values)
    assert caught.value.option == "values"


def test_a_single_value_needs_no_list(model):
    assert len(model.plan(dx.at_values("y1")).stages) == 2


@pytest.mark.parametrize("worker_groups", [(0, -1), (0, 1.5), (0, "a"), 3])
def test_worker_groups_are_numbers(worker_groups):
    with pytest.raises(dx.PlanError) as caught:
        dx.Placement(worker_groups)
    assert caught.value.option == "worker_groups"


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_worker_groups_in_turns_need_a_worker(workers):
    with pytest.raises(dx.PlanError) as caught:
        dx.Placement.one_each(3, workers)
    assert caught.value.option == "workers"


def test_arguments_of_plans_are_checked(model, tmp_path):
    plan = model.plan("pipeline", n_stages=2)
    x = np.ones((2, 8), np.float32)
    with pytest.raises(dx.PlanError) as caught:
        model.predict(x, plan="pipeline")
    assert caught.value.option == "plan"
    with pytest.raises(dx.PlanError) as caught:
        plan.diff("whole")
    assert caught.value.option == "other"
    with pytest.raises(dx.PlanError) as caught:
        plan.with_placement((0, 1))
    assert caught.value.option == "placement"
    with pytest.raises(dx.PlanError) as caught:
        plan.with_schedule("async", in_flight=2.5)
    assert caught.value.option == "in_flight"
    for batches in (0, -1, 2.5, "two"):
        with pytest.raises(dx.PlanError) as caught:
            plan.explain(batches=batches)
        assert caught.value.option == "batches"
    (tmp_path / "folder.svg").mkdir()
    for path in ("x.png", "missing/x.svg", "", "folder.svg"):
        with pytest.raises(dx.PlanError) as caught:
            plan.visualize(tmp_path / path)
        assert caught.value.option == "path"


def test_a_shape_may_have_more_rows_than_the_graph_was_exported_for():
    model = dx.load(dense_model(rows=1))
    assert model.plan(shapes={"x": (5, 8)}).stage_graph.seconds > 0


def test_options_of_a_strategy_object_are_checked_too(model):
    with pytest.raises(dx.PlanError) as caught:
        model.plan(Strategy("branches", {"n_workers": 0}))
    assert caught.value.option == "n_workers" and caught.value.numbers["n_workers"] == 0
