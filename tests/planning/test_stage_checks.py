"""Checks of stage graphs and of operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import branching_model, captured_model, make_model, node, value
from onnx import helper

import dask_onnx as dx
from dask_onnx.planning.stage_checks import check_stages


def plan_of(model):
    loaded = dx.load(model)
    return loaded, loaded.plan("per_node").stage_graph


def test_a_correct_stage_graph_passes():
    model, stages = plan_of(branching_model())
    check_stages(stages, model.facts)


def test_all_faults_are_in_one_message():
    model, stages = plan_of(branching_model())
    rest = stages.stages[1:]
    torn = replace(stages, stages=(*rest[:-1], rest[0]))
    with pytest.raises(dx.PlanError) as caught:
        check_stages(torn, model.facts)
    cause = caught.value.cause
    assert caught.value.numbers == {"problems": 8}
    assert "node 'stem' is in no stage" in cause
    assert "value 'a' is an output of 2 stages" in cause
    assert "has no producer" in cause


def test_a_value_from_a_later_stage_is_a_fault():
    model, stages = plan_of(branching_model())
    with pytest.raises(dx.PlanError, match="comes from a later stage"):
        check_stages(replace(stages, stages=stages.stages[::-1]), model.facts)


def broken(op, domain="", domains=None, opset=17):
    return make_model(
        [node(op, "x", "y", "culprit", domain=domain)],
        [value("x", ["N"])],
        [value("y", ["N"])],
        domains=domains,
        opset=opset,
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (broken("Reluu"), "node 'culprit' uses Reluu of domain 'ai.onnx', which opset 17"),
        (broken("Gelu"), "opset 17 does not have"),  # it came with opset 20
        (broken("Secret", "acme", {"acme": 1}), "Secret of domain 'acme', which neither"),
        (
            broken("NoSuchThing", "com.microsoft", {"com.microsoft": 1}),
            "neither ONNX nor onnxruntime",
        ),
        (broken("NoSuchThing", "ai.onnx.ml"), "which opset 5 does not have"),
        (broken("Relu", opset=999), "needs opset 999"),
    ],
)
def test_unknown_operators_are_refused(model, reason):
    with pytest.raises(dx.ModelError, match=reason) as caught:
        dx.load(model)
    assert caught.value.next_step
    assert caught.value.node == "culprit" or caught.value.numbers["opset"] == 999


def test_operators_inside_bodies_are_checked():
    model = captured_model()
    model.graph.node[1].attribute[0].g.node[0].op_type = "Addd"
    with pytest.raises(dx.ModelError, match="Addd"):
        dx.load(model)


def test_operators_of_onnxruntime_and_model_functions_are_known():
    dx.load(broken("FastGelu", "com.microsoft", {"com.microsoft": 1}))
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    model = make_model(
        [node("Twice", "x", "y", domain="own")],
        [value("x", ["N"])],
        [value("y", ["N"])],
        domains={"own": 1},
        functions=[function],
    )
    dx.load(model)
