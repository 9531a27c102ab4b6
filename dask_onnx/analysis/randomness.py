"""Detection of nodes that draw random numbers."""

from __future__ import annotations

import onnx
from onnx import helper

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.modelio.operator_names import operator_name, standard_op_type
from dask_onnx.modelio.weights import with_bodies

_RANDOM = frozenset(
    [
        ("", "Bernoulli"),
        ("", "Multinomial"),
        ("", "RandomNormal"),
        ("", "RandomNormalLike"),
        ("", "RandomUniform"),
        ("", "RandomUniformLike"),
        ("com.microsoft", "Sampling"),
    ]
)
"""Operators that draw random numbers, by domain and type."""


def random_nodes(
    facts: GraphFacts, outputs: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the nodes that draw random numbers, and of those that cannot repeat them.

    Parameters
    ----------
    facts : GraphFacts
    outputs : tuple of str
        Values whose ancestors are searched, bodies of If, Loop and Scan included.

    Returns
    -------
    random, unseeded : tuple of str
        The second is part of the first: nodes without a seed, and those whose kernel continues its
        sequence from run to run.
    """
    needed = [facts.nodes[index] for index in facts.ancestors(outputs)]
    random = [node for node in needed if _is_random(facts, node)]
    return (
        tuple(node.name for node in random),
        tuple(node.name for node in random if _is_random(facts, node, unseeded=True)),
    )


def _is_random(facts: GraphFacts, node: NodeFacts, *, unseeded: bool = False) -> bool:
    return any(
        (operator_name(inner) in _RANDOM or _is_training_dropout(inner))
        and not (unseeded and _is_seeded(inner))
        for inner in with_bodies(facts.proto.graph.node[node.index])
    )


def _is_training_dropout(node: onnx.NodeProto) -> bool:
    return standard_op_type(node) == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def _is_seeded(node: onnx.NodeProto) -> bool:
    # ONNX Runtime's Multinomial kernel continues its sequence from run to run, seed or not.
    return node.op_type != "Multinomial" and any(
        a.name == "seed" and helper.get_attribute_value(a) is not None for a in node.attribute
    )
