"""What there is to say of a plan, as data: its basis, critical path, kernels, rows of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.rows import rows_in_words
from dask_onnx.collections.request_checks import resolve_batching
from dask_onnx.core.specs import Kernel
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.calibration import noted_calibration
from dask_onnx.runtime.profile import noted_speed
from dask_onnx.runtime.tuning import Tuned, all_for

_RUN_FLOPS = 200e6
"""Rows are put together until a run computes so much: more has been measured to gain nothing, and
to leave the caches."""
_MOST_ROWS = 256


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The longest way through a plan: no number of workers is faster."""

    stages: tuple[int, ...]
    """Positions; of a plan of one stage, that one."""
    nodes: tuple[str, ...]
    """Of a plan of one stage: names of the nodes along the longest way in it; else empty."""
    seconds: float
    """Predicted, of what lies on it."""
    work_over_span: float
    """Predicted seconds of all stages, or nodes, over `seconds`."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Nodes that do not run on ONNX Runtime."""

    kernel: Kernel
    reason: str
    nodes: tuple[str, ...]
    """Names."""


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """What rows of a run were found to be best for a plan of one stage, on this host."""

    tuned: Tuned
    rows: int | None
    """That the plan is for, where runs of so many of its shapes on one thread were timed."""
    seconds: float | None
    """Of a run of these."""
    error: float | None
    """By how much the plan's prediction is off: a share of `seconds`, signed."""


@dataclass(frozen=True, slots=True)
class RunRows:
    """How many rows each run of a session gets under ``batch_size="auto"``."""

    rows: int | None
    """None where that depends on what `predict` is given, or was not found out yet."""
    words: str
    measured: tuple[MeasuredRows, ...] = ()
    """For each shape of rows that ran here."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What `Plan.explain` words, besides stages, schedule, memory and verdict."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs, that all costs are for."""
    is_assumed: bool
    """Some open dimension was given a size that the caller did not name."""
    basis: str
    """What the predicted seconds rest on, in words."""
    critical_path: CriticalPath
    elsewhere: tuple[Elsewhere, ...]
    threads: int | None
    """Of ONNX Runtime in a task; 0 is every core of the worker; None is its cores over its Dask
    threads."""
    rows: RunRows
    random: tuple[str, ...]
    """Names of nodes that draw random numbers from a seed."""
    unseeded: tuple[str, ...]
    """Names of those without a seed."""


def summarise(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> Summary:
    shapes, is_assumed = assumed_shapes(facts.onnx, recipe.shapes)
    random, unseeded = random_nodes(facts.graph, tuple(spec.name for spec in stages.outputs))
    return Summary(
        shapes=shapes,
        is_assumed=is_assumed,
        basis=basis_of(facts, shapes),
        critical_path=_critical_path(facts, stages, recipe),
        elsewhere=tuple(_elsewhere(facts, stages)),
        threads=recipe.session.intra_op_num_threads,
        rows=_run_rows(facts, stages, recipe, shapes),
        random=tuple(name for name in random if name not in unseeded),
        unseeded=tuple(unseeded),
    )


def basis_of(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the predicted seconds of a plan for these shapes of the inputs rest on."""
    noted = list(facts.noted_times())
    if any(all(t.shapes.get(n) == tuple(s) for n, s in shapes.items()) for t in noted):
        return "by each node's time on this host at these shapes"
    if noted:
        return "by each node's time on this host at other shapes"
    return speed_basis()


def speed_basis() -> str:
    """The same where nothing is known of the model itself but its FLOPs and bytes."""
    if noted_speed() is not None:
        return "by FLOPs and bytes, at the speed that other models had on this host"
    if noted_calibration() is not None:
        return "by FLOPs and bytes, at the speed that this host's CPU was found to have"
    return "by FLOPs and bytes at the speed of a common CPU: plan(measure=rows) knows better"


def rows_of(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of a run at these shapes of the inputs; None where they have no batch axis."""
    axes, _ = input_axes(facts.onnx)
    sizes = {shape[axis] for n, shape in shapes.items() if (axis := axes.get(n)) is not None}
    return sizes.pop() if len(sizes) == 1 else None


def predicted_rows(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> int:
    """What `batch_size="auto"` gives each run of a plan of several stages.

    Stages must agree on it wherever they run, so it is not measured but follows from the predicted
    work of a row.
    """
    shapes, _ = assumed_shapes(facts.onnx, recipe.shapes)
    axes, _ = input_axes(facts.onnx)
    sizes = [shape[axis] for n, shape in shapes.items() if (axis := axes.get(n)) is not None]
    flops = sum(stage.cost.flops for stage in stages.stages) / max(sizes[0] if sizes else 1, 1)
    return max(1, min(_MOST_ROWS, math.ceil(_RUN_FLOPS / max(flops, 1))))


def _critical_path(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> CriticalPath:
    if len(stages.stages) > 1:
        span = max(stages.seconds_left, default=0.0)
        return CriticalPath(
            tuple(stages.critical_path), (), span, stages.seconds / span if span else 1.0
        )
    cut = facts.cut_inputs(recipe, tuple(spec.name for spec in stages.outputs))
    seconds = [0.0] * len(facts.graph.nodes)
    for node in cut.nodes:
        seconds[node] = cut.seconds(node)
    path = facts.graph.longest_path(seconds)
    span = sum(seconds[node] for node in path)
    names = tuple(facts.graph.nodes[node].name for node in path)
    return CriticalPath((0,), names, span, sum(seconds) / span if span else 1.0)


def _elsewhere(facts: ModelFacts, stages: StageGraph) -> Iterator[Elsewhere]:
    for kernel in ("reference", "custom"):
        reasons: dict[str, list[str]] = {}
        for stage in stages.stages:
            for index in stage.nodes if stage.kernel == kernel else ():
                reason = facts.kernels[index].reason
                reasons.setdefault(reason, []).append(facts.graph.nodes[index].name)
        for reason, names in reasons.items():
            yield Elsewhere(kernel, reason, tuple(names))


def _run_rows(
    facts: ModelFacts,
    stages: StageGraph,
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
) -> RunRows:
    names = tuple(spec.name for spec in stages.outputs)
    batch = facts.batch_at(names, shapes)
    if batch.fixed_rows is not None:
        return RunRows(batch.fixed_rows, f"{batch.fixed_rows}, as the graph was exported")
    if batch.exported is not None:
        return RunRows(batch.exported.rows, rows_in_words(batch))
    if not resolve_batching(batch, names, "auto").is_auto:
        if batch.blockers and not batch.is_declared:
            return RunRows(None, f"all together, since rows are not proven: {batch.blockers[0]}")
        reason = ", ".join(batch.coupled[:3]) or "an input or output without rows"
        return RunRows(None, f"all of a chunk, because of {reason}")
    if len(stages.stages) > 1:
        rows = predicted_rows(facts, stages, recipe)
        return RunRows(rows, f"{rows}, by the work that a row is predicted to be")
    found = list(all_for(stage_ref(facts.onnx.ref, stages.stages[0], facts.custom).token))
    if not found:
        return RunRows(None, "not measured on this host yet")
    measured = tuple(_beside_prediction(facts, stages, shapes, tuned) for tuned in found)
    rows_found = found[0].rows if len(found) == 1 else None
    return RunRows(rows_found, "as measured on this host", measured)


def _beside_prediction(
    facts: ModelFacts, stages: StageGraph, shapes: Mapping[str, tuple[int, ...]], tuned: Tuned
) -> MeasuredRows:
    """How far off the prediction is, where runs of these shapes on one thread were measured."""
    axes, _ = input_axes(facts.onnx)
    count = rows_of(facts, shapes)
    own = tuple(
        tuple(size for i, size in enumerate(shape) if i != axes[name])
        for name, shape in shapes.items()
        if axes.get(name) is not None
    )
    is_alike = tuned.threads == 1 and set(own) == set(tuned.row_shapes)
    rate = tuned.rates.get(count) if is_alike and count is not None else None
    if count is None or not rate:
        return MeasuredRows(tuned, None, None, None)
    seconds = count / rate
    return MeasuredRows(tuned, count, seconds, stages.seconds / seconds - 1)
