"""Branches: stages side by side, repeated nodes, and values that travel."""

from __future__ import annotations

import numpy as np
import pytest
from builders import dense_model, make_model, node, run_onnx, value, weights

import dask_onnx as dx

WIDTH = 64


def branches_of(source, count):
    """Return the nodes of branches of two MatMuls that read `source`, and their weights."""
    nodes, constants = [], {}
    for i in range(count):
        constants |= {f"a{i}": weights(WIDTH, 4096, seed=i), f"b{i}": weights(4096, WIDTH, seed=i)}
        nodes.append(node("MatMul", f"{source} a{i}", f"u{i}", f"up{i}"))
        nodes.append(node("MatMul", f"u{i} b{i}", f"d{i}", f"down{i}"))
    return nodes, constants


def fan(branches, *, rows="N"):
    """Return a model of a cheap stem, branches of two MatMuls, and their sum."""
    nodes, constants = branches_of("stem", branches)
    nodes.insert(0, node("Relu", "x", "stem", "stem"))
    nodes.append(node("Sum", " ".join(f"d{i}" for i in range(branches)), "y", "join"))
    return make_model(
        nodes, [value("x", [rows, WIDTH])], [value("y", [rows, WIDTH])], constants, name="fan"
    )


def names(model, stage):
    return [model.facts.nodes[i].name for i in stage.nodes]


def test_branches_are_balanced_and_the_cheap_stem_is_repeated():
    model = dx.load(fan(4))
    plan = model.plan("branches", n_workers=2, shapes={"x": (512, WIDTH)})
    one, other, join = plan.stages
    assert names(model, one)[0] == names(model, other)[0] == "stem"
    assert len(one.nodes) == len(other.nodes) == 5
    assert one.cost.seconds == pytest.approx(other.cost.seconds)
    assert names(model, join) == ["join"]
    assert [spec.name for spec in one.inputs] == [spec.name for spec in other.inputs] == ["x"]
    assert sorted(edge.value for edge in plan.stage_graph.edges) == ["d0", "d1", "d2", "d3"]


def test_repeated_nodes_change_no_result():
    source = fan(3)
    model = dx.load(source)
    x = np.random.default_rng(0).standard_normal((7, WIDTH)).astype("f4")
    expected = run_onnx(source, {"x": x})[0]
    for workers in (1, 2, 3, 8):
        plan = model.plan("branches", n_workers=workers)
        np.testing.assert_allclose(model.predict(x, plan=plan), expected, rtol=1e-5, atol=1e-3)
        assert len(plan.stages) == (1 if workers == 1 else min(workers, 3) + 1)


def test_branches_that_meet_early_send_one_value():
    nodes, constants = branches_of("x", 4)
    nodes += [node("Max", "d0 d1", "m1", "m1"), node("Max", "m1 d2", "m2", "m2")]
    nodes.append(node("Max", "m2 d3", "y", "m3"))
    model = dx.load(
        make_model(nodes, [value("x", ["N", WIDTH])], [value("y", ["N", WIDTH])], constants)
    )
    plan = model.plan("branches", n_workers=2, shapes={"x": (512, WIDTH)})
    assert sorted(edge.value for edge in plan.stage_graph.edges) == ["d2", "d3", "m1"]


def test_a_chain_has_no_branches_and_stays_whole():
    assert len(dx.load(dense_model()).plan("branches", n_workers=4).stages) == 1


def test_an_expensive_stem_is_not_repeated():
    nodes = [node("MatMul", "x S", "s0", "expensive"), node("MatMul", "s0 T", "stem", "stem")]
    branches, constants = branches_of("stem", 2)
    nodes += branches
    constants |= {"S": weights(WIDTH, 8192), "T": weights(8192, WIDTH)}
    nodes.append(node("Add", "d0 d1", "y", "join"))
    model = dx.load(
        make_model(nodes, [value("x", ["N", WIDTH])], [value("y", ["N", WIDTH])], constants)
    )
    plan = model.plan("branches", shapes={"x": (512, WIDTH)})
    assert [names(model, stage) for stage in plan.stages] == [
        ["expensive", "stem"],
        ["up0", "down0"],
        ["up1", "down1"],
        ["join"],
    ]


def test_nodes_that_draw_random_numbers_are_not_repeated():
    nodes = [
        node("RandomNormalLike", "x", "noise", "noise"),
        node("Add", "x noise", "stem", "stem"),
    ]
    branches, constants = branches_of("stem", 2)
    nodes += branches
    nodes.append(node("Sub", "d0 d1", "y", "join"))
    model = dx.load(
        make_model(nodes, [value("x", ["N", WIDTH])], [value("y", ["N", WIDTH])], constants)
    )
    plan = model.plan("branches", shapes={"x": (512, WIDTH)})
    assert len(plan.stages) > 2
    assert sum("noise" in names(model, stage) for stage in plan.stages) == 1


def test_a_repeated_node_that_is_an_output_is_output_once():
    source = fan(2)
    source.graph.output.append(value("stem", ["N", WIDTH]))
    model = dx.load(source)
    plan = model.plan("branches", n_workers=2, shapes={"x": (512, WIDTH)})
    producers = [s.label for s in plan.stages if any(spec.name == "stem" for spec in s.outputs)]
    assert len(producers) == 1
    x = np.random.default_rng(0).standard_normal((5, WIDTH)).astype("f4")
    found = model.predict(x, plan=plan)
    np.testing.assert_array_equal(found["stem"], np.maximum(x, 0))


def test_no_workers_are_refused():
    for strategy, workers in (("branches", 0), ("whole", 2)):
        with pytest.raises(dx.PlanError) as caught:
            dx.load(fan(2)).plan(strategy, n_workers=workers)
        assert caught.value.option == "n_workers"
