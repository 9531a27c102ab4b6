"""Whatever cannot be asked for is said with what would do, and before anything runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import dense_model, layers_model, make_model, node, value

import dask_onnx as dx
from dask_onnx.planning.recipe import Strategy


@pytest.fixture(scope="module")
def model():
    return dx.load(layers_model([16] * 4))


@pytest.mark.parametrize("number", [2.5, 2.0, "two", "2", [2], True, math.inf])
@pytest.mark.parametrize("option", ["n_stages", "n_workers", "batches"])
def test_what_counts_is_a_whole_number(model, option, number):
    strategy = {"n_stages": "pipeline", "n_workers": "branches", "batches": "auto"}[option]
    with pytest.raises(dx.PlanError, match=rf"(?s){option} is .*\n.*{option}=2"):
        model.plan(strategy, **{option: number})


@pytest.mark.parametrize("option", ["n_stages", "n_workers", "batches"])
@pytest.mark.parametrize("number", [0, -1])
def test_it_is_one_or_more(model, option, number):
    strategy = {"n_stages": "fused", "n_workers": "branches", "batches": "auto"}[option]
    with pytest.raises(dx.PlanError, match=rf"(?s){option} is {number}\ngive {option}=1 or more"):
        model.plan(strategy, **{option: number})


def test_numbers_of_numpy_are_numbers(model):
    assert len(model.plan("pipeline", n_stages=np.int64(2)).stages) == 2


@pytest.mark.parametrize(
    "limit", ["1 parsec", "nan", "", -1, "-1GB", 0, math.nan, math.inf, [1], True]
)
def test_memory_is_a_number_of_bytes(model, limit):
    with pytest.raises(dx.PlanError, match=r"(?s)memory_limit is .*1\.5GiB"):
        model.plan("pipeline", memory_limit=limit)


@pytest.mark.parametrize("seconds", ["x", 0, -1, math.nan, math.inf])
def test_seconds_are_a_number_above_zero(model, seconds):
    with pytest.raises(dx.PlanError, match="min_seconds is"):
        model.plan("fused", min_seconds=seconds)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"strategy": "at_values"}, r"dx\.at_values"),
        ({"strategy": ["whole"]}, "the strategy is a list"),
        ({"strategy": "nope"}, "choose one of auto, whole"),
        ({"aim": "speed"}, "there is no aim 'speed'"),
        ({"session": 3}, "session is a int"),
        ({"client": "tcp://127.0.0.1:1"}, "client is a str"),
        ({"strategy": "auto", "n_stages": 2}, "'auto' takes no n_stages"),
    ],
)
def test_what_is_asked_for_is_looked_at_before_anything_is_measured(
    model, monkeypatch, arguments, reason
):
    monkeypatch.setattr("dask_onnx.api.planner.measure_nodes", None)
    with pytest.raises(dx.PlanError, match=reason):
        model.plan(**arguments, measure=np.ones((4, 8), np.float32))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"nope": (1, 2)}, "'nope', which is no input of the model\nits inputs are x: float32"),
        ({"x": (4,)}, r"'x' is 4; the model takes x: float32 \(N, 8\)"),
        ({"x": (4, 9)}, "'x' is 4x9"),
        ({"x": (0, 8)}, "'x' is 0x8"),
        ({"x": (-1, 8)}, "'x' is -1x8"),
        ({"x": ("N", 8)}, "as numbers"),
        ({"x": 4}, "'x' is 4\ngive a size for each axis"),
        ([(4, 8)], "shapes is a list"),
    ],
)
def test_shapes_fit_the_model(model, shapes, reason):
    for ask in (model.plan, model.analyse):
        with pytest.raises(dx.InputError, match=reason):
            ask(shapes=shapes)


def test_rows_of_one_input_are_those_of_all():
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
    with pytest.raises(dx.PlanError, match=r"dx\.at_values\(\[\"a\", \"b\"\]\)"):
        dx.at_values(values)


def test_one_value_may_stand_alone(model):
    assert len(model.plan(dx.at_values("y1")).stages) == 2


@pytest.mark.parametrize("worker_groups", [(0, -1), (0, 1.5), (0, "a"), 3])
def test_worker_groups_are_numbers(worker_groups):
    with pytest.raises(dx.PlanError, match="worker_group"):
        dx.Placement(worker_groups)


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_worker_groups_in_turns_need_a_worker(workers):
    with pytest.raises(dx.PlanError, match="workers is"):
        dx.Placement.one_each(3, workers)


def test_what_is_no_plan_is_told_from_one(model, tmp_path):
    plan = model.plan("pipeline", n_stages=2)
    x = np.ones((2, 8), np.float32)
    with pytest.raises(dx.PlanError, match=r"plan is a str\n.*model\.plan"):
        model.predict(x, plan="pipeline")
    with pytest.raises(dx.PlanError, match="not from a str"):
        plan.diff("whole")
    with pytest.raises(dx.PlanError, match=r"a tuple\ngive dx\.Placement"):
        plan.with_placement((0, 1))
    with pytest.raises(dx.PlanError, match="in_flight is"):
        plan.with_schedule("async", in_flight=2.5)
    for batches in (0, -1, 2.5, "two"):
        with pytest.raises(dx.PlanError, match="batches is"):
            plan.explain(batches=batches)
    for path, reason in (("x.png", "no .svg"), ("no/x.svg", "does not exist"), ("", "no .svg")):
        with pytest.raises(dx.PlanError, match=reason):
            plan.visualize(tmp_path / path)
    (tmp_path / "d.svg").mkdir()
    with pytest.raises(dx.PlanError, match="is a folder"):
        plan.visualize(tmp_path / "d.svg")


def test_a_shape_may_have_more_rows_than_the_graph_was_exported_for():
    model = dx.load(dense_model(rows=1))
    assert model.plan(shapes={"x": (5, 8)}).stage_graph.seconds > 0


def test_options_that_a_strategy_brings_are_checked_too(model):
    with pytest.raises(dx.PlanError, match="n_workers is 0"):
        model.plan(Strategy("branches", {"n_workers": 0}))
