"""Pipelines: contiguous stages of equal work, within a memory limit or sized for a cluster."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import layers_model

import dask_onnx as dx
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.pipeline import Pieces, PipelineSize, pipeline, size_for
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import Cluster


def test_stages_are_balanced_by_their_work():
    model = dx.load(layers_model([4000, 1000, 1000, 1000, 1000]))
    plan = model.plan("pipeline", n_stages=2, shapes={"x": (64, 8)})
    first, second = plan.stages
    assert abs(first.cost.parameter_bytes - second.cost.parameter_bytes) < 1000
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    np.testing.assert_array_equal(model.predict(x, plan=plan), model.predict(x))


def test_a_memory_limit_decides_the_number_of_stages():
    model = dx.load(layers_model([1000] * 6))  # 64 kB a layer
    plan = model.plan("pipeline", memory_limit=140_000)
    assert len(plan.stages) == 3
    assert all(stage.cost.parameter_bytes <= 140_000 for stage in plan.stages)
    assert len(model.plan("pipeline", memory_limit="1MiB").stages) == 1


def refused(options):
    """Return the error of a pipeline of six layers of 64 kB each."""
    with pytest.raises(dx.PlanError) as caught:
        dx.load(layers_model([1000] * 6)).plan("pipeline", **options)
    return caught.value


def values_of(error):
    return {each.option: each.value for each in error.suggestions}


def test_more_stages_than_pieces_are_refused_with_the_most():
    error = refused({"n_stages": 99})
    assert error.option == "n_stages" and error.numbers["n_stages"] == 99
    most = values_of(error)["n_stages"]
    assert most == error.numbers["most_stages"]
    assert len(dx.load(layers_model([1000] * 6)).plan("pipeline", n_stages=most).stages) == most


def test_fewer_stages_than_fit_are_refused_with_the_fewest():
    error = refused({"n_stages": 2, "memory_limit": 140_000})
    assert error.option == "n_stages" and error.stage and error.node
    assert error.numbers["limit_bytes"] == 140_000 < error.numbers["needed_bytes"]
    assert values_of(error)["n_stages"] == error.numbers["fewest_stages"] == 3
    enough = values_of(error)["memory_limit"]
    model = dx.load(layers_model([1000] * 6))
    assert len(model.plan("pipeline", n_stages=2, memory_limit=enough).stages) == 2


def test_a_node_above_the_limit_is_refused_with_a_limit_that_suffices():
    error = refused({"memory_limit": 1000})
    assert error.option == "memory_limit" and error.node == "up0"
    assert error.numbers["limit_bytes"] == 1000
    enough = values_of(error)["memory_limit"]
    assert enough == error.numbers["needed_bytes"]
    dx.load(layers_model([1000] * 6)).plan("pipeline", memory_limit=enough)


def test_options_of_other_strategies_are_refused():
    error = refused({"n_stages": 2, "min_seconds": 1.0})
    assert error.option == "min_seconds" and values_of(error)["strategy"] == "fused"


def test_the_strategy_alone_needs_a_size():
    with pytest.raises(dx.PlanError) as caught:
        pipeline(cut_of(dx.load(layers_model([16]))))
    assert values_of(caught.value) == {"n_stages": 2, "memory_limit": None}


def cut_of(model):
    recipe = Recipe("whole", None, SessionSpec())
    return model._facts.cut_inputs(recipe, model.facts.outputs)


LAYER = 64_000
"""Bytes of weights of a layer of 1000 units."""


@pytest.fixture(scope="module")
def pieces():
    return Pieces(cut_of(dx.load(layers_model([1000] * 6))))


def cluster(workers, room=math.inf, **fields):
    return Cluster(workers, 1, memory_limit=room, resident=0, **fields)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_model_that_fits_gets_a_stage_for_each_worker(pieces, workers):
    for room in (math.inf, 7 * LAYER):
        assert size_for(pieces, cluster(workers, room)) == PipelineSize(workers, None)


def test_a_model_that_does_not_fit_gets_the_fewest_stages_that_fit(pieces):
    assert size_for(pieces, cluster(8, 2.5 * LAYER)) == PipelineSize(3, int(2.5 * LAYER))


def test_no_more_stages_are_chosen_than_the_model_has_pieces(pieces):
    assert size_for(pieces, cluster(1000)).n_stages == pieces.most_stages


def test_a_stage_for_each_thread_is_chosen_in_this_process(pieces):
    local = Cluster(1, 4, memory_limit=math.inf, is_local=True)
    assert size_for(pieces, local).n_stages == 4


def test_the_smallest_worker_with_room_for_a_stage_sets_the_limit(pieces):
    rooms = (7 * LAYER, 2.5 * LAYER, 0.1 * LAYER)
    uneven = cluster(3, 0.1 * LAYER, limits=rooms)
    assert size_for(pieces, uneven) == PipelineSize(3, int(2.5 * LAYER))
    large = cluster(2, 0.1 * LAYER, limits=(7 * LAYER, 0.1 * LAYER))
    assert size_for(pieces, large) == PipelineSize(1, 7 * LAYER)


def test_a_cluster_without_room_for_a_node_is_refused(pieces):
    with pytest.raises(dx.PlanError) as caught:
        size_for(pieces, cluster(3, 1000))
    assert caught.value.node == "up0" and caught.value.numbers["limit_bytes"] == 1000


def test_a_size_is_made_of_options_of_the_strategy(pieces):
    assert PipelineSize(3, None).options == {"n_stages": 3}
    size = size_for(pieces, cluster(8, 2.5 * LAYER))
    assert len(pieces.pipeline(**size.options).stages) == size.n_stages


def test_cuts_are_where_the_caller_says():
    model = dx.load(layers_model([16] * 3))
    plan = model.plan(dx.at_values(["y0", "r1"]))
    assert [len(stage.nodes) for stage in plan.stages] == [3, 2, 5]
    x = np.ones((3, 8), np.float32)
    np.testing.assert_array_equal(model.predict(x, plan=plan), model.predict(x))
    together = model.plan(dx.at_values([["y0", "h1"]]))
    assert [len(stage.nodes) for stage in together.stages] == [4, 6]
    for values, wrong in ((["nothing"], "nothing"), (["x"], "x"), (["y1", "y0"], "y0")):
        with pytest.raises(dx.PlanError) as caught:
            model.plan(dx.at_values(values))
        assert caught.value.option == "values" and caught.value.input == wrong


def test_worker_groups_are_kept_where_the_number_of_stages_stays():
    source = layers_model([64] * 6)
    model = dx.load(source)
    plan = model.plan("pipeline", n_stages=3).with_placement(dx.Placement((0, 0, 1)))
    assert plan.on(dx.load(source)._facts).placement == dx.Placement((0, 0, 1))
    assert plan.for_outputs(("y3",)).placement == dx.Placement((0, 0, 1))


def test_other_stages_keep_whether_other_workers_are_allowed():
    plan = dx.load(layers_model([64] * 6)).plan("pipeline", memory_limit=9000)
    worker_groups = tuple(i % 2 for i in range(len(plan.stages)))
    plan = plan.with_placement(dx.Placement(worker_groups, allow_other_workers=True))
    fewer = plan.for_outputs(("y3",))
    assert 1 < len(fewer.stages) < len(plan.stages)
    assert fewer.placement == dx.Placement.one_each(len(fewer.stages), 2, allow_other_workers=True)
