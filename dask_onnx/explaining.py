"""What a plan says of itself: cost, schedule, memory, threads, rows of a run, loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dask_onnx.analysis.axes import input_axes, random_nodes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.rows import rows_in_words
from dask_onnx.collections.request import resolve_batching
from dask_onnx.drift import Drift
from dask_onnx.lower import stage_ref
from dask_onnx.measuring import collect
from dask_onnx.model_facts import ModelFacts
from dask_onnx.placement import Placement
from dask_onnx.planning.choose import LOADED, Cluster, Verdict, as_asked, judge
from dask_onnx.planning.explain import (
    as_number,
    explain,
    format_bytes,
    format_seconds,
    timetable,
)
from dask_onnx.planning.measured import Measured
from dask_onnx.planning.memory import WorkerMemory, project
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import Course, timeline
from dask_onnx.runtime.calibrate import noted_calibration
from dask_onnx.runtime.profile import noted_speed
from dask_onnx.runtime.tune import Tuned, all_for

_RUN_FLOPS = 200e6
"""Rows are put together until a run computes so much: more has been measured to gain nothing, and
to leave the caches."""
_MOST_ROWS = 256


_MOST_WORK = 4000
"""Stages times micro-batches of a timetable."""
_MOST_WORKERS = 16
"""Lines of it."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where and how a plan is to run."""

    cluster: Cluster
    placement: Placement | None
    schedule: Schedule | None
    batches: int
    """Micro-batches that the timetable is for."""

    @property
    def lanes(self) -> tuple[int, ...] | None:
        """The worker's share that each stage is for."""
        return None if self.placement is None else self.placement.lanes

    @property
    def only_lanes(self) -> tuple[int, ...] | None:
        """The same where no other worker may run it."""
        return None if self.placement is None else self.placement.only_lanes


def explain_plan(
    facts: ModelFacts,
    stages: StageGraph,
    recipe: Recipe,
    drift: Drift | None,
    outlook: Outlook,
    measured: Measured | None,
    verdict: Verdict,
) -> str:
    """The stages, their predicted cost, what travels between them, how they run, as text."""
    shapes, is_assumed = assumed_shapes(facts.onnx, recipe.shapes)
    text = explain(
        stages,
        recipe.strategy,
        shapes,
        is_assumed=is_assumed,
        basis=_basis(facts, shapes),
        measured=measured,
    )
    lines = [text, ""]
    lines += [_critical_path(facts, stages, recipe), ""]
    if len(stages.stages) > 1:
        lines += [*_course(facts, stages, recipe, outlook), ""]
    lines += [*_memory(stages, outlook, measured), ""]
    lines += [*_kernels(facts, stages), _threads(recipe)]
    lines += [*_rows(facts, stages, recipe), *_random(facts, stages)]
    if drift is not None:
        lines.append(f"on slow links: {drift.describe()}")
    return "\n".join([*lines, *verdict.describe()])


def measured_stages(
    facts: ModelFacts, stages: StageGraph, recipe: Recipe, client: object
) -> Measured | None:
    """What this process and a client's workers have noted of the stages."""
    shapes, _ = assumed_shapes(facts.onnx, recipe.shapes)
    tokens = [stage_ref(facts.onnx.ref, stage, facts.own).token for stage in stages.stages]
    return collect(client, tokens, rows_of(facts, shapes))


def rows_of(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of a run at these shapes of the inputs; None where they have no batch axis."""
    axes, _ = input_axes(facts.onnx)
    sizes = {shape[axis] for n, shape in shapes.items() if (axis := axes.get(n)) is not None}
    return sizes.pop() if len(sizes) == 1 else None


def course_of(facts: ModelFacts, recipe: Recipe, outlook: Outlook) -> Course:
    """How the outlook's micro-batches would go through the stages."""
    cluster, lanes = outlook.cluster, outlook.lanes
    if lanes is None:
        workers = cluster.slots
    else:
        workers = len(set(lanes)) if cluster.is_local else min(cluster.workers, len(set(lanes)))
    places = None if lanes is None else tuple(map(sorted(set(lanes)).index, lanes))
    costs = cluster.costs(facts.costs_for(recipe))
    return Course(outlook.batches, workers, costs, places, outlook.schedule)


def verdict_on(facts: ModelFacts, stages: StageGraph, recipe: Recipe, outlook: Outlook) -> Verdict:
    """The caller's plan beside the ways that "auto" would weigh for the same work."""
    shapes, _ = assumed_shapes(facts.onnx, recipe.shapes)
    outputs = tuple(spec.name for spec in stages.outputs)
    takes_all = recipe.session.intra_op_num_threads == 0
    if takes_all:
        outlook = replace(outlook, batches=1)  # who asks for latency has one request
    threads = outlook.cluster.threads if takes_all else 1
    work = facts.work(shapes, outputs, outlook.batches, threads)
    cut = facts.cut_inputs(recipe, outputs)
    course = course_of(facts, recipe, outlook)
    asked = as_asked(cut, stages, recipe.strategy, outlook.cluster, work, course)
    return judge(asked, cut, outlook.cluster, work)


def _course(
    facts: ModelFacts, stages: StageGraph, recipe: Recipe, outlook: Outlook
) -> Iterator[str]:
    chunks = max(1, min(outlook.batches, _MOST_WORK // len(stages.stages)))
    found = timeline(stages, course_of(facts, recipe, replace(outlook, batches=chunks)))
    schedule = outlook.schedule
    how = "left to Dask" if schedule is None else schedule.describe(len(stages.stages))
    kind = "worker" if outlook.lanes is not None or outlook.cluster.threads == 1 else "thread"
    yield (
        f"schedule of {as_number(chunks, 'micro-batch', 'es')} on "
        f"{as_number(found.workers, kind)}: {how}; "
        f"predicted {format_seconds(found.seconds)}, {found.bubble:.0%} of it bubble"
    )
    if outlook.lanes != outlook.only_lanes:
        yield "    stages prefer these workers; an idle one takes tasks of the others"
    yield from timetable(found)[:_MOST_WORKERS]
    if recipe.link is not None:
        yield (
            f"    between two of the workers, as measured: "
            f"{format_seconds(recipe.link.seconds_per_hop)} a hop, "
            f"{format_bytes(recipe.link.bytes_per_second)}/s"
        )


def _critical_path(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> str:
    if len(stages.stages) == 1:
        return _critical_nodes(facts, stages, recipe)
    path = [str(i) for i in stages.critical_path]
    shown = path if len(path) <= _MOST_WORKERS else [*path[:4], "...", *path[-4:]]
    span = max(stages.seconds_left, default=0.0)
    return (
        f"critical path of a micro-batch: {' -> '.join(shown)}, {format_seconds(span)}; "
        f"work over span {stages.seconds / span if span else 1.0:.2f}"
    )


def _critical_nodes(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> str:
    """Of a plan of one stage: what could be gained by running its nodes side by side."""
    cut = facts.cut_inputs(recipe, tuple(spec.name for spec in stages.outputs))
    seconds = [0.0] * len(facts.graph.nodes)
    for node in cut.nodes:
        seconds[node] = cut.seconds(node)
    path = facts.graph.longest_path(seconds)
    span = sum(seconds[node] for node in path)
    return (
        f"critical path: {as_number(len(path), 'node')} of {len(cut.nodes):,}, "
        f"{format_seconds(span)}; work over span {sum(seconds) / span if span else 1.0:.2f}"
    )


def memory_of(stages: StageGraph, outlook: Outlook) -> list[WorkerMemory]:
    """What each worker would hold."""
    process = LOADED if outlook.cluster.is_local else outlook.cluster.resident
    in_flight = (outlook.schedule or Schedule()).limit(len(stages.stages))
    return list(project(stages, outlook.only_lanes, in_flight, process))


def _memory(stages: StageGraph, outlook: Outlook, measured: Measured | None) -> Iterator[str]:
    """What each worker would hold, and what it held."""
    cluster = outlook.cluster
    limit = ""
    if not cluster.is_local and not math.isinf(cluster.memory_limit):
        limit = f"; Dask pauses it at {format_bytes(cluster.memory_limit)}"
    yield f"memory of a worker's process{limit}"
    for number, each in enumerate(memory_of(stages, outlook)[:_MOST_WORKERS]):
        name = "any worker" if outlook.only_lanes is None else f"worker {number}"
        yield f"    {name}  {each.describe()}{_peaks(each.stages, measured)}"


def _peaks(members: tuple[int, ...], measured: Measured | None) -> str:
    """The peaks of those that ran any of some stages."""
    if measured is None:
        return ""
    workers = {
        worker
        for i in members
        if (times := measured.stages[i]) is not None
        for worker in times.workers
    }
    peaks = sorted((measured.peaks[worker] for worker in workers), reverse=True)
    if not peaks:
        return ""
    return f"; measured {' and '.join(map(format_bytes, peaks[:4]))} at its peak"


def _basis(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the predicted seconds rest on."""
    noted = list(facts.noted_times())
    if any(all(t.shapes.get(n) == tuple(s) for n, s in shapes.items()) for t in noted):
        return "by each node's time on this host at these shapes"
    if noted:
        return "by each node's time on this host at other shapes"
    if noted_speed() is not None:
        return "by FLOPs and bytes, at the speed that other models had on this host"
    if noted_calibration() is not None:
        return "by FLOPs and bytes, at the speed that this host's CPU was found to have"
    return "by FLOPs and bytes at the speed of a common CPU: plan(measure=rows) knows better"


def _kernels(facts: ModelFacts, stages: StageGraph) -> Iterator[str]:
    """What does not run on ONNX Runtime, why, and how much of the time is predicted to go there."""
    for kernel, title in (("reference", "onnx.reference"), ("own", "kernels of your own")):
        seconds = sum(stage.cost.seconds for stage in stages.stages if stage.kernel == kernel)
        reasons: dict[str, list[str]] = {}
        for stage in stages.stages:
            for index in stage.nodes if stage.kernel == kernel else ():
                reason = facts.kernels[index].reason
                reasons.setdefault(reason, []).append(facts.graph.nodes[index].name)
        if not reasons:
            continue
        yield f"on {title}: {seconds / max(stages.seconds, 1e-12):.0%} of the predicted time"
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"    {', '.join(names[:3])}{more}: {reason}"


def _random(facts: ModelFacts, stages: StageGraph) -> Iterator[str]:
    random, unseeded = random_nodes(facts.graph, tuple(spec.name for spec in stages.outputs))
    if unseeded:
        yield (
            f"random: {', '.join(unseeded[:3])} without a seed: every request draws anew, and a "
            "task that is repeated (retries, a lost worker) gives other numbers than the first "
            "time, so that what was made of both may not fit together"
        )
    seeded = [name for name in random if name not in unseeded]
    if seeded:
        yield (
            f"random: {', '.join(seeded[:3])} with a seed: a task that is repeated gives the same "
            "numbers, and so does every run of rows"
        )


def _threads(recipe: Recipe) -> str:
    threads = recipe.session.intra_op_num_threads
    if threads is None:
        return "threads of a task: cores of the worker over the Dask threads (throughput)"
    if threads == 0:
        return "threads of a task: every core of the worker (latency)"
    return f"threads of a task: {threads}, as asked"


def _rows(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> Iterator[str]:
    names = tuple(spec.name for spec in stages.outputs)
    shapes, _ = assumed_shapes(facts.onnx, recipe.shapes)
    batch = facts.batch_at(names, shapes)
    if batch.fixed_rows is not None:
        yield f"rows of a run: {batch.fixed_rows}, as the graph was exported"
    elif batch.exported is not None:
        yield f"rows of a run: {rows_in_words(batch)}"
    elif not resolve_batching(batch, names, "auto").is_auto:
        nodes = ", ".join((batch.dependent or batch.opaque)[:3])
        reason = nodes or "an input or output without rows"
        yield f"rows of a run: all of a chunk, because of {reason}"
    elif len(stages.stages) > 1:
        rows = predicted_rows(facts, stages, recipe)
        yield f"rows of a run: {rows}, by the work that a row is predicted to be"
    else:
        found = list(all_for(stage_ref(facts.onnx.ref, stages.stages[0], facts.own).token))
        for tuned in found:
            yield from tuned.describe()
            yield from _error(facts, stages, shapes, tuned)
        if not found:
            yield "rows of a run: not measured on this host yet"


def _error(
    facts: ModelFacts, stages: StageGraph, shapes: Mapping[str, tuple[int, ...]], tuned: Tuned
) -> Iterator[str]:
    """How far off the prediction is, where runs of these shapes on one thread were measured."""
    axes, _ = input_axes(facts.onnx)
    count = rows_of(facts, shapes)
    own = tuple(
        tuple(size for i, size in enumerate(shape) if i != axes[name])
        for name, shape in shapes.items()
        if axes.get(name) is not None
    )
    if tuned.threads != 1 or count is None or set(own) != set(tuned.row_shapes):
        return
    rate = tuned.rates.get(count)
    if rate:
        measured = count / rate
        yield (
            f"    predicted for {count} of these {format_seconds(stages.seconds)}, measured "
            f"{format_seconds(measured)}: off by {stages.seconds / measured - 1:+.0%}"
        )


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
