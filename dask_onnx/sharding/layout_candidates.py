"""Layout candidates of nodes: which inputs a node may read in shards, and what it then returns.

A candidate is found by evaluating the operator's rule of the axis analysis with some inputs in
shards and the others whole. It is valid where every needed output then depends only on its own
positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dask_onnx.analysis.axes.control_rules import CONTROL_FLOW
from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.table import CustomAxes, operator_families
from dask_onnx.analysis.axes.view import Known
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.sharding.axis_queries import evaluate_rule, view_of, with_dependences
from dask_onnx.sharding.partial_results import combination_of, picked, picked_position
from dask_onnx.sharding.query_shards import shard_of_queries
from dask_onnx.sharding.shape_slices import slice_recipe
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.shard_operands import (
    LocalOperand,
    OperandNode,
    local_operand,
    marked_operands,
)

InputLayouts = tuple[Layout | None, ...]
"""Layout of the shard of each input that a node reads; None for the whole value."""

_MAX_SLICED_INPUTS = 4
"""Whole inputs of one node that are tried in slices; the number of combinations grows
exponentially."""


@dataclass(frozen=True, slots=True)
class LayoutCandidate:
    """Layouts of a node's inputs and outputs with which running it on every shard is exact."""

    input_layouts: InputLayouts
    """Layout of each input; None where the whole value is read."""
    output_layouts: tuple[Layout | None, ...]
    """Layout of each output; None for an output that nothing reads."""
    operands: tuple[LocalOperand, ...] = ()
    """Inputs that hold sizes or indices, to be replaced by those of the shard."""


class LayoutCandidates:
    """Layout candidates of all nodes of a graph, for one sharded axis at fixed sizes.

    Parameters
    ----------
    specs : mapping of value to TensorSpec
        Every value, with fixed sizes.
    seeds : mapping of input to axis
        Graph inputs that have the sharded axis.
    positions : int
        Size of the sharded axis.
    custom : CustomAxes
        Axis rules of custom operators.
    """

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
        """Graph inputs that have the sharded axis, to that axis."""
        given = {name: Dependence(Kind.INDEPENDENT, axis) for name, axis in seeds.items()}
        self.walk = Walk(facts, specs, given, positions, {}, custom)
        self.walk.run()
        self.opset = facts.model.opsets.get("", 1)
        """Version of the ai.onnx operator set that the model imports."""
        self._protos = facts.proto.graph.node
        self._families = operator_families()
        self.constants = self._constant_nodes()
        """Deterministic nodes that depend on weights only."""
        self._cache: dict[tuple[int, InputLayouts, tuple[bool, ...]], LayoutCandidate | None] = {}

    def known(self, name: str) -> npt.NDArray[Any] | None:
        """Return a value that a node computes from shapes alone; None for any other value."""
        if name not in self.facts.producer or name not in self.walk.known:
            return None
        array = np.asarray(self.walk.known[name].array)
        spec = self.specs.get(name)
        return array if spec is None or spec.dtype is None else array.astype(spec.dtype)

    def _constant_nodes(self) -> frozenset[int]:
        """Return the deterministic nodes that depend on weights only.

        Every submodel that needs one of them repeats it, rather than receive its result.
        """
        found: set[int] = set()
        for index in sorted(self.facts.constant_nodes):
            is_settled = all(before in found for before in self.facts.predecessors[index])
            if is_settled and not self.stays_whole(index):
                found.add(index)
        return frozenset(found)

    def is_given(self, name: str) -> bool:
        """Return whether a value is a weight, or follows from weights alone or shapes alone."""
        if name in self.facts.initializers or self.facts.producer.get(name) in self.constants:
            return True
        return self.known(name) is not None

    def stays_whole(self, index: int) -> bool:
        """Return whether a node never runs on shards: it has subgraphs or draws random numbers."""
        node = self.facts.nodes[index]
        return (
            standard_op_type(node) in CONTROL_FLOW
            or bool(node.captures)
            or self.family(index) == "random"
        )

    def family(self, index: int) -> str:
        """Return the family of a node's operator, such as "elementwise"; "opaque" if unknown."""
        node = self.facts.nodes[index]
        return self._families.get((node.domain, node.op_type), "opaque")

    def options(
        self, index: int, layouts: Mapping[str, Layout], wanted: Sequence[bool]
    ) -> Iterator[LayoutCandidate]:
        """Yield the candidates of a node, those that gather the fewest inputs first.

        Parameters
        ----------
        index : int
            Position of the node in the graph.
        layouts : mapping of value to Layout
            Values that are available in shards.
        wanted : sequence of bool
            For each output whether it is read or requested.
        """
        if self.stays_whole(index):
            return
        names = self._protos[index].input
        carried = [i for i, name in enumerate(names) if name in layouts]
        for count in range(len(carried)):
            for gathered in itertools.combinations(carried, count):
                kept = {i: layouts[names[i]] for i in carried if i not in gathered}
                if any(layout.combine for layout in kept.values()):
                    continue
                candidate = next(self.sliced_candidates(index, kept, gathered, wanted), None)
                if candidate is not None:
                    yield candidate

    def sliced_candidates(
        self,
        index: int,
        kept: Mapping[int, Layout],
        gathered: Sequence[int],
        wanted: Sequence[bool],
    ) -> Iterator[LayoutCandidate]:
        """Yield candidates that also read whole inputs in slices, the fewest slices first.

        Parameters
        ----------
        kept : mapping of input position to Layout
            Inputs that are read in shards.
        gathered : sequence of int
            Positions of inputs that are read whole although they are available in shards.
        """
        names = self._protos[index].input
        others = [i for i in range(len(names)) if i not in kept and i not in gathered]
        choices = {i: found for i in others if (found := self._slices(names[i]))}
        tried = list(choices)[:_MAX_SLICED_INPUTS]
        for count in range(len(tried) + 1):
            for sliced in itertools.combinations(tried, count):
                for axes in itertools.product(*(choices[i] for i in sliced)):
                    input_layouts = {**kept, **dict(zip(sliced, axes, strict=True))}
                    if input_layouts and (
                        candidate := self.candidate(index, input_layouts, wanted)
                    ):
                        yield candidate

    def output_candidate(self, index: int, output: str, layout: Layout) -> LayoutCandidate | None:
        """Return the candidate that makes one slice of an output from whole or sliced inputs.

        Returns None if the node cannot make the slice.
        """
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
        recipe = slice_recipe(node)
        if recipe is not None:
            return LayoutCandidate(
                recipe.input_layouts, tuple(node.output_layouts), recipe.operands
            )
        wanted = [name == output for name in proto.output]
        candidates = self.sliced_candidates(index, {}, (), wanted)
        return next(
            (candidate for candidate in candidates if candidate.output_layouts[place] == layout),
            None,
        )

    def candidate(
        self, index: int, input_layouts: Mapping[int, Layout], wanted: Sequence[bool]
    ) -> LayoutCandidate | None:
        """Return the candidate that reads these inputs in shards; None if it would not be exact."""
        names = self._protos[index].input
        key = (index, tuple(input_layouts.get(i) for i in range(len(names))), tuple(wanted))
        if key not in self._cache:
            self._cache[key] = self._evaluate(*key)
        return self._cache[key]

    def _slices(self, name: str) -> list[Layout]:
        """Return layouts in which a whole value may be sliced: axes as long as the sharded axis."""
        spec = self.specs.get(name)
        if not name or spec is None or spec.shape is None or self.known(name) is not None:
            return []
        return [Layout(axis) for axis, size in enumerate(spec.shape) if size == self.positions]

    def _evaluate(
        self, index: int, input_layouts: InputLayouts, wanted: tuple[bool, ...]
    ) -> LayoutCandidate | None:
        """Return the candidate with these input layouts.

        Returns None if a wanted output would depend on positions of other shards.
        """
        proto = self._protos[index]
        output_layouts: list[Layout | None] = []
        for place, dep in enumerate(self._output_dependences(index, input_layouts)):
            if (
                dep.is_independent
                and dep.axis is not None
                and not dep.coupled
                and not dep.is_uniform
            ):
                output_layouts.append(Layout(dep.axis, dep.outer, dep.inner))
            elif (partial := self._partial(proto, input_layouts, dep, place)) is not None:
                output_layouts.append(partial)
            elif place < len(wanted) and wanted[place]:
                return None
            else:
                output_layouts.append(None)
        output_layouts = output_layouts[: len(proto.output)]
        if not any(output_layouts):
            return None
        position = self._picked(proto, input_layouts)
        if position is not None:
            whole = self._constant(proto.input[1])
            assert whole is not None
            found = np.full_like(whole, position)
            local = LocalOperand(1, found, np.zeros(whole.shape, bool), -1, is_clipped=True)
            return LayoutCandidate(input_layouts, (picked(position),), (local,))
        if any(layout.combine for layout in output_layouts if layout is not None):
            return LayoutCandidate(input_layouts, tuple(output_layouts))
        operands = local_operand(
            proto, input_layouts, output_layouts, self.specs, self._constant, self.positions
        )
        return (
            None
            if operands is None
            else LayoutCandidate(input_layouts, tuple(output_layouts), operands)
        )

    def _partial(
        self, proto: onnx.NodeProto, layouts: InputLayouts, dep: Dependence, place: int
    ) -> Layout | None:
        """Return the layout of an output whose results on shards can be combined; else None."""
        if place >= len(proto.output):
            return None
        position = self._picked(proto, layouts)
        if position is not None:
            return picked(position)
        specs = [self.specs.get(name) for name in (*proto.input, proto.output[place])]
        shapes = [None if spec is None else spec.shape for spec in specs]
        ranks = [None if shape is None else len(shape) for shape in shapes]
        dtype = None if specs[-1] is None else specs[-1].dtype
        return combination_of(proto, layouts, dep, ranks, dtype)

    def _picked(self, proto: onnx.NodeProto, layouts: InputLayouts) -> int | None:
        """Return the one position that a node takes along the sharded axis; None for others."""
        if proto.op_type != "Gather":
            return None
        return picked_position(proto, layouts, self._constant(proto.input[1]), self.positions)

    def _output_dependences(self, index: int, input_layouts: InputLayouts) -> list[Dependence]:
        """Return what a node's outputs depend on, by its rule, with inputs in these layouts."""
        proto = self._protos[index]
        ins = [
            FREE
            if layout is None
            else Dependence(Kind.INDEPENDENT, layout.axis, layout.outer, layout.inner)
            for layout in input_layouts
        ]
        replaced = marked_operands(proto, input_layouts, self.specs, self._constant, self.positions)

        def constant(name: str) -> Known | None:
            found = replaced.get(name)
            array = self._constant(name) if found is None else None
            return found if array is None else Known(array)

        view = with_dependences(view_of(self.walk, index), ins, constant)
        found = shard_of_queries(view)
        return evaluate_rule(self.walk, view) if found is None else list(found)

    def refusal(self, index: int, layouts: Mapping[str, Layout]) -> Dependence:
        """Return the worst dependence of a node's outputs if it reads its inputs in shards."""
        node, proto = self.facts.nodes[index], self._protos[index]
        if standard_op_type(node) in CONTROL_FLOW or node.captures:
            return Dependence(Kind.OPAQUE, node=node.name, how="subgraphs")
        if self.stays_whole(index):
            return Dependence(Kind.OPAQUE, node=node.name, how="random numbers")
        input_layouts = tuple(layouts.get(name) for name in proto.input)
        return max(
            self._output_dependences(index, input_layouts),
            key=lambda dep: (dep.kind, bool(dep.coupled)),
        )

    def _constant(self, name: str) -> npt.NDArray[Any] | None:
        known = self.walk.constant(name)
        return None if known is None else np.asarray(known.array)
