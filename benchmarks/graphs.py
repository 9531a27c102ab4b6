"""Graphs of many cheap nodes, for measuring the time of planning alone."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph_of(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Return a model of nodes that read x and a weight w; the last node's value is the output."""
    last = nodes[-1].output[0]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in ("x", last)
    ]
    weights = [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes, "made", tensors[:1], tensors[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def made_graph(nodes: int) -> onnx.ModelProto:
    """Return a chain of blocks: MatMul, Relu, two branches and their sum."""
    made, last = [], "x"
    for i in range(nodes // 5):
        made += [
            helper.make_node("MatMul", [last, "w"], [f"m{i}"]),
            helper.make_node("Relu", [f"m{i}"], [f"r{i}"]),
            helper.make_node("Neg", [f"r{i}"], [f"a{i}"]),
            helper.make_node("Abs", [f"r{i}"], [f"b{i}"]),
            helper.make_node("Add", [f"a{i}", f"b{i}"], [f"s{i}"]),
        ]
        last = f"s{i}"
    return graph_of(made)


def unet(nodes: int) -> onnx.ModelProto:
    """Return an encoder, and a decoder whose nodes each read their counterpart in the encoder."""
    half = nodes // 2
    made = [helper.make_node("Neg", [f"e{i - 1}" if i else "x"], [f"e{i}"]) for i in range(half)]
    for i in range(half):
        before = f"d{i - 1}" if i else f"e{half - 1}"
        made.append(helper.make_node("Add", [before, f"e{half - 1 - i}"], [f"d{i}"]))
    return graph_of(made)


def dense_blocks(nodes: int, block: int = 100) -> onnx.ModelProto:
    """Return a chain of blocks in which each node reads all earlier nodes of its block."""
    made, last = [], "x"
    for i in range(nodes // block):
        before = [last]
        for j in range(block):
            made.append(helper.make_node("Sum", before, [f"b{i}_{j}"]))
            before = [*before, f"b{i}_{j}"]
        last = before[-1]
    return graph_of(made)


def random_reads(nodes: int, reads: int = 20) -> onnx.ModelProto:
    """Return nodes that read random earlier ones; the last node reads all unread values."""
    rng = np.random.default_rng(0)
    made, unread = [], dict.fromkeys(["x"])
    for i in range(nodes - 1):
        before = np.unique(rng.integers(-1, i, reads)) if i else [-1]
        names = [f"v{j}" if j >= 0 else "x" for j in before]
        for name in names:
            unread.pop(name, None)
        made.append(helper.make_node("Sum", names, [f"v{i}"]))
        unread[f"v{i}"] = None
    return graph_of([*made, helper.make_node("Sum", list(unread), ["y"])])
