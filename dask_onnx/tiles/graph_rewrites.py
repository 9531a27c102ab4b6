"""Rewrites of a graph before it is tiled: fixed attributes, and decomposed normalisations.

A normalisation over pixels becomes a mean and a variance, which can be combined from partial
statistics of tiles, and element-wise arithmetic.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.weights import subgraphs_of
from dask_onnx.tiles.resize_modes import write_half_pixel

_AXES_AS_INPUT = 18
"""Version of ai.onnx since which all reductions take their axes as an input."""
_SUM_AXES_AS_INPUT = 13
"""The same for ReduceSum."""
_SINGLE_SOFTMAX_AXIS = 13
"""Version of ai.onnx since which a Softmax has one axis; before, it flattened those behind."""
_SCALE_PER_CHANNEL = 21
"""Version of ai.onnx since which GroupNormalization scales by channel; before by group."""
_MVN_EPSILON = 1e-9
"""Constant of MeanVarianceNormalization, which its specification adds to the deviation."""
_PADDED_OPS = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool", "ConvTranspose", "FusedConv"})
"""Operators with the attribute ``auto_pad``."""


@dataclass
class DecomposedGraph:
    """A graph in which some normalisations over pixels are decomposed."""

    model: OnnxModel
    variances: dict[str, str] = field(default_factory=dict)
    """Name of a variance to the name of the value that it is the variance of.

    The nodes compute a variance from a mean, which would take two passes over the tiles; a partial
    variance takes one.
    """


def replace_proto(model: OnnxModel, proto: onnx.ModelProto) -> OnnxModel:
    """Return a model with another graph and the same external weights."""
    data = proto.SerializeToString(deterministic=True)
    return dataclasses.replace(
        model,
        proto=data,
        token=hashlib.sha256(data).hexdigest()[:32],
        source=None,
        rows=None,
    )


def with_fixed_attributes(facts: GraphFacts, specs: Mapping[str, TensorSpec]) -> OnnxModel:
    """Return the model with attributes that depend on sizes replaced by some that do not.

    ``auto_pad`` and ``output_shape`` become ``pads``, since they would mean other padding on a tile
    than on the whole image; coordinate modes of Resize become ``half_pixel``.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of str to TensorSpec
        Types and shapes of all values for the whole image.

    Returns
    -------
    OnnxModel
        The same object if nothing had to be replaced.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(facts.proto)
    has_changed = False
    for node in proto.graph.node:
        if standard_op_type(node) in _PADDED_OPS:
            has_changed |= _make_padding_explicit(node, specs)
        elif standard_op_type(node) == "Resize":
            has_changed |= write_half_pixel(node, specs, facts.tensors)
    return replace_proto(facts.model, proto) if has_changed else facts.model


def _make_padding_explicit(node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> bool:
    """Replace the padding attributes of a node in place; return whether it has changed.

    The formulas are those of Conv and ConvTranspose in the ONNX operator specification.
    """
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    automatic = given.get("auto_pad", b"NOTSET").decode() or "NOTSET"
    is_same = automatic in ("SAME_UPPER", "SAME_LOWER")
    if not is_same and not ("output_shape" in given and node.op_type == "ConvTranspose"):
        return False
    before, after = specs.get(node.input[0]), specs.get(node.output[0])
    kernel = given.get("kernel_shape") or _kernel_of(node, specs)
    if before is None or after is None or before.shape is None or after.shape is None or not kernel:
        return False
    rank = len(kernel)
    strides = given.get("strides") or [1] * rank
    dilations = given.get("dilations") or [1] * rank
    extra = given.get("output_padding") or [0] * rank
    begins, ends = [], []
    for i in range(rank):
        small, large = before.shape[2 + i], after.shape[2 + i]
        if node.op_type != "ConvTranspose":
            small, large = large, small
        if not isinstance(small, int) or not isinstance(large, int):
            return False
        span = (small - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1
        total = max(span - large, 0)
        if node.op_type == "ConvTranspose":
            total = span + extra[i] - large
            if total < 0:
                return False
        half, rest = total // 2, total - total // 2
        first = half if automatic == "SAME_UPPER" else rest
        begins.append(first)
        ends.append(total - first)
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "output_shape", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", [*begins, *ends])])
    return True


def _kernel_of(node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> list[int] | None:
    """Return the kernel shape of a node from its weights, or None."""
    spec = specs.get(node.input[1]) if len(node.input) > 1 else None
    if spec is None or spec.shape is None:
        return None
    return [dim for dim in spec.shape[2:] if isinstance(dim, int)]


def rename_captures(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename in place what the bodies of a node capture from outside.

    Parameters
    ----------
    node : NodeProto
    names : mapping of str to str
        Old name to new name.
    """
    for body in subgraphs_of(node) if names else ():
        own = {info.name for info in body.input} | {tensor.name for tensor in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            for i, name in enumerate(inner.input):
                inner.input[i] = outer.get(name, name)
            rename_captures(inner, outer)


def decompose(
    facts: GraphFacts, specs: Mapping[str, TensorSpec], nodes: Collection[int]
) -> DecomposedGraph:
    """Return the graph with some of its nodes decomposed into statistics and element-wise nodes.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of str to TensorSpec
        Types and shapes of all values.
    nodes : collection of int
        Indices of nodes whose operators are among `DECOMPOSABLE_OPS`.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(facts.proto)
    writer = _NodeWriter(facts, specs)
    for index, node in enumerate(facts.proto.graph.node):
        if index in nodes:
            _DECOMPOSITIONS[node.op_type](writer, node)
        else:
            writer.nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(writer.nodes)
    proto.graph.initializer.extend(writer.constants)
    return DecomposedGraph(replace_proto(facts.model, proto), writer.variances)


class _NodeWriter:
    """Nodes and constants of a new graph; each method adds some and returns an output's name.

    The argument `base` is the node that is decomposed, whose name the new names start with.
    """

    def __init__(self, facts: GraphFacts, specs: Mapping[str, TensorSpec]) -> None:
        self.opset = facts.model.opsets.get("", 1)
        self.specs = specs
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.variances: dict[str, str] = {}

    def rank(self, value: str) -> int:
        """Return the rank of a value."""
        spec = self.specs[value]
        assert spec.shape is not None
        return len(spec.shape)

    def dtype(self, value: str) -> np.dtype:
        """Return the dtype of a value."""
        dtype = self.specs[value].dtype
        assert dtype is not None
        return dtype

    def node(
        self,
        base: onnx.NodeProto,
        op: str,
        inputs: Sequence[str],
        output: str = "",
        **given: Any,
    ) -> str:
        """Add a node with some attributes."""
        name = f"{base.name}/{op}_{len(self.nodes)}"
        output = output or f"{base.output[0]}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **given))
        return output

    def constant(self, base: onnx.NodeProto, array: np.ndarray) -> str:
        """Add an initializer."""
        name = f"{base.output[0]}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def scalar(self, base: onnx.NodeProto, number: float, like: str) -> str:
        """Add a scalar initializer of the dtype of the value `like`."""
        return self.constant(base, np.array(number, self.dtype(like)))

    def statistic(
        self,
        base: onnx.NodeProto,
        op: str,
        value: str,
        axes: Sequence[int],
        *,
        keepdims: bool = True,
    ) -> str:
        """Add a reduction over some axes, in the form of the model's opset."""
        takes_input = self.opset >= _AXES_AS_INPUT
        if takes_input or (op == "ReduceSum" and self.opset >= _SUM_AXES_AS_INPUT):
            numbers = self.constant(base, np.array(axes, np.int64))
            return self.node(base, op, [value, numbers], keepdims=int(keepdims))
        return self.node(base, op, [value], axes=list(axes), keepdims=int(keepdims))

    def centred(self, base: onnx.NodeProto, value: str, axes: Sequence[int]) -> tuple[str, str]:
        """Add mean and variance; return the names of the value minus its mean, and the variance."""
        mean = self.statistic(base, "ReduceMean", value, axes)
        left = self.node(base, "Sub", [value, mean])
        squares = self.node(base, "Mul", [left, left])
        variance = self.statistic(base, "ReduceMean", squares, axes)
        self.variances[variance] = value
        return left, variance

    def deviation(self, base: onnx.NodeProto, variance: str, epsilon: float, like: str) -> str:
        """Add the square root of a variance plus `epsilon`."""
        padded = self.node(base, "Add", [variance, self.scalar(base, epsilon, like)])
        return self.node(base, "Sqrt", [padded])

    def by_channel(self, base: onnx.NodeProto, vector: str, rank: int) -> str:
        """Add a Reshape of a vector that lies along axis 1 of a value of some rank."""
        shape = self.constant(base, np.array([1, -1, *[1] * (rank - 2)], np.int64))
        return self.node(base, "Reshape", [vector, shape])


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _instance_norm(w: _NodeWriter, node: onnx.NodeProto) -> None:
    x, scale, bias = node.input
    rank = w.rank(x)
    left, variance = w.centred(node, x, range(2, rank))
    epsilon = float(_attributes(node).get("epsilon", 1e-5))
    deviation = w.deviation(node, variance, epsilon, x)
    factor = w.node(node, "Div", [w.by_channel(node, scale, rank), deviation])
    scaled = w.node(node, "Mul", [left, factor])
    w.node(node, "Add", [scaled, w.by_channel(node, bias, rank)], node.output[0])


def _group_norm(w: _NodeWriter, node: onnx.NodeProto) -> None:
    x, scale, bias = node.input
    given, rank = _attributes(node), w.rank(x)
    groups = w.constant(node, np.array([0, given["num_groups"], -1], np.int64))
    grouped = w.node(node, "Reshape", [x, groups])
    left, variance = w.centred(node, grouped, (2,))
    deviation = w.deviation(node, variance, float(given.get("epsilon", 1e-5)), x)
    normal = w.node(node, "Div", [left, deviation])
    if w.opset < _SCALE_PER_CHANNEL:
        normal = w.node(node, "Mul", [normal, w.by_channel(node, scale, 3)])
        normal = w.node(node, "Add", [normal, w.by_channel(node, bias, 3)])
    shape = w.node(node, "Shape", [x])
    if w.opset < _SCALE_PER_CHANNEL:
        w.node(node, "Reshape", [normal, shape], node.output[0])
        return
    back = w.node(node, "Reshape", [normal, shape])
    scaled = w.node(node, "Mul", [back, w.by_channel(node, scale, rank)])
    w.node(node, "Add", [scaled, w.by_channel(node, bias, rank)], node.output[0])


def _layer_norm(w: _NodeWriter, node: onnx.NodeProto) -> None:
    x, given = node.input[0], _attributes(node)
    rank = w.rank(x)
    first = int(given.get("axis", -1)) % rank
    left, variance = w.centred(node, x, range(first, rank))
    deviation = w.deviation(node, variance, float(given.get("epsilon", 1e-5)), x)
    value = w.node(node, "Div", [left, deviation])
    has_bias = len(node.input) > 2 and node.input[2]
    value = w.node(node, "Mul", [value, node.input[1]], "" if has_bias else node.output[0])
    if has_bias:
        w.node(node, "Add", [value, node.input[2]], node.output[0])


def _mean_variance_norm(w: _NodeWriter, node: onnx.NodeProto) -> None:
    x = node.input[0]
    axes = _attributes(node).get("axes", [0, 2, 3])
    left, variance = w.centred(node, x, list(axes))
    deviation = w.node(node, "Sqrt", [variance])
    padded = w.node(node, "Add", [deviation, w.scalar(node, _MVN_EPSILON, x)])
    w.node(node, "Div", [left, padded], node.output[0])


def _softmax_axes(w: _NodeWriter, node: onnx.NodeProto) -> list[int]:
    rank = w.rank(node.input[0])
    has_single_axis = w.opset >= _SINGLE_SOFTMAX_AXIS
    axis = int(_attributes(node).get("axis", -1 if has_single_axis else 1)) % rank
    return [axis] if has_single_axis else list(range(axis, rank))


def _softmax(w: _NodeWriter, node: onnx.NodeProto) -> None:
    (x,) = node.input
    total = w.statistic(node, "ReduceLogSumExp", x, _softmax_axes(w, node))
    left = w.node(node, "Sub", [x, total], "" if node.op_type == "Softmax" else node.output[0])
    if node.op_type == "Softmax":
        w.node(node, "Exp", [left], node.output[0])


def _lp_norm(w: _NodeWriter, node: onnx.NodeProto) -> None:
    (x,), given = node.input, _attributes(node)
    op = "ReduceL1" if given.get("p", 2) == 1 else "ReduceL2"
    norm = w.statistic(node, op, x, [int(given.get("axis", -1)) % w.rank(x)])
    w.node(node, "Div", [x, _or_one(w, node, norm, x)], node.output[0])


def _or_one(w: _NodeWriter, node: onnx.NodeProto, value: str, like: str) -> str:
    """Add nodes that replace zeros of a value that is not negative by 1: kernels divide so."""
    is_zero = w.node(node, "Sub", [w.scalar(node, 1, like), w.node(node, "Sign", [value])])
    return w.node(node, "Add", [value, is_zero])


def _dynamic_quantize(w: _NodeWriter, node: onnx.NodeProto) -> None:
    (x,) = node.input
    axes = range(w.rank(x))
    zero = w.scalar(node, 0, x)
    low = w.node(node, "Min", [w.statistic(node, "ReduceMin", x, axes, keepdims=False), zero])
    high = w.node(node, "Max", [w.statistic(node, "ReduceMax", x, axes, keepdims=False), zero])
    steps = w.scalar(node, 255, x)
    ratio = w.node(node, "Div", [w.node(node, "Sub", [high, low]), steps])
    scale = w.node(node, "Identity", [_or_one(w, node, ratio, x)], node.output[1])
    ratio = w.node(node, "Div", [w.node(node, "Neg", [low]), scale])
    rounded = w.node(node, "Round", [w.node(node, "Clip", [ratio, zero, steps])])
    point = w.node(node, "Cast", [rounded], node.output[2], to=onnx.TensorProto.UINT8)
    w.node(node, "QuantizeLinear", [x, scale, point], node.output[0])


_DECOMPOSITIONS: Mapping[str, Callable[[_NodeWriter, onnx.NodeProto], None]] = {
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "MeanVarianceNormalization": _mean_variance_norm,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LpNormalization": _lp_norm,
    "DynamicQuantizeLinear": _dynamic_quantize,
}
"""Operator to the function that adds its decomposition to a `_NodeWriter`."""

DECOMPOSABLE_OPS = frozenset(_DECOMPOSITIONS)
"""Operators that `decompose` supports."""
