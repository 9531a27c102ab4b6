"""Making of plans: checks of what was asked for, measurement, the cut, and placement."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from dask_onnx.api.plan import Plan
from dask_onnx.cluster.current_scheduler import current_client, ensure_connected
from dask_onnx.cluster.links import known_link
from dask_onnx.cluster.overhead import with_known_overhead
from dask_onnx.cluster.placement import Placement, cluster_facts
from dask_onnx.collections.request_builder import check_inputs
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core import config
from dask_onnx.core.errors import PlanError, StoreError, Suggestion
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.node_times import measure_nodes, shapes_of
from dask_onnx.facts.session_choice import session_of
from dask_onnx.planning.alternatives import Verdict
from dask_onnx.planning.annotations import annotated_worker_groups
from dask_onnx.planning.chunk_groups import ChunkGroups, grouping_reason, groups_for
from dask_onnx.planning.partition import STRATEGIES
from dask_onnx.planning.pipeline import Pieces, size_for
from dask_onnx.planning.plan_options import PARSERS, meaning_of, parse_whole_number
from dask_onnx.planning.recipe import Recipe, Strategy, from_annotations
from dask_onnx.planning.resources import Cluster
from dask_onnx.planning.strategies import StrategyObject, as_strategy
from dask_onnx.runtime.batching import row_count, take_rows
from dask_onnx.runtime.calibration import calibrate
from dask_onnx.runtime.input_values import as_input
from dask_onnx.runtime.session import has_onnxruntime
from dask_onnx.sharding.auto_sharding import shards_that_fit, weigh_shards
from dask_onnx.sharding.on_shards import ShardedPlan, plan_as_annotated, plan_on_shards
from dask_onnx.sharding.strategy import Sharded

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of inputs by name."""
Aim = Literal["throughput", "latency"]
"""Many tasks at a time, each on its share of the cores; or one, on all of them."""

_LINK_STRATEGIES = ("auto", "pipeline", "branches")
"""Strategies that depend on the cost of sending a value."""
_TIME_STRATEGIES = (*_LINK_STRATEGIES, "fused")
"""Strategies that depend on the seconds of nodes."""
_BATCHES_PER_SLOT = 8
"""Default number of runs that "auto" plans for, for each task that the cluster runs at a time."""


@dataclass(frozen=True)
class PlanRequest:
    """Arguments of `Model.plan`; see there."""

    strategy: str | Strategy | StrategyObject | Sharded
    """Strategy, by name or as an object with its options."""
    options: Mapping[str, Any]
    """Options of strategies by name; None where not given."""
    outputs: Outputs
    """Wanted outputs; None for the graph's outputs."""
    shapes: Shapes | None
    """Input shapes that costs are predicted for; None for assumed ones."""
    aim: Aim | None
    """Use of the cores; None for the default of where the plan runs."""
    session: SessionSpec | None
    """Options of the ONNX Runtime sessions; None for the defaults."""
    measure: Any
    """Rows to measure the nodes with; None to measure nothing."""
    client: Any
    """Client of the cluster to plan for; None for the one that Dask would use."""
    batches: int | None
    """Number of runs that "auto" plans for; None for the default."""

    @property
    def name(self) -> str:
        """Name of the strategy."""
        return self.strategy.name if isinstance(self.strategy, Strategy) else str(self.strategy)

    @property
    def given(self) -> dict[str, Any]:
        """Options of the strategy that were given, by name, with numbers parsed.

        Raises
        ------
        PlanError
            An option that is a number, time or size is none.
        """
        own = self.strategy.options if isinstance(self.strategy, Strategy) else {}
        return {
            name: PARSERS[name](name, value) if name in PARSERS else value
            for name, value in {**self.options, **own}.items()
            if value is not None
        }

    def check(self) -> None:
        """Check what can be checked without the model, before anything runs.

        Raises
        ------
        PlanError
            See `Model.plan`.
        """
        if not isinstance(self.strategy, str | Strategy):
            raise PlanError(
                f"the strategy is a {type(self.strategy).__name__}",
                "give a name such as 'pipeline', or an object such as dx.Pipeline(n_stages=2)",
                option="strategy",
                suggestions=[Suggestion("strategy", name) for name in _strategy_names()],
            )
        if self.strategy == "at_values":
            raise PlanError(
                "strategy 'at_values' lacks the values to cut at",
                'give dx.at_values(["a", "b"]) as the strategy',
                option="strategy",
            )
        if self.aim not in (None, *get_args(Aim)):
            raise PlanError(
                f"there is no aim {self.aim!r}",
                f"choose {' or '.join(map(repr, get_args(Aim)))}",
                option="aim",
                suggestions=[Suggestion("aim", aim) for aim in get_args(Aim)],
            )
        if not isinstance(self.session, SessionSpec | None):
            raise PlanError(
                f"session is a {type(self.session).__name__}, not a SessionSpec",
                "give session=dx.SessionSpec(intra_op_num_threads=1)",
                option="session",
                suggestions=[Suggestion("session", SessionSpec(intra_op_num_threads=1))],
            )
        if self.client is not None and not hasattr(self.client, "scheduler_info"):
            raise PlanError(
                f"client is a {type(self.client).__name__}, not a distributed.Client",
                "give client=distributed.Client(address), or leave it out",
                option="client",
                suggestions=[Suggestion("client")],
            )
        if self.batches is not None:
            parse_whole_number("batches", self.batches)
        given = self.given
        if self.name != "auto":
            Recipe(self.name, None, SessionSpec(), given).strategy_function()
        elif given:
            option = next(iter(given))
            raise PlanError(
                f"strategy 'auto' does not use {meaning_of(option)}",
                f"leave out {option}, or name a strategy that takes it",
                option=option,
                suggestions=[Suggestion(option)],
            )


def make_plan(facts: ModelFacts, request: PlanRequest) -> Plan | ShardedPlan:
    """Return the plan that was asked for; see `Model.plan`.

    Raises
    ------
    PlanError
        There is no such strategy or aim, the strategy does not take an option, or the cut is
        impossible.
    InputError
        `shapes`, `outputs` or `measure` do not fit the model.
    StageError
        The rows to measure cannot be run here.
    """
    strategy = request.strategy
    cut_options: dict[str, Any] = {
        "outputs": request.outputs,
        "shapes": request.shapes,
        "session": request.session,
    }
    if isinstance(strategy, Sharded):
        others = {
            **request.options,
            "aim": request.aim,
            "measure": request.measure,
            "client": request.client,
            "batches": request.batches,
        }
        return plan_on_shards(facts, strategy, others=others, **cut_options)
    if isinstance(strategy, StrategyObject):
        strategy = as_strategy(strategy)
        request = dataclasses.replace(request, strategy=strategy)
    if strategy == "from_annotations":
        strategy = from_annotations()
        request = dataclasses.replace(request, strategy=strategy)
    if isinstance(strategy, Strategy) and strategy.name == "from_annotations":
        annotated = plan_as_annotated(facts, strategy, **cut_options)
        if annotated is not None:
            return annotated
    request.check()
    return _plan_auto(facts, request) if strategy == "auto" else _plan_stages(facts, request)


def _plan_auto(facts: ModelFacts, request: PlanRequest) -> Plan | ShardedPlan:
    """Return the plan that "auto" chooses, among stages and shards of a sequence."""
    shard_options: dict[str, Any] = {
        "shapes": request.shapes,
        "session": request.session,
        "client": request.client,
    }
    try:
        plan = _plan_stages(facts, request)
    except PlanError:
        # One request may fit the workers as shards where no plan of whole batches does.
        sharded = None if request.outputs is not None else shards_that_fit(facts, **shard_options)
        if sharded is None:
            raise
        return sharded
    is_one_request = request.aim == "latency" or request.batches == 1
    if request.outputs is not None or not is_one_request or plan.verdict is None:
        return plan
    sharded, verdict = weigh_shards(facts, plan.verdict, **shard_options)
    return dataclasses.replace(plan, verdict=verdict) if sharded is None else sharded


def _plan_stages(facts: ModelFacts, request: PlanRequest) -> Plan:
    """Return a plan of stages, by any strategy but the sharded ones."""
    session = _session(facts, request)
    shapes = facts.bound_shapes(request.shapes)
    outputs = resolve_outputs(request.outputs, facts.graph.outputs, facts.known_values).names
    if request.measure is not None:
        arrays = _measured_feeds(facts, request.measure)
        requests = [arrays, *_one_row(facts, arrays)]
        times = measure_nodes(facts, requests, session)[0]
        if session.is_on_cpu:  # predictions for other models are for the CPU
            facts.save_speed(times)
        shapes = shapes or shapes_of(arrays)
    if request.name in _TIME_STRATEGIES and config.get("plan.calibrate") and not facts.is_measured:
        _calibrate()
    client = request.client if request.client is not None else current_client()
    link = known_link(client) if request.name in _LINK_STRATEGIES else None
    if client is not None and (request.name == "auto" or _asks_for_size(request)):
        ensure_connected(client)
    if request.name == "auto":
        recipe = Recipe("whole", shapes, session, link=link)
        return _choose(facts, request, client, recipe, outputs)
    recipe = Recipe(request.name, shapes, session, request.given, link)
    if _asks_for_size(request):
        size = size_for(Pieces(facts.cut_inputs(recipe, outputs)), cluster_facts(client))
        recipe = dataclasses.replace(recipe, options=size.options)
    stages = facts.cut(recipe, outputs)
    placement = None
    if "memory_limit" in recipe.options:
        placement = Placement.one_each(len(stages.stages))
    if recipe.strategy == "from_annotations":
        worker_groups = annotated_worker_groups(
            facts.graph, stages, recipe.options.get("configuration")
        )
        placement = None if worker_groups is None else Placement(worker_groups)
    return Plan(facts, recipe, stages, placement=placement)


def _asks_for_size(request: PlanRequest) -> bool:
    """Return whether the number of stages follows from the workers' memory."""
    return request.name == "pipeline" and not request.given


def _choose(
    facts: ModelFacts,
    request: PlanRequest,
    client: Any,
    recipe: Recipe,
    outputs: tuple[str, ...],
) -> Plan:
    """Return the plan that is predicted to be the fastest on a cluster.

    Parameters
    ----------
    recipe : Recipe
        Recipe of the whole model.
    """
    cluster = with_known_overhead(cluster_facts(client), client)
    batches = request.batches
    if batches is None:
        batches = 1 if request.aim == "latency" else _BATCHES_PER_SLOT * cluster.slots
    stages, verdict = facts.choose(
        recipe, outputs, cluster, batches, cluster.threads_of_task(recipe.session)
    )
    best, session = verdict.best, recipe.session
    if session.takes_all_cores and (best.parts > 1 or best.stages > 1):
        # Several tasks share the cores, so that none of them may take all.
        session = dataclasses.replace(session, intra_op_num_threads=None)
    recipe = dataclasses.replace(
        recipe, strategy=best.strategy, options=best.options, session=session
    )
    placement = None
    if verdict.alternatives[0].refused:
        # Only where the whole model does not fit every worker: a free worker is worth more than
        # the cached session of a busy one.
        placement = Placement(best.worker_groups) if best.worker_groups else None
    verdict, groups = _with_groups(verdict, cluster, stages.seconds)
    return Plan(facts, recipe, stages, verdict=verdict, placement=placement, chunk_groups=groups)


def _with_groups(
    verdict: Verdict, cluster: Cluster, seconds: float
) -> tuple[Verdict, ChunkGroups | None]:
    """Return the rule for chunks that one task computes, if any, and the verdict that names it.

    Parameters
    ----------
    verdict : Verdict
        Choice of the alternative.
    cluster : Cluster
        The workers.
    seconds : float
        Predicted seconds of a batch.
    """
    groups = groups_for(cluster)
    is_whole = verdict.best.stages == 1 and verdict.best.parts == 1
    if groups is None or not is_whole or not groups.applies_to(seconds):
        return verdict, None
    reason = grouping_reason(groups, cluster, seconds)
    return dataclasses.replace(verdict, sentence=f"{verdict.sentence}; {reason}"), groups


def _strategy_names() -> list[str]:
    return ["auto", *(name for name in STRATEGIES if name != "at_values")]


def _calibrate() -> None:
    """Calibrate this host's CPU, if possible; without it, plans assume a common CPU."""
    if has_onnxruntime():
        with contextlib.suppress(StoreError):
            calibrate()


def _session(facts: ModelFacts, request: PlanRequest) -> SessionSpec:
    """Return the options of the sessions, with what the model and the aim add."""
    session = session_of(facts, request.session)
    if request.aim == "latency" and session.intra_op_num_threads is None:
        session = dataclasses.replace(session, intra_op_num_threads=0)
    return session


def _measured_feeds(facts: ModelFacts, feeds: Any) -> dict[str, np.ndarray]:
    """Return the rows to measure as arrays by input name, checked against the model."""
    check_inputs(facts, feeds)
    specs = {spec.name: spec for spec in facts.inputs}
    given = resolve_feeds(feeds, facts.inputs, list(specs))
    return {name: as_input(value, specs[name]) for name, value in given.items()}


def _one_row(facts: ModelFacts, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the first row alone, which shows the seconds that do not depend on rows.

    Empty if rows cannot be cut apart, or there is only one.
    """
    batch = facts.batch_at(facts.graph.outputs, shapes_of(arrays))
    if batch.fixed_rows is not None or batch.dependent or batch.opaque:
        return []
    values, axes = list(arrays.values()), [batch.input_axes.get(name) for name in arrays]
    if (row_count(values, axes) or 0) < 2:
        return []
    return [dict(zip(arrays, take_rows(values, axes, 0, 1), strict=True))]
