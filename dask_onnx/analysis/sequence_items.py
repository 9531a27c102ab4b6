"""Tensors of which a sequence is made, where the graph says so."""

from __future__ import annotations

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.operator_names import standard_op_type


def sequence_items(facts: GraphFacts, value: str) -> tuple[str, ...] | None:
    """Return the values that are the items of a sequence, in order; None if it is computed.

    Followed are ``SequenceConstruct``, ``SequenceEmpty``, ``SequenceInsert`` at the end and
    ``Identity``. Classifiers with several targets return such sequences: the scores of each target.
    """
    appended: list[str] = []
    while value in facts.producer:
        node = facts.nodes[facts.producer[value]]
        op_type, inputs = standard_op_type(node), node.inputs
        if op_type == "SequenceConstruct":
            return (*inputs, *reversed(appended))
        if op_type == "SequenceEmpty":
            return tuple(reversed(appended))
        if op_type == "SequenceInsert" and len([name for name in inputs if name]) == 2:
            appended.append(inputs[1])
        elif op_type != "Identity":
            return None
        value = inputs[0]
    return None
