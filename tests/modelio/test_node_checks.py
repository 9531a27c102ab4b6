"""Nodes: their attributes, inputs and bodies are those that the operator defines."""

from __future__ import annotations

import numpy as np
import pytest
from builders import node, value
from modelio.damaged_models import X, call, function, model_of, refusal
from onnx import AttributeProto, TensorProto, helper

import dask_onnx as dx


def changed(change):
    concat = node("Concat", "x x", "y", name="c", axis=1)
    change(concat)
    return model_of([concat])


@pytest.mark.parametrize(
    "change",
    [
        lambda n: setattr(n.attribute[0], "type", AttributeProto.FLOAT),
        lambda n: setattr(n.attribute[0], "type", 0),
        lambda n: setattr(n.attribute[0], "type", AttributeProto.GRAPH),
        lambda n: setattr(n.attribute[0], "name", ""),
        lambda n: setattr(n.attribute[0], "ref_attr_name", "gone"),
        lambda n: n.attribute.append(n.attribute[0]),
        lambda n: n.ClearField("attribute"),
        lambda n: n.ClearField("input"),
        lambda n: n.ClearField("output"),
        lambda n: n.output.append("z"),
        lambda n: setattr(n, "op_type", ""),
    ],
    ids=[
        "type",
        "no type",
        "graph",
        "no name",
        "reference",
        "twice",
        "missing",
        "inputs",
        "outputs",
        "two outputs",
        "operator",
    ],
)
def test_nodes_are_as_their_operator_defines_them(change):
    model = changed(change)
    if not model.graph.node[0].output:
        model.graph.output[0].name = "x"
    assert refusal(model).node in ("c", "")


def test_an_operator_of_the_caller_has_attributes_of_its_own():
    # Concat of the domain "mine" is not ONNX's, and a replaced one neither.
    own = helper.make_node("Concat", ["x"], ["y"], domain="mine", axis=1.5)
    model = dx.load(model_of([own]), replace={"mine::Concat": lambda x, axis: x * axis})
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(model.predict(x), x * 1.5)


@pytest.mark.parametrize("target", ["gone", ""])
def test_references_to_attributes_belong_to_functions(target):
    inner = helper.make_node("LeakyRelu", ["a"], ["b"])
    attribute = inner.attribute.add(name="alpha", type=AttributeProto.FLOAT)
    attribute.ref_attr_name = target or "alpha"
    functions = [function("f", [inner], attributes=["alpha"])]
    model = model_of([call("f", "x", "y")], functions=functions)
    if target:
        assert refusal(model).node == "LeakyRelu_0"
    else:
        assert dx.load(model).facts.nodes[0].op_type == "LeakyRelu"


@pytest.mark.parametrize("op_type", ["If", "Loop", "Scan"])
def test_bodies_take_what_their_node_gives(op_type):
    body = helper.make_graph([node("Relu", "x", "b")], "b", [value("i", [1])], [value("b", None)])
    nodes = {
        "If": node("If", "c", "y", name="n", then_branch=body, else_branch=body),
        "Loop": node("Loop", "t c x", "y", name="n", body=body),
        "Scan": node("Scan", "x", "y z", name="n", body=body, num_scan_inputs=1),
    }
    inputs = [X, value("c", [], TensorProto.BOOL), value("t", [], TensorProto.INT64)]
    assert refusal(model_of([nodes[op_type]], inputs=inputs)).node == "n"


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "", "y")],
        [helper.make_node("Loop", ["", "", "x"], ["y"])],
        [node("Relu", "x x", "y")],
    ],
    ids=["no inputs", "no body", "too many inputs"],
)
def test_nodes_of_a_domain_that_is_not_imported_are_those_of_its_newest_version(nodes):
    """As ONNX Runtime takes them, if the model imports another domain."""
    other = [helper.make_opsetid("mine", 1)]
    assert refusal(model_of(nodes, opset_imports=other)).node
    sound = model_of([node("Relu", "x", "y")], opset_imports=other)
    assert dx.load(sound).inputs
