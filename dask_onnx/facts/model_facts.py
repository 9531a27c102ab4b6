"""A model, and what follows from it, each found out once and when it is first wanted."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from dask_onnx.analysis.axes.axis_report import (
    AxisFact,
    AxisTable,
    axis_facts,
    axis_groups,
    axis_table,
)
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.batch import BatchFacts, find_batch, input_axes, whole_sizes
from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.growth import Seen, seconds_at, telling
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.shapes import Schemas, infer_shapes, is_standard
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim, NodeKernel, TensorSpec
from dask_onnx.core.stage_tasks import digest
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.weights import graphs_of
from dask_onnx.planning.choice import Verdict, Work, choose
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.pipeline import Pieces
from dask_onnx.planning.plan_options import bound_shapes
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import Cluster
from dask_onnx.planning.stage_checks import check_stages
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.calibration import noted_calibration
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.probe import Probe, find_kernels
from dask_onnx.runtime.profile import NodeTimes, note_speed, noted_speed, noted_times
from dask_onnx.runtime.session import foreign_schemas

_SEVERAL = 7
"""Rows that are made up, where the shape of one row is."""
_BATCHES_KEPT = 64
"""Shapes of rows whose facts are remembered."""


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for circular garbage: of a large graph's facts, which stay, it would look
    at millions again and again, up to half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class ModelFacts:
    """Graph, shapes, batch axes and cuts of one model."""

    def __init__(
        self,
        onnx_model: OnnxModel,
        custom: CustomKernels | None = None,
        libraries: tuple[str, ...] = (),
    ) -> None:
        self.onnx = onnx_model
        self.custom = custom
        self.libraries = libraries
        self._batches: dict[tuple[object, ...], BatchFacts] = {}

    @cached_property
    def graph(self) -> GraphFacts:
        return GraphFacts(self.onnx)

    @cached_property
    def schemas(self) -> Schemas:
        """Operators that ORT has and ONNX has not; looked up only if the model names one."""
        graphs = graphs_of(self.graph.proto)
        if all(is_standard(node.domain) for graph in graphs for node in graph.node):
            return {}
        return foreign_schemas()

    @cached_property
    def declared(self) -> dict[str, TensorSpec]:
        """Every value's spec, as far as it follows from the model alone."""
        return infer_shapes(self.graph, None, self.schemas)

    @cached_property
    def kernels(self) -> tuple[NodeKernel, ...]:
        """What runs each node."""
        return find_kernels(Probe(self.graph, self.declared, self.custom, self.libraries))

    @cached_property
    def draws_anew(self) -> bool:
        """Whether the same request may have another result each time."""
        return bool(random_nodes(self.graph, self.graph.outputs)[1])

    @cached_property
    def known_values(self) -> frozenset[str]:
        return frozenset([*self.graph.producer, *self.graph.inputs, *self.graph.outputs])

    @cached_property
    def custom_axes(self) -> CustomAxes:
        """What the caller's own operators declare of their axes."""
        return {} if self.custom is None else dict(self.custom.axes)

    def batch_at(
        self,
        outputs: tuple[str, ...],
        shapes: Mapping[str, tuple[Dim, ...]] | None = None,
        *,
        first_axis_only: bool = False,
    ) -> BatchFacts:
        """Return what carries rows, proven at these shapes of the inputs; remembered.

        Parameters
        ----------
        shapes : mapping of input to shape, optional
            Their number of rows does not matter, other than that it may differ between inputs.
            Sizes are made up for open axes without it.
        first_axis_only : bool
            Rows are on axis 0 of the inputs, as in tables and bags.
        """
        key = (outputs, self._row_shapes(shapes), first_axis_only)
        if key not in self._batches:
            if len(self._batches) > _BATCHES_KEPT:
                self._batches.clear()
            self._batches[key] = find_batch(
                self.graph,
                outputs,
                shapes,
                self.schemas,
                self.custom_axes,
                first_axis_only=first_axis_only,
            )
        return self._batches[key]

    def _row_shapes(self, shapes: Mapping[str, tuple[Dim, ...]] | None) -> object:
        """Shapes without their number of rows, and whether inputs agree on that."""
        if shapes is None:
            return None
        axes = self._likely_axes
        rows = {
            shape[axis]
            for name, shape in shapes.items()
            if (axis := axes.get(name)) is not None and axis < len(shape)
        }
        others = tuple(
            (name, tuple(None if i == axes.get(name) else dim for i, dim in enumerate(shape)))
            for name, shape in shapes.items()
        )
        alike = len(rows - {None}) <= 1
        return others if alike else (others, tuple(shapes.items()))

    @cached_property
    def _likely_axes(self) -> Mapping[str, int | None]:
        return input_axes(self.onnx)[0]

    def whole_batch(
        self, batch: BatchFacts, outputs: tuple[str, ...], shapes: Mapping[str, tuple[Dim, ...]]
    ) -> BatchFacts:
        """Return the facts of a request whose inputs, of these shapes, are all given once."""
        return batch.whole(whole_sizes(self.graph, outputs, shapes, self.schemas))

    def axes(
        self, shapes: Mapping[str, tuple[int, ...]] | None, values: Sequence[str]
    ) -> AxisTable:
        """Return how values depend on every input axis, at these shapes or at ones made up."""
        batch = self.batch_at(tuple(values), shapes)
        rows = {name: axis for name, axis in batch.input_axes.items() if axis is not None}
        groups = axis_groups(self.onnx.inputs, {} if batch.blockers else rows)
        known: dict[str, Mapping[str, TensorSpec]] = {}

        def specs_for(seeds: Mapping[str, int]) -> Mapping[str, TensorSpec]:
            bound = dict(shapes or _several_along(assumed_shapes(self.onnx)[0], seeds))
            key = repr(bound)
            if key not in known:
                known[key] = infer_shapes(self.graph, bound, self.schemas)
            return known[key]

        return axis_table(self.graph, groups, specs_for, values, self.custom_axes)

    def claims(
        self,
        seeds: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        values: Sequence[str],
    ) -> dict[str, AxisFact]:
        """Return how values depend on one axis of the inputs, at these shapes."""
        specs = infer_shapes(self.graph, dict(shapes), self.schemas)
        return axis_facts(self.graph, specs, seeds, values, self.custom_axes)

    def row_scale(
        self,
        shapes: Mapping[str, tuple[Dim, ...]],
        planned: Mapping[str, tuple[int, ...]] | None,
    ) -> float:
        """Return how many times as large a row of these shapes is as one that was planned for."""
        axes = self._likely_axes

        def elements(of: Mapping[str, Sequence[Dim]]) -> int:
            return sum(
                math.prod(
                    size
                    for axis, size in enumerate(of[name])
                    if isinstance(size, int) and axis != axes.get(name)
                )
                for name in shapes
                if name in of and None not in shapes[name][1:]
            )

        expected = elements(assumed_shapes(self.onnx, planned)[0])
        return max(elements(shapes) / expected, 1.0) if expected else 1.0

    def bound_shapes(self, shapes: Any) -> dict[str, tuple[int, ...]] | None:
        """Shapes of inputs as a caller says them, checked; None if there are none.

        Raises
        ------
        InputError
            They do not fit the model.
        """
        if shapes is None:
            return None
        return bound_shapes(shapes, self.onnx.inputs, input_axes(self.onnx)[0])

    def inputs_of(self, outputs: tuple[str, ...]) -> list[TensorSpec]:
        """The graph's inputs that some outputs need."""
        _, read = self.graph.between((), outputs)
        return [spec for spec in self.onnx.inputs if spec.name in read]

    def typed(self, name: str) -> TensorSpec:
        """A value's spec.

        Raises
        ------
        InputError
            Not even its dtype is known.
        """
        spec = self.declared.get(name)
        if spec is None or (spec.dtype is None and spec.kind is None):
            raise InputError(
                f"the type of {name!r} does not follow from the model",
                "cut at another value, or declare this one in the model's value_info",
            )
        return spec

    @property
    def costs(self) -> CostTable:
        """What the CPU was calibrated to, or the default one; corrected by how fast other models
        ran here, if any was measured."""
        base = noted_calibration()
        factor = noted_speed(is_calibrated=base is not None)
        base = base or CostTable()
        return base if factor is None else base.faster(factor)

    @cached_property
    def times_token(self) -> str:
        """What its nodes' times are noted under: the model, and what runs its nodes if that is not
        ORT alone."""
        kernels = tuple(each.kernel for each in self.kernels)
        if self.custom is None and not self.libraries and set(kernels) <= {"onnxruntime"}:
            return self.onnx.token
        custom = None if self.custom is None else self.custom.token
        return digest(self.onnx.token, custom, self.libraries, kernels)

    def noted_times(self) -> Iterator[NodeTimes]:
        """What its nodes took on this host, at whatever shapes."""
        return noted_times(self.times_token)

    @property
    def is_measured(self) -> bool:
        """Whether what nodes take on this host is known, of this model or of others."""
        return (
            noted_calibration() is not None
            or noted_speed() is not None
            or any(True for _ in self.noted_times())
        )

    def costs_for(self, recipe: Recipe) -> CostTable:
        """The same, with hops as they are on the recipe's cluster."""
        link = recipe.link
        if link is None:
            return self.costs
        return replace(
            self.costs,
            seconds_per_hop=link.seconds_per_hop,
            link_bytes_per_second=link.bytes_per_second,
        )

    def note_speed(self, times: NodeTimes) -> None:
        """Let plans of other models go by how fast ORT ran this one."""
        each = self._costs_at(times.shapes)
        # Behind a node whose values nobody can tell, nothing is predicted that could be compared.
        nodes = [
            index
            for index in times.seconds
            if self.kernels[index].kernel == "onnxruntime" and each[index].activation_bytes
        ]
        taken = sum(times.seconds[index] for index in nodes)
        for is_calibrated, base in ((False, CostTable()), (True, noted_calibration())):
            if taken > 0 and base is not None:
                factor = sum(base.seconds(each[index]) for index in nodes) / taken
                note_speed(self.times_token, factor, is_calibrated=is_calibrated)

    def measured(
        self, shapes: Mapping[str, tuple[int, ...]], costs: CostTable, each: Sequence[NodeCost]
    ) -> dict[int, float]:
        """Seconds of each node as they were measured on this host: at these shapes, or as they
        follow from the nearest ones. Empty if nothing was measured."""
        noted = list(self.noted_times())
        if not noted:
            return {}

        for times in noted:
            if all(times.shapes.get(name) == tuple(shape) for name, shape in shapes.items()):
                return dict(times.seconds)
        sizes = [_elements(times.shapes) for times in noted]
        told = (noted[i] for i in telling(sizes, _elements(shapes)))
        seen = [Seen(times.seconds, self._costs_at(times.shapes)) for times in told]
        nodes = self.graph.proto.graph.node

        def has_body(index: int) -> bool:
            return any(attribute.HasField("g") for attribute in nodes[index].attribute)

        return seconds_at(each, seen, costs, has_body)

    def _costs_at(self, shapes: Mapping[str, tuple[int, ...]]) -> list[NodeCost]:
        bound, _ = assumed_shapes(self.onnx, shapes)
        return node_costs(self.graph, infer_shapes(self.graph, dict(bound), self.schemas))

    @_uncollected()
    def cut(self, recipe: Recipe, outputs: tuple[str, ...]) -> StageGraph:
        """The stages that a recipe makes of what some outputs need, checked."""
        stages = recipe.strategy_function()(self.cut_inputs(recipe, outputs))
        check_stages(stages, self.graph)
        return stages

    def work(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: tuple[str, ...],
        batches: int,
        threads_of_task: int = 1,
    ) -> Work:
        """Runs of these shapes as something to do: what becomes of their rows."""
        batch = self.batch_at(outputs, shapes)
        axes = batch.input_axes
        rows = [shape[axis] for n, shape in shapes.items() if (axis := axes.get(n)) is not None]
        return Work(
            batches,
            # A graph that was exported for so many rows runs them as they are.
            (1 if batch.fixed_rows is not None else max(rows)) if rows else None,
            tuple(batch.dependent or batch.opaque),
            threads_of_task,
        )

    @_uncollected()
    def choose(
        self,
        recipe: Recipe,
        outputs: tuple[str, ...],
        cluster: Cluster,
        batches: int,
        threads_of_task: int = 1,
    ) -> tuple[StageGraph, Verdict]:
        """What is predicted to be the fastest of those that fit, and why; checked."""
        shapes, _ = assumed_shapes(self.onnx, recipe.shapes)
        work = self.work(shapes, outputs, batches, threads_of_task)
        stages, verdict = choose(self.cut_inputs(recipe, outputs), cluster, work)
        check_stages(stages, self.graph)
        return stages, verdict

    def fewest_stages(
        self, recipe: Recipe, outputs: tuple[str, ...], limit: int, rows: float | None = None
    ) -> int:
        """Of a pipeline whose stages keep within `limit` bytes of weights and activations, in runs
        of the recipe's shapes or of so many rows.

        Raises
        ------
        PlanError
            One node alone is too large.
        """
        if rows is not None:
            shapes, _ = assumed_shapes(self.onnx, recipe.shapes)
            axes, _ = input_axes(self.onnx)
            recipe = replace(
                recipe,
                shapes={
                    name: tuple(
                        math.ceil(rows) if axis == axes.get(name) else size
                        for axis, size in enumerate(shape)
                    )
                    for name, shape in shapes.items()
                },
            )
        return Pieces(self.cut_inputs(recipe, outputs)).fewest_stages(limit)

    def cut_inputs(self, recipe: Recipe, outputs: tuple[str, ...]) -> CutInputs:
        """What strategies look at."""
        shapes, _ = assumed_shapes(self.onnx, recipe.shapes)
        specs = infer_shapes(self.graph, dict(shapes), self.schemas)
        costs, each = self.costs_for(recipe), node_costs(self.graph, specs)
        return CutInputs(
            facts=self.graph,
            specs=specs,
            declared=self.declared,
            outputs=outputs,
            costs=costs,
            kernels=self.kernels,
            node_costs=each,
            measured=self.measured(shapes, costs, each),
        )


def _several_along(
    shapes: Mapping[str, tuple[int, ...]], seeds: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Shapes with several positions where there would be one, so that cutting means something."""
    return {
        name: tuple(
            _SEVERAL if size == 1 and axis == seeds.get(name) else size
            for axis, size in enumerate(shape)
        )
        for name, shape in shapes.items()
    }


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))
