"""`auto`: which way to run a model on a given cluster, by predicted time and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.errors import PlanError
from dask_onnx.planning.branches import branches
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.explain import format_bytes, format_seconds
from dask_onnx.planning.partition import whole
from dask_onnx.planning.pipeline import fewest_stages, pipeline
from dask_onnx.planning.stages import StageGraph

_MOST_STAGES = 8
"""Pipelines of more stages than workers only where the memory asks for it."""


_LOCAL_TASK = 1e-4
"""Seconds that Dask's threaded scheduler spends on a task."""
_THREADS_GAIN = 0.7
"""n threads of ONNX Runtime within one run are taken to be n to this power as fast: two have been
measured to be 1.3 to 1.8 times as fast as one."""

LOADED = 200e6
"""Bytes of a worker's process once it has imported what runs a model."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the work may run on."""

    workers: int
    threads: int
    """Tasks that a worker runs at a time."""
    memory_limit: float
    """Bytes at which Dask pauses the smallest worker; infinite where it never does."""
    resident: float = LOADED
    """Bytes that a worker's process has before it holds anything of the model."""
    is_local: bool = False
    """Its tasks are threads of this process: nothing has to travel."""

    @property
    def slots(self) -> int:
        """Tasks that run at a time."""
        return self.workers * self.threads

    def task_seconds(self, cut: CutInputs) -> float:
        """What a task costs besides its work."""
        return _LOCAL_TASK if self.is_local else cut.costs.seconds_per_task

    def hop_seconds(self, cut: CutInputs, size: float) -> float:
        """From the end of a task to the start of one that needs so many bytes of it."""
        if self.is_local:
            return _LOCAL_TASK
        return cut.costs.seconds_per_hop + size / cut.costs.link_bytes_per_second

    @property
    def room(self) -> float:
        """Bytes that a worker has for weights and activations."""
        return self.memory_limit - self.resident

    @property
    def stage_limit(self) -> int | None:
        """The same as a limit for stages; None if there is none."""
        return None if math.isinf(self.room) else max(int(self.room), 0)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to run the work."""

    name: str
    seconds: float
    """Predicted, for all batches."""
    worker_bytes: float
    """The most that one worker holds: weights that are mapped, and activations at work."""
    stages: int
    refused: str = ""
    """Why it cannot be; empty if it can."""
    strategy: str = "whole"
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: int = 1
    """Tasks that share the rows of a batch."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was chosen, and what for."""

    best: Alternative
    sentence: str
    alternatives: tuple[Alternative, ...]

    @property
    def chosen(self) -> str:
        return self.best.name

    def describe(self) -> list[str]:
        """As lines of text."""
        lines = [f"verdict: {self.sentence}"]
        for found in self.alternatives:
            needs = f"{format_bytes(found.worker_bytes)} a worker"
            state = f"refused: {found.refused}" if found.refused else format_seconds(found.seconds)
            lines.append(f"    {found.name:<22} {needs:>22}  {state}")
        return lines


def choose(
    cut: CutInputs,
    cluster: Cluster,
    *,
    batches: int,
    rows_depend: Sequence[str],
    rows: int = 1,
    threads_of_task: int = 1,
) -> tuple[StageGraph, Verdict]:
    """The stage graph of the least predicted time that fits.

    Parameters
    ----------
    batches : runs of the plan's shapes that there are to do
    rows_depend : nodes that keep the rows of a batch together
    rows : of a batch
    threads_of_task : that ONNX Runtime may use for one run of the whole model

    Raises
    ------
    PlanError
        Nothing fits the cluster, with the numbers.
    """
    model = whole(cut)
    first = _whole(cut, model, cluster, batches, threads_of_task)
    can_share = rows > 1 and not rows_depend
    ways = [
        (first, model),
        *_shared_ways(cut, model, cluster, batches, rows if can_share else 1),
        *_pipelines(cut, cluster, batches, is_needed=bool(first.refused)),
    ]
    fitting = [way for way in ways if not way[0].refused]
    if not fitting:
        raise _nowhere(cut, first, cluster)
    best, graph = min(fitting, key=lambda way: way[0].seconds)
    found = tuple(way[0] for way in ways)
    return graph, Verdict(best, _sentence(best, found, cluster, batches, rows_depend), found)


Way = tuple[Alternative, StageGraph]


def _shared_ways(
    cut: CutInputs, model: StageGraph, cluster: Cluster, batches: int, rows: int
) -> Iterator[Way]:
    """Where there are more workers than batches, one batch is the work of several."""
    share = cluster.slots // batches
    if share < 2:
        return
    if rows > 1:
        yield _by_rows(cut, model, cluster, batches, min(share, rows)), model
    graph = branches(cut, n_workers=share)
    if len(graph.stages) > 1:
        yield _branches(cut, graph, cluster, batches, share), graph


def _pipelines(cut: CutInputs, cluster: Cluster, batches: int, *, is_needed: bool) -> Iterator[Way]:
    if cluster.workers == 1 and not is_needed:
        return
    try:
        least = max(2, fewest_stages(cut, cluster.room))
    except PlanError:
        return  # one node alone is too large
    for count in _counts(least, cluster):
        try:
            graph = pipeline(cut, n_stages=count, memory_limit=cluster.stage_limit)
        except PlanError:
            continue  # more stages than pieces
        yield _pipeline(cut, graph, f"pipeline of {count}", cluster, batches), graph


def _nowhere(cut: CutInputs, whole_model: Alternative, cluster: Cluster) -> PlanError:
    """Nothing fits: what stands in the way."""
    reason = whole_model.refused
    try:
        fewest_stages(cut, cluster.room)
    except PlanError as error:
        reason = error.cause
    total = cluster.workers * cluster.room
    return PlanError(
        f"the model does not fit {cluster.workers} workers in any way: {reason}; all of them "
        f"together have room for {format_bytes(max(total, 0))}",
        "add workers, or give each more memory",
    )


def _counts(least: int, cluster: Cluster) -> list[int]:
    """Numbers of stages to try: as many as workers, and from the fewest that fit upwards."""
    most = max(least, min(_MOST_STAGES, cluster.workers))
    return sorted({*range(least, most + 1), *range(2, min(cluster.workers, _MOST_STAGES) + 1)})


def _whole(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, threads: int
) -> Alternative:
    active = min(cluster.threads, max(batches // cluster.workers, 1))
    need = cut.weight_bytes(cut.nodes) + active * cut.working_bytes(cut.nodes)
    at_a_time = min(max(cluster.slots // threads, 1), batches)
    seconds = math.ceil(batches / at_a_time) * (
        graph.seconds / threads**_THREADS_GAIN + cluster.task_seconds(cut)
    )
    refused = _too_large(need, cluster)
    return Alternative("whole", seconds, need, 1, refused)


def _by_rows(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, parts: int
) -> Alternative:
    """The whole model, each batch's rows shared by several tasks."""
    need = cut.weight_bytes(cut.nodes) + cut.working_bytes(cut.nodes) / parts * cluster.threads
    seconds = math.ceil(batches * parts / cluster.slots) * (
        graph.seconds / parts + cluster.task_seconds(cut)
    )
    name = f"whole, rows by {parts}"
    return Alternative(name, seconds, need, 1, _too_large(need, cluster), parts=parts)


def _branches(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, share: int
) -> Alternative:
    """Each stage as soon as what it needs is there: there is a worker for each branch."""
    arriving: list[dict[int, int]] = [{} for _ in graph.stages]
    for edge in graph.edges:
        sources = arriving[edge.consumer]
        sources[edge.producer] = sources.get(edge.producer, 0) + edge.bytes
    done: list[float] = []
    for stage, sources in zip(graph.stages, arriving, strict=True):
        ready = max(
            (done[i] + cluster.hop_seconds(cut, size) for i, size in sources.items()), default=0.0
        )
        done.append(ready + stage.cost.seconds + cluster.task_seconds(cut))
    need = cut.weight_bytes(cut.nodes) + cut.working_bytes(cut.nodes)
    return Alternative(
        f"branches of {share}",
        math.ceil(batches * share / cluster.slots) * max(done),
        need,
        len(graph.stages),
        _too_large(need, cluster),
        strategy="branches",
        options={"n_workers": share},
    )


def _pipeline(
    cut: CutInputs, graph: StageGraph, name: str, cluster: Cluster, batches: int
) -> Alternative:
    """Stages go round the workers; a worker's stages take turns."""
    costs = cut.costs
    busy = [0.0] * cluster.workers
    held = [0.0] * cluster.workers
    arriving = [0] * len(graph.stages)
    for edge in graph.edges:
        arriving[edge.consumer] += edge.bytes
    for number, stage in enumerate(graph.stages):
        place = number % cluster.workers
        busy[place] += stage.cost.seconds + costs.hop_seconds(arriving[number])
        held[place] += cut.weight_bytes(stage.nodes) + cut.working_bytes(stage.nodes)
    fill = sum(stage.cost.seconds for stage in graph.stages)
    fill += len(graph.stages) * costs.seconds_per_hop
    seconds = fill + (batches - 1) * max(busy)
    need = max(held)
    return Alternative(
        name,
        seconds,
        need,
        len(graph.stages),
        _too_large(need, cluster),
        strategy="pipeline",
        options={"n_stages": len(graph.stages), "memory_limit": cluster.stage_limit},
    )


def _too_large(need: float, cluster: Cluster) -> str:
    if need <= cluster.room:
        return ""
    return (
        f"a worker has room for {format_bytes(max(cluster.room, 0))} "
        f"(pauses at {format_bytes(cluster.memory_limit)}, holds "
        f"{format_bytes(cluster.resident)} already)"
    )


def _sentence(
    best: Alternative,
    found: Sequence[Alternative],
    cluster: Cluster,
    batches: int,
    rows_depend: Sequence[str],
) -> str:
    where = f"{batches} {'batch' if batches == 1 else 'batches'} on {cluster.workers} " + (
        "worker" if cluster.workers == 1 else "workers"
    )
    others = [each for each in found if each.name != best.name and not each.refused]
    rival = min(others, key=lambda each: each.seconds, default=None)
    beside = f", {rival.name} {format_seconds(rival.seconds)}" if rival else ""
    numbers = f"{where}: {best.name} {format_seconds(best.seconds)}{beside}, as predicted"
    if best.parts > 1:
        return f"do not cut: rows are independent, {best.parts} tasks share each batch; {numbers}"
    if best.stages > 1:
        if found[0].refused:
            return f"cut, since the whole model does not fit a worker; {numbers}"
        return f"cut, since that is faster; {numbers}"
    if rows_depend:
        return (
            f"do not cut, each batch in one task ({rows_depend[0]} keeps its rows together); "
            f"{numbers}"
        )
    return f"do not cut: rows are independent, each worker runs batches of its own; {numbers}"
