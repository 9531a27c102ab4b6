"""Class labels of classifiers, where the graph contains them."""

from __future__ import annotations

import onnx

from dask_onnx.analysis.graph import GraphFacts

_LABELS = (
    "classlabels_strings",
    "classlabels_int64s",
    "classlabels_ints",
)
_KEEP_ORDER = frozenset("Cast Identity Normalizer Softmax Sigmoid Clip Div Mul ZipMap".split())
"""Operators that keep the order of the classes."""


def class_labels(facts: GraphFacts, value: str) -> tuple[str | int, ...] | None:
    """Return the class of each column of a value, in order; None where the graph has no labels.

    Labels are attributes of ``ZipMap`` and of the classifiers of ``ai.onnx.ml``. They are searched
    backwards from the value, through operators that keep the order of the columns.
    """
    while value in facts.producer:
        node = facts.nodes[facts.producer[value]]
        labels = _labels(facts.proto.graph.node[node.index])
        if labels:
            return labels
        if node.op_type not in _KEEP_ORDER:
            return None
        value = node.inputs[0]
    return None


def tensor_before_zipmap(facts: GraphFacts, value: str) -> str:
    """Return the input of the ``ZipMap`` that makes a value (a list of maps), else the value."""
    if value in facts.producer:
        node = facts.nodes[facts.producer[value]]
        if node.domain == "ai.onnx.ml" and node.op_type == "ZipMap":
            return node.inputs[0]
    return value


def _labels(node: onnx.NodeProto) -> tuple[str | int, ...] | None:
    for attribute in node.attribute:
        if attribute.name in _LABELS:
            found = onnx.helper.get_attribute_value(attribute)
            if found:
                return tuple(v.decode() if isinstance(v, bytes) else int(v) for v in found)
    return None
