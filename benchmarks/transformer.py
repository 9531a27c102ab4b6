"""A generated encoder of a common size: 12 layers, width 768, 340 MB of float32 weights.

The weights are random, scaled as at the start of training, so that activations stay in range. The
time to load and share weights does not depend on their values.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, LAYERS = 768, 12, 12


_INLINE_BYTES = 2**30


def make_transformer(path: Path, layers: int = LAYERS, width: int = WIDTH) -> Path:
    """Write an encoder, x float32 (N, T, width) -> y float32 (N, T, width), to `path`.

    The architecture is that of Vaswani et al. (2017), with the normalisation before each block.
    """
    rng = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        scale = 1 / math.sqrt(shape[0])
        array = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, name))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def dense(x: str, name: str, size_in: int, size_out: int) -> str:
        bias = constant(f"{name}.bias", np.zeros(size_out, np.float32))
        product = add("MatMul", [x, weight(f"{name}.weight", size_in, size_out)], f"{name}.matmul")
        return add("Add", [product, bias], f"{name}.out")

    def normalised(x: str, name: str) -> str:
        scale = constant(f"{name}.scale", np.ones(width, np.float32))
        bias = constant(f"{name}.bias", np.zeros(width, np.float32))
        return add("LayerNormalization", [x, scale, bias], f"{name}.out", axis=-1)

    heads = constant("heads", np.array([0, 0, HEADS, width // HEADS], np.int64))
    joined = constant("joined", np.array([0, 0, width], np.int64))
    root = constant("root", np.array(math.sqrt(width // HEADS), np.float32))
    x = "x"
    for i in range(layers):
        name = f"layer{i}"
        h = normalised(x, f"{name}.norm1")
        q, k, v = (dense(h, f"{name}.{part}", width, width) for part in "qkv")
        q, k, v = (add("Reshape", [part, heads], f"{part}.split") for part in (q, k, v))
        q, v = (add("Transpose", [part], f"{part}.t", perm=[0, 2, 1, 3]) for part in (q, v))
        k = add("Transpose", [k], f"{k}.t", perm=[0, 2, 3, 1])
        scores = add("Div", [add("MatMul", [q, k], f"{name}.qk"), root], f"{name}.scaled")
        mixed = add("MatMul", [add("Softmax", [scores], f"{name}.soft"), v], f"{name}.mixed")
        mixed = add("Transpose", [mixed], f"{name}.back", perm=[0, 2, 1, 3])
        mixed = add("Reshape", [mixed, joined], f"{name}.joined")
        x = add("Add", [x, dense(mixed, f"{name}.o", width, width)], f"{name}.attended")
        h = dense(normalised(x, f"{name}.norm2"), f"{name}.up", width, 4 * width)
        h = dense(add("Relu", [h], f"{name}.relu"), f"{name}.down", 4 * width, width)
        x = add("Add", [x, h], "y" if i == layers - 1 else f"{name}.result")
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "T", width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A protobuf message ends at 2 GB, with or without its weights inside.
    is_large = sum(len(tensor.raw_data) for tensor in weights) > _INLINE_BYTES
    onnx.save(model, path, save_as_external_data=is_large, location=f"{path.name}.data")
    return path
