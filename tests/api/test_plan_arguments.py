"""Arguments of `Model.plan` and of the methods of `Plan`, and the fields of their errors."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from builders import dense_model, make_model, node, value

import dask_onnx as dx
from dask_onnx.sharding import auto_sharding

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return dx.load(dense_model())


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("strategy", {"strategy": 3}),
        ("strategy", {"strategy": "at_values"}),
        ("strategy", {"strategy": "pipelin"}),
        ("aim", {"aim": "speed"}),
        ("session", {"session": {"intra_op_num_threads": 1}}),
        ("client", {"client": "tcp://scheduler:8786"}),
        ("batches", {"batches": 0}),
        ("n_stages", {"strategy": "auto", "n_stages": 2}),
        ("n_stages", {"strategy": "whole", "n_stages": 2}),
        ("memory_limit", {"strategy": "pipeline", "memory_limit": "much"}),
    ],
)
def test_plan_error_names_the_option(model, option, arguments):
    with pytest.raises(dx.PlanError) as caught:
        model.plan(**arguments)
    assert caught.value.option == option


def test_plan_error_suggests_values(model):
    with pytest.raises(dx.PlanError) as caught:
        model.plan(aim="speed")
    assert caught.value.suggestions == (
        dx.Suggestion("aim", "throughput"),
        dx.Suggestion("aim", "latency"),
    )


def test_auto_refuses_an_unknown_aim_before_it_tries_shards(model, monkeypatch):
    monkeypatch.setattr(auto_sharding, "_alternatives", None)
    with pytest.raises(dx.PlanError) as caught:
        model.plan("auto", aim="speed")
    assert caught.value.option == "aim"


def test_strategy_objects_equal_their_names(model):
    by_object, by_name = model.plan(dx.Pipeline(n_stages=2)), model.plan("pipeline", n_stages=2)
    assert by_object.stages == by_name.stages
    assert by_object.recipe.strategy == "pipeline"


@pytest.mark.parametrize("placement", [(0, 1), dx.Placement((0, 1, 2))])
def test_with_placement_suggests_a_worker_group_for_each_stage(model, placement):
    plan = model.plan("pipeline", n_stages=2)
    with pytest.raises(dx.PlanError) as caught:
        plan.with_placement(placement)
    assert caught.value.suggestions == (dx.Suggestion("placement", dx.Placement((0, 1))),)
    assert caught.value.option == "placement"


@pytest.mark.parametrize("name", ["plan.png", "missing/plan.svg", "."])
def test_visualize_refuses_a_path_that_it_cannot_write(model, tmp_path, name):
    with pytest.raises(dx.PlanError) as caught:
        model.plan().visualize(tmp_path / name)
    assert caught.value.option == "path"


def test_diff_accepts_plans_only(model):
    with pytest.raises(dx.PlanError) as caught:
        model.plan().diff("whole")
    assert caught.value.option == "other"


@pytest.mark.parametrize(
    ("option", "way", "sample", "budget"),
    [
        ("way", "int4", X, 1.0),
        ("sample", "int8", da.from_array(X), 1.0),
        ("budget", "int8", X, 1e-9),
    ],
)
def test_with_loss_error_names_the_option(model, option, way, sample, budget):
    with pytest.raises((dx.PlanError, dx.InputError)) as caught:
        model.plan("per_node").with_loss(way, sample, budget=budget)
    assert caught.value.option == option


def test_predict_refuses_a_plan_of_another_model(model):
    other = dx.load(dense_model(hidden=16)).plan()
    with pytest.raises(dx.PlanError) as caught:
        model.predict(X, plan=other)
    assert caught.value.option == "plan"


def test_predict_checked_accepts_tables_and_bags_only(model):
    with pytest.raises(dx.InputError) as caught:
        model.predict_checked(X)
    assert caught.value.option == "x"


def test_model_refuses_a_path_and_names_load():
    with pytest.raises(dx.ModelError) as caught:
        dx.Model("model.onnx")
    assert "dx.load('model.onnx')" in caught.value.next_step


def test_verify_axes_refuses_pieces_that_do_not_add_up(model):
    with pytest.raises(dx.InputError) as caught:
        dx.verify_axes(model, X, pieces=[(1, 2)])
    assert (caught.value.option, caught.value.input, caught.value.axis) == ("pieces", "x", 0)
    assert caught.value.numbers == {"axis_size": 4, "sum_of_pieces": 3}


def test_verify_axes_refuses_a_random_model():
    random = make_model(
        [node("RandomNormalLike", "x", "r", "noise"), node("Add", "x r", "y")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )
    with pytest.raises(dx.InputError) as caught:
        dx.verify_axes(dx.load(random), X)
    assert caught.value.node == "noise"
