"""Words for a plan: its stages, cost, schedule, memory, kernels and verdict as sections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dask_onnx.analysis.lossy_fusions import LossyFusions
from dask_onnx.core.errors import Suggestion
from dask_onnx.core.formatting import format_bytes, format_count, format_seconds, format_shapes
from dask_onnx.diagnostics.drift import Drift
from dask_onnx.diagnostics.outlook import Outlook, course_of, memory_of
from dask_onnx.diagnostics.sections import Column, Note, Section, Table
from dask_onnx.diagnostics.stage_tables import edge_table, stage_table, timetable, timetable_key
from dask_onnx.diagnostics.summary import (
    ACCURACY_LEVEL,
    Basis,
    CriticalPath,
    KernelNodes,
    MeasuredRows,
    RunRows,
    Summary,
    summarise,
)
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.planning.alternatives import Alternative, Verdict
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import Overhead
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import timeline

_MOST_STEPS = 4000
"""Stages times micro-batches of a timetable: more take long to simulate."""
_MOST_WORKERS = 16
"""Workers that the schedule and the memory are shown for."""
_MOST_NODES = 3
"""Names of nodes that a sentence lists."""
_MOST_PEAKS = 4

BASIS_IN_WORDS: dict[Basis, str] = {
    "node_times": "by each node's time on this host at these shapes",
    "node_times_at_other_shapes": "by each node's time on this host at other shapes",
    "speed_of_other_models": "by FLOPs and bytes, at the speed that other models had on this host",
    "calibration": ("by FLOPs and bytes, at the speed that this host's CPU was found to have"),
    "defaults": "by FLOPs and bytes, at the speed of a common CPU",
}
MEASURE = Suggestion("measure")
"""Option of `Model.plan` that replaces a prediction "at the speed of a common CPU"."""


def plan_sections(
    facts: ModelFacts,
    stages: StageGraph,
    recipe: Recipe,
    drift: Drift | None,
    outlook: Outlook,
    measured: Measured | None,
    verdict: Verdict,
) -> tuple[Section, ...]:
    """Describe the stages, their predicted cost, the values between them, and how they run.

    Parameters
    ----------
    facts : ModelFacts
    stages : StageGraph
    recipe : Recipe
    drift : Drift, optional
        Effect of packing values between stages with loss.
    outlook : Outlook
    measured : Measured, optional
        Times of the stages, if they have run.
    verdict : Verdict

    Returns
    -------
    tuple of Section
        Named "overview", "stages", "edges", "critical path", "schedule", "memory", "runs" and
        "verdict", in this order; a plan of one stage has neither "edges" nor "schedule".
    """
    summary = summarise(facts, stages, recipe)
    table = stage_table(
        stages,
        worker_groups=outlook.worker_groups,
        measured=None if measured is None else measured.seconds,
        as_ran=None if measured is None or measured.is_planned else measured.predicted,
    )
    sections = [
        Section("overview", tuple(_overview(stages, recipe, summary, measured))),
        Section("stages", title="stages", table=table),
    ]
    if stages.edges:
        sections.append(Section("edges", title="edges", table=edge_table(stages)))
    sections.append(Section("critical path", (_critical_path(summary.critical_path, stages),)))
    if len(stages.stages) > 1:
        sections.append(Section("schedule", tuple(_schedule(facts, stages, recipe, outlook))))
    runs = [
        *_kernels(summary.other_kernels, stages),
        _threads(summary.threads),
        *_rows(summary.rows, stages),
        *_random(summary),
        *_fusions(summary.fusions),
    ]
    if drift is not None:
        runs.append(Note(drift.describe(), "on slow links"))
    sections += [
        Section("memory", (_memory(stages, outlook, measured),)),
        Section("runs", tuple(runs)),
        _verdict(verdict),
    ]
    return tuple(sections)


def _overview(
    stages: StageGraph, recipe: Recipe, summary: Summary, measured: Measured | None
) -> Iterator[Note]:
    total = sum(edge.bytes for edge in stages.edges)
    yield Note(
        f"{format_count(len(stages.stages), 'stage')}, {format_count(len(stages.edges), 'edge')}, "
        f"{format_bytes(total)} between stages",
        f"strategy {recipe.strategy}",
    )
    assumed = " (open dimensions assumed)" if summary.is_assumed else ""
    yield Note(
        f"{format_seconds(stages.seconds)}, {BASIS_IN_WORDS[summary.basis]}",
        f"predicted on one core for {format_shapes(summary.shapes)}{assumed}",
        suggestion=MEASURE if summary.basis == "defaults" else None,
    )
    if measured is not None:
        yield _prediction_error(measured)


def _prediction_error(measured: Measured) -> Note:
    """Describe the runs that were measured, and how far the prediction is from them."""
    workers = {each for times in measured.stages if times is not None for each in times.workers}
    where = "in this process" if workers == {""} else f"on {format_count(len(workers), 'worker')}"
    rows = "" if measured.rows is None else f" of {format_count(round(measured.rows), 'row')}"
    threads = "" if measured.threads == 1 else f" on {format_count(measured.threads, 'thread')}"
    total, each = measured.error()
    beside = f", a stage by {each:.0%} (median)" if len(measured.stages) > 1 else ""
    shapes = "" if measured.is_planned else f" for {format_shapes(measured.shapes)}"
    made = "the prediction" if measured.is_planned else "the prediction for that"
    others = (
        f"; {format_count(measured.other_runs, 'run')} of inputs of other shapes not counted"
        if measured.other_runs
        else ""
    )
    return Note(
        f"{made} is off by {total:+.0%}{beside}{others}",
        f"measured {where}, {format_count(measured.runs, 'run')}{rows}{threads}{shapes}",
    )


def _critical_path(path: CriticalPath, stages: StageGraph) -> Note:
    beside = f"{format_seconds(path.seconds)}; work over span {path.work_over_span:.2f}"
    if len(stages.stages) == 1:
        # The work over the span of its nodes is the most that running them side by side can gain.
        count = len(stages.stages[0].nodes)
        nodes = f"{format_count(len(path.nodes), 'node')} of {count:,}"
        return Note(f"{nodes}, {beside}", "critical path")
    names = [str(i) for i in path.stages]
    shown = names if len(names) <= _MOST_WORKERS else [*names[:4], "...", *names[-4:]]
    return Note(f"{' -> '.join(shown)}, {beside}", "critical path of a micro-batch")


def _schedule(
    facts: ModelFacts, stages: StageGraph, recipe: Recipe, outlook: Outlook
) -> Iterator[Note]:
    chunks = max(1, min(outlook.batches, _MOST_STEPS // len(stages.stages)))
    found = timeline(stages, course_of(facts, recipe, replace(outlook, batches=chunks)))
    schedule, has_groups = outlook.schedule, outlook.worker_groups is not None
    how = "left to Dask" if schedule is None else schedule.describe(len(stages.stages))
    kind = "worker" if has_groups or outlook.cluster.threads == 1 else "thread"
    where = format_count(found.workers, kind)
    yield Note(
        f"{how}; predicted {format_seconds(found.seconds)}, {found.bubble:.0%} of it bubble",
        f"schedule of {format_count(chunks, 'micro-batch', 'es')} on {where}",
        (*timetable(found)[:_MOST_WORKERS], timetable_key(found)),
    )
    if outlook.worker_groups != outlook.only_worker_groups:
        yield Note("stages prefer these workers; an idle one takes tasks of the others")
    if recipe.link is not None:
        yield Note(
            f"{format_seconds(recipe.link.seconds_per_hop)} a hop, "
            f"{format_bytes(recipe.link.bytes_per_second)}/s",
            "between two of the workers, as measured",
        )


def _memory(stages: StageGraph, outlook: Outlook, measured: Measured | None) -> Note:
    """Describe the projected memory of each worker, and its measured peak."""
    cluster = outlook.cluster
    limit = ""
    if not cluster.is_local and not math.isinf(cluster.memory_limit):
        limit = f"Dask pauses it at {format_bytes(cluster.memory_limit)}"
    lines = []
    for number, each in enumerate(memory_of(stages, outlook)[:_MOST_WORKERS]):
        name = "any worker" if outlook.only_worker_groups is None else f"worker {number}"
        lines.append(f"{name}  {each.describe()}{_peaks(each.stages, measured)}")
    return Note(limit, "memory of a worker's process", tuple(lines))


def _peaks(members: Sequence[int], measured: Measured | None) -> str:
    peaks = [] if measured is None else measured.peaks_of(members)
    if not peaks:
        return ""
    return f"; measured {' and '.join(map(format_bytes, peaks[:_MOST_PEAKS]))} at its peak"


def _kernels(found: Sequence[KernelNodes], stages: StageGraph) -> Iterator[Note]:
    """Describe the nodes that do not run on ONNX Runtime, and their share of the time."""
    for kernel, title in (("reference", "onnx.reference"), ("custom", "kernels of your own")):
        details = tuple(
            f"{_names(each.nodes)}: {each.reason}" for each in found if each.kernel == kernel
        )
        if details:
            seconds = sum(stage.cost.seconds for stage in stages.stages if stage.kernel == kernel)
            share = seconds / stages.seconds if stages.seconds else 0.0
            yield Note(f"{share:.0%} of the predicted time", f"on {title}", details)


def _names(nodes: Sequence[str]) -> str:
    more = len(nodes) - _MOST_NODES
    return ", ".join(nodes[:_MOST_NODES]) + (f" and {more} more" if more > 0 else "")


def _fusions(found: LossyFusions) -> Iterator[Note]:
    """Describe the quantised nodes whose results differ between plans."""
    if found.products:
        yield Note(
            f"{_names(found.products)}: in one stage with the DequantizeLinear of its weights, "
            "onnxruntime multiplies activations of 8 bits, apart from it those of the graph; "
            "plans may differ by up to this quantisation error, unless session=dx.SessionSpec("
            f'config={{"{ACCURACY_LEVEL}": "1"}})',
            "numbers",
        )
    if found.steps:
        yield Note(
            f"{_names(found.steps)}: in one stage with DequantizeLinear and QuantizeLinear, "
            "onnxruntime computes on integers; plans may differ by one step of quantisation, "
            'unless session=dx.SessionSpec(optimization="basic")',
            "numbers",
        )
    if found.repeated:
        yield Note(
            f"{_names(found.repeated)}: in one stage with the quantisation before it, onnxruntime "
            "drops one of both; plans may differ by one step of quantisation, "
            'unless session=dx.SessionSpec(optimization="disable")',
            "numbers",
        )


def _random(summary: Summary) -> Iterator[Note]:
    if summary.unseeded:
        yield Note(
            f"{', '.join(summary.unseeded[:_MOST_NODES])} without a seed: every request draws "
            "anew, and a task that is repeated (retries, a lost worker) gives other numbers than "
            "the first time, so that results of both may not fit together",
            "random",
        )
    if summary.random:
        yield Note(
            f"{', '.join(summary.random[:_MOST_NODES])} with a seed: a task that is repeated gives "
            "the same numbers, and so does every run of rows",
            "random",
        )


def _threads(threads: int | None) -> Note:
    if threads is None:
        text = "cores of the worker over the Dask threads (throughput)"
    elif threads == 0:
        text = "every core of the worker (latency)"
    else:
        text = f"{threads}, as asked"
    return Note(text, "threads of a task")


def _rows(rows: RunRows, stages: StageGraph) -> Iterator[Note]:
    if not rows.measured:
        yield Note(rows.words, "rows of a run")
    for each in rows.measured:
        yield _tuned_rows(each, stages)


def _tuned_rows(found: MeasuredRows, stages: StageGraph) -> Note:
    tuned = found.tuned
    shapes = " and ".join("x".join(map(str, shape)) or "scalar" for shape in tuned.row_shapes)
    rates = ", ".join(f"{size}: {rate:,.4g}" for size, rate in tuned.rates.items())
    details = [f"rows/s by rows of a run: {rates}"]
    if found.seconds is not None:
        details.append(
            f"predicted for {found.rows} of these {format_seconds(stages.seconds)}, "
            f"measured {format_seconds(found.seconds)}: off by {found.error:+.0%}"
        )
    return Note(
        f"{tuned.rows} of {shapes} with {format_count(tuned.threads, 'thread')}, measured on this "
        "host (the smallest number that is as fast as the best)",
        "rows of a run",
        tuple(details),
    )


def _verdict(verdict: Verdict) -> Section:
    notes = [Note(verdict.sentence, "verdict")]
    if verdict.overhead != Overhead():
        notes.append(Note(_overhead(verdict.overhead), "overhead as measured"))
    found = verdict.alternatives
    table = Table(
        (
            Column("plan", tuple(each.name for each in found), is_text=True),
            Column("predicted", tuple(format_seconds(each.seconds) for each in found)),
            Column("memory of a worker", tuple(format_bytes(each.worker_bytes) for each in found)),
            Column("", tuple(_state(each, verdict) for each in found), is_text=True),
        )
    )
    return Section("verdict", tuple(notes), "alternatives", table)


def _state(found: Alternative, verdict: Verdict) -> str:
    if found.refused:
        return f"refused: {found.refused}"
    return verdict.word if found.name == verdict.chosen else ""


def _overhead(overhead: Overhead) -> str:
    """Describe how long tasks take on the cluster besides their work."""
    found = []
    if overhead.seconds_per_request is not None:
        seconds = format_seconds(overhead.seconds_per_request)
        found.append(f"a request takes {seconds} besides its tasks")
    if overhead.seconds_per_task is not None:
        found.append(f"a task {format_seconds(overhead.seconds_per_task)} besides its work")
    if overhead.scheduler_seconds_per_task is not None:
        seconds = format_seconds(overhead.scheduler_seconds_per_task)
        found.append(f"the scheduler computes {seconds} for a task")
    if overhead.idle_slowdown != 1.0:
        found.append(f"work takes {overhead.idle_slowdown:.2f} times as long as here")
    crowded = overhead.loaded_slowdown / overhead.idle_slowdown
    found.append(f"where all threads are at work each takes {crowded:.2f} times as long")
    return ", ".join(found)
