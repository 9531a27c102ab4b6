"""Requests: what a caller asks of a model, checked and resolved before any work starts.

`Model`, `Plan`, tables, bags and text all come through `build_request`.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Mapping
from typing import Any

from dask.delayed import Delayed

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.analysis.input_sizes import check_symbol_sizes
from dask_onnx.analysis.learned_types import is_typed
from dask_onnx.cluster.capacity import Load, check_fits
from dask_onnx.cluster.configuration import ensure_configured
from dask_onnx.cluster.current_scheduler import (
    current_client,
    ensure_connected,
    explained_losses,
)
from dask_onnx.cluster.delivery import plan_delivery
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.extraction import with_fed_defaults
from dask_onnx.collections.feeds import convert_feeds, describe_feeds
from dask_onnx.collections.kinds import (
    Placeholder,
    has_rows,
    is_empty,
    kind_of,
    most_rows,
    shapes_of,
)
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import (
    Wanted,
    check_arrays,
    resolve_feeds,
    resolve_outputs,
)
from dask_onnx.collections.row_checks import (
    check_batch_size,
    check_named_rows,
    check_uncut,
    resolve_batching,
)
from dask_onnx.collections.run_options import BatchSize, Outputs, RunOptions
from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.core.specs import Dim
from dask_onnx.facts.host_checks import check_hosts, host_contract
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import StagedModel, whole_model
from dask_onnx.lowering.lower import LoweringOptions
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.store.publishing import publish


def build_request(
    facts: ModelFacts, x: Any, run: RunOptions, *, inline: bool = False
) -> tuple[Request, dict[str, Any], str]:
    """Check what a caller asks for, with its values in memory converted, and return a request.

    Parameters
    ----------
    facts : ModelFacts
    x : array_like, dask.array or Delayed; or mapping of str to these
        The one input, or inputs by name.
    run : RunOptions
    inline : bool
        True if the request runs in this thread: then no cluster is checked, and no weights are
        delivered.

    Returns
    -------
    request : Request
        The checked request.
    feeds : dict of str to array, dask.array or Delayed
        Inputs by name, in the order of the graph; those in memory in the model's types.
    kind : str
        Kind of collection, as `kinds.kind_of` names it.

    Raises
    ------
    InputError, PlanError
        See `Model.predict`.
    """
    _check_plan_type(run.plan)
    fed = with_fed_defaults(facts, x)
    if fed is not facts:
        plan = None if run.plan is None else run.plan.on(fed)
        return build_request(fed, x, dataclasses.replace(run, plan=plan), inline=inline)
    chosen = _chosen_plan(facts, run)
    wanted = resolve_outputs(run.outputs, facts.graph.outputs, facts.known_values)
    chosen = chosen.for_outputs(wanted.names)
    feeds = resolve_feeds(x, facts.inputs, [spec.name for spec in chosen.stage_graph.inputs])
    feeds = convert_feeds(feeds, chosen.stage_graph.inputs)
    kind = kind_of(feeds)
    shapes = shapes_of(feeds, facts.inputs)
    check_symbol_sizes(facts.graph, shapes)
    batch = _batch_of(facts, wanted, feeds, shapes, kind, run.batch_size)
    batching = resolve_batching(batch, wanted.names, run.batch_size)
    if batching.is_auto and len(chosen.stages) > 1:
        batching = Batching(chosen.rows_per_run, is_divisible=not batch.random)
    publish(facts.onnx)
    delivery = None
    if not inline:
        axes, _ = facts.input_axes
        # With "auto" the number of rows is not known yet, but at least one row must fit.
        rows = 1 if batching.is_auto else batching.rows_per_run or most_rows(feeds, axes)
        with explained_losses(current_client()):
            _check_cluster(chosen, rows, wanted.names, shapes)
            delivery = plan_delivery(facts.onnx, chosen.stage_graph)
    edges = _edge_axes(chosen, batch, shapes) if batching.is_divisible else None
    request = request_of(chosen, wanted, batch, batching, run.retries, edges)
    is_batched = isinstance(run.batch_size, int)
    request = dataclasses.replace(
        request, delivery=delivery, is_batched=is_batched, chunk_groups=chosen.chunk_groups
    )
    return request, feeds, kind


def request_of(
    staged: StagedModel,
    wanted: Wanted,
    batch: BatchFacts,
    batching: Batching,
    retries: int | None = None,
    edge_axes: Mapping[str, int | None] | None = None,
) -> Request:
    """Return a request for a model cut into stages, without a delivery of its weights.

    Parameters
    ----------
    staged : StagedModel
        Model, stages, placement and schedule.
    wanted : Wanted
        Outputs of the request.
    batch : BatchFacts
        Axes that carry rows.
    batching : Batching
        Rows of each run of a session.
    retries : int, optional
        Times that Dask repeats a task that raised; None for ``onnx.retries``.
    edge_axes : mapping of str to int or None, optional
        Value between stages to its batch axis, if runs of each stage may be cut.
    """
    facts = staged.facts
    options = LoweringOptions(
        StageOptions(
            staged.recipe.session,
            batching,
            staged.lossy,
            host=host_contract(facts, staged.recipe.session),
        ),
        batch.output_axes,
        effective_retries(retries),
        edge_axes=edge_axes,
        custom=facts.custom,
        # Requests that draw random numbers without a seed must not share keys and thus results.
        salt=uuid.uuid4().hex if facts.has_unseeded_nodes else "",
        placement=staged.placement,
        schedule=staged.effective_schedule,
        rows=staged.rows,
        expects=staged.is_measured,
        model_name=facts.name,
        input_axes=batch.input_axes,
    )
    types = {name: spec for name in wanted.names if (spec := facts.declared.get(name)) is not None}
    unproven = (name for name in wanted.names if not is_typed(facts.inferred.get(name)))
    return Request(
        facts.onnx.ref,
        staged.stage_graph,
        wanted,
        batch,
        options,
        types=types,
        unproven_types=frozenset(unproven),
    )


def _edge_axes(
    staged: StagedModel, batch: BatchFacts, shapes: Mapping[str, tuple[Dim, ...]]
) -> dict[str, int | None] | None:
    """Return the batch axes of the values between stages; None if their rows are not proven.

    Independent rows of the outputs do not tell: an axis may move, and come back.
    """
    edges = tuple(dict.fromkeys(edge.value for edge in staged.stage_graph.edges))
    if not edges or batch.is_declared:
        return None
    found = staged.facts.batch_at(edges, shapes)
    if found.blockers or found.coupled or found.fixed_rows is not None:
        return None
    same = all(found.input_axes.get(name) == axis for name, axis in batch.input_axes.items())
    return {name: found.output_axes[name] for name in edges} if same else None


def check_inputs(facts: ModelFacts, x: Any, outputs: Outputs = None) -> None:
    """Compare inputs with the model, without running anything; see `Model.check`.

    Raises
    ------
    InputError
        Names, dtypes, ranks or static sizes do not fit.
    """
    facts = with_fed_defaults(facts, x)
    wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values)
    needed = whole_model(facts).for_outputs(wanted.names).stage_graph.inputs
    feeds = resolve_feeds(x, facts.inputs, [spec.name for spec in needed])
    arrays = {
        name: value
        for name, value in describe_feeds(feeds, facts.inputs).items()
        # The dtype and shape of a Delayed are not known before it is computed.
        if not isinstance(value, Delayed)
    }
    shapes = shapes_of(arrays, facts.inputs)
    check_symbol_sizes(facts.graph, shapes)
    batch = facts.batch_at(wanted.names, shapes)
    axes = batch.input_axes if batch.is_proven else dict.fromkeys(batch.input_axes)
    check_arrays(arrays, facts.inputs, axes)


def check_run_options(facts: ModelFacts, run: RunOptions) -> None:
    """Check the plan and the batch size of a request, as far as they do not depend on its inputs.

    Raises
    ------
    InputError
        `batch_size` is not a number of rows, "auto" or None.
    PlanError
        `plan` is no plan of this model.
    """
    _check_plan_type(run.plan)
    check_batch_size(run.batch_size)
    _chosen_plan(facts, run)


def _check_plan_type(plan: Any) -> None:
    if not isinstance(plan, StagedModel | None):
        raise PlanError(
            f"plan is a {type(plan).__name__}, not a Plan",
            "give a plan of this model: plan=model.plan('pipeline')",
            option="plan",
        )


def _chosen_plan(facts: ModelFacts, run: RunOptions) -> StagedModel:
    if run.plan is None:
        return whole_model(facts)
    chosen: StagedModel = run.plan
    if chosen.facts.__dask_tokenize__() != facts.__dask_tokenize__():
        raise PlanError(
            f"the plan is of another model, {chosen.facts.name!r}",
            "make it with this model's plan()",
            option="plan",
        )
    return chosen


def _batch_of(
    facts: ModelFacts,
    wanted: Wanted,
    feeds: Mapping[str, Any],
    shapes: Mapping[str, tuple[Dim, ...]],
    kind: str,
    batch_size: BatchSize,
) -> BatchFacts:
    """Return the axes that carry rows, and check that no axis is cut without a proof."""
    axes, fixed = facts.input_axes
    if _is_one_run(facts, shapes, kind, batch_size):
        return BatchFacts(axes, None, dict.fromkeys(wanted.names), {})
    is_cut = kind != "eager" or isinstance(batch_size, int) or fixed is not None
    if not (is_cut or is_empty(feeds, axes) or (batch_size == "auto" and has_rows(feeds, axes))):
        # All rows are one run, which needs no proof that they are independent.
        return BatchFacts(axes, None, dict.fromkeys(wanted.names), {})
    is_table = kind == "table"
    rows_first = any(isinstance(v, Placeholder) and v.has_rows_first for v in feeds.values())
    batch = facts.batch_at(wanted.names, shapes, first_axis_only=rows_first)
    if batch.is_proven or is_table:
        return batch
    check_uncut(batch, feeds, facts.inputs, batch_size)
    _check_runs_whole(facts, batch, shapes)
    return facts.whole_batch(batch, wanted.names, shapes)


def _check_runs_whole(
    facts: ModelFacts, batch: BatchFacts, shapes: Mapping[str, tuple[Dim, ...]]
) -> None:
    """Refuse inputs that a graph cannot run at once, and that it cannot be given in pieces either.

    Raises
    ------
    InputError
        A constant inside the graph names other sizes.
    """
    conflict = facts.conflict_at(shapes)
    if conflict is not None:
        given = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"the model cannot run with inputs of shape {given}: {conflict}; and its rows are not "
            f"proven to be independent: {batch.blockers[0]}",
            "give sizes as the model was exported with; or open them: dx.load(..., "
            "free_batch=True), if the graph can be rewritten; or export it with open dimensions",
            input=next(iter(shapes), None),
            node=conflict.node,
            suggestions=[Suggestion("free_batch", True)],
        )


def _is_one_run(
    facts: ModelFacts,
    shapes: Mapping[str, tuple[Dim, ...]],
    kind: str,
    batch_size: BatchSize,
) -> bool:
    """Return whether a graph that names a number of rows inside runs all given rows at once.

    Raises
    ------
    InputError
        A node cannot run with so many rows, and they are not proven to be independent.
    """
    exported = facts.exported_rows
    if exported is None or not exported.is_open or kind not in ("eager", "array"):
        return False
    conflict = facts.conflict_at(shapes)
    if conflict is None:
        return kind == "eager" and not isinstance(batch_size, int)
    if not exported.is_proven:
        name, axis = next(iter(exported.axes.items()))
        rows = shapes[name][axis] if name in shapes else None
        check_named_rows(exported, conflict, rows if isinstance(rows, int) else None, name)
    return False


def _check_cluster(
    plan: StagedModel,
    rows: float | None,
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[Dim, ...]],
) -> None:
    """Configure the cluster that Dask would use, and check that the plan fits its workers.

    Parameters
    ----------
    plan : StagedModel
    rows : float or None
        Rows of a run.
    outputs : tuple of str
        Outputs of the request.
    shapes : mapping of str to tuple of int, str or None
        Shapes of the inputs.

    Raises
    ------
    ClusterError
        The cluster is gone.
    PlanError
        The plan does not fit, or the cluster cannot be configured for its placement.
    """
    client = current_client()
    ensure_connected(client)
    if client is None:
        return
    ensure_configured(client, plan.placement)
    check_hosts(client, plan.facts, plan.recipe.session)
    load = Load(
        plan.facts.name,
        plan.stage_graph,
        plan.placement,
        rows,
        plan.rows,
        plan.effective_schedule,
        plan.facts.row_scale(shapes, plan.recipe.shapes),
    )
    check_fits(client, load, functools.partial(plan.facts.fewest_stages, plan.recipe, outputs))
