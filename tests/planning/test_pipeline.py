"""Contiguous stages, as equal as they can be."""

from __future__ import annotations

import numpy as np
import pytest
from builders import layers_model

import dask_onnx as dx


def test_stages_are_balanced_by_their_work():
    model = dx.load(layers_model([4000, 1000, 1000, 1000, 1000]))
    plan = model.plan("pipeline", n_stages=2, shapes={"x": (64, 8)})
    first, second = plan.stages
    assert abs(first.cost.parameter_bytes - second.cost.parameter_bytes) < 1000
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    np.testing.assert_array_equal(model.predict(x, plan=plan), model.predict(x))


def test_a_limit_decides_how_many_stages():
    model = dx.load(layers_model([1000] * 6))  # 64 kB a layer
    plan = model.plan("pipeline", memory_limit=140_000)
    assert len(plan.stages) == 3
    assert all(stage.cost.parameter_bytes <= 140_000 for stage in plan.stages)
    assert len(model.plan("pipeline", memory_limit="1MiB").stages) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "of how many stages"),
        ({"n_stages": 99}, "can be cut into 1 to"),
        ({"n_stages": 2, "memory_limit": 140_000}, r"(?s)stage \d of 2, .* limit is .*is 3$"),
        ({"memory_limit": 1000}, r"(?s)node 'up0' alone needs .*limit is 1000 B.*raise memory"),
        ({"n_stages": 2, "min_seconds": 1.0}, "'pipeline' takes no min_seconds"),
    ],
)
def test_what_cannot_be_is_said_with_the_numbers(options, message):
    with pytest.raises(dx.PlanError, match=message):
        dx.load(layers_model([1000] * 6)).plan("pipeline", **options)


def test_the_callers_own_cuts():
    model = dx.load(layers_model([16] * 3))
    plan = model.plan(dx.at_values(["y0", "r1"]))
    assert [len(stage.nodes) for stage in plan.stages] == [3, 2, 5]
    x = np.ones((3, 8), np.float32)
    np.testing.assert_array_equal(model.predict(x, plan=plan), model.predict(x))
    together = model.plan(dx.at_values([["y0", "h1"]]))
    assert [len(stage.nodes) for stage in together.stages] == [4, 6]
    for values, message in (
        (["nothing"], "'nothing' is no value"),
        (["x"], "'x' is no value that a node makes"),
        (["y1", "y0"], "nothing is left for a stage that ends at 'y0'"),
    ):
        with pytest.raises(dx.PlanError, match=message):
            model.plan(dx.at_values(values))


def test_worker_groups_that_were_given_stay_where_the_stages_are_as_many():
    source = layers_model([64] * 6)
    model = dx.load(source)
    plan = model.plan("pipeline", n_stages=3).with_placement(dx.Placement((0, 0, 1)))
    assert plan.on(dx.load(source)).placement == dx.Placement((0, 0, 1))
    assert plan.for_outputs(("y3",)).placement == dx.Placement((0, 0, 1))


def test_worker_groups_of_other_stages_are_as_loose():
    plan = dx.load(layers_model([64] * 6)).plan("pipeline", memory_limit=9000)
    worker_groups = tuple(i % 2 for i in range(len(plan.stages)))
    plan = plan.with_placement(dx.Placement(worker_groups, allow_other_workers=True))
    fewer = plan.for_outputs(("y3",))
    assert 1 < len(fewer.stages) < len(plan.stages)
    assert fewer.placement == dx.Placement.one_each(len(fewer.stages), 2, allow_other_workers=True)
