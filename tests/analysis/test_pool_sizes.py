"""Sizes of pooling with ``ceil_mode``, compared with what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import make_model, node, value
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.pool_sizes import floor_padding, round_pools_down
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import load_onnx

OPSET = 22


def pool_model(op: str, shape, **attributes) -> onnx.ModelProto:
    """x -> p by pooling -> y, its flattened form."""
    nodes = [
        node(op, "x", "p", ceil_mode=1, **attributes),
        node("Flatten", "p", "y"),
    ]
    return make_model(nodes, [value("x", shape)], [value("y", None)], opset=OPSET, ir_version=10)


def run_quietly(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Run a model; ONNX Runtime warns where ONNX inferred another size."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def inferred(model: onnx.ModelProto, shape):
    return infer_shapes(GraphFacts(load_onnx(model)), {"x": shape})


def onnx_runtime_size(size: int, kernel: int, stride: int, gap: int, start: int, end: int) -> int:
    """Size along one axis: rounded up, without a last window that starts in the end padding."""
    reach = gap * (kernel - 1)
    count = -(-(size + start + end - reach - 1) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + start else count


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 3),
    st.data(),
)
def test_padding_for_rounding_down_gives_the_sizes_of_rounding_up(size, kernel, stride, gap, data):
    pads = [data.draw(st.integers(0, kernel - 1)) for _ in range(2)]
    reach = gap * (kernel - 1)
    assume(size + sum(pads) > reach)
    start, end = floor_padding([kernel], [stride], [gap], pads)
    assert (size + start + end - reach - 1) // stride + 1 == onnx_runtime_size(
        size, kernel, stride, gap, *pads
    )


ATTRIBUTES = [
    {"kernel_shape": [1, 2], "strides": [3, 4]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [2, 2], "strides": [2, 3], "dilations": [2, 1], "pads": [0, 1, 1, 0]},
    {"kernel_shape": [2, 3], "strides": [3, 5], "auto_pad": "VALID"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3]},
]


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_sizes_are_those_of_onnx_runtime(op, attributes):
    model = pool_model(op, ["N", 3, "H", "W"], **attributes)
    for size in range(5, 12):
        shape = (2, 3, size, size + 3)
        expected = run_quietly(model, np.ones(shape, np.float32)).shape
        assert inferred(model, shape)["y"].shape == expected


def test_pools_in_bodies_are_corrected():
    def body(name: str, op: str) -> onnx.GraphProto:
        pool = node(op, "x", name, kernel_shape=[1], strides=[2], ceil_mode=1)
        return helper.make_graph([pool], name, [], [value(name, None)])

    choose = node(
        "If", "flag", "y", then_branch=body("a", "MaxPool"), else_branch=body("b", "LpPool")
    )
    inputs = [value("flag", [], TensorProto.BOOL), value("x", [1, 1, "W"])]
    model = make_model([choose], inputs, [value("y", None)], opset=OPSET, ir_version=10)
    specs = infer_shapes(GraphFacts(load_onnx(model)), {"x": (1, 1, 4)})
    assert specs["y"].shape == (1, 1, 2)


@pytest.mark.parametrize(
    "attributes", [{"kernel_shape": [2, 2]}, {"kernel_shape": [2, 2], "ceil_mode": 0}]
)
def test_pools_that_round_down_are_left_alone(attributes):
    nodes = [node("MaxPool", "x", "y", strides=[3, 3], **attributes)]
    model = make_model(nodes, [value("x", [1, 1, 5, 5])], [value("y", None)])
    before = model.SerializeToString(deterministic=True)
    round_pools_down(model)
    assert model.SerializeToString(deterministic=True) == before
