"""Transformer layers and small networks whose weights can be cut into shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from builders import make_model, node, value, weights


def scaled(*shape: int, seed: int) -> np.ndarray:
    """Return random weights that keep activations near 1."""
    return weights(*shape, seed=seed) / np.sqrt(np.float32(shape[0]))


def _project(
    source: str, name: str, width: int, size: int, constants: dict[str, Any], seed: int
) -> list[onnx.NodeProto]:
    """Return nodes of the value ``name``: ``source`` times a matrix, plus a bias."""
    constants |= {
        f"W_{name}": scaled(width, size, seed=seed),
        f"b_{name}": weights(size, seed=seed),
    }
    return [
        node("MatMul", f"{source} W_{name}", f"{name}_product", f"product_{name}"),
        node("Add", f"{name}_product b_{name}", name, f"add_{name}"),
    ]


def _heads(
    name: str, heads: int, count: int, size: int, constants: dict[str, Any], order: list[int]
) -> list[onnx.NodeProto]:
    """Return nodes that split (rows, tokens, count * size) into heads, transposed by `order`."""
    constants[f"shape_{name}"] = np.array([0, 0, count, size], np.int64)
    nodes = [node("Reshape", f"{name} shape_{name}", f"{name}_split", f"split_{name}")]
    if count == heads:
        return [*nodes, node("Transpose", f"{name}_split", f"{name}_heads", perm=order)]
    constants |= {
        "repeats": np.array([1, 1, heads // count, 1, 1], np.int64),
        "axis_2": np.array([2], np.int64),
        "repeated": np.array([0, heads, -1, size], np.int64),
    }
    nodes += [
        node("Transpose", f"{name}_split", f"{name}_few", perm=[0, 2, 1, 3]),
        node("Unsqueeze", f"{name}_few axis_2", f"{name}_5d"),
        node("Expand", f"{name}_5d repeats", f"{name}_wide"),
        node("Reshape", f"{name}_wide repeated", f"{name}_all", f"repeat_{name}"),
    ]
    last = [0, 1, 3, 2] if order == [0, 2, 3, 1] else [0, 1, 2, 3]
    return [*nodes, node("Transpose", f"{name}_all", f"{name}_heads", perm=last)]


def attention_nodes(
    heads: int, kv_heads: int, width: int, constants: dict[str, Any]
) -> list[onnx.NodeProto]:
    """Return attention of `x` as exporters write it, up to ``attended``, without the residual."""
    size = width // heads
    constants["scale"] = np.float32(size**-0.5)
    constants["shape_joined"] = np.array([0, 0, width], np.int64)
    return [
        *_project("x", "q", width, width, constants, 1),
        *_project("x", "k", width, kv_heads * size, constants, 2),
        *_project("x", "v", width, kv_heads * size, constants, 3),
        *_heads("q", heads, heads, size, constants, [0, 2, 1, 3]),
        *_heads("k", heads, kv_heads, size, constants, [0, 2, 3, 1]),
        *_heads("v", heads, kv_heads, size, constants, [0, 2, 1, 3]),
        node("MatMul", "q_heads k_heads", "raw", "scores"),
        node("Mul", "raw scale", "scaled"),
        node("Softmax", "scaled", "probabilities", "softmax", axis=-1),
        node("MatMul", "probabilities v_heads", "weighted", "weigh"),
        node("Transpose", "weighted", "turned", perm=[0, 2, 1, 3]),
        node("Reshape", "turned shape_joined", "joined", "join"),
        *_project("joined", "attended", width, width, constants, 4),
    ]


def mlp_nodes(source: str, width: int, inner: int, constants: dict[str, Any]) -> list[Any]:
    """Return two matrix products with an activation between them, up to ``down``."""
    return [
        *_project(source, "up", width, inner, constants, 5),
        node("Sigmoid", "up", "gate"),
        node("Mul", "up gate", "activated"),
        *_project("activated", "down", inner, width, constants, 6),
    ]


def norm_node(source: str, result: str, width: int, constants: dict[str, Any]) -> Any:
    """Return a LayerNormalization over the features."""
    constants |= {
        f"scale_{result}": 1 + 0.1 * weights(width, seed=7),
        f"shift_{result}": weights(width, seed=8),
    }
    return node(
        "LayerNormalization",
        f"{source} scale_{result} shift_{result}",
        result,
        f"norm_{result}",
        axis=-1,
    )


def encoder_layer(
    heads: int = 4, width: int = 32, inner: int = 64, kv_heads: int | None = None
) -> onnx.ModelProto:
    """Return x (N, T, width) -> y: attention and an MLP, with residuals and norms."""
    constants: dict[str, Any] = {}
    nodes = [
        *attention_nodes(heads, kv_heads or heads, width, constants),
        node("Add", "attended x", "residual_1"),
        norm_node("residual_1", "normed", width, constants),
        *mlp_nodes("normed", width, inner, constants),
        node("Add", "down normed", "residual_2"),
        norm_node("residual_2", "y", width, constants),
    ]
    shape = ["N", "T", width]
    return make_model(nodes, [value("x", shape)], [value("y", shape)], constants, name="encoder")


def gated_mlp(width: int = 16, inner: int = 32) -> onnx.ModelProto:
    """Return x (N, width) -> y (N, width): the product of gate and up, times down."""
    constants = {
        "gate": scaled(width, inner, seed=1),
        "up": scaled(width, inner, seed=2),
        "down": scaled(inner, width, seed=3),
    }
    nodes = [
        node("MatMul", "x gate", "g", "gate_product"),
        node("Sigmoid", "g", "s"),
        node("MatMul", "x up", "u", "up_product"),
        node("Mul", "s u", "m", "multiply"),
        node("MatMul", "m down", "y", "down_product"),
    ]
    shape = ["N", width]
    return make_model(nodes, [value("x", shape)], [value("y", shape)], constants)


def fused_projection(heads: int = 4, width: int = 32) -> onnx.ModelProto:
    """Return attention with one matrix for queries, keys and values, separated by Split."""
    constants: dict[str, Any] = {}
    nodes = [
        *_project("x", "qkv", width, 3 * width, constants, 1),
        node("Split", "qkv sizes", "q k v", "take_apart", axis=2),
        *attention_nodes(heads, heads, width, constants)[6:],
    ]
    constants["sizes"] = np.array([width] * 3, np.int64)
    for name in "qkv":
        constants.pop(f"W_{name}"), constants.pop(f"b_{name}")
    shape = ["N", "T", width]
    return make_model(nodes, [value("x", shape)], [value("attended", shape)], constants)


def conv_net() -> onnx.ModelProto:
    """Return x (N, 3, H, W) -> y (N, 5, H, W): convolutions, one depthwise, one of 1 x 1."""
    constants = {
        "W1": weights(8, 3, 3, 3, seed=1),
        "b1": weights(8, seed=2),
        "gain": 1 + 0.1 * weights(8, seed=3),
        "offset": weights(8, seed=4),
        "mean": weights(8, seed=5),
        "variance": np.abs(weights(8, seed=6)) + 1,
        "W2": weights(8, 1, 3, 3, seed=7),
        "b2": weights(8, seed=8),
        "W3": weights(5, 8, 1, 1, seed=9),
        "b3": weights(5, seed=10),
    }
    nodes = [
        node("Conv", "x W1 b1", "c1", "first", pads=[1] * 4),
        node("BatchNormalization", "c1 gain offset mean variance", "n1", "norm"),
        node("Relu", "n1", "r1"),
        node("Conv", "r1 W2 b2", "c2", "depthwise", pads=[1] * 4, group=8),
        node("Relu", "c2", "r2"),
        node("Conv", "r2 W3 b3", "y", "pointwise"),
    ]
    return make_model(
        nodes, [value("x", ["N", 3, "H", "W"])], [value("y", ["N", 5, "H", "W"])], constants
    )
