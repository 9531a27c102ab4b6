"""Plans that follow ONNX's own sharding specs (IR 11): read, held against the algebra, and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dask_onnx.analysis.axes.table import NAMES_SHAPES
from dask_onnx.core.errors import PlanError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.devices import read_configurations
from dask_onnx.planning.annotations import stage_numbers
from dask_onnx.sharding.heads import Shapes, graph_of, maker_of
from dask_onnx.sharding.node_cuts import Step
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.spec_flow import Placed, SpecFlow
from dask_onnx.sharding.spec_forms import Form, Spread, jobs_of
from dask_onnx.sharding.spec_protos import (
    TensorSharding,
    check_sharding,
    read_shardings,
    sharded_configurations,
)
from dask_onnx.sharding.tensor_models import Made, NodeWork, Pieces
from dask_onnx.sharding.tensor_parts import Assembly, PartsMaker, TensorParts, value_bytes


@dataclass(frozen=True, slots=True)
class Annotated:
    """What `from_annotations` asks for where a model says how its tensors are sharded."""

    configuration: str | None = None


def says_shardings(facts: ModelFacts, configuration: str | None = None) -> bool:
    """Whether a model says how its tensors are sharded, under that configuration or any."""
    named = sharded_configurations(facts.graph)
    return bool(named) if configuration is None else configuration in named


def shard_as_annotated(
    facts: ModelFacts, shapes: Shapes | None, strategy: Annotated, outputs: tuple[str, ...]
) -> AnnotatedSharding:
    """Return how a model runs on the shards that its nodes say.

    Nodes that say nothing read shards as the node before them makes them, where the algebra proves
    that each of theirs needs one; else they read whole values.

    Raises
    ------
    PlanError
        No node says a sharding, or under several configurations; a spec that does not fit its node,
        or that the node cannot run on: with node, tensor, axis and kind.
    """
    name = _chosen(facts, strategy.configuration)
    configuration = read_configurations(facts.graph.proto)[name]
    shardings = read_shardings(facts.graph, name)
    graph = graph_of(facts, shapes, 1, outputs)
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
    maker = maker_of(facts, shapes, graph, outputs)
    _Segments(maker, flow, stages).add_parts()
    devices = configuration.devices or 1 + max(
        (d for specs in shardings.values() for s in specs for held in s.holders for d in held),
        default=0,
    )
    return AnnotatedSharding(name, devices, flow, shardings, maker.result(), maker.sizes)


def _chosen(facts: ModelFacts, name: str | None) -> str:
    named = sharded_configurations(facts.graph)
    listed = ", ".join(map(repr, named))
    if name is None and len(named) == 1:
        return named[0]
    if not named:
        raise PlanError(
            f"no node of model {facts.onnx.name!r} says how its tensors are sharded",
            "write it with model.plan(dx.Sharded(axis='heads', n=2)).annotate(), or choose "
            "another strategy",
        )
    if name is None:
        raise PlanError(
            f"model {facts.onnx.name!r} is sharded in {len(named)} configurations: {listed}",
            f"choose one: from_annotations(configuration={named[0]!r})",
        )
    if name not in named:
        raise PlanError(
            f"the configuration {name!r} of model {facts.onnx.name!r} says no shardings",
            f"with shardings there is {listed}",
        )
    return name


@dataclass(frozen=True, eq=False)
class AnnotatedSharding:
    """What of a graph runs on the shards that its nodes say."""

    configuration: str
    devices: int
    flow: SpecFlow = field(repr=False)
    shardings: Mapping[int, Sequence[TensorSharding]] = field(repr=False)
    parts: TensorParts
    specs: Mapping[str, TensorSpec] = field(repr=False)

    def node_shardings(self) -> Mapping[int, Sequence[TensorSharding]]:
        """Return what the nodes say."""
        return self.shardings

    def explain(self, weight_bytes: int) -> str:
        """Return it as text; see `TensorPlan.explain`."""
        nodes = self.flow.graph.facts.nodes
        sharded = [p for p in self.flow.placed.values() if p.spreads]
        lines = [
            f"configuration {self.configuration!r}: {len(sharded)} nodes on shards over "
            f"{self.devices} devices, of {len(self.flow.placed)} nodes and {weight_bytes:,} bytes "
            "of weights"
        ]
        for part in self.parts.parts:
            if part.group is not None and part.shard == 0:
                count = sum(other.group == part.group for other in self.parts.parts)
                lines.append(
                    f"  {part.stage.label}: {count} tasks; {part.sliced_bytes:,} bytes of weights "
                    "cut for each"
                )
        for placed in sharded:
            node = nodes[placed.node]
            read = [
                f"{name!r} along axis {cut.layout.axis} in {cut.spread.shards}"
                for name, form in zip(node.inputs, placed.reads, strict=True)
                for cut in form
            ]
            total = sum(value_bytes(self.specs, name) for name in node.outputs)
            shards = sum(spread.shards for spread in placed.partial)
            added = f"; adds {shards * total:,} bytes" if placed.partial else ""
            lines.append(f"    {node.name} ({node.op_type}): {', '.join(read)}{added}")
        return "\n".join(lines)


Key = tuple[tuple[Spread, ...], int]
"""What the nodes of a part have in common: mesh axes and pipeline stage."""


class _Segments:
    """Placed nodes as parts: those of one key that need nothing joined between them."""

    def __init__(self, maker: PartsMaker, flow: SpecFlow, stages: Mapping[int, int]) -> None:
        self.maker, self.flow, self.graph = maker, flow, flow.graph
        self.facts = flow.graph.facts
        self.stages = stages
        self.keys: dict[int, Key] = {}
        self.levels: dict[int, int] = {}
        self.numbers: dict[int, list[int]] = {}
        """For each node the parts that it is in, one for each job."""

    def add_parts(self) -> None:
        """Add all parts, in an order in which they can run."""
        segments: dict[tuple[int, Key], list[int]] = {}
        for index in sorted(self.flow.placed):
            self.keys[index] = self._key(index)
            self.levels[index] = self._level(index)
            segments.setdefault((self.levels[index], self.keys[index]), []).append(index)
        for group, ((_, key), nodes) in enumerate(sorted(segments.items(), key=_first)):
            if key[0]:
                self._add_segment(group, key[0], nodes)
            else:
                self.maker.add_whole(nodes)

    def _key(self, index: int) -> Key:
        """Mesh axes and stage of a node; arithmetic on sizes is done on each shard that makes
        them."""
        spreads = tuple(sorted(self.flow.placed[index].spreads, key=repr))
        node = self.facts.nodes[index]
        if not spreads and node.op_type in NAMES_SHAPES and node.outputs[0] in self.graph.known:
            makers = [self.facts.producer[n] for n in node.reads if n in self.facts.producer]
            before = [i for i in makers if i in self.keys and self.keys[i][0]]
            spreads = self.keys[max(before, key=self.levels.__getitem__)][0] if before else ()
        return spreads, self.stages.get(index, 0)

    def _level(self, index: int) -> int:
        placed = self.flow.placed[index]
        level = 0
        for name in self.facts.nodes[index].reads:
            before = self.facts.producer.get(name)
            if before is None or before not in self.levels:
                continue
            is_same = self.keys[before] == self.keys[index]
            is_near = is_same and self._is_local(placed, name)
            level = max(level, self.levels[before] + (not is_near))
        return level

    def _is_local(self, placed: Placed, name: str) -> bool:
        """Whether a node reads every shard of a value where it is made."""
        before = self.flow.placed.get(self.facts.producer.get(name, -1))
        if before is None or before.partial:
            return False
        inputs = self.facts.nodes[placed.node].inputs
        forms = [form for n, form in zip(inputs, placed.reads, strict=True) if n == name]
        return bool(forms) and all(form == before.made.get(name) for form in forms)

    def _add_segment(self, group: int, spreads: tuple[Spread, ...], nodes: list[int]) -> None:
        jobs = jobs_of(spreads)
        needed = self.maker.needed(nodes)
        producer = {name: index for index in nodes for name in self.facts.nodes[index].outputs}
        parts = []
        for shard, job in enumerate(jobs):
            works = {index: self._work(index, job, producer) for index in nodes}
            outputs = {
                name: _pieces(self.flow.placed[producer[name]].made[name], job) for name in needed
            }
            parts.append(self.maker.add_shard(works, outputs, group, shard, len(jobs)))
        for index in nodes:
            self.numbers[index] = parts
        for name in needed:
            placed = self.flow.placed[producer[name]]
            self._check_movable(name, placed.made[name])
            self.maker.wholes[name] = _assembly(placed, name, jobs, parts)

    def _check_movable(self, name: str, form: Form) -> None:
        """Blocks of an axis are sliced and joined only where its size is fixed."""
        for cut in form:
            if not self.graph.is_movable(name, cut.layout):
                raise PlanError(
                    f"shards of {name!r} lie in {cut.layout.outer} blocks of axis "
                    f"{cut.layout.axis}, whose size is open, and have to be sliced or joined",
                    "shard another axis",
                )

    def _work(self, index: int, job: dict[Spread, int], inside: Mapping[str, int]) -> NodeWork:
        """What a node is and reads in one job."""
        placed, node = self.flow.placed[index], self.facts.nodes[index]
        cuts: dict[int, Pieces] = {}
        made: dict[int, Made] = {}
        for place, (name, form) in enumerate(zip(node.inputs, placed.reads, strict=True)):
            if not form:
                continue
            if name in self.graph.constants or not self._is_local(placed, name):
                self._check_movable(name, form)
                cuts[place] = _pieces(form, job)
            elif name not in inside:
                made[place] = Made(name, self._part_of(name, job), _pieces(form, job))
        attributes: dict[str, object] = {}
        divided: list[tuple[int, int, int]] = []
        dropped: set[int] = set()
        scaled: list[tuple[int, int]] = []
        for spread, step in placed.steps.items():
            _check_attributes(node.name, attributes, step)
            attributes |= step.attributes
            divided += [(place, e, spread.shards) for place, e in step.divided.items()]
            scaled += [(element, spread.shards) for element in step.scaled]
            dropped |= step.once if job[spread] else frozenset()
        return NodeWork(cuts, made, frozenset(dropped), attributes, tuple(divided), tuple(scaled))

    def _part_of(self, name: str, job: Mapping[Spread, int]) -> int:
        """The part that makes the shard of a value which a job of another segment reads."""
        index = self.facts.producer[name]
        form = self.flow.placed[index].made[name]
        jobs = jobs_of(self.keys[index][0])
        number = next(
            i for i, other in enumerate(jobs) if all(other[c.spread] == job[c.spread] for c in form)
        )
        return self.numbers[index][number]


def _first(segment: tuple[tuple[int, Key], list[int]]) -> tuple[int, int]:
    (level, _), nodes = segment
    return level, nodes[0]


def _check_attributes(node: str, found: Mapping[str, object], step: Step) -> None:
    twice = [name for name in step.attributes if name in found]
    if twice:
        raise PlanError(
            f"node {node!r} is divided along two axes that both change its {twice[0]}",
            "shard it along one of them",
        )


def _pieces(form: Form, job: dict[Spread, int]) -> Pieces:
    return tuple(cut.piece(job) for cut in form)


def _assembly(
    placed: Placed, name: str, jobs: Sequence[Mapping[Spread, int]], parts: Sequence[int]
) -> Assembly:
    """How the whole of a value is made of what the jobs make."""

    def build(axes: Sequence[tuple[Spread, Layout | None]], at: Mapping[Spread, int]) -> Assembly:
        if not axes:
            return Assembly("part", parts[_job_at(name, jobs, at)])
        (spread, layout), *rest = axes
        each = tuple(build(rest, {**at, spread: shard}) for shard in range(spread.shards))
        how: Literal["sum", "join"] = "sum" if layout is None else "join"
        return Assembly(how, of=each, layout=layout)

    joined = [(cut.spread, cut.layout) for cut in placed.made[name]]
    return build([*joined, *((spread, None) for spread in placed.partial)], {})


def _job_at(name: str, jobs: Sequence[Mapping[Spread, int]], at: Mapping[Spread, int]) -> int:
    for number, job in enumerate(jobs):
        if all(job[spread] == shard for spread, shard in at.items()):
            return number
    raise PlanError(
        f"no device makes the shard {list(at.values())} of {name!r}",
        "let every shard of one tensor meet every shard of the other on some device",
    )
