"""Small models of pictures, as ONNX files whose results are known by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from builders import make_model, node, value
from onnx import TensorProto


def with_metadata(model: onnx.ModelProto, entries: Mapping[str, str]) -> onnx.ModelProto:
    """Return the model with entries of ``metadata_props``."""
    for key, text in entries.items():
        model.metadata_props.add(key=key, value=text)
    return model


def echo(shape, elem_type=TensorProto.FLOAT, *, name="x"):
    """Return a model whose output is its input."""
    return make_model(
        [node("Identity", name, "y")],
        [value(name, shape, elem_type)],
        [value("y", shape, elem_type)],
        name="echo",
    )


def brightness(shape=("N", 3, "H", "W"), *, output="vector"):
    """Return a model of the mean of each channel: an output (N, C) of features."""
    axes = [2, 3]
    return make_model(
        [node("ReduceMean", "x", output, axes=axes, keepdims=0)],
        [value("x", shape)],
        [value(output, (shape[0], shape[1]))],
        name="brightness",
    )


def classifier(shape=("N", 3, 8, 8), *, activation="Softmax"):
    """Return a model whose logits are 10 times the mean of each channel."""
    nodes = [
        node("ReduceMean", "x", "means", axes=[2, 3], keepdims=0),
        node("Mul", "means ten", "logits" if activation is None else "scaled"),
    ]
    if activation is not None:
        nodes.append(node(activation, "scaled", "scores"))
    name = "logits" if activation is None else "scores"
    return make_model(
        nodes,
        [value("x", shape)],
        [value(name, (shape[0], shape[1]))],
        {"ten": np.array(10, np.float32)},
        name="classifier",
    )


def red_map(shape=("N", 3, "H", "W"), *, halvings=0):
    """Return a model of the red channel, at its own resolution or halved some times."""
    nodes = [node("Slice", "x zero one axis", "r0")]
    nodes += [
        node("AveragePool", f"r{step}", f"r{step + 1}", kernel_shape=[2, 2], strides=[2, 2])
        for step in range(halvings)
    ]
    nodes.append(node("Identity", f"r{halvings}", "map"))
    weights = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "axis": np.array([1]),
    }
    out = (shape[0], 1, None, None)
    return make_model(nodes, [value("x", shape)], [value("map", out)], weights, name="red_map")


def u_net(levels=3):
    """Return a model that halves an image some times and doubles it again: it takes multiples."""
    nodes, skips, last = [], [], "x"
    for level in range(levels):
        skips.append(last)
        nodes.append(
            node("MaxPool", last, f"d{level}", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=0)
        )
        last = f"d{level}"
    for level in reversed(range(levels)):
        nodes += [
            node("ConvTranspose", f"{last} w", f"t{level}", strides=[2, 2], kernel_shape=[2, 2]),
            node("Add", f"t{level} {skips[level]}", f"u{level}"),
        ]
        last = f"u{level}"
    nodes.append(node("Identity", last, "map"))
    return make_model(
        nodes,
        [value("x", ("N", 1, "H", "W"))],
        [value("map", ("N", 1, None, None))],
        {"w": np.full((1, 1, 2, 2), 0.25, np.float32)},
        name="u_net",
    )


def fixed_boxes(boxes, scores, labels, *, names=("boxes", "scores", "labels"), size=(64, 64)):
    """Return a detector that finds the same objects in every picture of some size."""
    arrays = {
        "b": np.asarray(boxes, np.float32),
        "s": np.asarray(scores, np.float32),
        "l": np.asarray(labels),
    }
    shape = (1, 3, *size)
    nodes = [
        node("ReduceMax", "x", "most", keepdims=0),
        node("Mul", "most zero", "nothing"),
        node("Add", "b nothing", names[0]),
        node("Add", "s nothing", names[1]),
        node("Identity", "l", names[2]),
    ]
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    outputs = [
        value(name, array.shape, kinds[array.dtype.kind])
        for name, array in zip(names, arrays.values(), strict=True)
    ]
    weights = {**arrays, "zero": np.array(0, np.float32)}
    return make_model(nodes, [value("x", shape)], outputs, weights, name="fixed_boxes")
