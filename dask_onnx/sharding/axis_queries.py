"""Queries of the axis analysis for single nodes: the only user of a `Walk`'s internals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from dask_onnx.analysis.axes.dependence import Dependence
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.table import SHAPE_OPERATORS, rule_of
from dask_onnx.analysis.axes.view import Known, NodeView
from dask_onnx.modelio.operator_names import standard_op_type


def view_of(walk: Walk, index: int) -> NodeView:
    """Return a node with the dependences of its inputs that the walk has recorded."""
    return walk.view(walk.facts.nodes[index], walk.facts.proto.graph.node[index])


def with_dependences(
    view: NodeView,
    ins: Sequence[Dependence],
    constant: Callable[[str], Known | None] | None = None,
) -> NodeView:
    """Return a copy of a node view with other dependences, and values, of its inputs.

    Parameters
    ----------
    ins : sequence of Dependence
        Dependence of each input.
    constant : callable, optional
        Function from the name of an input to its value; that of `view` by default.
    """
    other = copy.copy(view)
    other.ins = ins
    if constant is not None:
        other._constant = constant
    return other


def evaluate_rule(walk: Walk, view: NodeView) -> list[Dependence]:
    """Return what the outputs of a node depend on, by its operator's rule."""
    entry = rule_of(view.proto.domain, view.proto.op_type, walk.custom)
    return [walk.finished(view, dep, place, entry) for place, dep in enumerate(entry.rule(view))]


def fold_sizes(walk: Walk, index: int) -> list[Dependence] | None:
    """Evaluate a node of shape arithmetic and record its value; None for any other node."""
    node = walk.facts.nodes[index]
    if standard_op_type(node) not in SHAPE_OPERATORS:
        return None
    return walk.fold(node, walk.facts.proto.graph.node[index])


def forget_values(walk: Walk, index: int) -> None:
    """Forget values of a node's outputs that were found for the whole, not for a shard."""
    for name in walk.facts.nodes[index].outputs:
        walk.known.pop(name, None)


def record_outputs(walk: Walk, index: int, outputs: Sequence[Dependence]) -> None:
    """Record what the outputs of a node depend on."""
    walk.note(walk.facts.proto.graph.node[index], outputs)
