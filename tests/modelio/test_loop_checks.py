"""Loops whose number of turns no computer reaches are refused; others are loaded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import node, value
from modelio.damaged_models import X, model_of, refusal
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx
from dask_onnx.modelio.loop_checks import MAX_TURNS


def loop_model(turns, *, condition="", keeps_on="go", limit=""):
    body = helper.make_graph(
        [node("Identity", keeps_on, "on"), node("Add", "s x", "t"), node("Not", "go", "stop")],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("s", None),
        ],
        [value("on", [], TensorProto.BOOL), value("t", None)],
    )
    weights = [numpy_helper.from_array(np.array(True), "true")]
    if turns is not None:
        weights.append(numpy_helper.from_array(np.array(turns, np.int64), "turns"))
    name = "" if turns is None else "turns"
    loop = helper.make_node("Loop", [limit or name, condition, "x"], ["y"], "loop", body=body)
    inputs = [X]
    if limit:
        inputs.append(value(limit, [], TensorProto.INT64))
    return model_of([loop], weights, inputs=inputs)


@pytest.mark.parametrize("condition", ["", "true"])
@pytest.mark.parametrize("keeps_on", ["go", "true"])
@pytest.mark.parametrize("turns", [2**62, MAX_TURNS + 1, None])
def test_loops_without_an_end_are_refused(turns, condition, keeps_on):
    error = refusal(loop_model(turns, condition=condition, keeps_on=keeps_on))
    assert error.node == "loop"
    assert error.numbers.get("turns") == turns


@pytest.mark.parametrize(
    "model",
    [
        loop_model(5),
        loop_model(MAX_TURNS),
        loop_model(-1),
        loop_model(2**62, keeps_on="stop"),
        loop_model(None, limit="n"),
    ],
    ids=["few", "most", "negative", "condition", "input"],
)
def test_loops_that_may_end_are_loaded(model):
    if any(n.input[0] == "stop" for n in model.graph.node[0].attribute[0].g.node):
        body = model.graph.node[0].attribute[0].g
        order = [body.node[2], body.node[0], body.node[1]]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
        del body.node[:]
        body.node.extend(nodes)
    assert dx.load(model).facts.nodes
