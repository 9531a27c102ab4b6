"""Facts of a graph about its image input and its outputs: scaling, channels, activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.known_constants import constant_array
from dask_onnx.core.specs import TensorSpec

Activation = Literal["softmax", "sigmoid"]
_STEPS = 8
"""Nodes that are followed from an input or an output."""
_PASSING = frozenset(
    "Identity Cast Transpose Reshape Squeeze Unsqueeze Flatten Dropout Pad".split()
)
"""Operators that do not change values, or add some."""
_SCALING = {"Div": "divides by", "Mul": "multiplies by", "Sub": "subtracts", "Add": "adds"}
"""Operators that scale pixel values, to what they do."""
_BLUE_AND_RED = (104, 123.5)
"""Means of blue and red in ImageNet, as pixel values."""
_NEAR = 2.0
"""Largest distance of a mean from that of a colour of ImageNet, in pixel values."""
_LARGE = 16.0
"""Divisor, or subtracted mean, above which inputs must be pixel values from 0 to 255."""


@dataclass(frozen=True, slots=True)
class OwnScaling:
    """Scaling of pixel values by the first nodes of a graph."""

    text: str
    """The node in words, such as "Div 'scale' divides by 255"."""
    color: Literal["RGB", "BGR"] | None = None
    """Order of the channels, if the node subtracts the means of ImageNet's colours."""


def scales_itself(facts: GraphFacts, name: str) -> OwnScaling | None:
    """Return the scaling of pixel values from 0 to 255 inside a graph; None if there is none.

    Parameters
    ----------
    facts : GraphFacts
    name : str
        Input for images.
    """
    for node in _followers(facts, name):
        if node.op_type in _PASSING:
            continue
        constants = [constant_array(facts, each) for each in node.inputs]
        values = [array for array in constants if array is not None and array.dtype.kind == "f"]
        if node.op_type not in _SCALING or len(values) != 1:
            return None
        size = float(np.abs(values[0]).max(initial=0))
        is_scale = 0 < size < 1 / _LARGE if node.op_type == "Mul" else size > _LARGE
        if not is_scale:
            return None
        text = f"{node.op_type} {node.name!r} {_SCALING[node.op_type]} {size:g}"
        return OwnScaling(text, _color_of_means(node, values[0]))
    return None


def _color_of_means(node: NodeFacts, values: np.ndarray) -> Literal["RGB", "BGR"] | None:
    """Return the order of colours whose means in ImageNet are subtracted."""
    means = np.abs(values.reshape(-1))
    if node.op_type not in ("Sub", "Add") or len(means) != 3 or abs(means[1] - 117) > _NEAR:
        return None
    if np.abs(means[[0, 2]] - _BLUE_AND_RED).max() <= _NEAR:
        return "BGR"
    if np.abs(means[[2, 0]] - _BLUE_AND_RED).max() <= _NEAR:
        return "RGB"
    return None


def channels_first(facts: GraphFacts, name: str) -> bool | None:
    """Return whether channels come first, by the first Conv or Transpose that reads an input.

    Convolutions of ONNX take channels first: a Transpose in front of one says that they come last.
    None if neither is found.
    """
    for node in _followers(facts, name):
        if node.op_type in ("Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool"):
            return True
        if node.op_type == "Transpose":
            order = _permutation(facts, node)
            return False if order in ((0, 3, 1, 2), (2, 0, 1)) else None
    return None


def conv_channels(facts: GraphFacts, name: str) -> int | None:
    """Return the channels that the first Conv behind an input takes; None if there is none."""
    for node in _followers(facts, name):
        if node.op_type == "Conv":
            weight = next(
                (t for t in facts.proto.graph.initializer if t.name == node.inputs[1]), None
            )
            attributes = facts.proto.graph.node[node.index].attribute
            group = next((a.i for a in attributes if a.name == "group"), 1)
            return None if weight is None or len(weight.dims) < 2 else int(weight.dims[1]) * group
    return None


def activation_of(facts: GraphFacts, name: str) -> Activation | None:
    """Return the activation that an output comes from; None if none is found behind copies."""
    for _ in range(_STEPS):
        index = facts.producer.get(name)
        if index is None:
            return None
        node = facts.nodes[index]
        if node.op_type == "Softmax":
            return "softmax"
        if node.op_type == "Sigmoid":
            return "sigmoid"
        if node.op_type not in _PASSING:
            return None
        name = node.inputs[0]
    return None


def looks_like_scores(facts: GraphFacts, spec: TensorSpec) -> bool:
    """Return whether an output of shape (N, classes) is one of scores, not a vector of features.

    It is if it comes from a Softmax or Sigmoid, or if its name says so.
    """
    if activation_of(facts, spec.name) is not None:
        return True
    words = ("logit", "prob", "softmax", "score", "class", "label", "predictions")
    return any(word in spec.name.lower() for word in words)


def _followers(facts: GraphFacts, name: str) -> Iterator[NodeFacts]:
    """Yield the chain of nodes behind an input, as long as each value has one reader."""
    for _ in range(_STEPS):
        readers = facts.consumers.get(name, [])
        if len(readers) != 1:
            return
        node = facts.nodes[readers[0]]
        yield node
        if not node.outputs:
            return
        name = node.outputs[0]


def _permutation(facts: GraphFacts, node: NodeFacts) -> tuple[int, ...]:
    attributes = facts.proto.graph.node[node.index].attribute
    return next((tuple(a.ints) for a in attributes if a.name == "perm"), ())
