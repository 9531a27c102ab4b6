"""Builders of small models and their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


def value(name: str, shape: Sequence[Any] | None, elem_type: int = TensorProto.FLOAT):
    """Return a ValueInfoProto."""
    return helper.make_tensor_value_info(name, elem_type, shape)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = OPSET,
    domains: Mapping[str, int] | None = None,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    name: str = "made",
) -> onnx.ModelProto:
    """Return a model of nodes, inputs, outputs and weights by name."""
    initializers = [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), name, list(inputs), list(outputs), initializers)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(d, v) for d, v in (domains or {}).items()]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, functions=list(functions)
    )


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """Return a node; `inputs` and `outputs` are words, with "-" for an omitted input."""
    names = ["" if word == "-" else word for word in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=name, **attributes)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Return standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense_model(rows: Any = "N", hidden: int = 32) -> onnx.ModelProto:
    """Return x (rows, 8) -> y (rows, 4): MatMul, Add, Relu, MatMul."""
    return make_model(
        [
            node("MatMul", "x W1", "h1", "first"),
            node("Add", "h1 b1", "h2", "bias"),
            node("Relu", "h2", "h3", "activate"),
            node("MatMul", "h3 W2", "y", "second"),
        ],
        [value("x", [rows, 8])],
        [value("y", [rows, 4])],
        {"W1": weights(8, hidden), "b1": weights(hidden), "W2": weights(hidden, 4, seed=1)},
        name="dense",
    )


def layers_model(sizes, width=8):
    """Return a chain of layers; layer i has weights (width, sizes[i]) and (sizes[i], width)."""
    nodes, constants, last = [], {}, "x"
    for i, size in enumerate(sizes):
        nodes += [
            node("MatMul", f"{last} A{i}", f"h{i}", f"up{i}"),
            node("Relu", f"h{i}", f"r{i}", f"relu{i}"),
            node("MatMul", f"r{i} B{i}", f"y{i}", f"down{i}"),
        ]
        constants |= {f"A{i}": weights(width, size), f"B{i}": weights(size, width)}
        last = f"y{i}"
    nodes.append(node("Identity", last, "y", "end"))
    return make_model(nodes, [value("x", ["N", width])], [value("y", ["N", width])], constants)


def branching_model() -> onnx.ModelProto:
    """Return x (N, 4) -> three branches -> Concat -> y (N, 12), and the middle branch as m."""
    return make_model(
        [
            node("Relu", "x", "stem", "stem"),
            node("Neg", "stem", "a", "left"),
            node("Exp", "a", "a2", "left_end"),
            node("Abs", "stem", "m", "middle"),
            node("Sigmoid", "stem", "c", "right"),
            node("Concat", "a2 m c", "y", "join", axis=1),
        ],
        [value("x", ["N", 4])],
        [value("y", ["N", 12]), value("m", ["N", 4])],
        name="branches",
    )


def scaled_model() -> onnx.ModelProto:
    """Return x (N, 3) and a scalar s -> y = x * s (N, 3)."""
    return make_model(
        [node("Mul", "x s", "y", "scale")],
        [value("x", ["N", 3]), value("s", [])],
        [value("y", ["N", 3])],
        name="scaled",
    )


def single_row_model() -> onnx.ModelProto:
    """Return x (1, 4) -> y (1, 2): a graph exported for one row."""
    return make_model(
        [node("MatMul", "x W", "y", "project")],
        [value("x", [1, 4])],
        [value("y", [1, 2])],
        {"W": weights(4, 2)},
        name="single",
    )


def captured_model() -> onnx.ModelProto:
    """Return x (N, 4), flag (bool) -> y: If bodies that read values of the outer graph."""
    then = helper.make_graph(
        [node("Add", "h W", "t", "then_add")], "then", [], [value("t", ["N", 4])]
    )
    inner = helper.make_graph([node("Neg", "h", "i")], "inner", [], [value("i", ["N", 4])])
    other = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["flag"],
                ["e"],
                name="nested",
                then_branch=inner,
                else_branch=_constant_body(),
            )
        ],
        "else",
        [],
        [value("e", ["N", 4])],
    )
    return make_model(
        [
            node("Relu", "x", "h", "stem"),
            helper.make_node(
                "If", ["flag"], ["y"], name="choose", then_branch=then, else_branch=other
            ),
        ],
        [value("x", ["N", 4]), value("flag", [], TensorProto.BOOL)],
        [value("y", None)],
        {"W": weights(4)},
        name="captures",
    )


def _constant_body() -> onnx.GraphProto:
    """Return a body with weights that are large enough to be taken out of the proto."""
    return helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["big"], value=numpy_helper.from_array(weights(2048, 4), "big")
            ),
            helper.make_node("ReduceMean", ["big"], ["mean"], axes=[0], keepdims=0),
            node("Mul", "h mean", "k"),
        ],
        "constant",
        [],
        [value("k", ["N", 4])],
    )


def run_onnx(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], outputs=None) -> list[Any]:
    """Run a whole model in ONNX Runtime, and return its outputs."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, dict(feeds))
