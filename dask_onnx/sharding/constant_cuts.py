"""Cutting values that follow from weights alone: which initializers are cut for that, and how."""

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
from dask_onnx.sharding.node_cuts import dependence_of, layout_of
from dask_onnx.sharding.pass_cuts import pass_step
from dask_onnx.sharding.rule_asking import seeing, view_of
from dask_onnx.sharding.shard_layout import Layout


@dataclass(frozen=True, slots=True)
class ConstantCut:
    """How a node makes a shard of its output of shards of what it reads."""

    node: int
    cuts: Mapping[int, Layout]
    """Inputs that are cut, by position."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    divided: Mapping[int, int] = field(default_factory=dict)


class ConstantCuts:
    """Asks the rules of nodes that make constants backwards; remembers the answers."""

    def __init__(self, facts: GraphFacts, walk: Walk) -> None:
        self._facts, self._walk = facts, walk
        self._tensors = {tensor.name: tensor for tensor in facts.proto.graph.initializer}
        self._found: dict[tuple[str, Layout], ConstantCut | None] = {}

    def can_cut(self, name: str, layout: Layout) -> bool:
        """Whether a constant can be cut so, down to the bytes of its initializers."""
        if name in self._tensors:
            return _is_whole_bytes(self._tensors[name])
        found = self.of(name, layout)
        if found is None:
            return False
        inputs = self._facts.proto.graph.node[found.node].input
        return all(self.can_cut(inputs[place], cut) for place, cut in found.cuts.items())

    def of(self, name: str, layout: Layout) -> ConstantCut | None:
        """Return how the node that makes a constant makes a shard of it."""
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
        for place, tried in self._options(view, layout):
            ins = list(view.ins)
            ins[place] = dependence_of(tried)
            step = pass_step(self._walk, seeing(view, ins), lambda _: True)
            is_own = step.how == "through" and step.outputs[0].is_own
            if is_own and layout_of(step.outputs[0]) == layout:
                cuts = {place: tried, **step.cuts}
                return ConstantCut(index, cuts, step.attributes, step.divided)
        return None

    def _options(self, view: NodeView, layout: Layout) -> Iterator[tuple[int, Layout]]:
        """Inputs and axes of them that may carry the shards."""
        for place in range(len(view.proto.input)):
            for axis, size in enumerate(view.shape(place) or ()):
                for outer in dict.fromkeys((layout.outer, 1)):
                    if size and size > 1 and not size % (outer * view.positions):
                        yield place, Layout(axis, outer, size // (outer * view.positions))


def _is_whole_bytes(tensor: onnx.TensorProto) -> bool:
    """Whether elements do not share bytes, as those of four bits do."""
    if not is_external(tensor):
        return True
    count = math.prod(tensor.dims)
    return bool(count) and blob_of(tensor)[2] % count == 0
