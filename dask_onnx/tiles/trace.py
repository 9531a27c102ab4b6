"""Following the tiled axes of a picture through a graph, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import onnx

from dask_onnx.analysis.axes.control_rules import CONTROL
from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.shape_values import folded
from dask_onnx.analysis.axes.table import NAMES_SHAPES, CustomAxes
from dask_onnx.analysis.axes.value_rules import elementwise
from dask_onnx.analysis.axes.view import Known, NodeView
from dask_onnx.analysis.cost import value_bytes
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.tiles.flow import (
    Edge,
    Flow,
    NotTileableError,
    SizeMismatchError,
    Step,
    TooLargeError,
    Traced,
)
from dask_onnx.tiles.places import UNCHANGED, Place, Places
from dask_onnx.tiles.primitives import UNROLLED
from dask_onnx.tiles.reduce import KIND_OF
from dask_onnx.tiles.steps import Asker, Outcome

_WHOLE_KINDS = (Kind.PAIRED, Kind.CONTRACTED, Kind.FACTORED)
"""What runs on the whole value if that is small enough."""


def trace(
    facts: GraphFacts,
    specs: Mapping[str, TensorSpec],
    source: str,
    axes: Sequence[int],
    outputs: Sequence[str],
    own: CustomAxes,
    *,
    whole_bytes: int,
    variances: Mapping[str, str] | None = None,
    decided: Flow | None = None,
) -> Flow:
    """Follow the tiled axes of one input through the graph.

    Parameters
    ----------
    specs : at the size of the whole picture
    source : the input
    axes : its axes that are cut
    outputs : values that are wanted
    own : what the caller's operators declare of their axes
    whole_bytes : up to so many bytes of activations a node behind an attention runs on the whole
        rather than by tiles
    variances : value to the one whose variance it is, over the same axes as the mean that its node
        takes
    decided : the flow of the same graph at another size, whose choices of whole or tiles are kept

    Raises
    ------
    NotTileableError, TooLargeError, SizeMismatchError
    """
    flow = Flow(facts, specs, source, tuple(axes), dict(variances or {}))
    return _Tracer(flow, outputs, own, whole_bytes, decided).run()


class _Tracer:
    def __init__(
        self,
        flow: Flow,
        outputs: Sequence[str],
        own: CustomAxes,
        whole_bytes: int,
        decided: Flow | None,
    ) -> None:
        self.flow, self.facts, self.specs = flow, flow.facts, flow.specs
        self.own, self.whole_bytes, self.decided = own, whole_bytes, decided
        self.live = set(self.facts.ancestors(outputs))
        self.opset = self.facts.model.opsets.get("", 1)
        spec = self.specs[flow.source]
        assert spec.shape is not None
        places: dict[int, Place] = {}
        for axis in flow.axes:
            size = spec.shape[axis]
            assert isinstance(size, int)
            places[axis] = Place(axis, 1, 1, size, Fraction(1))
        flow.values[flow.source] = Traced(places, 0, is_once=False)

    def run(self) -> Flow:
        nodes = self.facts.proto.graph.node
        for node in self.facts.nodes:
            if node.index in self.live:
                self._visit(node, nodes[node.index])
        return self.flow

    # What follows from sizes.

    def _fold(self, node: NodeFacts, proto: onnx.NodeProto) -> None:
        """Work out a small value that follows from sizes, where that is possible."""
        if node.op_type in ("Shape", "Size") and not node.domain:
            shape = self._sizes(node.inputs[0])
            if shape is not None and node.op_type == "Size":
                self.flow.known[node.outputs[0]] = Known(np.array(int(np.prod(shape))))
            elif shape is not None:
                given = {a.name: a.i for a in proto.attribute}
                part = shape[given.get("start", 0) : given.get("end")]
                self.flow.known[node.outputs[0]] = Known(np.array(part, np.int64))
            return
        if node.op_type in NAMES_SHAPES:
            ins = [FREE] * len(node.inputs)
            view = NodeView(
                proto,
                node.name,
                node.inputs,
                ins,
                self.flow.dims,
                self.flow.constant,
                self.opset,
                1,
            )
            for name, value in zip(proto.output, folded(view) or (), strict=False):
                self.flow.known[name] = Known(value.array)

    def _sizes(self, name: str) -> list[int] | None:
        spec = self.specs.get(name)
        if name in self.flow.known:
            return list(self.flow.known[name].array.shape)
        if spec is None or spec.shape is None:
            return None
        sizes = [dim for dim in spec.shape if isinstance(dim, int)]
        return sizes if len(sizes) == len(spec.shape) else None

    # What depends on pixels.

    def _visit(self, node: NodeFacts, proto: onnx.NodeProto) -> None:
        values, flow = self.flow.values, self.flow
        is_shape = node.op_type in ("Shape", "Size") and not node.domain
        pixels = [i for i, name in enumerate(node.inputs) if name in values]
        if is_shape or not (pixels or any(name in values for name in node.captures)):
            if is_shape or any(name in flow.sized for name in node.reads):
                flow.sized.update(node.outputs)
            self._fold(node, proto)
            return
        held = [values[node.inputs[i]] for i in pixels]
        if all(v.is_once and not v.places for v in held) and not self._reads_tiles(node):
            self._once(node, {})
            return
        if node.op_type in CONTROL or any(name in values for name in node.captures):
            self._refuse(node, Dependence(Kind.OPAQUE, node=node.name, how="a body of nodes"))
        asker = Asker(proto, flow.dims, flow.constant, flow.sized, self.opset, self.own)
        if any(v.is_once and v.places for v in held) and self._stays_whole(node, pixels):
            self._once(node, self._places_behind(node, asker, pixels))
            return
        self._tiled(node, asker, pixels)

    def _reads_tiles(self, node: NodeFacts) -> bool:
        return any(
            name in self.flow.values and not self.flow.values[name].is_once
            for name in node.captures
        )

    def _stays_whole(self, node: NodeFacts, pixels: Sequence[int]) -> bool:
        """Whether a node behind a value that was made in one piece runs on the whole too."""
        if self.decided is not None:
            return self.decided.steps[node.index].is_once
        most = max(
            (
                place.size
                for i in pixels
                if (held := self.flow.values[node.inputs[i]]).is_once
                for place in held.places.values()
            ),
            default=0,
        )
        grows = any(
            max(self._sizes(name) or [0]) > max(self._sizes(node.inputs[pixels[0]]) or [0]) > most
            for name in node.outputs
        )
        return not grows and self._bytes(node, pixels) <= self.whole_bytes

    def _bytes(self, node: NodeFacts, pixels: Sequence[int]) -> int:
        """Bytes of what a node reads and writes of the whole picture."""
        names = [*dict.fromkeys(node.inputs[i] for i in pixels), *node.outputs]
        return sum(value_bytes(self.specs.get(name)) for name in names)

    def _once(self, node: NodeFacts, places: Mapping[str, Places]) -> None:
        """Note a node that runs once, on whole values."""
        values = self.flow.values
        held = [values[name] for name in dict.fromkeys(node.reads) if name in values]
        level = max(v.level + (not v.is_once) for v in held)
        edges = tuple(
            Edge(i, name, {}, {}, is_whole=True)
            for i, name in enumerate(node.inputs)
            if name in values
        )
        self.flow.steps[node.index] = Step(node, level, True, edges)
        for name in node.outputs:
            values[name] = Traced(places.get(name, {}), level, is_once=True)

    def _places_behind(
        self, node: NodeFacts, asker: Asker, pixels: Sequence[int]
    ) -> dict[str, Places]:
        """Where the tiled axes lie behind a node that runs once, as far as that can be told."""
        found: dict[str, dict[int, Place]] = {name: {} for name in node.outputs}
        sides = [{i: self.flow.values[node.inputs[i]].places for i in pixels}]
        if len(pixels) > 1:
            sides.append({pixels[0]: self.flow.values[node.inputs[pixels[0]]].places})
        for k in self.flow.axes:
            for side in sides:
                outcomes = self._outcomes(node, asker, side, k)
                if outcomes and not any(o.dep.is_broken for o in outcomes):
                    for name, outcome in zip(node.outputs, outcomes, strict=False):
                        if outcome.place is not None:
                            found[name][k] = outcome.place
                    break
        return dict(found)

    def _outcomes(
        self, node: NodeFacts, asker: Asker, side: Mapping[int, Places], k: int
    ) -> list[Outcome]:
        """What becomes of one tiled axis that lies in some inputs; empty if it lies in none."""
        at = [side.get(i, {}).get(k) for i in range(len(node.inputs))]
        if all(place is None for place in at):
            return []
        is_alone = at[0] is None or not any(
            other.axis == at[0].axis for j, other in side.get(0, {}).items() if j != k
        )
        return asker.ask(at, is_alone=is_alone)

    def _tiled(self, node: NodeFacts, asker: Asker, pixels: Sequence[int]) -> None:
        side = self._sides(node, asker, pixels)
        outcomes = {k: self._outcomes(node, asker, side, k) for k in self.flow.axes}
        broken = {k: b for k, found in outcomes.items() if (b := _broken(found)) is not None}
        if node.op_type in UNROLLED and not node.domain and self._unrolls(node, outcomes):
            return
        reduced = {k for k, dep in broken.items() if dep.kind == Kind.REDUCED}
        is_statistic = node.op_type in KIND_OF and not node.domain
        if broken and reduced == set(broken) and is_statistic:
            self._statistic(node, outcomes, reduced)
        elif broken:
            self._gather(node, asker, pixels, broken)
        else:
            self._note(node, side, outcomes, whole=())

    def _sides(
        self, node: NodeFacts, asker: Asker, pixels: Sequence[int]
    ) -> dict[int, dict[int, Place]]:
        """The places in each input, also of those that stand beside the picture position by
        position (a grid of coordinates, an embedding of positions)."""
        values = self.flow.values
        side = {i: dict(values[node.inputs[i]].places) for i in pixels}
        is_concat = node.op_type == "Concat" and not node.domain
        if asker.entry.rule is not elementwise and not is_concat:
            return side
        shapes = [self._sizes(name) if name else None for name in node.inputs]
        for k in self.flow.axes:
            lead = next((i for i in side if k in side[i]), None)
            if lead is None or (lead_shape := shapes[lead]) is None:
                continue
            place = side[lead][k]
            size, back = lead_shape[place.axis], place.axis - len(lead_shape)
            if is_concat and self._concat_axis(node, len(lead_shape)) == place.axis:
                continue
            for i, shape in enumerate(shapes):
                if shape is None or len(shape) + back < 0 or shape[back] == 1:
                    continue
                if shape[back] != size:
                    raise SizeMismatchError(
                        f"node {node.name!r} ({node.op_type}) reads {node.inputs[lead]!r} of "
                        f"{tuple(lead_shape)} and {node.inputs[i]!r} of {tuple(shape)}"
                    )
                if k not in side.get(i, {}):
                    side.setdefault(i, {})[k] = place.at(len(shape) + back)
        return side

    def _concat_axis(self, node: NodeFacts, rank: int) -> int:
        attributes = self.facts.proto.graph.node[node.index].attribute
        return next((int(a.i) for a in attributes if a.name == "axis"), 1) % rank

    def _unrolls(self, node: NodeFacts, outcomes: Mapping[int, Sequence[Outcome]]) -> bool:
        """Note a node that normalises over tiled axes; whether it is one."""
        is_over_pixels = any(
            outcome.dep.kind == Kind.REDUCED or outcome.dep.coupled
            for found in outcomes.values()
            for outcome in found
        )
        is_plain = len(node.outputs) == 1 or node.op_type == "DynamicQuantizeLinear"
        if not is_over_pixels or not is_plain:
            return False
        self.flow.unrolled.append(node.index)
        # As if it kept to its own pixels: the graph is traced again once it is unrolled.
        held = self.flow.values[node.inputs[0]]
        for name in node.outputs:
            self.flow.values[name] = held
        self.flow.steps[node.index] = Step(node, held.level, False, ())
        return True

    def _statistic(
        self,
        node: NodeFacts,
        outcomes: Mapping[int, Sequence[Outcome]],
        reduced: set[int],
    ) -> None:
        """Note a node whose result is put together from those of all tiles."""
        name = self.flow.variances.get(node.outputs[0], node.inputs[0])
        held = self.flow.values[name]
        left = {k: found[0].place for k, found in _some(outcomes).items() if k not in reduced}
        places = {k: place for k, place in left.items() if place is not None}
        if held.is_once:  # so is the statistic
            self._once(node, {node.outputs[0]: places})
            return
        edges = (Edge(0, name, held.places, dict.fromkeys(held.places, UNCHANGED)),)
        level = held.level + 1
        self.flow.steps[node.index] = Step(node, level, not places, edges, frozenset(reduced))
        self.flow.values[node.outputs[0]] = Traced(places, level, is_once=not places)

    def _gather(
        self,
        node: NodeFacts,
        asker: Asker,
        pixels: Sequence[int],
        broken: Mapping[int, Dependence],
    ) -> None:
        """A node that pairs positions: on whole values if these are small, else with all but its
        first input gathered (the keys and values of an attention)."""
        is_joining = node.op_type == "Concat" and not node.domain
        dep = next(iter(broken.values()))
        if not (is_joining or all(d.kind in _WHOLE_KINDS for d in broken.values())):
            self._refuse(node, dep, next(iter(broken)))
        size = self._bytes(node, pixels)
        if self.decided is not None:
            is_small = self.decided.steps[node.index].is_once
        else:
            is_small = size <= self.whole_bytes
        if is_small:
            self._once(node, self._places_behind(node, asker, pixels))
            return
        first = pixels[0]
        side = {first: dict(self.flow.values[node.inputs[first]].places)}
        outcomes = {k: self._outcomes(node, asker, side, k) for k in self.flow.axes}
        if len(pixels) < 2 or any(_broken(found) for found in outcomes.values()):
            op_type = node.op_type
            raise TooLargeError(node.inputs[first], node.name, op_type, size, self.whole_bytes)
        self._note(node, side, outcomes, whole=pixels[1:])

    def _note(
        self,
        node: NodeFacts,
        side: Mapping[int, Places],
        outcomes: Mapping[int, Sequence[Outcome]],
        whole: Sequence[int],
    ) -> None:
        """Note a node that runs on tiles."""
        values = self.flow.values
        edges, level = [], 0
        for i, name in enumerate(node.inputs):
            held = values.get(name)
            if i not in side and held is None:
                continue
            is_whole = i in whole
            places = {} if is_whole else side.get(i, {})
            reaches = {k: found[0].reach for k, found in _some(outcomes).items() if k in places}
            edges.append(Edge(i, name, places, reaches, is_whole))
            if held is not None:
                level = max(level, held.level + (is_whole and not held.is_once))
        self.flow.steps[node.index] = Step(node, level, False, tuple(edges))
        for number, name in enumerate(node.outputs):
            places = {}
            for k, found in _some(outcomes).items():
                place = found[min(number, len(found) - 1)].place
                assert place is not None
                places[k] = place
            values[name] = Traced(places, level, is_once=False)

    def _refuse(self, node: NodeFacts, dep: Dependence, axis: int | None = None) -> None:
        axis = self.flow.axes[0] if axis is None else axis
        value = node.outputs[0] if node.outputs else ""
        raise NotTileableError(axis, value, node.name, node.op_type, dep)


def _some(outcomes: Mapping[int, Sequence[Outcome]]) -> dict[int, Sequence[Outcome]]:
    """Those of tiled axes that lie in an input at all."""
    return {k: found for k, found in outcomes.items() if found}


def _broken(outcomes: Sequence[Outcome]) -> Dependence | None:
    """What an axis cannot be cut by, if anything."""
    for outcome in outcomes:
        if outcome.dep.is_broken:
            return outcome.dep
        if outcome.dep.coupled:
            return Dependence(Kind.REDUCED, node=outcome.dep.coupled, how="quantisation range")
    return None
