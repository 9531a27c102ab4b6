"""Costs of nodes: operations, bytes, and the seconds predicted from them."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, value, weights
from onnx import TensorProto, helper, numpy_helper

from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import load_onnx


def cost_of(nodes, x, constants=None, **options) -> NodeCost:
    model = make_model(nodes, [value("x", x)], [value("y", None)], constants, **options)
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


def test_bytes_of_weights_and_activations_are_separate():
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


def test_constant_nodes_are_weights():
    array = weights(1000, 3)
    made = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array)),
        node("MatMul", "x w", "y"),
    ]
    cost = cost_of(made, [2, 1000])
    assert cost.parameter_bytes == array.nbytes
    assert cost.activation_bytes == (2 * 1000 + 2 * 3) * 4


def test_attention_multiplies_every_query_by_every_key():
    past = {name: weights(2, 4, 3, 8) for name in ("k", "v")}
    with_heads = cost_of(
        [node("Attention", "x x x - k v", "y pk pv")], [2, 4, 5, 8], past, opset=23
    )
    assert with_heads.flops == 2 * 2 * (2 * 4 * 5 * 8) * (5 + 3)
    side_by_side = node("Attention", "x x x", "y", q_num_heads=4, kv_num_heads=4)
    assert cost_of([side_by_side], [2, 5, 32], opset=23).flops == 2 * 2 * (2 * 5 * 32) * 5


MICROSOFT = {
    "MultiHeadAttention": (
        node("MultiHeadAttention", "x x x", "y", num_heads=4),
        [2, 5, 32],
        {},
        4 * 2 * 5 * 5 * 32,
    ),
    "Attention": (
        node("Attention", "x w", "y", num_heads=4),
        [2, 5, 32],
        {"w": weights(32, 96)},
        2 * 2 * 5 * 32 * 96 + 4 * 2 * 5 * 5 * 32,
    ),
    "FusedMatMul": (
        node("FusedMatMul", "x w", "y", transB=1),
        [2, 5, 32],
        {"w": weights(7, 32)},
        2 * 2 * 5 * 32 * 7,
    ),
    "MatMulNBits": (node("MatMulNBits", "x w s", "y", K=32, N=7), [5, 32], {}, 2 * 5 * 32 * 7),
}


@pytest.mark.parametrize("case", MICROSOFT)
def test_operators_of_onnx_runtime_are_counted(case):
    made, x, constants, flops = MICROSOFT[case]
    made.domain = "com.microsoft"
    facts = GraphFacts(
        load_onnx(
            make_model(
                [made],
                [value("x", x), *[value(n, [1]) for n in made.input if n not in ("x", *constants)]],
                [value("y", None)],
                constants,
                domains={"com.microsoft": 1},
            )
        )
    )
    assert node_costs(facts, infer_shapes(facts))[-1].flops == flops


def forest(trees, depth):
    inner, leaves = 2**depth - 1, 2**depth
    size = inner + leaves
    below = [(2 * i + 1, 2 * i + 2) if i < inner else (0, 0) for i in range(size)]
    return node(
        "TreeEnsembleRegressor", "x", "y", domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[t for t in range(trees) for _ in range(size)],
        nodes_nodeids=list(range(size)) * trees,
        nodes_featureids=[0] * size * trees,
        nodes_values=[0.0] * size * trees,
        nodes_modes=(["BRANCH_LEQ"] * inner + ["LEAF"] * leaves) * trees,
        nodes_truenodeids=[pair[0] for pair in below] * trees,
        nodes_falsenodeids=[pair[1] for pair in below] * trees,
        target_treeids=[t for t in range(trees) for _ in range(leaves)],
        target_nodeids=list(range(inner, size)) * trees,
        target_ids=[0] * leaves * trees,
        target_weights=[1.0] * leaves * trees,
    )  # fmt: skip


def test_tree_steps_are_counted_and_have_their_own_speed():
    cost = cost_of([forest(5, 3)], [7, 2], domains={"ai.onnx.ml": 3})
    assert cost.flops == cost.tree_steps == 7 * 5 * 3
    table = CostTable(seconds_per_tree_step=1e-3, seconds_per_node=0)
    assert table.seconds(cost) == pytest.approx(0.105)


def test_tree_steps_of_tree_ensemble_are_counted():
    numbers = numpy_helper.from_array(weights(6), "numbers")
    modes = numpy_helper.from_array(np.zeros(6, np.uint8), "modes")
    made = node(
        "TreeEnsemble", "x", "y", domain="ai.onnx.ml", n_targets=1, tree_roots=[0, 3],
        nodes_splits=numbers, nodes_modes=modes, nodes_featureids=[0] * 6,
        nodes_truenodeids=[1, 0, 2, 4, 4, 6], nodes_falsenodeids=[2, 1, 3, 5, 5, 7],
        nodes_trueleafs=[0, 1, 1, 0, 1, 1], nodes_falseleafs=[0, 1, 1, 0, 1, 1],
        leaf_targetids=[0] * 8, leaf_weights=numpy_helper.from_array(weights(8), "leaves"),
    )  # fmt: skip
    assert cost_of([made], [7, 2], domains={"ai.onnx.ml": 5}).tree_steps == 7 * 2 * 2


def test_linear_models_are_counted():
    regressor = node("LinearRegressor", "x", "y", domain="ai.onnx.ml", coefficients=[1.0] * 12)
    assert cost_of([regressor], [5, 12], domains={"ai.onnx.ml": 3}).flops == 2 * 5 * 12


def body(name, nodes, inputs=(), outputs=()):
    return helper.make_graph(list(nodes), name, list(inputs), list(outputs))


def if_node(then, other):
    return node("If", "flag", "y", then_branch=then, else_branch=other)


def test_the_more_expensive_branch_of_an_if_counts():
    small = body("small", [node("Relu", "x", "a")], outputs=[value("a", None)])
    large = body(
        "large",
        [
            node("MatMul", "x w", "h"),
            if_node(small, body("inner", [node("MatMul", "h v", "y")], outputs=[value("y", None)])),
        ],
        outputs=[value("y", None)],
    )
    model = make_model(
        [if_node(large, small)],
        [value("x", [3, 5]), value("flag", [], TensorProto.BOOL)],
        [value("y", None)],
        {"w": weights(5, 7), "v": weights(7, 5)},
    )
    facts = GraphFacts(load_onnx(model))
    (cost,) = node_costs(facts, infer_shapes(facts))
    assert cost.flops == 2 * 3 * 5 * 7 * 2
    assert cost.parameter_bytes == 2 * 5 * 7 * 4
    assert cost.activation_bytes == 2 * 3 * 5 * 4 + 1
    first, second = 4 * (3 * 5 + 5 * 7 + 3 * 7), 4 * (3 * 7 + 7 * 5 + 3 * 5)
    inner_if = 4 * (7 * 5 + 3 * 7 + 3 * 5 + 3 * 5) + 1  # v, h, x, the output, and the flag
    assert cost.body_bytes == first + inner_if + second


def loop(trips, body_nodes):
    return node(
        "Loop", f"{trips} - x", "y all",
        body=body(
            "step", body_nodes,
            [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL),
             value("s", None)],
            [value("go_on", [], TensorProto.BOOL), value("t", None), value("row", None)],
        ),
    )  # fmt: skip


STEP = [node("Identity", "go", "go_on"), node("MatMul", "s w", "t"), node("Identity", "t", "row")]
ENDING_STEP = [node("Not", "go", "go_on"), *STEP[1:]]
"""Step of a loop that ends after its first turn; the condition is one operation."""


def test_the_body_of_a_loop_counts_once_per_iteration():
    constants = {"w": weights(5, 5), "M": np.array(6, np.int64)}
    cost = cost_of([loop("M", STEP)], [3, 5], constants)
    assert cost.flops == 6 * 2 * 3 * 5 * 5
    assert cost.parameter_bytes == 5 * 5 * 4 + 8
    # Values of all iterations are not alive at once. (ONNX infers no shape for the outputs.)
    assert cost.activation_bytes == 4 * 3 * 5 and cost.body_bytes > 6 * 4 * (3 * 5 + 5 * 5)


def test_a_loop_without_a_known_trip_count_counts_once():
    # Exporters write so many turns where the body's condition ends the loop.
    constants = {"w": weights(5, 5), "M": np.array(2**63 - 1, np.int64)}
    assert cost_of([loop("M", ENDING_STEP)], [3, 5], constants).flops == 2 * 3 * 5 * 5 + 1


def test_the_body_of_a_scan_counts_once_per_step():
    step = body(
        "step",
        [node("MatMul", "s w", "u"), node("Add", "u e", "t"), node("Identity", "t", "row")],
        [value("s", None), value("e", None)],
        [value("t", None), value("row", None)],
    )
    scan = node("Scan", "start x", "y rows", num_scan_inputs=1, body=step, scan_input_axes=[1])
    constants = {"w": weights(5, 5), "start": weights(3, 5)}
    cost = cost_of([scan], [3, 9, 5], constants)
    assert cost.flops == 9 * (2 * 3 * 5 * 5 + 3 * 5)


TOKEN = [node("MatMul", "ids w", "logits")]


@pytest.mark.parametrize(("op", "inputs", "sequences"), [
    ("GreedySearch", "x M", 2),
    ("BeamSearch", "x M - B", 2 * 4),
])  # fmt: skip
def test_generators_run_their_body_for_each_token(op, inputs, sequences):
    decoder = body("decoder", TOKEN, [value("ids", ["batch", 5])], [value("logits", None)])
    search = node(op, inputs, "y", domain="com.microsoft", decoder=decoder)
    constants = {"w": weights(5, 7), "M": np.array([9], np.int32), "B": np.array([4], np.int32)}
    cost = cost_of([search], [2, 3], constants, domains={"com.microsoft": 1})
    assert cost.flops == 2 * 3 + 9 * sequences * 2 * 5 * 7


def test_a_score_function_of_flex_attention_counts():
    doubled = body("double", [node("Add", "s s", "t")], [value("s", None)], [value("t", None)])
    made = node("FlexAttention", "x x x", "y", domain="ai.onnx.preview", score_mod=doubled)
    cost = cost_of([made], [2, 4, 5, 8], domains={"ai.onnx.preview": 1}, opset=26, ir_version=13)
    assert cost.flops == 2 * (2 * 4 * 5 * 5) * (8 + 8) + 2 * 4 * 5 * 5


def test_scalar_constants_are_known():
    constants = {"axis": np.array(1, np.int64)}
    made = [node("DFT", "x - axis", "y")]
    assert cost_of(made, [3, 8, 16, 1], constants, opset=20).flops == 3 * 16 * 5 * 8 * 3


def test_a_body_with_unknown_inputs_counts_as_nothing():
    constants = {"w": weights(5, 5)}
    made = [node("Custom", "x", "z", domain="own"), loop("-", ENDING_STEP)]
    made[1].input[2] = "z"
    assert cost_of(made, [3, 5], constants, domains={"own": 1}).flops == 0
