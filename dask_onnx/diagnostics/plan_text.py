"""What a plan says of itself: cost, schedule, memory, threads, rows of a run, loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.cluster.measurements import collect
from dask_onnx.cluster.placement import Placement
from dask_onnx.core.formatting import as_number, format_bytes, format_seconds
from dask_onnx.diagnostics.drift import Drift
from dask_onnx.diagnostics.stage_text import explain, timetable
from dask_onnx.diagnostics.summary import (
    CriticalPath,
    Elsewhere,
    RunRows,
    Summary,
    rows_of,
    summarise,
)
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.planning.choice import Verdict, as_asked, judge
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import LOADED, Cluster
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import Course, timeline
from dask_onnx.planning.worker_memory import WorkerMemory, project

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
    def worker_groups(self) -> tuple[int, ...] | None:
        """The worker's share that each stage is for."""
        return None if self.placement is None else self.placement.worker_groups

    @property
    def only_worker_groups(self) -> tuple[int, ...] | None:
        """The same where no other worker may run it."""
        return None if self.placement is None else self.placement.only_worker_groups


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
    summary = summarise(facts, stages, recipe)
    text = explain(
        stages,
        recipe.strategy,
        summary.shapes,
        is_assumed=summary.is_assumed,
        basis=summary.basis,
        measured=measured,
    )
    lines = [text, "", _critical_path(summary.critical_path, stages), ""]
    if len(stages.stages) > 1:
        lines += [*_course(facts, stages, recipe, outlook), ""]
    lines += [*_memory(stages, outlook, measured), ""]
    lines += [*_kernels(summary.elsewhere, stages), _threads(summary.threads)]
    lines += [*_rows(summary.rows, stages), *_random(summary)]
    if drift is not None:
        lines.append(f"on slow links: {drift.describe()}")
    return "\n".join([*lines, *verdict.describe()])


def measured_stages(
    facts: ModelFacts, stages: StageGraph, recipe: Recipe, client: object
) -> Measured | None:
    """What this process and a client's workers have noted of the stages."""
    shapes, _ = assumed_shapes(facts.onnx, recipe.shapes)
    tokens = [stage_ref(facts.onnx.ref, stage, facts.custom).token for stage in stages.stages]
    return collect(client, tokens, rows_of(facts, shapes))


def course_of(facts: ModelFacts, recipe: Recipe, outlook: Outlook) -> Course:
    """How the outlook's micro-batches would go through the stages."""
    cluster, worker_groups = outlook.cluster, outlook.worker_groups
    if worker_groups is None:
        workers = cluster.slots
    else:
        workers = (
            len(set(worker_groups))
            if cluster.is_local
            else min(cluster.workers, len(set(worker_groups)))
        )
    places = (
        None
        if worker_groups is None
        else tuple(map(sorted(set(worker_groups)).index, worker_groups))
    )
    costs = cluster.costs(facts.costs_for(recipe))
    slowdowns = cluster.slowdowns(workers, cluster.threads_of_task(recipe.session))
    return Course(outlook.batches, workers, costs, places, outlook.schedule, slowdowns)


def verdict_on(facts: ModelFacts, stages: StageGraph, recipe: Recipe, outlook: Outlook) -> Verdict:
    """The caller's plan beside the ways that "auto" would weigh for the same work."""
    shapes, _ = assumed_shapes(facts.onnx, recipe.shapes)
    outputs = tuple(spec.name for spec in stages.outputs)
    if recipe.session.takes_all_cores:
        outlook = replace(outlook, batches=1)  # who asks for latency has one request
    threads = outlook.cluster.threads_of_task(recipe.session)
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
    kind = (
        "worker" if outlook.worker_groups is not None or outlook.cluster.threads == 1 else "thread"
    )
    yield (
        f"schedule of {as_number(chunks, 'micro-batch', 'es')} on "
        f"{as_number(found.workers, kind)}: {how}; "
        f"predicted {format_seconds(found.seconds)}, {found.bubble:.0%} of it bubble"
    )
    if outlook.worker_groups != outlook.only_worker_groups:
        yield "    stages prefer these workers; an idle one takes tasks of the others"
    yield from timetable(found)[:_MOST_WORKERS]
    if recipe.link is not None:
        yield (
            f"    between two of the workers, as measured: "
            f"{format_seconds(recipe.link.seconds_per_hop)} a hop, "
            f"{format_bytes(recipe.link.bytes_per_second)}/s"
        )


def memory_of(stages: StageGraph, outlook: Outlook) -> list[WorkerMemory]:
    """What each worker would hold."""
    process = LOADED if outlook.cluster.is_local else outlook.cluster.resident
    in_flight = (outlook.schedule or Schedule()).limit(len(stages.stages))
    return list(project(stages, outlook.only_worker_groups, in_flight, process))


def _memory(stages: StageGraph, outlook: Outlook, measured: Measured | None) -> Iterator[str]:
    """What each worker would hold, and what it held."""
    cluster = outlook.cluster
    limit = ""
    if not cluster.is_local and not math.isinf(cluster.memory_limit):
        limit = f"; Dask pauses it at {format_bytes(cluster.memory_limit)}"
    yield f"memory of a worker's process{limit}"
    for number, each in enumerate(memory_of(stages, outlook)[:_MOST_WORKERS]):
        name = "any worker" if outlook.only_worker_groups is None else f"worker {number}"
        yield f"    {name}  {each.describe()}{_peaks(each.stages, measured)}"


def _peaks(members: Sequence[int], measured: Measured | None) -> str:
    peaks = [] if measured is None else measured.peaks_of(members)
    if not peaks:
        return ""
    return f"; measured {' and '.join(map(format_bytes, peaks[:4]))} at its peak"


def _critical_path(path: CriticalPath, stages: StageGraph) -> str:
    beside = f"{format_seconds(path.seconds)}; work over span {path.work_over_span:.2f}"
    if len(stages.stages) == 1:
        # What could be gained by running its nodes side by side.
        count = len(stages.stages[0].nodes)
        return f"critical path: {as_number(len(path.nodes), 'node')} of {count:,}, {beside}"
    names = [str(i) for i in path.stages]
    shown = names if len(names) <= _MOST_WORKERS else [*names[:4], "...", *names[-4:]]
    return f"critical path of a micro-batch: {' -> '.join(shown)}, {beside}"


def _kernels(elsewhere: Sequence[Elsewhere], stages: StageGraph) -> Iterator[str]:
    """What does not run on ONNX Runtime, why, and how much of the time is predicted to go there."""
    for kernel, title in (("reference", "onnx.reference"), ("custom", "kernels of your own")):
        found = [each for each in elsewhere if each.kernel == kernel]
        if not found:
            continue
        seconds = sum(stage.cost.seconds for stage in stages.stages if stage.kernel == kernel)
        yield f"on {title}: {seconds / max(stages.seconds, 1e-12):.0%} of the predicted time"
        for each in found:
            more = f" and {len(each.nodes) - 3} more" if len(each.nodes) > 3 else ""
            yield f"    {', '.join(each.nodes[:3])}{more}: {each.reason}"


def _random(summary: Summary) -> Iterator[str]:
    if summary.unseeded:
        yield (
            f"random: {', '.join(summary.unseeded[:3])} without a seed: every request draws anew, "
            "and a task that is repeated (retries, a lost worker) gives other numbers than the "
            "first time, so that what was made of both may not fit together"
        )
    if summary.random:
        yield (
            f"random: {', '.join(summary.random[:3])} with a seed: a task that is repeated gives "
            "the same numbers, and so does every run of rows"
        )


def _threads(threads: int | None) -> str:
    if threads is None:
        return "threads of a task: cores of the worker over the Dask threads (throughput)"
    if threads == 0:
        return "threads of a task: every core of the worker (latency)"
    return f"threads of a task: {threads}, as asked"


def _rows(rows: RunRows, stages: StageGraph) -> Iterator[str]:
    if not rows.measured:
        yield f"rows of a run: {rows.words}"
    for each in rows.measured:
        yield from each.tuned.describe()
        if each.seconds is not None:
            yield (
                f"    predicted for {each.rows} of these {format_seconds(stages.seconds)}, "
                f"measured {format_seconds(each.seconds)}: off by {each.error:+.0%}"
            )
