"""Strategies that cut a graph into stages, and the stages' labels."""

from __future__ import annotations

import dask.utils
import numpy as np
import pytest
from builders import branching_model, captured_model, dense_model, make_model, node, value, weights
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx


def labels(plan):
    return [stage.label for stage in plan.stages]


def residual_model(blocks: int):
    nodes, constants, last = [], {}, "x"
    for i in range(blocks):
        constants[f"w{i}"] = weights(8, 8, seed=i)
        nodes += [
            node("MatMul", f"{last} w{i}", f"m{i}", f"matmul{i}"),
            node("Relu", f"m{i}", f"r{i}", f"relu{i}"),
            node("Add", f"r{i} {last}", f"s{i}", f"add{i}"),
        ]
        last = f"s{i}"
    return make_model(
        nodes, [value("x", ["N", 8])], [value(last, ["N", 8])], constants, name="residual"
    )


def test_whole_is_one_stage_named_like_the_model():
    plan = dx.load(dense_model()).plan("whole")
    assert labels(plan) == ["dense"]
    assert plan.stage_graph.edges == ()
    assert plan.stages[0].nodes == (0, 1, 2, 3)


def test_per_node_is_a_stage_for_each_node():
    plan = dx.load(dense_model()).plan("per_node")
    assert labels(plan) == ["first", "bias", "activate", "second"]
    assert [(e.value, e.producer, e.consumer) for e in plan.stage_graph.edges] == [
        ("h1", 0, 1),
        ("h2", 1, 2),
        ("h3", 2, 3),
    ]


@pytest.mark.parametrize("n_stages", range(1, 8))
def test_fused_gives_the_requested_number_of_stages(n_stages):
    plan = dx.load(residual_model(4)).plan("fused", n_stages=n_stages)
    assert len(plan.stages) == n_stages


def test_fused_keeps_chains_that_ort_fuses_in_one_stage():
    plan = dx.load(residual_model(4)).plan("fused", n_stages=7)
    for stage in plan.stages:
        for i in range(4):
            assert (3 * i in stage.nodes) == (3 * i + 1 in stage.nodes)


def test_fused_keeps_branches_apart():
    plan = dx.load(branching_model()).plan("fused", n_stages=5)
    assert labels(plan) == ["stem", "left+left_end", "middle", "right", "join"]
    into_join = {e.producer for e in plan.stage_graph.edges if e.consumer == 4}
    assert into_join == {1, 2, 3}
    assert {e.consumer for e in plan.stage_graph.edges if e.producer == 0} == {1, 2, 3}


def test_min_seconds_bounds_the_size_of_stages():
    model = dx.load(residual_model(6))
    total = model.plan("whole").stage_graph.seconds
    assert len(model.plan("fused", min_seconds=total).stages) == 1
    assert len(model.plan("fused", min_seconds=total / 3.5).stages) == 3
    assert len(model.plan("fused").stages) == 1  # far too small to be worth a hop


@pytest.mark.parametrize(
    ("arguments", "option", "suggestions"),
    [
        ({"strategy": "fused", "n_stages": 99}, "n_stages", [("n_stages", 7)]),
        ({"strategy": "fused", "n_stages": 0}, "n_stages", [("n_stages", 1)]),
        ({"strategy": "fused", "min_seconds": 0}, "min_seconds", [("min_seconds", 0.05)]),
        (
            {"strategy": "whole", "n_stages": 2},
            "n_stages",
            [("n_stages", None), ("strategy", "fused"), ("strategy", "pipeline")],
        ),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(arguments, option, suggestions):
    with pytest.raises(dx.PlanError) as caught:
        dx.load(residual_model(4)).plan(**arguments)
    assert caught.value.option == option
    assert [(each.option, each.value) for each in caught.value.suggestions] == suggestions


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(dx.PlanError) as caught:
        dx.load(residual_model(4)).plan("halves")
    assert caught.value.option == "strategy"
    names = [each.value for each in caught.value.suggestions]
    assert "auto" in names and "pipeline" in names and "at_values" not in names


def test_causes_name_no_python_spelling_of_an_option():
    with pytest.raises(dx.PlanError) as caught:
        dx.load(residual_model(4)).plan("whole", n_stages=2)
    assert "n_stages" not in caught.value.cause and "n_stages" in caught.value.next_step


def test_a_body_and_what_it_reads_from_outside_stay_together():
    plan = dx.load(captured_model()).plan("per_node")
    choose = plan.stages[1]
    assert {spec.name for spec in choose.inputs} == {"flag", "h"}  # W is an initializer


def test_only_what_the_outputs_need_is_planned():
    plan = dx.load(branching_model()).plan("whole", outputs="m")
    assert plan.stages[0].nodes == (0, 3)
    assert [spec.name for spec in plan.stages[0].outputs] == ["m"]


def test_an_input_that_is_an_output_is_passed_on():
    model = make_model(
        [node("Relu", "x", "y")], [value("x", ["N"])], [value("y", ["N"]), value("x", ["N"])]
    )
    plan = dx.load(model).plan("per_node")
    assert [spec.name for spec in plan.stages[-1].outputs] == ["y", "x"]


NAMES = st.text(st.characters(codec="utf-8"), max_size=80)


@given(st.lists(NAMES, min_size=1, max_size=5), st.sampled_from("0123456789abcdef"))
def test_key_split_keeps_labels(names, digit):
    nodes, last = [], "x"
    for i, name in enumerate(names):
        nodes.append(node("Relu", last, f"v{i}", name))
        last = f"v{i}"
    plan = dx.load(make_model(nodes, [value("x", ["N"])], [value(last, ["N"])])).plan("per_node")
    for stage in plan.stages:
        assert stage.label[0].isalpha()
        assert "-" not in stage.label
        assert dask.utils.key_split(f"{stage.label}-{digit * 31}7") == stage.label


@pytest.mark.parametrize("strategy", ["per_node", "fused", "pipeline", "branches"])
def test_no_stage_waits_for_an_input_that_is_also_an_output(strategy):
    proto = make_model(
        [node("Relu", "x", "r"), node("Neg", "r", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4]), value("x", ["N", 4])],
    )
    model = dx.load(proto)
    options = {"n_stages": 2} if strategy in ("fused", "pipeline") else {}
    plan = model.plan(strategy, **options)
    assert all(edge.producer < edge.consumer for edge in plan.stage_graph.edges)
    assert plan.stage_graph.critical_path and "critical path" in plan.explain()
    assert plan.timeline().seconds > 0
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = model.predict(x, plan=plan)
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["y"], -x)
