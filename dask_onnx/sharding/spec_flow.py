"""What annotated nodes do with the shards that their specs say, by the algebra of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.axes.dependence import FREE, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.analysis.graph import NodeFacts
from dask_onnx.core.errors import PlanError
from dask_onnx.sharding.attention_cuts import packed_start
from dask_onnx.sharding.node_cuts import (
    EVERY,
    Step,
    Weight,
    dependence_of,
    layout_of,
    start_step,
    stop,
    weights_of,
)
from dask_onnx.sharding.pass_cuts import pass_step
from dask_onnx.sharding.rule_asking import seeing, view_of
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.spec_forms import WHOLE, Cut, Form, Spread, form_of, meeting
from dask_onnx.sharding.spec_protos import TensorSharding
from dask_onnx.sharding.tensor_walk import TensorGraph


@dataclass(frozen=True)
class Placed:
    """A node as it runs: what it reads of each input, and what it makes."""

    node: int
    reads: tuple[Form, ...]
    """For each input."""
    steps: Mapping[Spread, Step]
    """What it does with the shards along each mesh axis."""
    made: Mapping[str, Form]
    """For each output how its shards lie."""
    partial: frozenset[Spread] = frozenset()
    """Mesh axes along which results have to be added."""

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """Mesh axes along which the node is divided."""
        return tuple(self.steps)


@dataclass
class SpecFlow:
    """Follows specs through a graph, in the order of its nodes."""

    graph: TensorGraph
    specs: Mapping[int, Sequence[TensorSharding]]
    placed: dict[int, Placed] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    """How readers find each value that is in shards, unless they say otherwise."""
    _graphs: dict[int, TensorGraph] = field(default_factory=dict)
    _walks: dict[int, Walk] = field(default_factory=dict)

    def run(self) -> None:
        """Place every node.

        Raises
        ------
        PlanError
            A spec that cannot be followed: it names node, tensor, axis and kind.
        """
        for index in sorted(self.graph.live):
            self._place(index)

    def graph_for(self, shards: int) -> TensorGraph:
        """Return the same graph for another number of shards."""
        if shards not in self._graphs:
            self._graphs[shards] = self.graph.with_shards(shards)
            self._walks[shards] = self._graphs[shards].walk()
        return self._graphs[shards]

    def _place(self, index: int) -> None:
        node = self.graph.facts.nodes[index]
        said = self._said(index)
        reads = [
            said.get(name, WHOLE if name in self.graph.constants else self.forms.get(name, WHOLE))
            for name in node.inputs
        ]
        steps: dict[Spread, Step] = {}
        for spread in dict.fromkeys(cut.spread for form in reads for cut in form):
            step, gathered = self._settled(index, reads, spread, said)
            for place in gathered:
                reads[place] = tuple(cut for cut in reads[place] if cut.spread != spread)
            if step is None:
                continue
            steps[spread] = step
            for place, layout in step.cuts.items():
                if meeting(reads[place], spread) is None:
                    reads[place] = _with_cut(reads[place], Cut(spread, layout))
        self._check_devices(node, list(steps))
        partial = frozenset(s for s, step in steps.items() if step.how == "sum")
        outputs = self.graph.facts.proto.graph.node[index].output
        made: dict[str, Form] = {}
        for place, name in enumerate(outputs):
            cuts = [
                Cut(spread, layout_of(step.outputs[place]))
                for spread, step in steps.items()
                if step.how == "through" and step.outputs[place].is_own
            ]
            made[name] = tuple(sorted(cuts, key=lambda cut: cut.layout.axis))
            self.forms[name] = said.get(name, made[name])
        self.placed[index] = Placed(index, tuple(reads), steps, made, partial)

    def _said(self, index: int) -> dict[str, Form]:
        """What the specs of a node say, by tensor."""
        node = self.graph.facts.nodes[index]
        found = {}
        for spec in self.specs.get(index, ()):
            where = f"the sharding_spec of {spec.tensor!r} at node {node.name!r} ({node.op_type})"
            shape = self.graph.specs[spec.tensor].shape
            sizes = None if shape is None else [d if isinstance(d, int) else None for d in shape]
            found[spec.tensor] = form_of(spec, sizes, where)
        return found

    def _settled(
        self, index: int, reads: Sequence[Form], spread: Spread, said: Mapping[str, Form]
    ) -> tuple[Step | None, list[int]]:
        """What a node does with shards along one mesh axis, and inputs that it reads whole though
        they are in shards, since the node says nothing of them and cannot run on them."""
        names = self.graph.facts.nodes[index].inputs
        carried = [i for i, form in enumerate(reads) if meeting(form, spread)]
        inherited = [i for i in carried if names[i] not in said]
        if len(inherited) == len(carried):
            step = self._step(index, reads, spread, said)
            return step, [] if step else carried
        try:
            return self._step(index, reads, spread, said), []
        except PlanError:
            if not inherited:
                raise
        own = [() if i in inherited else form for i, form in enumerate(reads)]
        return self._step(index, own, spread, said), inherited

    def _step(
        self, index: int, reads: Sequence[Form], spread: Spread, said: Mapping[str, Form]
    ) -> Step | None:
        """What a node does with shards along one mesh axis; None if it is to read them whole."""
        graph = self.graph_for(spread.shards)
        node = graph.facts.nodes[index]
        walk = self._walks[spread.shards]
        carried = {i: layout for i, f in enumerate(reads) if (layout := meeting(f, spread))}
        step = _ask_with(walk, graph, index, carried)
        named = [node.inputs[i] for i in carried]
        if step.how == "stop":
            if not any(name in said for name in named):
                return None
            tensor = next(name for name in named if name in said)
            axis = carried[node.inputs.index(tensor)].axis
            raise PlanError(
                f"node {node.name!r} ({node.op_type}) cannot run on shards of {tensor!r} along "
                f"axis {axis}: {step.kind.label}, {step.reason}",
                "take the sharding_spec of that tensor away, or shard another axis of it",
            )
        for place, layout in {**carried, **step.cuts}.items():
            name = node.inputs[place]
            if name in said and carried.get(place) != layout:
                raise PlanError(
                    f"node {node.name!r} ({node.op_type}) needs {name!r} cut along axis "
                    f"{layout.axis} as {', '.join(map(repr, named))} is, and its sharding_spec "
                    "says otherwise",
                    "shard both alike, or leave the spec of one out",
                )
            is_cut = name not in graph.constants or graph.constant_cuts.can_cut(name, layout)
            is_moved = place not in carried and not graph.is_movable(name, layout)
            if not is_cut or is_moved:
                raise PlanError(
                    f"node {node.name!r} ({node.op_type}) needs a shard of {name!r} along axis "
                    f"{layout.axis}, which cannot be cut there",
                    "shard another axis, or take the sharding_spec of that node away",
                )
        return step

    def _check_devices(self, node: NodeFacts, spreads: Sequence[Spread]) -> None:
        """All tensors of a node lie on the same devices."""
        sets = {spread.devices for spread in spreads}
        if len(sets) > 1:
            listed = " and ".join(str(list(devices)) for devices in sorted(sets))
            raise PlanError(
                f"the tensors of node {node.name!r} ({node.op_type}) are sharded over different "
                f"devices: {listed}",
                "list the same devices for each of them, by way of index_to_device_group_map "
                "where several have the same shard",
            )


def _with_cut(form: Form, cut: Cut) -> Form:
    return tuple(sorted((*form, cut), key=lambda each: each.layout.axis))


def _ask_with(walk: Walk, graph: TensorGraph, index: int, carried: Mapping[int, Layout]) -> Step:
    """What a node does with inputs in shards. Some rules say themselves how parameters are cut:
    these are asked without them, and have to say the same."""
    node, view = graph.facts.nodes[index], view_of(walk, index)
    weights = {i for i in carried if node.inputs[i] in graph.constants}
    first: Step | None = None
    for left_out in (set(), weights):
        ins = [
            dependence_of(carried[i]) if i in carried and i not in left_out else FREE
            for i in range(len(node.inputs))
        ]
        step = _ask(walk, graph, node, seeing(view, ins))
        if step.how != "stop" and all(i in step.cuts for i in left_out):
            return step
        first = first or step
    assert first is not None
    return first if first.how == "stop" else stop(Kind.OPAQUE, "its weights are cut otherwise")


def _ask(walk: Walk, graph: TensorGraph, node: NodeFacts, v: NodeView) -> Step:
    """What a node does with inputs of which some are in shards."""
    if node.captures:
        return stop(Kind.OPAQUE, "has bodies, which run whole")
    if v.op in ("Shape", "Size") and not v.proto.domain:
        return _size_step(v)
    packed = packed_start(v)
    if packed is not None and packed.how != "stop":
        fitting = [i for i in v.carriers if i in packed.cuts]
        if fitting == v.carriers:
            return packed
    for weight in weights_of(v):
        step = _product_step(v, weight)
        if step is not None:
            return step
    step = pass_step(walk, v, graph.constants.__contains__)
    if step.how == "stop" and v.op == "ReduceSum" and step.kind == Kind.REDUCED:
        return Step("sum", v.all(FREE))
    return step


def _size_step(v: NodeView) -> Step:
    """Shape or Size of a shard, from which that of the whole follows."""
    dep, rank = v.dep(0), v.rank(0)
    if not dep.is_own or dep.axis is None or rank is None:
        return stop(Kind.LENGTH, "the size of what it reads is not known")
    if v.op == "Size":
        return Step("through", v.all(FREE), scaled=frozenset((EVERY,)))
    told = list(range(rank))[slice(v.attr("start", 0), v.attr("end"))]
    scaled = frozenset((told.index(dep.axis),) if dep.axis in told else ())
    return Step("through", v.all(FREE), scaled=scaled)


def _product_step(v: NodeView, weight: Weight) -> Step | None:
    """A product whose operands are in shards: along what is summed over, or along columns."""
    data, weights = v.dep(weight.data), v.dep(weight.weight)
    is_summed = [
        replace_axis(layout_of(dep), other)
        for dep, axis, other in (
            (data, weight.contracted, weight.rows),
            (weights, weight.rows, weight.rows),
        )
        if dep.is_own and dep.axis == axis
    ]
    if is_summed:
        if len(set(is_summed)) > 1:
            return stop(Kind.CONTRACTED, "its operands are cut in different blocks")
        if not weight.is_sum:
            return stop(Kind.CONTRACTED, "results of shards cannot be added after it")
        if v.size(weight.weight, weight.rows) != v.size(weight.data, weight.contracted):
            return stop(Kind.CONTRACTED, "the sizes of its operands differ")
        layout = is_summed[0]
        cuts = {
            weight.weight: layout,
            weight.data: replace_axis(layout, weight.contracted),
        }
        others = set(v.carriers) - set(cuts)
        if others:
            return stop(Kind.CONTRACTED, "another operand is cut too")
        return Step("sum", v.all(FREE), cuts, weight.once)
    is_column = weights.is_own and weights.axis == weight.columns
    if is_column and set(v.carriers) <= {weight.weight, *weight.along}:
        step = start_step(v, weight, weights.outer)
        is_same = step.cuts.get(weight.weight) == layout_of(weights)
        return step if step.how == "stop" or is_same else None
    return None


def replace_axis(layout: Layout, axis: int) -> Layout:
    """Return the same blocks on another axis."""
    return replace(layout, axis=axis)
