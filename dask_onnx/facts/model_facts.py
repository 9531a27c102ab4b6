"""`ModelFacts`: all facts of one model, each found when it is first needed, and then kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
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
from dask_onnx.analysis.batch import find_batch, input_axes, whole_sizes
from dask_onnx.analysis.batch_facts import BatchFacts, ExportedRows
from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.exported_batch import exported_rows
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.learned_types import LearnedType
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.row_candidates import open_groups
from dask_onnx.analysis.shapes import Schemas, infer_shapes, with_declared_outputs
from dask_onnx.analysis.size_conflicts import SizeConflict, conflict_at
from dask_onnx.core.errors import InputError
from dask_onnx.core.process_caches import BoundedCache, KeptResults
from dask_onnx.core.specs import CPU_PROVIDER, Dim, NodeKernel, SessionSpec, TensorSpec
from dask_onnx.core.stage_tasks import digest
from dask_onnx.facts.measured_costs import seconds_at_shapes, speed_factor
from dask_onnx.facts.row_shapes import row_scale, with_several_positions, without_rows
from dask_onnx.modelio.model_faults import raises_model_errors
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.operator_names import onnx_has
from dask_onnx.modelio.weights import graphs_of
from dask_onnx.planning.alternatives import Verdict, Work
from dask_onnx.planning.choice import choose
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.pipeline import Pieces
from dask_onnx.planning.plan_options import bound_shapes
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import Cluster
from dask_onnx.planning.stage_checks import check_stages
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.calibration import saved_calibration
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.onnxruntime_internals import contrib_schemas
from dask_onnx.runtime.probe import Probe, find_kernels
from dask_onnx.runtime.profile import NodeTimes, save_speed, saved_node_times, saved_speed
from dask_onnx.runtime.session import has_onnxruntime, missing_providers
from dask_onnx.store.publishing import as_reference, from_reference

_MAX_SHAPES = 64
"""Largest number of shapes of inputs for which facts of one kind are kept."""
_MAX_KEPT = 256
"""Largest number of results of other layers that are kept."""


class ModelFacts:
    """Graph, shapes, batch axes, kernels, costs and cuts of one model.

    Parameters
    ----------
    onnx_model : OnnxModel
        The parsed model.
    custom : CustomKernels, optional
        The caller's kernels.
    libraries : tuple of str
        Paths on the workers of ONNX Runtime's custom operator libraries.
    """

    def __init__(
        self,
        onnx_model: OnnxModel,
        custom: CustomKernels | None = None,
        libraries: tuple[str, ...] = (),
    ) -> None:
        self.onnx = onnx_model
        self.custom = custom
        self.libraries = libraries
        self.kept: KeptResults[Hashable, Any] = KeptResults(_MAX_KEPT)
        """Results of other layers about this model, by their own keys."""
        self._batches: KeptResults[Hashable, BatchFacts] = KeptResults(_MAX_SHAPES)
        """Batch facts by outputs and row shapes."""
        self._conflicts: KeptResults[Hashable, SizeConflict | None] = KeptResults(_MAX_SHAPES)
        """Results of `conflict_at` by the shapes of the inputs."""
        self._learning = threading.Lock()

    @property
    def name(self) -> str:
        """Name that dashboards and plans show."""
        return self.onnx.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that must be fed, in the order of the graph."""
        return self.onnx.inputs

    def __reduce__(self) -> tuple[Any, ...]:
        # Facts are not pickled but found again: those of large graphs take many megabytes.
        return _from_reference, (as_reference(self.onnx), self.custom, self.libraries)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        custom = "" if self.custom is None else self.custom.token
        return (self.onnx.token, custom, repr(self.onnx.rows), *self.libraries)

    @cached_property
    @raises_model_errors("analysed")
    def graph(self) -> GraphFacts:
        """Structure of the graph: nodes, and the producer and consumers of each value."""
        return GraphFacts(self.onnx)

    @cached_property
    def schemas(self) -> Schemas:
        """ONNX Runtime's own operators; empty if the model uses ONNX's alone."""
        graphs = graphs_of(self.graph.proto)
        opsets = self.onnx.opsets
        if all(onnx_has(node, opsets) for graph in graphs for node in graph.node):
            return {}
        return contrib_schemas()

    @cached_property
    @raises_model_errors("analysed")
    def inferred(self) -> dict[str, TensorSpec]:
        """Spec of every value, as far as it follows from the operators without input shapes.

        What the model declares of its outputs is left out: kernels need not keep to it.
        """
        return infer_shapes(self.graph, None, self.schemas, trusts_outputs=False)

    @cached_property
    @raises_model_errors("analysed")
    def declared(self) -> dict[str, TensorSpec]:
        """Spec of every value, as far as it follows from the model without input shapes."""
        return with_declared_outputs(self.graph, self.inferred)

    def learn(self, types: Mapping[str, LearnedType]) -> None:
        """Add types of values that runs of their nodes have shown to what is inferred.

        Everything that follows from types is found anew, kernels too: which of them run a node
        correctly depends on the types of its inputs.

        Parameters
        ----------
        types : mapping of str to LearnedType
            Types by name of the value.
        """
        with self._learning:  # threads may learn types of different values at the same time
            self.graph.learned = {**self.graph.learned, **types}
            for name in ("inferred", "declared", "kernels"):
                self.__dict__.pop(name, None)
            self._batches = KeptResults(_MAX_SHAPES)
            self._conflicts = KeptResults(_MAX_SHAPES)
            self.kept = KeptResults(_MAX_KEPT)

    @cached_property
    @raises_model_errors("analysed")
    def kernels(self) -> tuple[NodeKernel, ...]:
        """Kernel of each node, in the order of the graph."""
        return find_kernels(self.probe_of(SessionSpec()))

    def probe_of(self, session: SessionSpec) -> Probe:
        """Return the question for the kernels of the nodes in sessions of these options.

        Providers that this process lacks cannot be asked: the CPU's are asked in their place, and
        the workers whether they have them.
        """
        providers = session.provider_list
        if not session.is_on_cpu and (not has_onnxruntime() or missing_providers(session)):
            providers = (CPU_PROVIDER,)
        return Probe(self.graph, self.declared, self.custom, self.libraries, providers)

    @raises_model_errors("planned")
    def kernels_of(self, session: SessionSpec) -> tuple[NodeKernel, ...]:
        """Return the kernel of each node in sessions of these options, in the order of the graph.

        Parameters
        ----------
        session : SessionSpec
            Options of the sessions, of which the execution providers count.
        """
        if session.is_on_cpu:
            return self.kernels
        probe = self.probe_of(session)
        if probe.providers == (CPU_PROVIDER,):
            return self.kernels
        found: tuple[NodeKernel, ...] = self.kept.get_or_make(
            ("kernels", probe.providers), lambda: find_kernels(probe)
        )
        return found

    @cached_property
    @raises_model_errors("analysed")
    def has_unseeded_nodes(self) -> bool:
        """True if equal requests may differ: a node draws random numbers without a seed."""
        return bool(random_nodes(self.graph, self.graph.outputs)[1])

    @cached_property
    def known_values(self) -> frozenset[str]:
        """Names of all values of the main graph, except initializers."""
        return frozenset([*self.graph.producer, *self.graph.inputs, *self.graph.outputs])

    @cached_property
    def custom_axes(self) -> CustomAxes:
        """Axes along which the caller's operators declare to work independently."""
        return {} if self.custom is None else dict(self.custom.axes)

    @raises_model_errors("analysed")
    def batch_at(
        self,
        outputs: tuple[str, ...],
        shapes: Mapping[str, tuple[Dim, ...]] | None = None,
        *,
        first_axis_only: bool = False,
    ) -> BatchFacts:
        """Return the axes that carry rows, proven at given input shapes. The result is kept.

        Parameters
        ----------
        outputs : tuple of str
            Values whose rows must be independent.
        shapes : mapping of str to tuple of int, str or None, optional
            Shapes of inputs by name; sizes are assumed for open axes by default. The number of rows
            in them does not matter, except that it may differ between inputs.
        first_axis_only : bool
            True if rows are on axis 0 of the inputs, as in tables and bags.
        """

        def at(key: Hashable) -> BatchFacts:
            return self._batches.get_or_make(
                (outputs, key, first_axis_only),
                lambda: find_batch(
                    self.graph,
                    outputs,
                    shapes,
                    self.schemas,
                    self.custom_axes,
                    first_axis_only=first_axis_only,
                ),
            )

        if shapes is None:
            return at(None)
        found = at(("any rows", without_rows(shapes, self.input_axes[0])))
        # Rows elsewhere were proven at one size of the likely axes, or were not.
        if self._is_for_any_rows(found):
            return found
        return at(("these rows", tuple(shapes.items())))

    def _is_for_any_rows(self, batch: BatchFacts) -> bool:
        """Return whether facts hold for any size of the axes that likely carry rows."""
        if batch.blockers:
            return not open_groups(self.onnx, first=False)
        likely, _ = self.input_axes
        return all(axis in (None, likely[name]) for name, axis in batch.input_axes.items())

    @cached_property
    @raises_model_errors("analysed")
    def exported_rows(self) -> ExportedRows | None:
        """Number of rows that the graph was exported for; None if it runs any number."""
        return exported_rows(self.onnx, self.graph)

    @raises_model_errors("analysed")
    def conflict_at(self, shapes: Mapping[str, tuple[Dim, ...]]) -> SizeConflict | None:
        """Return a node that cannot run with inputs of these shapes; the result is kept.

        Parameters
        ----------
        shapes : mapping of str to tuple of int, str or None
            Shapes of inputs by name.

        Returns
        -------
        SizeConflict or None
            None if no such node is found, which is no proof that the graph runs.
        """
        key = tuple(shapes.items())
        return self._conflicts.get_or_make(key, lambda: conflict_at(self.graph, shapes))

    @cached_property
    @raises_model_errors("analysed")
    def input_axes(self) -> tuple[Mapping[str, int | None], int | None]:
        """Likely batch axis of each input, and the rows of a run if they are fixed."""
        return input_axes(self.onnx)

    @raises_model_errors("analysed")
    def whole_batch(
        self, batch: BatchFacts, outputs: tuple[str, ...], shapes: Mapping[str, tuple[Dim, ...]]
    ) -> BatchFacts:
        """Return the batch facts of a request that runs whole, with inputs of these shapes."""
        return batch.whole(whole_sizes(self.graph, outputs, shapes, self.schemas))

    @raises_model_errors("analysed")
    def axes(
        self, shapes: Mapping[str, tuple[int, ...]] | None, values: Sequence[str]
    ) -> AxisTable:
        """Return how values depend on every input axis; see `Model.axes`.

        Parameters
        ----------
        shapes : mapping of str to tuple of int, optional
            Shapes of all inputs by name; assumed ones by default.
        values : sequence of str
            Names of graph outputs or intermediate values.
        """
        batch = self.batch_at(tuple(values), shapes)
        rows = {name: axis for name, axis in batch.input_axes.items() if axis is not None}
        groups = axis_groups(self.onnx.inputs, {} if batch.blockers else rows)
        known: dict[str, Mapping[str, TensorSpec]] = {}

        def specs_for(seeds: Mapping[str, int]) -> Mapping[str, TensorSpec]:
            bound = dict(shapes or with_several_positions(assumed_shapes(self.onnx)[0], seeds))
            key = repr(bound)
            if key not in known:
                known[key] = infer_shapes(self.graph, bound, self.schemas)
            return known[key]

        return axis_table(self.graph, groups, specs_for, values, self.custom_axes)

    @raises_model_errors("analysed")
    def claims(
        self,
        seeds: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        values: Sequence[str],
    ) -> dict[str, AxisFact]:
        """Return how values depend on one axis of the inputs, by the axis algebra.

        Parameters
        ----------
        seeds : mapping of str to int
            The axis: its number in each input that has it, by input name.
        shapes : mapping of str to tuple of int
            Shapes of all inputs by name.
        values : sequence of str
            Names of graph outputs or intermediate values.
        """
        specs = infer_shapes(self.graph, dict(shapes), self.schemas)
        return axis_facts(self.graph, specs, seeds, values, self.custom_axes)

    def row_scale(
        self,
        shapes: Mapping[str, tuple[Dim, ...]],
        planned: Mapping[str, tuple[int, ...]] | None,
    ) -> float:
        """Return the size of a row as a multiple of the row that a plan was made for, at least 1.

        Parameters
        ----------
        shapes : mapping of str to tuple of int, str or None
            Shapes of inputs by name.
        planned : mapping of str to tuple of int, optional
            Shapes that the plan was made for; None for assumed ones.
        """
        expected = assumed_shapes(self.onnx, planned)[0]
        return row_scale(shapes, expected, self.input_axes[0])

    def bound_shapes(self, shapes: Any) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes of inputs that a caller gave, checked; None for None.

        Raises
        ------
        InputError
            The shapes do not fit the model.
        """
        if shapes is None:
            return None
        return bound_shapes(shapes, self.onnx.inputs, self.input_axes[0])

    def inputs_of(self, outputs: tuple[str, ...]) -> list[TensorSpec]:
        """Return the specs of the inputs that some outputs depend on."""
        _, read = self.graph.between((), outputs)
        return [spec for spec in self.onnx.inputs if spec.name in read]

    def typed_spec(self, name: str) -> TensorSpec:
        """Return the spec of a value.

        Raises
        ------
        InputError
            Its type cannot be inferred.
        """
        spec = self.declared.get(name)
        if spec is None or (spec.dtype is None and spec.kind is None):
            raise InputError(
                f"the type of {name!r} cannot be inferred from the model",
                "cut at another value, or declare this one in the model's value_info",
                input=name,
            )
        return spec

    @property
    def costs(self) -> CostTable:
        """Speeds of this host's CPU: calibrated, or those of a common CPU.

        Scaled by the speed that other models had here, if one was measured.
        """
        base = saved_calibration()
        factor = saved_speed(is_calibrated=base is not None)
        base = base or CostTable()
        return base if factor is None else base.faster(factor)

    @cached_property
    def times_token(self) -> str:
        """Cache key of node times: the model, and its kernels unless all are ONNX Runtime's."""
        kernels = tuple(each.kernel for each in self.kernels)
        if self.custom is None and not self.libraries and set(kernels) <= {"onnxruntime"}:
            return self.onnx.token
        custom = None if self.custom is None else self.custom.token
        return digest(self.onnx.token, custom, self.libraries, kernels)

    def times_token_of(self, session: SessionSpec) -> str:
        """Return the cache key of node times in sessions of these options: by their providers."""
        if session.is_on_cpu:
            return self.times_token
        return digest(self.times_token, session.providers, self.kernels_of(session))

    def saved_node_times(self, session: SessionSpec | None = None) -> Iterator[NodeTimes]:
        """Return the measured times of the model's nodes on this host, at any shapes.

        Parameters
        ----------
        session : SessionSpec, optional
            Options of the sessions, of which the execution providers count; the CPU's by default.
        """
        return saved_node_times(self.times_token_of(session or SessionSpec()))

    @property
    def is_measured(self) -> bool:
        """True if predictions rest on a measurement of this host, of this model or of others."""
        return (
            saved_calibration() is not None
            or saved_speed() is not None
            or any(True for _ in self.saved_node_times())
        )

    def costs_for(self, recipe: Recipe) -> CostTable:
        """Return `costs` with the measured cost of transfers on the recipe's cluster."""
        link = recipe.link
        if link is None:
            return self.costs
        return replace(
            self.costs,
            seconds_per_hop=link.seconds_per_hop,
            link_bytes_per_second=link.bytes_per_second,
        )

    def save_speed(self, times: NodeTimes) -> None:
        """Save the speed of ONNX Runtime on this model, for predictions for other models.

        Parameters
        ----------
        times : NodeTimes
            Measured times of this model's nodes.
        """
        on_ort = [node for node in times.seconds if self.kernels[node].kernel == "onnxruntime"]
        costs = self._costs_at(times.shapes)
        for is_calibrated, table in ((False, CostTable()), (True, saved_calibration())):
            if table is None:
                continue
            factor = speed_factor(times.seconds, on_ort, costs, table)
            if factor is not None:
                save_speed(self.times_token, factor, is_calibrated=is_calibrated)

    @raises_model_errors("analysed")
    def measured(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        costs: CostTable,
        each: Sequence[NodeCost],
        session: SessionSpec,
    ) -> dict[int, float]:
        """Return the measured seconds of each node on this host; empty if nothing was measured.

        Measured at these shapes, or predicted from the nearest ones that were measured.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            Shapes of all inputs by name.
        costs : CostTable
            Speeds by which the measurements are scaled to these shapes.
        each : sequence of NodeCost
            Cost of each node at these shapes.
        session : SessionSpec
            Options of the sessions, of which the execution providers count.
        """
        saved = list(self.saved_node_times(session))
        return seconds_at_shapes(self.graph, saved, shapes, costs, each, self._costs_at)

    @raises_model_errors("analysed")
    def _costs_at(self, shapes: Mapping[str, tuple[int, ...]]) -> list[NodeCost]:
        bound, _ = assumed_shapes(self.onnx, shapes)
        return node_costs(self.graph, infer_shapes(self.graph, dict(bound), self.schemas))

    @raises_model_errors("planned")
    def cut(self, recipe: Recipe, outputs: tuple[str, ...]) -> StageGraph:
        """Return the checked stage graph that a recipe makes for some outputs.

        Raises
        ------
        PlanError
            There is no such strategy, it does not take an option, or the cut is impossible.
        """
        stages = recipe.strategy_function()(self.cut_inputs(recipe, outputs))
        check_stages(stages, self.graph)
        return stages

    @raises_model_errors("planned")
    def work(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: tuple[str, ...],
        batches: int,
        threads_of_task: int = 1,
    ) -> Work:
        """Return the work that alternatives are compared for.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            Shapes of all inputs of a run, by name.
        outputs : tuple of str
            Wanted outputs.
        batches : int
            Number of runs.
        threads_of_task : int
            Threads that ONNX Runtime may use for one run of the whole model.
        """
        batch = self.batch_at(outputs, shapes)
        axes = batch.input_axes
        rows = [shape[axis] for n, shape in shapes.items() if (axis := axes.get(n)) is not None]
        return Work(
            batches,
            # The rows that a graph was exported for are not split among tasks.
            (1 if batch.fixed_rows is not None else max(rows)) if rows else None,
            tuple(batch.dependent or batch.opaque),
            threads_of_task,
        )

    @raises_model_errors("planned")
    def choose(
        self,
        recipe: Recipe,
        outputs: tuple[str, ...],
        cluster: Cluster,
        batches: int,
        threads_of_task: int = 1,
    ) -> tuple[StageGraph, Verdict]:
        """Return the stage graph that is predicted to be the fastest on a cluster, and the reason.

        Parameters
        ----------
        recipe : Recipe
            Recipe of the whole model, with shapes and session.
        outputs, batches, threads_of_task
            As for `work`.
        cluster : Cluster
            Workers to plan for.

        Raises
        ------
        PlanError
            No alternative fits the workers.
        """
        shapes, _ = assumed_shapes(self.onnx, recipe.shapes)
        work = self.work(shapes, outputs, batches, threads_of_task)
        stages, verdict = choose(self.cut_inputs(recipe, outputs), cluster, work)
        check_stages(stages, self.graph)
        return stages, verdict

    @raises_model_errors("planned")
    def fewest_stages(
        self, recipe: Recipe, outputs: tuple[str, ...], limit: int, rows: float | None = None
    ) -> int:
        """Return the number of stages of the shortest pipeline that keeps within a memory limit.

        Parameters
        ----------
        recipe : Recipe
            Recipe with shapes and session.
        outputs : tuple of str
            Wanted outputs.
        limit : int
            Bytes of weights and activations that a stage may need.
        rows : float, optional
            Rows of a run; those of the recipe's shapes by default.

        Raises
        ------
        PlanError
            A node needs more than `limit` by itself.
        """
        if rows is not None:
            shapes, _ = assumed_shapes(self.onnx, recipe.shapes)
            axes, _ = self.input_axes
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

    @raises_model_errors("planned")
    def cut_inputs(self, recipe: Recipe, outputs: tuple[str, ...]) -> CutInputs:
        """Return the input of strategies: graph, kernels, and costs at the recipe's shapes."""
        _ = self.exported_rows  # found by this graph's facts; assumed shapes need them
        shapes, _ = assumed_shapes(self.onnx, recipe.shapes)
        specs = infer_shapes(self.graph, dict(shapes), self.schemas)
        costs, each = self.costs_for(recipe), node_costs(self.graph, specs)
        return CutInputs(
            facts=self.graph,
            specs=specs,
            declared=self.declared,
            outputs=outputs,
            costs=costs,
            kernels=self.kernels_of(recipe.session),
            node_costs=each,
            measured=self.measured(shapes, costs, each, recipe.session),
        )


_received: BoundedCache[tuple[object, ...], ModelFacts] = BoundedCache("received models", 16)
"""Facts of models that were unpickled, so that tasks with equal models share them."""


def _from_reference(
    model: OnnxModel, custom: CustomKernels | None, libraries: tuple[str, ...]
) -> ModelFacts:
    key = (
        *(model.token, model.name, model.source, repr(model.rows)),
        *("" if custom is None else custom.token, libraries),
    )
    return _received.get_or_make(key, lambda: ModelFacts(from_reference(model), custom, libraries))
