"""Rules of single nodes: kind and axis of the result, and the node that decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from axes_models import fact_of, model_of
from builders import node, weights

N = "N"
MASK = {"w": weights(4, 3), "b": weights(4), "pos": weights(6, 4), "z": [0], "one": [1]}
ROTATED = weights(3, 3)


def k(op: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> list[Any]:
    """Return a single node named k."""
    return [node(op, inputs, outputs, "k", **attributes)]


Case = tuple[list[Any], tuple[Any, ...], dict[str, Any], tuple[str, int | None]]
"""Nodes, shape of x, constants, and the expected kind and axis of y."""
ELEMENTWISE: dict[str, Case] = {
    "unary": (k("Relu"), (N, 4), {}, ("independent", 0)),
    "with a vector": (k("Add", "x b"), (N, 4), MASK, ("independent", 0)),
    "with a table of rows": (k("Add", "x pos"), (N, 4), MASK, ("length", 0)),
    "along the last axis": (k("Add", "x pos"), (4, N), {"pos": weights(4, 1)}, ("independent", 1)),
    "with its own transpose": (
        [node("Transpose", "x", "t"), *k("Add", "x t")],
        (N, 6),
        {},
        ("paired", None),
    ),
    "prelu": (k("PRelu", "x b"), (3, N, 4), MASK, ("independent", 1)),
    "quantise by row": (
        k("QuantizeLinear", "x s", axis=0),
        (N, 4),
        {"s": weights(6) ** 2},
        ("length", 0),
    ),
    "quantise by column": (
        k("QuantizeLinear", "x s", axis=1),
        (N, 4),
        {"s": weights(4) ** 2},
        ("independent", 0),
    ),
}
ALONG: dict[str, Case] = {
    "softmax behind": (k("Softmax", axis=1), (N, 4, 5), {}, ("independent", 0)),
    "softmax of it": (k("Softmax", axis=0), (N, 4), {}, ("reduced", 0)),
    "mean of others": (k("ReduceMean", axes=[1], keepdims=0), (N, 4), {}, ("independent", 0)),
    "mean in front": (k("ReduceMean", axes=[0], keepdims=0), (4, N), {}, ("independent", 0)),
    "mean of it": (k("ReduceMean", axes=[0], keepdims=1), (N, 4), {}, ("reduced", None)),
    "argmax of others": (k("ArgMax", axis=1, keepdims=0), (N, 4), {}, ("independent", 0)),
    "argmax of it": (k("ArgMax", axis=0), (N, 4), {}, ("reduced", None)),
    "cumulative sum of it": (k("CumSum", "x z"), (N, 4), {"z": 0}, ("scanned", 0)),
    "cumulative sum of others": (k("CumSum", "x z"), (N, 4), {"z": 1}, ("independent", 0)),
    "top k of others": (k("TopK", "x one", "y i", axis=1), (N, 4), MASK, ("independent", 0)),
    "top k of it": (k("TopK", "x one", "y i", axis=0), (N, 4), MASK, ("gathered", None)),
    "layer norm": (k("LayerNormalization", "x b", axis=-1), (N, 4), MASK, ("independent", 0)),
    "layer norm of all": (
        k("LayerNormalization", "x s", axis=0),
        (N, 4),
        {"s": weights(1, 4)},
        ("reduced", 0),
    ),
    "instance norm": (k("InstanceNormalization", "x b b"), (N, 4, 8), MASK, ("independent", 0)),
    "instance norm over pixels": (
        k("InstanceNormalization", "x b b"),
        (2, 4, N),
        MASK,
        ("reduced", 2),
    ),
    "batch norm": (k("BatchNormalization", "x b b b b"), (N, 4), MASK, ("independent", 0)),
    "norm": (k("LpNormalization", axis=0), (N, 4), {}, ("reduced", 0)),
}
LAYOUT: dict[str, Case] = {
    "transpose": (k("Transpose", perm=[2, 0, 1]), (N, 4, 5), {}, ("independent", 1)),
    "transpose back": (k("Transpose"), (N, 4), {}, ("independent", 1)),
    "squeeze": (k("Squeeze", "x one"), (N, 1, 4), MASK, ("independent", 0)),
    "squeeze in front": (k("Squeeze", "x z"), (1, N, 4), MASK, ("independent", 0)),
    "squeeze of all axes of size 1": (k("Squeeze"), (N, 1, 4), {}, ("length", 0)),
    "unsqueeze": (k("Unsqueeze", "x z"), (N, 4), MASK, ("independent", 1)),
    "flatten": (k("Flatten"), (N, 2, 3), {}, ("independent", 0)),
    "slice of others": (
        k("Slice", "x a e axis"),
        (N, 4),
        {"a": [1], "e": [3], "axis": [1]},
        ("independent", 0),
    ),
    "slice to a fixed end": (
        k("Slice", "x z e z"),
        (N, 4),
        {"z": [0], "e": [512]},
        ("gathered", None),
    ),
    "slice to the end": (
        k("Slice", "x z e z"),
        (N, 4),
        {"z": [0], "e": [2**62]},
        ("independent", 0),
    ),
    "gather of others": (k("Gather", "x i", axis=1), (N, 4), {"i": [0, 2]}, ("independent", 0)),
    "gather in front": (k("Gather", "x i", axis=0), (4, N), {"i": 1}, ("independent", 0)),
    "gather of it": (k("Gather", "x i", axis=0), (N, 4), {"i": [0, 2]}, ("gathered", None)),
    "concat of features": (k("Concat", "x x", axis=1), (N, 4), {}, ("independent", 0)),
    "concat with a row": (
        k("Concat", "x r", axis=0),
        (N, 4),
        {"r": weights(1, 4)},
        ("gathered", None),
    ),
    "split of features": (k("Split", outputs="y b", axis=1), (N, 4), {}, ("independent", 0)),
    "split of it": (k("Split", outputs="y b", axis=0), (N, 4), {}, ("gathered", None)),
    "concat with itself and split": (
        [node("Concat", "x x", "c", axis=0), *k("Split", "c", "y b", axis=0)],
        (N, 4),
        {},
        ("independent", 0),
    ),
    "tiled features": (k("Tile", "x r"), (N, 4), {"r": [1, 2]}, ("independent", 0)),
    "tiled": (k("Tile", "x r"), (N, 4), {"r": [2, 1]}, ("gathered", None)),
    "triangle": (k("Trilu"), (N, 4), {}, ("length", 0)),
    "stack of triangles": (k("Trilu"), (N, 4, 4), {}, ("independent", 0)),
    "depth to space": (k("DepthToSpace", blocksize=2), (N, 4, 2, 2), {}, ("independent", 0)),
    "channels to space": (k("DepthToSpace", blocksize=2), (1, 12, N, 2), {}, ("window", 2)),
    "elements by index": (
        [node("ArgMax", "x", "i", axis=1), *k("GatherElements", "x i", axis=1)],
        (N, 4),
        {},
        ("independent", 0),
    ),
    "elements by fixed index": (
        k("GatherElements", "x i", axis=1),
        (N, 4),
        {"i": np.zeros((6, 1), int)},
        ("gathered", None),
    ),
    "nonzero": (k("NonZero"), (N, 4), {}, ("gathered", None)),
    "centre": (k("CenterCropPad", "x s", axes=[1]), (N, 4), {"s": [2]}, ("independent", 0)),
}
PRODUCTS: dict[str, Case] = {
    "rows": (k("MatMul", "x w"), (N, 4), MASK, ("independent", 0)),
    "columns": (k("MatMul", "w x"), (3, N), {"w": ROTATED}, ("independent", 1)),
    "inner": (k("MatMul", "x p"), (3, N), {"p": weights(6, 4)}, ("contracted", None)),
    "stack": (k("MatMul", "x s"), (N, 2, 4), {"s": weights(4, 4)}, ("independent", 0)),
    "constant stack of matrices": (
        k("MatMul", "x s"),
        (N, 2, 4),
        {"s": weights(6, 4, 4)},
        ("length", 0),
    ),
    "own transpose": (
        [node("Transpose", "x", "t"), *k("MatMul", "x t")],
        (N, 4),
        {},
        ("paired", None),
    ),
    "own transpose the other way": (
        [node("Transpose", "x", "t"), *k("MatMul", "t x")],
        (N, 4),
        {},
        ("contracted", None),
    ),
    "stack times its own transpose": (
        [node("Transpose", "x", "t", perm=[0, 2, 1]), *k("MatMul", "x t")],
        (N, 4, 2),
        {},
        ("independent", 0),
    ),
    "vector": (k("MatMul", "v x"), (4, N), {"v": weights(4)}, ("independent", 0)),
    "gemm": (k("Gemm", "x w"), (N, 4), MASK, ("independent", 0)),
    "gemm transposed": (k("Gemm", "x w", transA=1), (4, N), MASK, ("independent", 0)),
    "gemm columns": (k("Gemm", "w x"), (3, N), MASK, ("independent", 1)),
    "gemm inner": (k("Gemm", "x x", transA=1), (N, 4), {}, ("paired", None)),
    "gemm with a row for each": (
        k("Gemm", "x s pos"),
        (N, 4),
        {**MASK, "s": weights(4, 4)},
        ("length", 0),
    ),
    "einsum": (k("Einsum", "x w", equation="ij,jk->ki"), (N, 4), MASK, ("independent", 1)),
    "einsum that sums": (k("Einsum", "x", equation="ij->j"), (N, 4), {}, ("contracted", None)),
    "einsum of pairs": (k("Einsum", "x x", equation="ij,kj->ik"), (N, 4), {}, ("paired", None)),
    "einsum of a stack": (
        k("Einsum", "x x", equation="...ij,...kj->...ik"),
        (N, 2, 4),
        {},
        ("independent", 0),
    ),
    "diagonal": (k("Einsum", "x", equation="ii->i"), (N, 6), {}, ("paired", None)),
    "determinant": (k("Det"), (N, 3, 3), {}, ("independent", 0)),
}


def recurrent(
    op: str, gates: int, shape: tuple[Any, ...], *expected: Any, **attributes: Any
) -> Case:
    """Return a case of a recurrent layer with 4 input features and 2 hidden units."""
    constants = {"W": weights(1, 2 * gates, 4), "R": weights(1, 2 * gates, 2)}
    return k(op, "x W R", "y h", hidden_size=2, **attributes), shape, constants, expected


LAYERS: dict[str, Case] = {
    "lstm, batch": recurrent("LSTM", 4, (5, N, 4), "independent", 2),
    "lstm, time": recurrent("LSTM", 4, (N, 2, 4), "scanned", 0),
    "lstm, batch first": recurrent("LSTM", 4, (N, 5, 4), "independent", 0, layout=1),
    "lstm, time behind batch": recurrent("LSTM", 4, (2, N, 4), "scanned", 1, layout=1),
    "gru, batch": recurrent("GRU", 3, (5, N, 4), "independent", 2),
    "gru, time": recurrent("GRU", 3, (N, 2, 4), "scanned", 0),
    "rnn, batch": recurrent("RNN", 1, (5, N, 4), "independent", 2),
    "scaler": (
        k("Scaler", scale=[2.0], offset=[1.0], domain="ai.onnx.ml"),
        (N, 4),
        {},
        ("independent", 0),
    ),
    "regressor": (
        k("LinearRegressor", coefficients=[1.0] * 4, intercepts=[0.0], domain="ai.onnx.ml"),
        (N, 4),
        {},
        ("independent", 0),
    ),
    "normalizer": (k("Normalizer", norm="L2", domain="ai.onnx.ml"), (N, 4), {}, ("independent", 0)),
    "dynamic quantisation": (
        k("DynamicQuantizeLinear", outputs="y s z"),
        (N, 4),
        {},
        ("coupled", 0),
    ),
}
ALL = {**ELEMENTWISE, **ALONG, **LAYOUT, **PRODUCTS, **LAYERS}


@pytest.mark.parametrize("case", ALL)
def test_kind_and_axis_of_single_nodes(case):
    nodes, shape, constants, (kind, axis) = ALL[case]
    found = fact_of(model_of(nodes, shape, constants, opset=18 if "centre" in case else 17))
    assert (found.kind, found.axis) == (kind, axis)
    if kind != "independent":
        assert found.node == "k"


MS = "com.microsoft"
QKV = {"q": (N, 5, 8), "k": (N, 6, 8), "v": (N, 6, 8)}


def attention(mask: bool = False, **attributes: Any) -> list[Any]:
    """Return an Attention node of two heads over q, k and v."""
    inputs = "q k v mask" if mask else "q k v"
    return k("Attention", inputs, q_num_heads=2, kv_num_heads=2, **attributes)


ATTENTION: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any], tuple[str, int | None]]] = {
    "batch": (attention(), QKV, {}, ("independent", 0)),
    "batch, causal": (attention(is_causal=1), QKV, {}, ("independent", 0)),
    "keys without a batch": (
        attention(),
        {"q": (N, 5, 8)},
        {"k": (2, 6, 8), "v": (2, 6, 8)},
        ("length", 0),
    ),
    "queries": (
        attention(),
        {"q": (2, N, 8)},
        {"k": (2, 6, 8), "v": (2, 6, 8)},
        ("independent", 1),
    ),
    "queries, causal": (
        attention(is_causal=1),
        {"q": (2, N, 8)},
        {"k": (2, 6, 8), "v": (2, 6, 8)},
        ("paired", None),
    ),
    "keys": (attention(), {"k": (2, N, 8), "v": (2, N, 8)}, {"q": (2, 5, 8)}, ("paired", None)),
    "self attention": (
        k("Attention", "q q q", q_num_heads=2, kv_num_heads=2),
        {"q": (2, N, 8)},
        {},
        ("paired", None),
    ),
    "heads": (
        k("Attention", "q k v"),
        {"q": (2, N, 5, 4), "k": (2, N, 6, 4), "v": (2, N, 6, 4)},
        {},
        ("independent", 1),
    ),
    "mask for each row": (attention(mask=True), QKV, {"mask": (6, 1, 5, 6)}, ("length", 0)),
    "mask for all rows": (attention(mask=True), QKV, {"mask": (5, 6)}, ("independent", 0)),
    "mask for each head": (attention(mask=True), QKV, {"mask": (2, 5, 6)}, ("independent", 0)),
    "multi-head": (
        k("MultiHeadAttention", "q k v", num_heads=2, domain=MS),
        QKV,
        {},
        ("independent", 0),
    ),
    "skip layer norm": (
        k("SkipLayerNormalization", "q s g", domain=MS),
        {"q": (N, 5, 8), "s": (N, 5, 8)},
        {"g": (8,)},
        ("independent", 0),
    ),
    "skip without a batch": (
        k("SkipLayerNormalization", "q s g", domain=MS),
        {"q": (N, 5, 8)},
        {"g": (8,), "s": (6, 5, 8)},
        ("length", 0),
    ),
    "fused product, transposed": (
        k("FusedMatMul", "q w", transA=1, domain=MS),
        {"q": (4, N)},
        {"w": (4, 3)},
        ("independent", 0),
    ),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_kind_and_axis_of_attention_and_fused_layers(case):
    nodes, inputs, constants, (kind, axis) = ATTENTION[case]
    arrays = {name: weights(*shape) for name, shape in constants.items()}
    model = model_of(nodes, inputs, arrays, opset=23, ir_version=10)
    found = fact_of(model)
    assert (found.kind, found.axis) == (kind, axis)


@pytest.mark.parametrize(("opset", "kind"), [(12, "reduced"), (13, "independent")])
def test_softmax_combines_all_axes_behind_its_own_before_opset_13(opset, kind):
    assert fact_of(model_of(k("Softmax", axis=1), (2, 4, N), {}, opset=opset)).kind == kind


def test_group_norm_reduces_channels_and_pixels():
    nodes = k("GroupNormalization", "x s s", num_groups=2)
    options = {"opset": 18, "constants": {"s": np.ones(2, np.float32)}}
    assert fact_of(model_of(nodes, (N, 4, 8), **options)).is_independent
    assert fact_of(model_of(nodes, (2, 4, N), **options)).kind == "reduced"


@pytest.mark.parametrize(
    ("declared", "shape", "kind"),
    [
        (None, (N, 4), "opaque"),
        ("independent", (N, 4), "independent"),
        ((0,), (N, 4), "independent"),
        ((0,), (4, N), "opaque"),
        (1, (4, N), "independent"),
    ],
)
def test_custom_operator_declares_its_independent_axes(declared, shape, kind):
    nodes = [node("Mine", "x", "y", "k", domain="made.up")]
    model = model_of(nodes, shape, domains={"made.up": 1})
    custom = {} if declared is None else {("made.up", "Mine"): declared}
    assert fact_of(model, custom=custom).kind == kind


def test_first_node_that_breaks_an_axis_is_reported():
    nodes = [
        node("Relu", "x", "a", "harmless"),
        node("Softmax", "a", "b", "first", axis=0),
        node("CumSum", "b z", "y", "second"),
    ]
    found = fact_of(model_of(nodes, constants={"z": 0}))
    assert (found.kind, found.node, found.how) == ("reduced", "first", "softmax")
