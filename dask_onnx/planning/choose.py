"""`auto`: which way to run a model on a given cluster, by predicted time and memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.errors import PlanError
from dask_onnx.planning.branches import branches
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.explain import format_bytes, format_seconds
from dask_onnx.planning.partition import whole
from dask_onnx.planning.pipeline import Pieces
from dask_onnx.planning.stages import StageGraph

_MOST_STAGES = 8
"""Pipelines of more stages than workers only where the memory asks for it."""
_MOST_SHARES = 16
"""Stages that workers of unequal memory share."""


LEAST_TASK_SECONDS = 0.05
"""What a task should compute at least: rows of a batch are not shared by shorter ones."""
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
    """Tasks that a worker runs at a time; of the one that runs most, where they differ."""
    memory_limit: float
    """Bytes at which Dask pauses the smallest worker; infinite where it never does."""
    resident: float = LOADED
    """Bytes that a worker's process has before it holds anything of the model."""
    is_local: bool = False
    """Its tasks are threads of this process: nothing has to travel."""
    limits: tuple[float, ...] = ()
    """`memory_limit` of each worker, where they differ."""
    total_threads: int | None = None
    """Of all workers, where they differ."""

    @property
    def slots(self) -> int:
        """Tasks that run at a time."""
        return self.total_threads or self.workers * self.threads

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
    def rooms(self) -> tuple[float, ...]:
        """The same of each worker, the roomiest first."""
        limits = self.limits or (self.memory_limit,) * self.workers
        return tuple(sorted((limit - self.resident for limit in limits), reverse=True))


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
    lanes: tuple[int, ...] = ()
    """The worker of each stage, where stages must not be everywhere."""


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
    parts = min(share, rows, int(model.seconds / LEAST_TASK_SECONDS))
    if parts > 1:
        yield _by_rows(cut, model, cluster, batches, rows, parts), model
    graph = branches(cut, n_workers=share)
    if len(graph.stages) > 1:
        yield _branches(cut, graph, cluster, batches, share), graph


def _pipelines(cut: CutInputs, cluster: Cluster, batches: int, *, is_needed: bool) -> Iterator[Way]:
    if cluster.workers == 1 and not is_needed:
        return
    rooms, pieces = cluster.rooms, Pieces(cut)
    while rooms:
        found = list(_pipelines_on(pieces, cluster, batches, rooms))
        yield from found
        if any(not alternative.refused for alternative, _ in found):
            return
        # The smallest worker may have no room for any stage that the others could share.
        rooms = rooms[: rooms.index(rooms[-1])]


def _pipelines_on(
    pieces: Pieces, cluster: Cluster, batches: int, rooms: tuple[float, ...]
) -> Iterator[Way]:
    """On workers with these rooms; any stage fits each of them."""
    try:
        least = max(2, pieces.fewest_stages(rooms[-1]))
    except PlanError:
        return  # one node alone is too large
    limit = None if math.isinf(rooms[-1]) else max(int(rooms[-1]), 0)
    for count in _counts(least, rooms):
        try:
            graph = pieces.pipeline(count, limit)
        except PlanError:
            continue  # more stages than pieces
        yield _pipeline(pieces.cut, graph, cluster, batches, rooms), graph


def _nowhere(cut: CutInputs, whole_model: Alternative, cluster: Cluster) -> PlanError:
    """Nothing fits: what stands in the way."""
    reason = whole_model.refused
    try:
        Pieces(cut).fewest_stages(max(cluster.rooms))
    except PlanError as error:
        reason = error.cause
    total = sum(cluster.rooms)
    return PlanError(
        f"the model does not fit {cluster.workers} workers in any way: {reason}; all of them "
        f"together have room for {format_bytes(max(total, 0))}",
        "add workers, or give each more memory",
    )


def _counts(least: int, rooms: Sequence[float]) -> list[int]:
    """Numbers of stages to try: as many as workers, from the fewest that fit upwards, and so many
    that workers can share them in proportion to their rooms."""
    most = max(least, min(_MOST_STAGES, len(rooms)))
    counts = {*range(least, most + 1), *range(2, min(len(rooms), _MOST_STAGES) + 1)}
    if rooms[0] > rooms[-1] > 0:
        shares = math.ceil(sum(rooms) / rooms[-1])
        counts |= set(range(least, min(shares, _MOST_SHARES) + 1))
    return sorted(counts)


def in_proportion(sizes: Sequence[float], rooms: Sequence[float]) -> tuple[int, ...]:
    """The worker of each stage: stages that follow one another share one, as many as its room's
    share of all rooms says."""
    if any(map(math.isinf, rooms)):
        rooms = [1.0] * len(rooms)
    ends = [end / sum(rooms) for end in itertools.accumulate(rooms)]
    total, before, found = sum(sizes) or 1.0, 0.0, []
    for size in sizes:
        middle = (before + size / 2) / total
        found.append(next((i for i, end in enumerate(ends) if middle <= end), len(rooms) - 1))
        before += size
    return tuple(found)


def _whole(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, threads: int
) -> Alternative:
    active = min(cluster.threads, max(batches // cluster.workers, 1))
    need = cut.all_weights + active * cut.all_working
    at_a_time = min(max(cluster.slots // threads, 1), batches)
    seconds = math.ceil(batches / at_a_time) * (
        graph.seconds / threads**_THREADS_GAIN + cluster.task_seconds(cut)
    )
    refused = _too_large(need, cluster)
    return Alternative("whole", seconds, need, 1, refused)


def _by_rows(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, rows: int, parts: int
) -> Alternative:
    """The whole model, each batch's rows shared by several tasks."""
    largest = math.ceil(rows / parts) / rows  # of three rows one of two tasks has two
    working = cut.all_working * largest
    need = cut.all_weights + working * cluster.threads
    seconds = math.ceil(batches * parts / cluster.slots) * (
        graph.seconds * largest + cluster.task_seconds(cut)
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
    need = cut.all_weights + cut.all_working
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
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, rooms: Sequence[float]
) -> Alternative:
    """Workers share the stages in proportion to their rooms; a worker's stages take turns."""
    costs = cut.costs
    busy = [0.0] * len(rooms)
    held = [0.0] * len(rooms)
    arriving = [0] * len(graph.stages)
    for edge in graph.edges:
        arriving[edge.consumer] += edge.bytes
    sizes = [stage.cost.parameter_bytes + stage.cost.working_bytes for stage in graph.stages]
    lanes = in_proportion(sizes, rooms)
    for number, (stage, place) in enumerate(zip(graph.stages, lanes, strict=True)):
        busy[place] += stage.cost.seconds + costs.hop_seconds(arriving[number])
        held[place] += sizes[number]
    fill = sum(stage.cost.seconds for stage in graph.stages)
    fill += len(graph.stages) * costs.seconds_per_hop
    seconds = fill + (batches - 1) * max(busy)
    over = max(range(len(rooms)), key=lambda i: held[i] - rooms[i])
    return Alternative(
        f"pipeline of {len(graph.stages)}",
        seconds,
        max(held),
        len(graph.stages),
        _too_large(held[over], cluster, rooms[over]),
        strategy="pipeline",
        options={
            "n_stages": len(graph.stages),
            "memory_limit": None if math.isinf(rooms[-1]) else max(int(rooms[-1]), 0),
        },
        lanes=lanes,
    )


def _too_large(need: float, cluster: Cluster, room: float | None = None) -> str:
    """Why it does not fit; by default the smallest worker, on which anything may run."""
    room = cluster.room if room is None else room
    if need <= room:
        return ""
    return (
        f"a worker has room for {format_bytes(max(room, 0))} "
        f"(pauses at {format_bytes(room + cluster.resident)}, holds "
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
