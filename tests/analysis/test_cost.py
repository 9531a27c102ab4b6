from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, value, weights
from onnx import TensorProto

from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.onnx_model import load_onnx


def cost_of(nodes, x, constants=None) -> NodeCost:
    model = make_model(nodes, [value("x", x)], [value("y", None)], constants)
    facts = GraphFacts(load_onnx(model))
    return node_costs(facts, infer_shapes(facts))[-1]


CASES = {
    # A multiply-add is two operations.
    "Conv": (
        [node("Conv", "x w", "y", pads=[1, 1, 1, 1])],
        [1, 3, 10, 12],
        {"w": weights(8, 3, 3, 3)},
        2 * 8 * 10 * 12 * 3 * 3 * 3,
    ),
    "grouped Conv": (
        [node("Conv", "x w", "y", group=4)],
        [1, 4, 6, 6],
        {"w": weights(4, 1, 3, 3)},
        2 * 4 * 4 * 4 * 9,
    ),
    "ConvTranspose": (
        [node("ConvTranspose", "x w", "y", strides=[2, 2])],
        [1, 3, 5, 5],
        {"w": weights(3, 6, 2, 2)},
        2 * 3 * 5 * 5 * 6 * 2 * 2,
    ),
    "MatMul": ([node("MatMul", "x w", "y")], [2, 5, 7], {"w": weights(7, 3)}, 2 * 2 * 5 * 7 * 3),
    "Gemm": (
        [node("Gemm", "x w", "y", transA=1)],
        [7, 5],
        {"w": weights(7, 3)},
        2 * 5 * 7 * 3,
    ),
    "LSTM": (
        [node("LSTM", "x w r", "y", hidden_size=6)],
        [4, 2, 5],
        {"w": weights(1, 24, 5), "r": weights(1, 24, 6)},
        2 * 4 * 2 * (24 * 5 + 24 * 6),
    ),
    "Einsum": (
        [node("Einsum", "x w", "y", equation="bij,jk->bik")],
        [2, 3, 4],
        {"w": weights(4, 5)},
        2 * 2 * 3 * 4 * 5,
    ),
    "MaxPool": (
        [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])],
        [1, 3, 4, 4],
        None,
        3 * 2 * 2 * 4,
    ),
    "Relu": ([node("Relu", "x", "y")], [3, 4], None, 12),
    "ReduceSum": ([node("ReduceSum", "x", "y", keepdims=0)], [3, 4], None, 12),
    "Transpose": ([node("Transpose", "x", "y")], [3, 4], None, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_operations_are_counted(case):
    nodes, x, constants, flops = CASES[case]
    assert cost_of(nodes, x, constants).flops == flops


def test_bytes_are_counted_apart_for_weights_and_activations():
    cost = cost_of([node("MatMul", "x w", "y")], [2, 1000], {"w": weights(1000, 3)})
    assert cost.parameter_bytes == 1000 * 3 * 4
    assert cost.activation_bytes == (2 * 1000 + 2 * 3) * 4


def test_open_dimensions_count_as_one():
    assert cost_of([node("Relu", "x", "y")], ["N", 4]).flops == 4


def test_a_node_takes_the_longer_of_arithmetic_and_memory():
    table = CostTable(flops_per_second=1e9, bytes_per_second=1e9, seconds_per_node=0)
    assert table.seconds(NodeCost(2_000_000, 0, 1_000_000)) == pytest.approx(2e-3)
    assert table.seconds(NodeCost(0, 500, 500)) == pytest.approx(1e-6)


def test_half_precision_takes_half_the_bytes():
    model = make_model(
        [node("Relu", "x", "y")],
        [value("x", [8], TensorProto.FLOAT16)],
        [value("y", [8], TensorProto.FLOAT16)],
    )
    facts = GraphFacts(load_onnx(model))
    assert node_costs(facts, infer_shapes(facts))[0].activation_bytes == 2 * 8 * 2
    assert np.dtype(np.float16).itemsize == 2
