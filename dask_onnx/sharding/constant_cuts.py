"""Cutting of values that follow from weights alone, back to the initializers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.weights import blob_of, is_external
from dask_onnx.sharding.axis_queries import view_of, with_dependences
from dask_onnx.sharding.node_cuts import dependence_of, layout_of
from dask_onnx.sharding.pass_cuts import pass_step
from dask_onnx.sharding.shard_layout import Layout


@dataclass(frozen=True, slots=True)
class ConstantCut:
    """Recipe for one shard of a node's output from shards of its inputs."""

    node: int
    """Position of the node in the graph."""
    cuts: Mapping[int, Layout]
    """Layouts of the inputs that are cut, by position."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes whose value differs in a shard."""
    divided: Mapping[int, int] = field(default_factory=dict)
    """Inputs that hold sizes, to the element to divide; see `Step.divided`."""


class ConstantCuts:
    """Cuts of constants, found backwards through the nodes that compute them.

    The cache has an entry for each constant and layout that a plan asks for, and lives as long as
    the graph that owns it.
    """

    def __init__(self, facts: GraphFacts, walk: Walk) -> None:
        self._facts, self._walk = facts, walk
        self._tensors = facts.tensors
        self._found: dict[tuple[str, Layout], ConstantCut | None] = {}

    def can_cut(self, name: str, layout: Layout) -> bool:
        """Return whether a constant can be cut in this layout, back to its initializers."""
        if name in self._tensors:
            return _is_whole_bytes(self._tensors[name])
        found = self.of(name, layout)
        if found is None:
            return False
        inputs = self._facts.proto.graph.node[found.node].input
        return all(self.can_cut(inputs[place], cut) for place, cut in found.cuts.items())

    def of(self, name: str, layout: Layout) -> ConstantCut | None:
        """Return the recipe for a shard of a constant; None if there is none."""
        key = (name, layout)
        if key not in self._found:
            self._found[key] = self._search(name, layout)
        return self._found[key]

    def _search(self, name: str, layout: Layout) -> ConstantCut | None:
        index = self._facts.producer.get(name)
        if index is None:
            return None
        node = self._facts.nodes[index]
        if len(node.outputs) != 1 or node.captures:
            return None
        view = view_of(self._walk, index)
        for place, layout_in in self._options(view, layout):
            ins = list(view.ins)
            ins[place] = dependence_of(layout_in)
            step = pass_step(self._walk, with_dependences(view, ins), lambda _: True)
            is_independent = step.how == "through" and step.outputs[0].is_independent
            if is_independent and layout_of(step.outputs[0]) == layout:
                cuts = {place: layout_in, **step.cuts}
                return ConstantCut(index, cuts, step.attributes, step.divided)
        return None

    def _options(self, view: NodeView, layout: Layout) -> Iterator[tuple[int, Layout]]:
        """Yield inputs and layouts of them that may carry the shards."""
        for place in range(len(view.proto.input)):
            for axis, size in enumerate(view.shape(place) or ()):
                for outer in dict.fromkeys((layout.outer, 1)):
                    if size and size > 1 and not size % (outer * view.positions):
                        yield place, Layout(axis, outer, size // (outer * view.positions))


def _is_whole_bytes(tensor: onnx.TensorProto) -> bool:
    """Return whether elements occupy whole bytes, unlike those of four bits."""
    if not is_external(tensor):
        return True
    count = math.prod(tensor.dims)
    return bool(count) and blob_of(tensor)[2] % count == 0
