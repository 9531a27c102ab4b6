"""Tracing of the tiled axes of an image through a graph, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import onnx

from dask_onnx.analysis.axes.control_rules import CONTROL_FLOW
from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.cost import value_bytes
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.tiles.axis_outcomes import broken_dependence, carried_axes
from dask_onnx.tiles.flow import (
    CAPTURE,
    Edge,
    Flow,
    NotTileableError,
    Step,
    TooLargeError,
    TracedValue,
)
from dask_onnx.tiles.graph_rewrites import DECOMPOSABLE_OPS
from dask_onnx.tiles.input_places import InputPlaces, input_places_of
from dask_onnx.tiles.places import UNCHANGED, Place, Places
from dask_onnx.tiles.reduce import STATISTIC_OF
from dask_onnx.tiles.size_values import fold_sizes, is_shape_node, known_sizes
from dask_onnx.tiles.tile_rules import AxisOutcome, NodeRules

_QUERY_KINDS = (Kind.PAIRED, Kind.CONTRACTED, Kind.FACTORED)
"""Dependences of nodes that may run on tiles of their first input, with all others gathered."""


def trace(
    facts: GraphFacts,
    specs: Mapping[str, TensorSpec],
    sources: Mapping[str, Places],
    axes: Sequence[int],
    outputs: Sequence[str],
    custom_axes: CustomAxes,
    *,
    max_untiled_bytes: int,
    variances: Mapping[str, str] | None = None,
    reference: Flow | None = None,
) -> Flow:
    """Trace the tiled axes of an image through the graph.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of str to TensorSpec
        Types and shapes of all values for the whole image.
    sources : mapping of str to Places
        Inputs that are cut into tiles, the image first, to the locations of the tiled axes.
    axes : sequence of int
        Axes of the image along which tiles are cut.
    outputs : sequence of str
        Values to compute.
    custom_axes : CustomAxes
        Axes that the caller's custom operators declare.
    max_untiled_bytes : int
        Bytes of activations up to which a node behind an attention runs on untiled values.
    variances : mapping of str to str, optional
        Name of a variance to the name of the value that it is the variance of, over the same axes
        as the mean that its node computes.
    reference : Flow, optional
        Flow of the same graph for another image size, whose choices of tiles or untiled values are
        repeated.

    Raises
    ------
    NotTileableError
        A node needs an unbounded range of pixels, and no pass over all tiles provides it.
    TooLargeError
        A value that must be untiled exceeds `max_untiled_bytes`.
    SizeMismatchError
        The model does not accept an image of this size.
    """
    flow = Flow(facts, specs, sources, tuple(axes), dict(variances or {}))
    return _Tracer(flow, outputs, custom_axes, max_untiled_bytes, reference).run()


class _Tracer:
    """State of one trace; fills its `flow` node by node."""

    def __init__(
        self,
        flow: Flow,
        outputs: Sequence[str],
        custom_axes: CustomAxes,
        max_untiled_bytes: int,
        reference: Flow | None,
    ) -> None:
        self.flow, self.facts, self.specs = flow, flow.facts, flow.specs
        self.custom_axes, self.reference = custom_axes, reference
        self.max_untiled_bytes = max_untiled_bytes
        self.live = set(self.facts.ancestors(outputs))
        self.opset = self.facts.model.opsets.get("", 1)
        for name, places in flow.sources.items():
            flow.values[name] = TracedValue(places, 0, is_untiled=False)

    def run(self) -> Flow:
        """Visit the nodes that the outputs need, in topological order."""
        nodes = self.facts.proto.graph.node
        for node in self.facts.nodes:
            if node.index in self.live:
                self._visit(node, nodes[node.index])
        return self.flow

    def _visit(self, node: NodeFacts, proto: onnx.NodeProto) -> None:
        values, flow = self.flow.values, self.flow
        # The shape of a value whose size the run tells is a value, too.
        is_known_size = known_sizes(flow, node.inputs[0]) is not None if node.inputs else True
        is_shape = is_shape_node(node) and (is_known_size or node.inputs[0] not in values)
        traced_inputs = [i for i, name in enumerate(node.inputs) if name in values]
        if is_shape or not (traced_inputs or any(name in values for name in node.captures)):
            if is_shape or any(name in flow.size_dependent for name in node.reads):
                flow.size_dependent.update(node.outputs)
            fold_sizes(flow, node, proto, self.opset)
            return
        inputs = [values[node.inputs[i]] for i in traced_inputs]
        if all(v.is_untiled and not v.places for v in inputs) and not self._captures_tiles(node):
            self._add_untiled(node, {})
            return
        if standard_op_type(node) in CONTROL_FLOW or any(name in values for name in node.captures):
            self._add_body(node)
            return
        rules = NodeRules(
            proto, flow.dims, flow.constant, flow.size_dependent, self.opset, self.custom_axes
        )
        is_behind_untiled = any(v.is_untiled and v.places for v in inputs)
        if is_behind_untiled and self._stays_untiled(node, traced_inputs):
            self._add_untiled(node, self._untiled_places(node, rules, traced_inputs))
            return
        self._add_on_tiles(node, rules, traced_inputs)

    def _captures_tiles(self, node: NodeFacts) -> bool:
        return any(
            name in self.flow.values and not self.flow.values[name].is_untiled
            for name in node.captures
        )

    # Nodes on untiled values.

    def _stays_untiled(self, node: NodeFacts, traced_inputs: Sequence[int]) -> bool:
        """Return whether a node that reads an untiled value runs on untiled values too.

        It returns to tiles where its activations exceed the budget, or where it enlarges an input
        that already is longer than every tiled axis, as a decoder does.
        """
        if self.reference is not None:
            return self.reference.steps[node.index].is_untiled
        longest_axis = max(
            (
                place.size
                for i in traced_inputs
                if (traced := self.flow.values[node.inputs[i]]).is_untiled
                for place in traced.places.values()
            ),
            default=0,
        )
        longest_input = max(known_sizes(self.flow, node.inputs[traced_inputs[0]]) or [0])
        grows = any(
            max(known_sizes(self.flow, name) or [0]) > longest_input > longest_axis
            for name in node.outputs
        )
        return not grows and self._bytes(node, traced_inputs) <= self.max_untiled_bytes

    def _bytes(self, node: NodeFacts, traced_inputs: Sequence[int]) -> int:
        """Return the bytes that a node reads and writes for the whole image."""
        names = [*dict.fromkeys(node.inputs[i] for i in traced_inputs), *node.outputs]
        return sum(value_bytes(self.specs.get(name)) for name in names)

    def _add_body(self, node: NodeFacts) -> None:
        """Add a node with bodies, or that a body captures tiles for: it runs on untiled values."""
        dep = Dependence(Kind.OPAQUE, node=node.name, how="a body of nodes")
        names = [name for name in dict.fromkeys(node.reads) if name in self.flow.values]
        size = sum(value_bytes(self.specs.get(name)) for name in (*names, *node.outputs))
        unknown = self.flow.size_dependent - set(self.flow.known)
        if size > self.max_untiled_bytes or any(name in unknown for name in node.captures):
            self._refuse(node, dep, self.flow.axes[0], size)
        self._add_untiled(node, {})

    def _add_untiled(self, node: NodeFacts, places: Mapping[str, Places]) -> None:
        """Add a step that runs once, on untiled values.

        Parameters
        ----------
        node : NodeFacts
        places : mapping of str to Places
            Output to the locations of the tiled axes in it.
        """
        values = self.flow.values
        inputs = [values[name] for name in dict.fromkeys(node.reads) if name in values]
        level = max(v.level + (not v.is_untiled) for v in inputs)
        edges = tuple(
            Edge(i, name, {}, {}, is_gathered=True)
            for i, name in enumerate(node.inputs)
            if name in values
        )
        captured = [name for name in node.captures if name in values]
        edges += tuple(Edge(CAPTURE, name, {}, {}, is_gathered=True) for name in captured)
        self.flow.steps[node.index] = Step(node, level, True, edges)
        for name in node.outputs:
            values[name] = TracedValue(places.get(name, {}), level, is_untiled=True)

    def _untiled_places(
        self, node: NodeFacts, rules: NodeRules, traced_inputs: Sequence[int]
    ) -> dict[str, Places]:
        """Return the locations of the tiled axes in the outputs of an untiled step, if known.

        An axis that the inputs pair with each other is located by the first input alone: the
        queries of an attention.
        """
        found: dict[str, dict[int, Place]] = {name: {} for name in node.outputs}
        first = traced_inputs[0]
        candidates = [{i: self.flow.values[node.inputs[i]].places for i in traced_inputs}]
        if len(traced_inputs) > 1:
            candidates.append({first: self.flow.values[node.inputs[first]].places})
        for k in self.flow.axes:
            for input_places in candidates:
                outcomes = self._outcomes(node, rules, input_places, k)
                if outcomes and not any(o.dep.is_broken for o in outcomes):
                    for name, outcome in zip(node.outputs, outcomes, strict=False):
                        if outcome.place is not None:
                            found[name][k] = outcome.place
                    break
        return dict(found)

    # Nodes on tiles.

    def _outcomes(
        self, node: NodeFacts, rules: NodeRules, input_places: InputPlaces, k: int
    ) -> list[AxisOutcome]:
        """Return the outcome of one tiled axis per output; empty if no input carries the axis."""
        at = [input_places.get(i, {}).get(k) for i in range(len(node.inputs))]
        if all(place is None for place in at):
            return []
        is_only_axis = at[0] is None or not any(
            other.axis == at[0].axis for j, other in input_places.get(0, {}).items() if j != k
        )
        return rules.outcomes(at, is_only_axis=is_only_axis)

    def _add_on_tiles(
        self, node: NodeFacts, rules: NodeRules, traced_inputs: Sequence[int]
    ) -> None:
        """Add a node that reads tiles: as a tiled step, a statistic, or a step that gathers."""
        input_places = input_places_of(self.flow, node, rules, traced_inputs)
        outcomes = {k: self._outcomes(node, rules, input_places, k) for k in self.flow.axes}
        broken = {
            k: b for k, found in outcomes.items() if (b := broken_dependence(found)) is not None
        }
        if self._defers_decomposition(node, outcomes):
            return
        reduced = {k for k, dep in broken.items() if dep.kind == Kind.REDUCED}
        is_statistic = standard_op_type(node) in STATISTIC_OF
        if broken and reduced == set(broken) and is_statistic:
            self._add_statistic(node, outcomes, reduced)
        elif broken:
            self._add_gathering(node, rules, traced_inputs, broken)
        else:
            self._add_tiled(node, input_places, outcomes, gathered=())

    def _defers_decomposition(
        self, node: NodeFacts, outcomes: Mapping[int, Sequence[AxisOutcome]]
    ) -> bool:
        """Add a node that normalises over tiled axes to those to decompose; return if it is one."""
        if standard_op_type(node) not in DECOMPOSABLE_OPS:
            return False
        is_over_pixels = any(
            outcome.dep.kind == Kind.REDUCED or outcome.dep.coupled
            for found in outcomes.values()
            for outcome in found
        )
        is_supported = len(node.outputs) == 1 or node.op_type == "DynamicQuantizeLinear"
        if not is_over_pixels or not is_supported:
            return False
        self.flow.to_decompose.append(node.index)
        # Continue as if the node were element-wise: the graph is traced again once it is
        # decomposed.
        traced = self.flow.values[node.inputs[0]]
        for name in node.outputs:
            self.flow.values[name] = traced
        self.flow.steps[node.index] = Step(node, traced.level, False, ())
        return True

    def _add_statistic(
        self,
        node: NodeFacts,
        outcomes: Mapping[int, Sequence[AxisOutcome]],
        reduced: set[int],
    ) -> None:
        """Add a step whose result is combined from partial statistics of all tiles."""
        name = self.flow.variances.get(node.outputs[0], node.inputs[0])
        traced = self.flow.values[name]
        places = {
            k: place
            for k, found in carried_axes(outcomes).items()
            if k not in reduced and (place := found[0].place) is not None
        }
        if traced.is_untiled:  # so is the statistic
            self._add_untiled(node, {node.outputs[0]: places})
            return
        edges = (Edge(0, name, traced.places, dict.fromkeys(traced.places, UNCHANGED)),)
        level = traced.level + 1
        self.flow.steps[node.index] = Step(node, level, not places, edges, frozenset(reduced))
        self.flow.values[node.outputs[0]] = TracedValue(places, level, is_untiled=not places)

    def _add_gathering(
        self,
        node: NodeFacts,
        rules: NodeRules,
        traced_inputs: Sequence[int],
        broken: Mapping[int, Dependence],
    ) -> None:
        """Add a node that combines positions with each other.

        It runs on untiled values if these are small, as the head of a detector on the features of
        its backbone. Otherwise it may run on tiles of its first input, with all others gathered:
        the queries against all keys and values of an attention.
        """
        is_concat = standard_op_type(node) == "Concat"
        axis, dep = next(iter(broken.items()))
        size = self._bytes(node, traced_inputs)
        if self.reference is not None:
            is_untiled = self.reference.steps[node.index].is_untiled
        else:
            is_untiled = size <= self.max_untiled_bytes
        if is_untiled:
            self._add_untiled(node, self._untiled_places(node, rules, traced_inputs))
            return
        if not (is_concat or all(d.kind in _QUERY_KINDS for d in broken.values())):
            self._refuse(node, dep, axis, size)
        first, *others = traced_inputs
        input_places = {first: dict(self.flow.values[node.inputs[first]].places)}
        outcomes = {k: self._outcomes(node, rules, input_places, k) for k in self.flow.axes}
        if not others or any(broken_dependence(found) for found in outcomes.values()):
            raise TooLargeError(
                node.inputs[first], node.name, node.op_type, size, self.max_untiled_bytes
            )
        self._add_tiled(node, input_places, outcomes, gathered=others)

    def _add_tiled(
        self,
        node: NodeFacts,
        input_places: InputPlaces,
        outcomes: Mapping[int, Sequence[AxisOutcome]],
        gathered: Sequence[int],
    ) -> None:
        """Add a step that runs on tiles.

        Parameters
        ----------
        node : NodeFacts
        input_places : mapping of int to Places
        outcomes : mapping of int to sequence of AxisOutcome
            Tiled axis to its outcome for each output.
        gathered : sequence of int
            Inputs that every tile receives as a whole.
        """
        values = self.flow.values
        carried = carried_axes(outcomes)
        edges, level = [], 0
        for i, name in enumerate(node.inputs):
            traced = values.get(name)
            if i not in input_places and traced is None:
                continue
            is_gathered = i in gathered
            places = {} if is_gathered else input_places.get(i, {})
            fields = {k: found[0].receptive_field for k, found in carried.items() if k in places}
            edges.append(Edge(i, name, places, fields, is_gathered))
            if traced is not None:
                level = max(level, traced.level + (is_gathered and not traced.is_untiled))
        self.flow.steps[node.index] = Step(node, level, False, tuple(edges))
        for number, name in enumerate(node.outputs):
            places = {}
            for k, found in carried.items():
                place = found[min(number, len(found) - 1)].place
                assert place is not None
                places[k] = place
            values[name] = TracedValue(places, level, is_untiled=False)

    def _refuse(self, node: NodeFacts, dep: Dependence, axis: int, size: int) -> NoReturn:
        value, limit = node.outputs[0] if node.outputs else "", self.max_untiled_bytes
        raise NotTileableError(axis, value, node.name, node.op_type, dep, size, limit)
