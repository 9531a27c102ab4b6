"""How a node can run on shards: its rule of the algebra of axes, asked with some inputs whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.analysis.axes.control_rules import CONTROL
from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.table import CustomAxes, classified
from dask_onnx.analysis.axes.view import Known
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.sharding.query_rules import shard_of_queries
from dask_onnx.sharding.rule_asking import ask_rule, seeing, view_of
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.shard_making import made_of_shapes
from dask_onnx.sharding.shard_operands import LocalOperand, OperandNode, local_operand, seen_operand

Takes = tuple[Layout | None, ...]
"""For each input of a node the layout of the shard that it reads; None for the whole value."""

_MOST_SLICED = 4
"""Whole inputs of one node that are tried in slices."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a node on shards, equal to running it whole."""

    takes: Takes
    gives: tuple[Layout | None, ...]
    """For each output where its positions lie; None for an output that nobody needs."""
    operands: tuple[LocalOperand, ...] = ()
    """Inputs that say shapes, to be replaced by those of a shard."""


class Ways:
    """The ways of all nodes of a graph, for one source axis at definite sizes."""

    def __init__(
        self,
        facts: GraphFacts,
        specs: Mapping[str, TensorSpec],
        seeds: Mapping[str, int],
        positions: int,
        custom: CustomAxes,
    ) -> None:
        self.facts, self.specs, self.positions, self.custom = facts, specs, positions, custom
        self.seeds = dict(seeds)
        given = {name: Dependence(Kind.INDEPENDENT, axis) for name, axis in seeds.items()}
        self.walk = Walk(facts, specs, given, positions, {}, custom)
        self.walk.run()
        self.opset = facts.model.opsets.get("", 1)
        """Version of ai.onnx that the model imports."""
        self._protos = facts.proto.graph.node
        self._families = classified()
        self.constants = self._constant_nodes()
        self._cache: dict[tuple[int, Takes, tuple[bool, ...]], Way | None] = {}

    def known(self, name: str) -> npt.NDArray[Any] | None:
        """The whole value that a node makes of shapes alone, worked out; None for others."""
        if name not in self.facts.producer or name not in self.walk.known:
            return None
        array = np.asarray(self.walk.known[name].array)
        spec = self.specs.get(name)
        return array if spec is None or spec.dtype is None else array.astype(spec.dtype)

    def _constant_nodes(self) -> frozenset[int]:
        """Nodes that follow from weights alone, each time in the same way: every segment that needs
        one has a copy of its own."""
        found: set[int] = set()
        for index in sorted(self.facts.constant_nodes):
            is_settled = all(before in found for before in self.facts.predecessors[index])
            if is_settled and not self.stays_whole(index):
                found.add(index)
        return frozenset(found)

    def is_given(self, name: str) -> bool:
        """Whether a value is a weight, follows from weights alone, or from shapes alone."""
        if name in self.facts.initializers or self.facts.producer.get(name) in self.constants:
            return True
        return self.known(name) is not None

    def cause(self, name: str) -> Dependence:
        """How a value depends on the source axis in the whole graph."""
        return self.walk.deps.get(name, FREE)

    def stays_whole(self, index: int) -> bool:
        """Whether a node never runs on shards: it has bodies, or draws random numbers."""
        node = self.facts.nodes[index]
        return node.op_type in CONTROL or bool(node.captures) or self.family(index) == "random"

    def family(self, index: int) -> str:
        """How a node's operator treats its axes in the main."""
        node = self.facts.nodes[index]
        return self._families.get((node.domain, node.op_type), "opaque")

    def options(
        self, index: int, layouts: Mapping[str, Layout], wanted: Sequence[bool]
    ) -> Iterator[Way]:
        """Yield ways to run a node, those that make fewer inputs whole first.

        Parameters
        ----------
        index : number of the node
        layouts : values that are there in shards
        wanted : for each output whether somebody needs it
        """
        if self.stays_whole(index):
            return
        names = self._protos[index].input
        carried = [i for i, name in enumerate(names) if name in layouts]
        for count in range(len(carried)):
            for gathered in itertools.combinations(carried, count):
                kept = {i: layouts[names[i]] for i in carried if i not in gathered}
                way = next(self.sliced_ways(index, kept, gathered, wanted), None)
                if way is not None:
                    yield way

    def sliced_ways(
        self,
        index: int,
        kept: Mapping[int, Layout],
        gathered: Sequence[int],
        wanted: Sequence[bool],
    ) -> Iterator[Way]:
        """Yield ways that also read whole inputs in slices, those with the fewest slices first.

        Parameters
        ----------
        kept : inputs that are read in shards
        gathered : inputs that are read whole though they are there in shards
        """
        names = self._protos[index].input
        others = [i for i in range(len(names)) if i not in kept and i not in gathered]
        choices = {i: found for i in others if (found := self._slices(names[i]))}
        tried = list(choices)[:_MOST_SLICED]
        for count in range(len(tried) + 1):
            for sliced in itertools.combinations(tried, count):
                for axes in itertools.product(*(choices[i] for i in sliced)):
                    takes = {**kept, **dict(zip(sliced, axes, strict=True))}
                    if takes and (way := self.way(index, takes, wanted)):
                        yield way

    def making_way(self, index: int, output: str, layout: Layout) -> Way | None:
        """Return how a node that runs whole can make the slice of an output that is asked for,
        out of whole inputs or of slices; None if it cannot."""
        if self.stays_whole(index):
            return None
        proto = self._protos[index]
        place = list(proto.output).index(output)
        node = OperandNode(
            proto,
            (None,) * len(proto.input),
            tuple(layout if i == place else None for i in range(len(proto.output))),
            self.specs,
            self._constant,
            self.positions,
        )
        made = made_of_shapes(node)
        if made is not None:
            return Way(made.takes, tuple(node.gives), made.operands)
        wanted = [name == output for name in proto.output]
        ways = self.sliced_ways(index, {}, (), wanted)
        return next((way for way in ways if way.gives[place] == layout), None)

    def way(self, index: int, takes: Mapping[int, Layout], wanted: Sequence[bool]) -> Way | None:
        """Return the way that reads these inputs in shards; None if it would not be exact."""
        names = self._protos[index].input
        key = (index, tuple(takes.get(i) for i in range(len(names))), tuple(wanted))
        if key not in self._cache:
            self._cache[key] = self._ask(*key)
        return self._cache[key]

    def _slices(self, name: str) -> list[Layout]:
        """Layouts in which a whole value may be cut: axes as long as there are positions."""
        spec = self.specs.get(name)
        if not name or spec is None or spec.shape is None or self.known(name) is not None:
            return []
        return [Layout(axis) for axis, size in enumerate(spec.shape) if size == self.positions]

    def _ask(self, index: int, takes: Takes, wanted: tuple[bool, ...]) -> Way | None:
        proto = self._protos[index]
        gives: list[Layout | None] = []
        for place, dep in enumerate(self._asked(index, takes)):
            if dep.is_own and dep.axis is not None and not dep.coupled and not dep.is_uniform:
                gives.append(Layout(dep.axis, dep.outer, dep.inner))
            elif place < len(wanted) and wanted[place]:
                return None
            else:
                gives.append(None)
        gives = gives[: len(proto.output)]
        if not any(gives):
            return None
        operands = local_operand(proto, takes, gives, self.specs, self._constant, self.positions)
        return None if operands is None else Way(takes, tuple(gives), operands)

    def _asked(self, index: int, takes: Takes) -> list[Dependence]:
        """What the rule of a node says of its outputs, with other inputs whole."""
        proto = self._protos[index]
        ins = [
            FREE
            if layout is None
            else Dependence(Kind.INDEPENDENT, layout.axis, layout.outer, layout.inner)
            for layout in takes
        ]
        replaced = seen_operand(proto, takes, self.specs, self._constant, self.positions)

        def constant(name: str) -> Known | None:
            found = replaced.get(name)
            array = self._constant(name) if found is None else None
            return found if array is None else Known(array)

        view = seeing(view_of(self.walk, index), ins)
        view._constant = constant
        found = shard_of_queries(view)
        return ask_rule(self.walk, view) if found is None else list(found)

    def refusal(self, index: int, layouts: Mapping[str, Layout]) -> Dependence:
        """Return why a node does not run with all inputs as they are: the worst of its outputs."""
        node, proto = self.facts.nodes[index], self._protos[index]
        if node.op_type in CONTROL or node.captures:
            return Dependence(Kind.OPAQUE, node=node.name, how="bodies")
        if self.stays_whole(index):
            return Dependence(Kind.OPAQUE, node=node.name, how="random numbers")
        takes = tuple(layouts.get(name) for name in proto.input)
        return max(self._asked(index, takes), key=lambda dep: (dep.kind, bool(dep.coupled)))

    def _constant(self, name: str) -> npt.NDArray[Any] | None:
        known = self.walk.constant(name)
        return None if known is None else np.asarray(known.array)
