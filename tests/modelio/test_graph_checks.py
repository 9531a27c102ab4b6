"""Values of a graph: each has one definition and a name that is text, in bodies too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import node, value
from modelio.damaged_models import X, Y, model_of, refusal, tensor
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import dask_onnx as dx


@pytest.mark.parametrize(
    ("nodes", "weights", "fault"),
    [
        ([node("Relu", "x", "y"), node("Neg", "x", "y")], [], "y"),
        ([node("Relu", "x", "y")], [tensor("y", (1,), raw_data=bytes(4))], "y"),
        ([node("Neg", "x", "x"), node("Relu", "x", "y")], [], "x"),
        ([node("Relu", "gone", "y")], [], "gone"),
        ([node("Relu", "x", "y"), node("Relu", "gone", "z")], [], "gone"),
        ([node("Relu", "x", "z")], [], "y"),
    ],
    ids=["twice", "weight", "input", "missing", "dead node", "no output"],
)
def test_each_value_has_one_definition(nodes, weights, fault):
    assert refusal(model_of(nodes, weights)).input == fault


def test_two_inputs_of_one_name_are_refused():
    assert refusal(model_of([node("Relu", "x", "y")], inputs=[X, X])).input == "x"


def test_a_repeated_initializer_is_accepted_as_by_onnx_runtime():
    first = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    last = numpy_helper.from_array(np.ones(4, np.float32), "w")
    model = dx.load(model_of([node("Add", "x w", "y")], [first, last]))
    assert model.facts.initializers == {"w"}


@pytest.mark.parametrize("place", ["node", "value", "initializer", "domain", "operator"])
def test_names_that_are_not_text_are_refused(place):
    model = model_of([node("Add", "x w", "y", name="QQQQ")], [tensor(raw_data=bytes(16))])
    targets = {
        "node": b"QQQQ",
        "value": b"\x12\x01y",
        "initializer": b"\x42\x01w",
        "domain": b"mine",
        "operator": b"Add",
    }
    data = model.SerializeToString()
    target = targets[place]
    assert target in data
    damaged = data.replace(target, target[:-1] + b"\xf4")
    assert "UTF-8" in refusal(damaged).cause


@pytest.mark.parametrize("depth", [3, 28])
def test_bodies_may_be_nested(depth):
    assert dx.load(nested(depth)).facts.nodes


@pytest.mark.parametrize("depth", [33, 500])
def test_bodies_may_not_be_nested_too_deep(depth):
    model = onnx.ModelProto()
    model.CopyFrom(nested(1))
    graph = model.graph
    for _ in range(depth):
        inner = graph.node.add(op_type="If", input=["c"], output=[f"q{depth}"])
        first = inner.attribute.add(name="then_branch", type=AttributeProto.GRAPH)
        other = inner.attribute.add(name="else_branch", type=AttributeProto.GRAPH)
        other.g.output.add(name="x")
        first.g.output.add(name="x")
        graph = first.g
    assert refusal(model)


def nested(depth):
    branch = helper.make_graph([node("Relu", "x", "y")], "b", [], [Y])
    for _ in range(depth):
        other = helper.make_graph([node("Neg", "x", "y")], "e", [], [Y])
        inner = node("If", "c", "y", then_branch=branch, else_branch=other)
        branch = helper.make_graph([inner], "b", [], [Y])
    return model_of(list(branch.node), inputs=[X, value("c", [], TensorProto.BOOL)])


def test_an_input_without_a_type_is_refused_unless_it_is_a_constant():
    untyped = onnx.ValueInfoProto(name="x")
    assert refusal(model_of([node("Relu", "x", "y")], inputs=[untyped])).input == "x"
    constant = numpy_helper.from_array(np.ones(4, np.float32), "c")
    model = model_of(
        [node("Add", "x c", "y")], [constant], inputs=[X, onnx.ValueInfoProto(name="c")]
    )
    assert [spec.name for spec in dx.load(model).inputs] == ["x"]
