"""Quantised nodes that ONNX Runtime fuses, so that results depend on where a plan cuts.

ONNX Runtime computes most fusions exactly, up to the rounding of floating-point sums. Three are
not: a product with dequantised weights runs on activations of 8 bits; a node between
DequantizeLinear and QuantizeLinear runs on integers, and a value in the middle of two steps may be
rounded to the other one; of two quantisations in a row one is dropped. A plan that cuts between
these nodes computes them as the graph is written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.modelio.operator_names import standard_op_type


@dataclass(frozen=True, slots=True)
class LossyFusions:
    """Names of the nodes that ONNX Runtime fuses with their quantisation."""

    products: tuple[str, ...]
    """Products of activations with dequantised weights."""
    steps: tuple[str, ...]
    """Nodes whose inputs are dequantised and whose results are quantised again."""
    repeated: tuple[str, ...]
    """QuantizeLinear nodes that follow a DequantizeLinear at once."""


def lossy_fusions(facts: GraphFacts, outputs: Collection[str]) -> LossyFusions:
    """Return the quantised nodes that some outputs need, and that ONNX Runtime fuses with a loss.

    Parameters
    ----------
    facts : GraphFacts
        The graph.
    outputs : collection of str
        Values whose ancestors are searched.
    """
    needed = [facts.nodes[index] for index in facts.ancestors(tuple(outputs))]
    return LossyFusions(
        tuple(node.name for node in needed if _multiplies_weights(facts, node)),
        tuple(node.name for node in needed if _is_between(facts, node)),
        tuple(node.name for node in needed if _is_repeated(facts, node)),
    )


def _multiplies_weights(facts: GraphFacts, node: NodeFacts) -> bool:
    if standard_op_type(node) != "MatMul":
        return False
    activations, weights = (_dequantised(facts, name) for name in node.inputs[:2])
    return (
        activations is None
        and weights is not None
        and (weights.inputs[0] in facts.initializers or weights.index in facts.constant_nodes)
    )


def _is_between(facts: GraphFacts, node: NodeFacts) -> bool:
    if standard_op_type(node) in ("DequantizeLinear", "QuantizeLinear"):
        return False
    data = [name for name in node.inputs[:2] if name and name not in facts.initializers]
    readers = [facts.nodes[i] for name in node.outputs for i in facts.consumers.get(name, ())]
    return (
        bool(data)
        and all(_dequantised(facts, name) is not None for name in data)
        and any(standard_op_type(reader) == "QuantizeLinear" for reader in readers)
    )


def _is_repeated(facts: GraphFacts, node: NodeFacts) -> bool:
    if standard_op_type(node) != "QuantizeLinear":
        return False
    before = _dequantised(facts, node.inputs[0])
    return before is not None and before.index not in facts.constant_nodes


def _dequantised(facts: GraphFacts, name: str) -> NodeFacts | None:
    """Return the DequantizeLinear that a value comes from; None if it comes from another node."""
    index = facts.producer.get(name)
    if index is None or standard_op_type(facts.nodes[index]) != "DequantizeLinear":
        return None
    return facts.nodes[index]
