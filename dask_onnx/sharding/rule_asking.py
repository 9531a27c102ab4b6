"""The algebra of axes, asked node by node: the one place that knows how a `Walk` works inside."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from dask_onnx.analysis.axes.dependence import Dependence
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.table import NAMES_SHAPES, rule_of
from dask_onnx.analysis.axes.view import NodeView


def view_of(walk: Walk, index: int) -> NodeView:
    """Return a node with what its inputs depend on, as far as the walk has noted."""
    return walk._view(walk.facts.nodes[index], walk.facts.proto.graph.node[index])


def seeing(v: NodeView, ins: Sequence[Dependence]) -> NodeView:
    """Return the same node with other dependences of its inputs."""
    other = copy.copy(v)
    other.ins = ins
    return other


def ask_rule(walk: Walk, v: NodeView) -> list[Dependence]:
    """Return what the outputs of a node depend on, by its operator's rule."""
    entry = rule_of(v.proto.domain, v.op, walk.custom)
    return [walk._finished(v, dep, place, entry) for place, dep in enumerate(entry.rule(v))]


def fold_sizes(walk: Walk, index: int) -> list[Dependence] | None:
    """Work out a node of shape arithmetic and remember its value; None for any other node."""
    node = walk.facts.nodes[index]
    if node.op_type not in NAMES_SHAPES or node.domain:
        return None
    return walk._fold(node, walk.facts.proto.graph.node[index])


def note_outputs(walk: Walk, index: int, outputs: Sequence[Dependence]) -> None:
    """Remember what the outputs of a node depend on."""
    walk._note(walk.facts.proto.graph.node[index], outputs)
