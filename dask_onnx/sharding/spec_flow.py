"""Propagation of annotated shardings through a graph, checked by the axis analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.axes.dependence import FREE, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.analysis.graph import NodeFacts
from dask_onnx.core.errors import PlanError
from dask_onnx.sharding.attention_cuts import packed_start
from dask_onnx.sharding.axis_queries import view_of, with_dependences
from dask_onnx.sharding.node_cuts import (
    ALL_ELEMENTS,
    ProductWeight,
    Step,
    column_step,
    dependence_of,
    layout_of,
    stop,
    weights_of,
)
from dask_onnx.sharding.pass_cuts import pass_step
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.spec_forms import (
    WHOLE,
    Cut,
    MeshAxis,
    MeshLayout,
    layout_along,
    mesh_layout_of,
)
from dask_onnx.sharding.spec_protos import SpecOrigin, TensorSharding
from dask_onnx.sharding.tensor_walk import TensorGraph


@dataclass(frozen=True)
class ShardedNode:
    """Node with the mesh layouts of its inputs and outputs."""

    node: int
    input_layouts: tuple[MeshLayout, ...]
    """Layout of each input as the node reads it."""
    steps: Mapping[MeshAxis, Step]
    """Effect of the node on the shards along each mesh axis."""
    output_layouts: Mapping[str, MeshLayout]
    """Layout of each output as the node writes it."""
    partial_axes: frozenset[MeshAxis] = frozenset()
    """Mesh axes along which the outputs are partial sums."""

    @property
    def mesh_axes(self) -> tuple[MeshAxis, ...]:
        """Mesh axes along which the node is divided."""
        return tuple(self.steps)


@dataclass
class SpecFlow:
    """Follows annotations through a graph, in node order."""

    graph: TensorGraph
    specs: Mapping[int, Sequence[TensorSharding]]
    """Annotated shardings, by position of the node."""
    nodes: dict[int, ShardedNode] = field(default_factory=dict)
    forms: dict[str, MeshLayout] = field(default_factory=dict)
    """Layout in which consumers read each value, unless they are annotated otherwise."""
    _graphs: dict[int, TensorGraph] = field(default_factory=dict)
    _walks: dict[int, Walk] = field(default_factory=dict)

    def run(self) -> None:
        """Decide the layouts of every node.

        Raises
        ------
        PlanError
            An annotation cannot be followed; fields `node`, `input` and `axis` say which.
        """
        for index in sorted(self.graph.live):
            self._place(index)

    def graph_for(self, shards: int) -> TensorGraph:
        """Return the same graph for another number of shards; cached."""
        if shards not in self._graphs:
            self._graphs[shards] = self.graph.with_shards(shards)
            self._walks[shards] = self._graphs[shards].walk()
        return self._graphs[shards]

    def _place(self, index: int) -> None:
        node = self.graph.facts.nodes[index]
        annotated = self._annotated_layouts(index)
        input_layouts = [
            annotated.get(
                name, WHOLE if name in self.graph.constants else self.forms.get(name, WHOLE)
            )
            for name in node.inputs
        ]
        steps: dict[MeshAxis, Step] = {}
        for mesh_axis in dict.fromkeys(cut.mesh_axis for form in input_layouts for cut in form):
            step, gathered = self._resolved_step(index, input_layouts, mesh_axis, annotated)
            for place in gathered:
                input_layouts[place] = tuple(
                    cut for cut in input_layouts[place] if cut.mesh_axis != mesh_axis
                )
            if step is None:
                continue
            steps[mesh_axis] = step
            for place, layout in step.cuts.items():
                if layout_along(input_layouts[place], mesh_axis) is None:
                    input_layouts[place] = _with_cut(input_layouts[place], Cut(mesh_axis, layout))
        self._check_devices(node, list(steps))
        partial_axes = frozenset(s for s, step in steps.items() if step.how == "sum")
        outputs = self.graph.facts.proto.graph.node[index].output
        output_layouts: dict[str, MeshLayout] = {}
        for place, name in enumerate(outputs):
            cuts = [
                Cut(mesh_axis, layout_of(step.outputs[place]))
                for mesh_axis, step in steps.items()
                if step.how == "through" and step.outputs[place].is_independent
            ]
            output_layouts[name] = tuple(sorted(cuts, key=lambda cut: cut.layout.axis))
            self.forms[name] = annotated.get(name, output_layouts[name])
        self.nodes[index] = ShardedNode(
            index, tuple(input_layouts), steps, output_layouts, partial_axes
        )

    def _annotated_layouts(self, index: int) -> dict[str, MeshLayout]:
        """Return the annotated layouts of a node's tensors."""
        node = self.graph.facts.nodes[index]
        found = {}
        for spec in self.specs.get(index, ()):
            origin = SpecOrigin(node.name, node.op_type, spec.tensor)
            shape = self.graph.specs[spec.tensor].shape
            sizes = None if shape is None else [d if isinstance(d, int) else None for d in shape]
            found[spec.tensor] = mesh_layout_of(spec, sizes, origin)
        return found

    def _resolved_step(
        self,
        index: int,
        input_layouts: Sequence[MeshLayout],
        mesh_axis: MeshAxis,
        annotated: Mapping[str, MeshLayout],
    ) -> tuple[Step | None, list[int]]:
        """Return the effect of a node along one mesh axis, and inputs that it has to read whole.

        The latter are in shards, but the node has no annotation for them and cannot run on them.
        """
        names = self.graph.facts.nodes[index].inputs
        carried = [i for i, form in enumerate(input_layouts) if layout_along(form, mesh_axis)]
        inherited = [i for i in carried if names[i] not in annotated]
        if len(inherited) == len(carried):
            step = self._step(index, input_layouts, mesh_axis, annotated)
            return step, [] if step else carried
        try:
            return self._step(index, input_layouts, mesh_axis, annotated), []
        except PlanError:
            if not inherited:
                raise
        without_inherited = [() if i in inherited else form for i, form in enumerate(input_layouts)]
        return self._step(index, without_inherited, mesh_axis, annotated), inherited

    def _step(
        self,
        index: int,
        input_layouts: Sequence[MeshLayout],
        mesh_axis: MeshAxis,
        annotated: Mapping[str, MeshLayout],
    ) -> Step | None:
        """Return the effect of a node along one mesh axis; None if it should read whole values."""
        graph = self.graph_for(mesh_axis.shards)
        node = graph.facts.nodes[index]
        walk = self._walks[mesh_axis.shards]
        carried = {
            i: layout for i, f in enumerate(input_layouts) if (layout := layout_along(f, mesh_axis))
        }
        step = _evaluate_with(walk, graph, index, carried)
        named = [node.inputs[i] for i in carried]
        if step.how == "stop":
            if not any(name in annotated for name in named):
                return None
            tensor = next(name for name in named if name in annotated)
            axis = carried[node.inputs.index(tensor)].axis
            raise PlanError(
                f"node {node.name!r} ({node.op_type}) cannot run on shards of {tensor!r} along "
                f"axis {axis}: {step.kind.label}, {step.reason}",
                "remove the sharding_spec of that tensor, or shard another axis of it",
                node=node.name,
                input=tensor,
                axis=axis,
                reason=f"{step.kind.label}, {step.reason}",
            )
        for place, layout in {**carried, **step.cuts}.items():
            name = node.inputs[place]
            if name in annotated and carried.get(place) != layout:
                raise PlanError(
                    f"node {node.name!r} ({node.op_type}) needs {name!r} cut along axis "
                    f"{layout.axis} as {', '.join(map(repr, named))} is, and its sharding_spec "
                    "says something else",
                    "shard both alike, or remove the sharding_spec of one",
                    node=node.name,
                    input=name,
                    axis=layout.axis,
                )
            is_cut = name not in graph.constants or graph.constant_cuts.can_cut(name, layout)
            is_moved = place not in carried and not graph.is_movable(name, layout)
            if not is_cut or is_moved:
                raise PlanError(
                    f"node {node.name!r} ({node.op_type}) needs a shard of {name!r} along axis "
                    f"{layout.axis}, which cannot be cut there",
                    "shard another axis, or remove the sharding_spec of that node",
                    node=node.name,
                    input=name,
                    axis=layout.axis,
                )
        return step

    def _check_devices(self, node: NodeFacts, mesh_axes: Sequence[MeshAxis]) -> None:
        """Check that all tensors of a node lie on the same devices."""
        sets = {mesh_axis.devices for mesh_axis in mesh_axes}
        if len(sets) > 1:
            listed = " and ".join(str(list(devices)) for devices in sorted(sets))
            raise PlanError(
                f"the tensors of node {node.name!r} ({node.op_type}) are sharded over different "
                f"devices: {listed}",
                "list the same devices for each of them, by way of index_to_device_group_map "
                "where several have the same shard",
                node=node.name,
            )


def _with_cut(form: MeshLayout, cut: Cut) -> MeshLayout:
    return tuple(sorted((*form, cut), key=lambda each: each.layout.axis))


def _evaluate_with(
    walk: Walk, graph: TensorGraph, index: int, carried: Mapping[int, Layout]
) -> Step:
    """Return the effect of a node with some inputs in shards.

    Some rules determine the cuts of parameters. They are evaluated without the annotated cuts of
    parameters, and must lead to the same ones.
    """
    node, view = graph.facts.nodes[index], view_of(walk, index)
    weights = {i for i in carried if node.inputs[i] in graph.constants}
    first: Step | None = None
    for left_out in (set(), weights):
        ins = [
            dependence_of(carried[i]) if i in carried and i not in left_out else FREE
            for i in range(len(node.inputs))
        ]
        step = _evaluate(walk, graph, node, with_dependences(view, ins))
        if step.how != "stop" and all(i in step.cuts for i in left_out):
            return step
        first = first or step
    assert first is not None
    return (
        first
        if first.how == "stop"
        else stop(Kind.OPAQUE, "its rule cuts the weights in another way than annotated")
    )


def _evaluate(walk: Walk, graph: TensorGraph, node: NodeFacts, view: NodeView) -> Step:
    """Return the effect of a node whose inputs have the dependences of `view`."""
    if node.captures:
        return stop(Kind.OPAQUE, "has subgraphs, which run whole")
    if view.op in ("Shape", "Size") and not view.proto.domain:
        return _size_step(view)
    packed = packed_start(view)
    if packed is not None and packed.how != "stop":
        fitting = [i for i in view.carriers if i in packed.cuts]
        if fitting == view.carriers:
            return packed
    for weight in weights_of(view):
        step = _product_step(view, weight)
        if step is not None:
            return step
    step = pass_step(walk, view, graph.constants.__contains__)
    # Unlike other reductions, a sum over the cut axis is exact as a partial sum.
    if step.how == "stop" and view.op == "ReduceSum" and step.kind == Kind.REDUCED:
        return Step("sum", view.all(FREE))
    return step


def _size_step(view: NodeView) -> Step:
    """Return the step of Shape or Size, from whose result on a shard that of the whole follows."""
    dep, rank = view.dep(0), view.rank(0)
    if not dep.is_independent or dep.axis is None or rank is None:
        return stop(Kind.LENGTH, "the rank of its input or its cut axis is unknown")
    if view.op == "Size":
        return Step("through", view.all(FREE), scaled=frozenset((ALL_ELEMENTS,)))
    returned_axes = list(range(rank))[slice(view.attr("start", 0), view.attr("end"))]
    scaled = frozenset((returned_axes.index(dep.axis),) if dep.axis in returned_axes else ())
    return Step("through", view.all(FREE), scaled=scaled)


def _product_step(view: NodeView, weight: ProductWeight) -> Step | None:
    """Return the step of a product whose operands are cut along the sum or along columns."""
    data, weights = view.dep(weight.data), view.dep(weight.weight)
    is_summed = [
        on_axis(layout_of(dep), other)
        for dep, axis, other in (
            (data, weight.contracted, weight.rows),
            (weights, weight.rows, weight.rows),
        )
        if dep.is_independent and dep.axis == axis
    ]
    if is_summed:
        if len(set(is_summed)) > 1:
            return stop(Kind.CONTRACTED, "its operands are cut in different blocks")
        if not weight.is_sum:
            return stop(
                Kind.CONTRACTED,
                "its result is not a plain sum, so that partial sums cannot be added",
            )
        if view.size(weight.weight, weight.rows) != view.size(weight.data, weight.contracted):
            return stop(Kind.CONTRACTED, "the sizes of its operands differ")
        layout = is_summed[0]
        cuts = {
            weight.weight: layout,
            weight.data: on_axis(layout, weight.contracted),
        }
        others = set(view.carriers) - set(cuts)
        if others:
            return stop(Kind.CONTRACTED, "another operand is cut as well")
        return Step("sum", view.all(FREE), cuts, weight.addends)
    is_column = weights.is_independent and weights.axis == weight.columns
    if is_column and set(view.carriers) <= {weight.weight, *weight.column_inputs}:
        step = column_step(view, weight, weights.outer)
        is_same = step.cuts.get(weight.weight) == layout_of(weights)
        return step if step.how == "stop" or is_same else None
    return None


def on_axis(layout: Layout, axis: int) -> Layout:
    """Return the same layout on another axis."""
    return replace(layout, axis=axis)
