"""Nodes that neither ONNX Runtime nor the reference evaluator runs right are refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import make_model, node, value, weights
from onnx import TensorProto, helper

import dask_onnx as dx

DOUBLE = TensorProto.DOUBLE


def single(op, attributes, shape, more=(), dtype=DOUBLE, opset=22) -> onnx.ModelProto:
    """Return a model of one node that ONNX Runtime has no kernel of in double precision."""
    names = " ".join(["x", *(f"w{i}" for i in range(len(more)))])
    return make_model(
        [node(op, names, "y", "bad", **attributes)],
        [value("x", shape, dtype)],
        [value("y", None, dtype)],
        {f"w{i}": w for i, w in enumerate(more)},
        opset=opset,
        ir_version=10,
    )


def recurrent(**attributes):
    shapes = ((1, 3, 2), (1, 3, 3))
    more = [weights(*shape).astype(np.float64) for shape in shapes]
    return single("RNN", {"hidden_size": 3, **attributes}, ["T", "N", 2], more)


def kernel(**options):
    shape = options.pop("shape", (4, 2, 3, 3))
    return single("ConvTranspose", options, ["N", 4, 5, 5], [weights(*shape).astype(np.float64)])


@pytest.mark.parametrize(
    ("proto", "word"),
    [
        (recurrent(clip=0.3), "clip"),
        (recurrent(activations=["Relu"]), "activations"),
        (kernel(group=2), "groups"),
        (kernel(output_shape=[9, 9]), "output_shape"),
        (single("LpPool", {"kernel_shape": [2, 2]}, ["N", 1, 4, 4]), "windows"),
        (single("GlobalMaxPool", {}, ["N", 2, 9]), "axes"),
        (
            single(
                "Resize",
                {"mode": "linear"},
                ["N", 1, 4, 4],
                [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)],
                TensorProto.INT16,
                19,
            ),
            "integers",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_node_that_both_run_wrongly_is_refused_by_name(proto, word):
    with pytest.raises(dx.ModelError) as caught:
        dx.load(proto).plan()
    assert caught.value.node == "bad"
    assert word in caught.value.reason
    assert "onnx.reference" in caught.value.reason
    assert {each.option for each in caught.value.suggestions} >= {"custom_ops"}


@pytest.mark.parametrize(
    "proto",
    [
        recurrent(),
        recurrent(activations=["Tanh"]),
        kernel(shape=(4, 2, 3, 3), strides=[2, 2]),
        single("GlobalMaxPool", {}, ["N", 2, 5, 5]),
    ],
)
def test_neighbours_that_the_reference_runs_right_stay_possible(proto):
    model = dx.load(proto)
    assert model._facts.kernels[0].kernel == "reference"
    single_proto = onnx.ModelProto()
    single_proto.CopyFrom(proto)
    x = weights(4, *(d.dim_value or 3 for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]))
    y = model.predict(x.astype(np.float64), batch_size=None)
    for each in (*single_proto.graph.input, *single_proto.graph.output):
        each.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in single_proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    expected = dx.load(single_proto).predict(x, batch_size=None)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_body_beside_a_callers_kernel_is_not_run_wrongly():
    body = helper.make_graph(
        [
            helper.make_node("Twice", ["x"], ["t"], domain="mine"),
            node("LogSoftmax", "t", "s", axis=0),
        ],
        "then",
        [],
        [value("s", None)],
    )
    proto = make_model(
        [helper.make_node("If", ["c"], ["y"], "choose", then_branch=body, else_branch=body)],
        [value("c", [], TensorProto.BOOL), value("x", [3])],
        [value("y", None)],
        domains={"mine": 1},
    )
    with pytest.raises(dx.ModelError) as caught:
        dx.load(proto, replace={"mine::Twice": lambda x: 2 * x}).plan()
    assert caught.value.node == "choose"
    assert "LogSoftmax" in caught.value.reason
