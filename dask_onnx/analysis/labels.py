"""Class labels of classifiers, where the graph contains them."""

from __future__ import annotations

import onnx

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.modelio.operator_names import operator_name, public_op_type, standard_op_type
from dask_onnx.modelio.plain_outputs import Labels, class_labels_of

_LABELS = (
    "classlabels_strings",
    "classlabels_int64s",
    "classlabels_ints",
)
_KEEP_ORDER = frozenset("Cast Identity Normalizer Softmax Sigmoid Clip Div Mul ZipMap".split())
"""Operators that keep the order of the classes."""


def class_labels(facts: GraphFacts, value: str) -> Labels | None:
    """Return the class of each column of a value, in order; None where the graph has no labels.

    Labels are attributes of ``ZipMap`` and of the classifiers of ``ai.onnx.ml``. They are searched
    backwards from the value, through operators that keep the order of the columns.
    """
    while value in facts.producer:
        node = facts.nodes[facts.producer[value]]
        proto = facts.proto.graph.node[node.index]
        labels = class_labels_of(proto) or _labels(proto)
        if labels:
            return None if _makes_labels(node, value) else labels
        if public_op_type(node) not in _KEEP_ORDER:
            return None
        value = node.inputs[0]
    return None


def map_labels(facts: GraphFacts, value: str) -> Labels | None:
    """Return the keys of the maps that a value stands for; None if the model has no maps there.

    The model as it was exported has a list of maps there, one for each row, made by ``ZipMap``; the
    value is the matrix of their items, as `modelio.plain_outputs` writes it.
    """
    while value in facts.producer:
        node = facts.nodes[facts.producer[value]]
        labels = class_labels_of(facts.proto.graph.node[node.index])
        if labels or standard_op_type(node) != "Identity":
            return labels
        value = node.inputs[0]
    return None


def _makes_labels(node: NodeFacts, value: str) -> bool:
    """Return whether a value is the label that a classifier of ai.onnx.ml chose for each row."""
    domain, op_type = operator_name(node)
    is_classifier = domain == "ai.onnx.ml" and op_type.endswith("Classifier")
    return is_classifier and value == node.outputs[0]


def _labels(node: onnx.NodeProto) -> Labels | None:
    for attribute in node.attribute:
        if attribute.name in _LABELS:
            found = onnx.helper.get_attribute_value(attribute)
            if found:
                return tuple(
                    v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else int(v)
                    for v in found
                )
    return None
