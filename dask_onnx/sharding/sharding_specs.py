"""Plans that follow ONNX sharding specs (IR version 11), checked by the axis analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dask_onnx.analysis.axes.table import SHAPE_OPERATORS
from dask_onnx.analysis.cost import value_bytes
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import printable
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.devices import read_configurations
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.planning.annotations import stage_numbers
from dask_onnx.sharding.heads import Shapes, build_graph, builder_of
from dask_onnx.sharding.node_cuts import Step
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.spec_flow import ShardedNode, SpecFlow
from dask_onnx.sharding.spec_forms import MeshAxis, MeshLayout, distinct_coordinates
from dask_onnx.sharding.spec_protos import (
    TensorSharding,
    check_sharding,
    read_shardings,
    sharded_configurations,
)
from dask_onnx.sharding.tensor_models import NodeWork, ShardSlices, SubmodelOutput
from dask_onnx.sharding.tensor_submodels import (
    Assembly,
    SubmodelBuilder,
    TensorPartition,
)


@dataclass(frozen=True, slots=True)
class Annotated:
    """Request of `from_annotations` for a model with sharding annotations."""

    configuration: str | None = None
    """Name of the device configuration; None for the only one."""


def has_shardings(facts: ModelFacts, configuration: str | None = None) -> bool:
    """Return whether a model declares shardings, under that configuration or any."""
    named = sharded_configurations(facts.graph)
    return bool(named) if configuration is None else configuration in named


def shard_as_annotated(
    facts: ModelFacts, shapes: Shapes | None, strategy: Annotated, outputs: tuple[str, ...]
) -> AnnotatedSharding:
    """Return how a model runs on the shards that its nodes declare.

    A node without annotation reads shards as the node before it writes them, where the axis
    analysis proves that each of its shards needs one; otherwise it reads whole values.

    Raises
    ------
    PlanError
        No node declares a sharding, or several configurations do; or a spec does not fit its node,
        or splitting the node that way would not be exact.
    """
    name = _configuration_name(facts, strategy.configuration)
    configuration = read_configurations(facts.graph.proto)[name]
    shardings = read_shardings(facts.graph, name)
    graph = build_graph(facts, shapes, 1, outputs)
    for index, specs in shardings.items():
        for spec in specs:
            known = graph.specs.get(spec.tensor)
            rank = None if known is None else known.rank
            check_sharding(facts.graph.nodes[index], spec, rank, configuration.devices)
    flow = SpecFlow(graph, shardings)
    flow.run()
    stages = (
        stage_numbers(facts.graph, sorted(graph.live), configuration.stages)
        if configuration.stages
        else {}
    )
    builder = builder_of(facts, shapes, graph, outputs)
    _Segments(builder, flow, stages).add_submodels()
    devices = configuration.devices or 1 + max(
        (d for specs in shardings.values() for s in specs for held in s.holders for d in held),
        default=0,
    )
    return AnnotatedSharding(name, devices, flow, shardings, builder.result(), builder.sizes)


def _configuration_name(facts: ModelFacts, name: str | None) -> str:
    """Return the name of the configuration to follow."""
    named = sharded_configurations(facts.graph)
    listed = ", ".join(map(repr, named))
    if name is None and len(named) == 1:
        return named[0]
    if not named:
        raise PlanError(
            f"no node of model {facts.onnx.name!r} has a sharding_spec",
            "write them with model.plan(dx.Sharded(axis='heads', n=2)).annotate(), or choose "
            "another strategy",
            option="strategy",
        )
    if name is None:
        raise PlanError(
            f"model {facts.onnx.name!r} is sharded in {len(named)} configurations: {listed}",
            f"choose one: from_annotations(configuration={named[0]!r})",
            option="configuration",
            numbers={"configurations": len(named)},
            suggestions=[Suggestion("configuration", each) for each in named],
        )
    if name not in named:
        raise PlanError(
            f"the configuration {name!r} of model {facts.onnx.name!r} has no sharding_spec",
            f"choose one with sharding specs: {listed}",
            option="configuration",
            suggestions=[Suggestion("configuration", each) for each in named],
        )
    return name


@dataclass(frozen=True, eq=False)
class AnnotatedSharding:
    """Nodes of a graph on annotated shards, and their submodels."""

    configuration: str
    """Name of the device configuration."""
    devices: int
    """Number of devices."""
    flow: SpecFlow = field(repr=False)
    shardings: Mapping[int, Sequence[TensorSharding]] = field(repr=False)
    partition: TensorPartition
    specs: Mapping[str, TensorSpec] = field(repr=False)
    """Every value at the sizes that costs are predicted for."""

    def node_shardings(self) -> Mapping[int, Sequence[TensorSharding]]:
        """Return the annotated shardings, by position of the node."""
        return self.shardings

    def explain(self, weight_bytes: int) -> str:
        """Return the sharding as text; see `TensorPlan.explain`."""
        nodes = self.flow.graph.facts.nodes
        sharded = [p for p in self.flow.nodes.values() if p.mesh_axes]
        lines = [
            f"configuration {self.configuration!r}: {len(sharded)} nodes on shards over "
            f"{self.devices} devices, of {len(self.flow.nodes)} nodes and {weight_bytes:,} bytes "
            "of weights"
        ]
        for submodel in self.partition.submodels:
            if submodel.group is not None and submodel.shard == 0:
                count = sum(other.group == submodel.group for other in self.partition.submodels)
                lines.append(
                    f"  {submodel.stage.label}: {count} tasks; {submodel.sliced_bytes:,} bytes of "
                    "weights cut for each"
                )
        for each in sharded:
            node = nodes[each.node]
            read = [
                f"{name!r} along axis {cut.layout.axis} in {cut.mesh_axis.shards}"
                for name, form in zip(node.inputs, each.input_layouts, strict=True)
                for cut in form
            ]
            total = sum(value_bytes(self.specs.get(name)) for name in node.outputs)
            shards = sum(mesh_axis.shards for mesh_axis in each.partial_axes)
            added = f"; adds {shards * total:,} bytes" if each.partial_axes else ""
            lines.append(f"    {node.name} ({node.op_type}): {', '.join(read)}{added}")
        return "\n".join(map(printable, lines))


Key = tuple[tuple[MeshAxis, ...], int]
"""Common properties of a submodel's nodes: mesh axes and pipeline stage."""


class _Segments:
    """Groups sharded nodes into submodels: nodes of one key between which nothing is exchanged."""

    def __init__(self, builder: SubmodelBuilder, flow: SpecFlow, stages: Mapping[int, int]) -> None:
        self.builder, self.flow, self.graph = builder, flow, flow.graph
        self.facts = flow.graph.facts
        self.stages = stages
        self.keys: dict[int, Key] = {}
        self.levels: dict[int, int] = {}
        self.numbers: dict[int, list[int]] = {}
        """Submodels of each node, one for each coordinates in the mesh."""

    def add_submodels(self) -> None:
        """Add all submodels, in execution order."""
        segments: dict[tuple[int, Key], list[int]] = {}
        for index in sorted(self.flow.nodes):
            self.keys[index] = self._key(index)
            self.levels[index] = self._level(index)
            segments.setdefault((self.levels[index], self.keys[index]), []).append(index)
        for group, ((_, key), nodes) in enumerate(sorted(segments.items(), key=_first)):
            if key[0]:
                self._add_segment(group, key[0], nodes)
            else:
                self.builder.add_whole(nodes)

    def _key(self, index: int) -> Key:
        """Return mesh axes and pipeline stage of a node.

        Arithmetic on sizes is repeated on each shard that makes the sizes.
        """
        mesh_axes = tuple(sorted(self.flow.nodes[index].mesh_axes, key=repr))
        node = self.facts.nodes[index]
        if (
            not mesh_axes
            and standard_op_type(node) in SHAPE_OPERATORS
            and node.outputs[0] in self.graph.known
        ):
            makers = [self.facts.producer[n] for n in node.reads if n in self.facts.producer]
            before = [i for i in makers if i in self.keys and self.keys[i][0]]
            mesh_axes = self.keys[max(before, key=self.levels.__getitem__)][0] if before else ()
        return mesh_axes, self.stages.get(index, 0)

    def _level(self, index: int) -> int:
        """Return the number of exchanges before a node."""
        sharded = self.flow.nodes[index]
        level = 0
        for name in self.facts.nodes[index].reads:
            before = self.facts.producer.get(name)
            if before is None or before not in self.levels:
                continue
            is_same = self.keys[before] == self.keys[index]
            is_near = is_same and self._is_local(sharded, name)
            level = max(level, self.levels[before] + (not is_near))
        return level

    def _is_local(self, sharded: ShardedNode, name: str) -> bool:
        """Return whether a node reads every shard of a value on the device that writes it."""
        before = self.flow.nodes.get(self.facts.producer.get(name, -1))
        if before is None or before.partial_axes:
            return False
        inputs = self.facts.nodes[sharded.node].inputs
        forms = [form for n, form in zip(inputs, sharded.input_layouts, strict=True) if n == name]
        return bool(forms) and all(form == before.output_layouts.get(name) for form in forms)

    def _add_segment(self, group: int, mesh_axes: tuple[MeshAxis, ...], nodes: list[int]) -> None:
        all_coordinates = distinct_coordinates(mesh_axes)
        needed = self.builder.needed(nodes)
        producer = {name: index for index in nodes for name in self.facts.nodes[index].outputs}
        submodels = []
        for shard, coordinates in enumerate(all_coordinates):
            works = {index: self._work(index, coordinates, producer) for index in nodes}
            outputs = {
                name: _pieces(self.flow.nodes[producer[name]].output_layouts[name], coordinates)
                for name in needed
            }
            submodels.append(
                self.builder.add_shard(works, outputs, group, shard, len(all_coordinates))
            )
        for index in nodes:
            self.numbers[index] = submodels
        for name in needed:
            sharded = self.flow.nodes[producer[name]]
            self._check_movable(name, sharded.output_layouts[name])
            self.builder.wholes[name] = _assembly(sharded, name, all_coordinates, submodels)

    def _check_movable(self, name: str, form: MeshLayout) -> None:
        """Raise if shards in several blocks of an open axis would have to be sliced or joined."""
        for cut in form:
            if not self.graph.is_movable(name, cut.layout):
                raise PlanError(
                    f"shards of {name!r} consist of {cut.layout.outer} blocks of axis "
                    f"{cut.layout.axis}; they would be sliced or joined, which needs a fixed size",
                    "shard another axis",
                    input=name,
                    axis=cut.layout.axis,
                    numbers={"blocks": cut.layout.outer},
                )

    def _work(
        self, index: int, coordinates: dict[MeshAxis, int], inside: Mapping[str, int]
    ) -> NodeWork:
        """Return the differences of a node at some coordinates from the unsharded node."""
        sharded, node = self.flow.nodes[index], self.facts.nodes[index]
        cuts: dict[int, ShardSlices] = {}
        made: dict[int, SubmodelOutput] = {}
        for place, (name, form) in enumerate(zip(node.inputs, sharded.input_layouts, strict=True)):
            if not form:
                continue
            if name in self.graph.constants or not self._is_local(sharded, name):
                self._check_movable(name, form)
                cuts[place] = _pieces(form, coordinates)
            elif name not in inside:
                made[place] = SubmodelOutput(
                    name, self._submodel_of(name, coordinates), _pieces(form, coordinates)
                )
        attributes: dict[str, object] = {}
        divided: list[tuple[int, int, int]] = []
        dropped: set[int] = set()
        scaled: list[tuple[int, int]] = []
        for mesh_axis, step in sharded.steps.items():
            _check_attributes(node.name, attributes, step)
            attributes |= step.attributes
            divided += [(place, e, mesh_axis.shards) for place, e in step.divided.items()]
            scaled += [(element, mesh_axis.shards) for element in step.scaled]
            dropped |= step.first_shard_inputs if coordinates[mesh_axis] else frozenset()
        return NodeWork(cuts, made, frozenset(dropped), attributes, tuple(divided), tuple(scaled))

    def _submodel_of(self, name: str, coordinates: Mapping[MeshAxis, int]) -> int:
        """Return the submodel that writes the shard of a value which some coordinates read."""
        index = self.facts.producer[name]
        form = self.flow.nodes[index].output_layouts[name]
        all_coordinates = distinct_coordinates(self.keys[index][0])
        number = next(
            i
            for i, other in enumerate(all_coordinates)
            if all(other[c.mesh_axis] == coordinates[c.mesh_axis] for c in form)
        )
        return self.numbers[index][number]


def _first(segment: tuple[tuple[int, Key], list[int]]) -> tuple[int, int]:
    (level, _), nodes = segment
    return level, nodes[0]


def _check_attributes(node: str, found: Mapping[str, object], step: Step) -> None:
    twice = [name for name in step.attributes if name in found]
    if twice:
        raise PlanError(
            f"node {node!r} is sharded along two axes that both change its attribute {twice[0]}",
            "shard it along one of them",
            node=node,
            reason=f"both axes change attribute {twice[0]}",
        )


def _pieces(form: MeshLayout, coordinates: dict[MeshAxis, int]) -> ShardSlices:
    return tuple(cut.slice_at(coordinates) for cut in form)


def _assembly(
    sharded: ShardedNode,
    name: str,
    all_coordinates: Sequence[Mapping[MeshAxis, int]],
    submodels: Sequence[int],
) -> Assembly:
    """Return the recipe for a whole value from the shards at all coordinates."""

    def build(
        axes: Sequence[tuple[MeshAxis, Layout | None]], at: Mapping[MeshAxis, int]
    ) -> Assembly:
        if not axes:
            return Assembly("submodel", submodels[_number_at(name, all_coordinates, at)])
        (mesh_axis, layout), *rest = axes
        each = tuple(build(rest, {**at, mesh_axis: shard}) for shard in range(mesh_axis.shards))
        how: Literal["sum", "join"] = "sum" if layout is None else "join"
        return Assembly(how, of=each, layout=layout)

    joined = [(cut.mesh_axis, cut.layout) for cut in sharded.output_layouts[name]]
    return build([*joined, *((mesh_axis, None) for mesh_axis in sharded.partial_axes)], {})


def _number_at(
    name: str, all_coordinates: Sequence[Mapping[MeshAxis, int]], at: Mapping[MeshAxis, int]
) -> int:
    for number, coordinates in enumerate(all_coordinates):
        if all(coordinates[mesh_axis] == shard for mesh_axis, shard in at.items()):
            return number
    raise PlanError(
        f"no device computes shard {list(at.values())} of {name!r}",
        "give every combination of shards of the two tensors a device",
        input=name,
    )
