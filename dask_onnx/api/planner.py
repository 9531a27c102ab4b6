"""How a plan is made: what was asked for, resolved; the cut; where its stages go."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.api.plan import Plan
from dask_onnx.cluster.delivery import current_client
from dask_onnx.cluster.links import link_of
from dask_onnx.cluster.overhead import with_overhead
from dask_onnx.cluster.placement import Placement, cluster_facts
from dask_onnx.collections.kinds import as_array
from dask_onnx.collections.planned_model import PlannedModel
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core import config
from dask_onnx.core.errors import PlanError, StoreError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.node_times import measure_nodes, shapes_of
from dask_onnx.planning.annotations import groups_of
from dask_onnx.planning.plan_options import CHECKS, whole_number
from dask_onnx.planning.recipe import Recipe, Strategy
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.batching import row_count, take_rows
from dask_onnx.runtime.calibration import calibrate
from dask_onnx.runtime.session import has_onnxruntime

Shapes = Mapping[str, tuple[int, ...]]
Aim = Literal["throughput", "latency"]


_TRAVELLERS = ("auto", "pipeline", "branches")
"""Strategies that weigh what it costs to send a value."""
_WEIGHERS = (*_TRAVELLERS, "fused")
"""Strategies that weigh what nodes take."""


@dataclass(frozen=True)
class PlanRequest:
    """What `Model.plan` was asked for; see there."""

    strategy: str | Strategy
    options: Mapping[str, Any]
    """What strategies take besides the model; None is not given."""
    outputs: Outputs
    shapes: Shapes | None
    aim: Aim | None
    session: SessionSpec | None
    measure: Any
    client: Any
    batches: int | None

    @property
    def name(self) -> str:
        return self.strategy.name if isinstance(self.strategy, Strategy) else self.strategy

    @property
    def given(self) -> dict[str, Any]:
        """All options by name, those that are numbers as such."""
        own = self.strategy.options if isinstance(self.strategy, Strategy) else {}
        return {
            name: CHECKS[name](name, value) if name in CHECKS else value
            for name, value in {**self.options, **own}.items()
            if value is not None
        }

    def check(self) -> None:
        """What can be said without the model, before anything is run to measure it.

        Raises
        ------
        PlanError
            See `Model.plan`.
        """
        if not isinstance(self.strategy, str | Strategy):
            raise PlanError(
                f"the strategy is a {type(self.strategy).__name__}",
                "name one, as 'pipeline', or give dx.at_values([...])",
            )
        if self.strategy == "at_values":
            raise PlanError("cut at which values?", 'give dx.at_values(["a", "b"]) as the strategy')
        if self.aim not in (None, "throughput", "latency"):
            raise PlanError(f"there is no aim {self.aim!r}", "choose 'throughput' or 'latency'")
        if not isinstance(self.session, SessionSpec | None):
            raise PlanError(
                f"session is a {type(self.session).__name__}",
                "give session=dx.SessionSpec(intra_op_num_threads=1), or the like",
            )
        if self.client is not None and not hasattr(self.client, "scheduler_info"):
            raise PlanError(
                f"client is a {type(self.client).__name__}",
                "give a distributed.Client, as Client(address)",
            )
        if self.batches is not None:
            whole_number("batches", self.batches)
        given = self.given
        if self.name != "auto":
            Recipe(self.name, None, SessionSpec(), given).strategy_function()
        elif given:
            raise PlanError(
                f"strategy 'auto' takes no {next(iter(given))}", "leave it out, or name a strategy"
            )


def make_plan(model: PlannedModel, request: PlanRequest) -> Plan:
    """
    Raises
    ------
    PlanError
        No such strategy or aim, options that it does not take, or a cut that cannot be made.
    InputError
        `shapes` or what is to be measured does not fit the model.
    """
    request.check()
    facts = model._facts
    session = _session(model, request)
    shapes = facts.bound_shapes(request.shapes)
    outputs = resolve_outputs(request.outputs, facts.graph.outputs, facts.known_values).names
    if request.measure is not None:
        arrays = _measured_feeds(model, request.measure)
        requests = [arrays, *_one_row(facts, arrays)]
        facts.note_speed(measure_nodes(facts, requests, session)[0])
        shapes = shapes or shapes_of(arrays)
    if request.name in _WEIGHERS and config.get("plan.calibrate") and not facts.is_measured:
        _calibrate()
    client = request.client if request.client is not None else current_client()
    link = link_of(client) if request.name in _TRAVELLERS else None
    if request.name == "auto":
        recipe = Recipe("whole", shapes, session, link=link)
        return _choose(model, request, client, recipe, outputs)
    recipe = Recipe(request.name, shapes, session, request.given, link)
    stages = facts.cut(recipe, outputs)
    placement = None
    if "memory_limit" in recipe.options:
        placement = Placement.one_each(len(stages.stages))
    if recipe.strategy == "from_annotations":
        placement = _annotated_placement(facts.graph, stages, recipe.options.get("configuration"))
    return Plan(model, recipe, stages, placement=placement)


def _calibrate() -> None:
    """Where that is not possible, plans go by a common CPU, and say so."""
    if has_onnxruntime():
        with contextlib.suppress(StoreError):
            calibrate()


def _annotated_placement(
    graph: GraphFacts, stages: StageGraph, configuration: str | None
) -> Placement | None:
    """Return worker groups by the devices that the model's annotations have."""
    worker_groups = groups_of(graph, stages, configuration)
    return None if worker_groups is None else Placement(worker_groups)


def _session(model: PlannedModel, request: PlanRequest) -> SessionSpec:
    """How ONNX Runtime runs the stages."""
    session = request.session or SessionSpec()
    libraries = dict.fromkeys((*model._facts.libraries, *session.custom_op_libraries))
    session = dataclasses.replace(session, custom_op_libraries=tuple(libraries))
    if request.aim == "latency" and session.intra_op_num_threads is None:
        session = dataclasses.replace(session, intra_op_num_threads=0)
    return session


def _choose(
    model: PlannedModel,
    request: PlanRequest,
    client: Any,
    recipe: Recipe,
    outputs: tuple[str, ...],
) -> Plan:
    """What "auto" takes for the cluster."""
    cluster = with_overhead(cluster_facts(client), client)
    batches = request.batches
    if batches is None:
        batches = 1 if request.aim == "latency" else 8 * cluster.slots
    stages, verdict = model._facts.choose(
        recipe, outputs, cluster, batches, cluster.threads_of_task(recipe.session)
    )
    best, session = verdict.best, recipe.session
    if session.takes_all_cores and (best.parts > 1 or best.stages > 1):
        # The cores are shared by tasks, not by the threads of one.
        session = dataclasses.replace(session, intra_op_num_threads=None)
    recipe = dataclasses.replace(
        recipe, strategy=best.strategy, options=best.options, session=session
    )
    placement = None
    if verdict.alternatives[0].refused:
        # Only where weights must not be everywhere: a free worker is worth more than its cache.
        placement = Placement(best.worker_groups) if best.worker_groups else None
    return Plan(model, recipe, stages, verdict=verdict, placement=placement)


def _measured_feeds(model: PlannedModel, feeds: Any) -> dict[str, np.ndarray]:
    model.check(feeds)
    specs = {spec.name: spec for spec in model.inputs}
    given = resolve_feeds(feeds, model.inputs, list(specs))
    return {name: as_array(value, specs[name]) for name, value in given.items()}


def _one_row(facts: ModelFacts, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The first row alone, which shows what nodes take however few the rows; nothing where rows
    cannot be taken apart, or there is but one."""
    batch = facts.batch_at(facts.graph.outputs, shapes_of(arrays))
    if batch.fixed_rows is not None or batch.dependent or batch.opaque:
        return []
    values, axes = list(arrays.values()), [batch.input_axes.get(name) for name in arrays]
    if (row_count(values, axes) or 0) < 2:
        return []
    return [dict(zip(arrays, take_rows(values, axes, 0, 1), strict=True))]
