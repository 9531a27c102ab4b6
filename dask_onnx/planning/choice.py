"""`auto`: which way to run a model on a given cluster, by predicted time and memory."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import as_number, format_bytes, format_seconds
from dask_onnx.planning.branch_stages import branches
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.partition import whole
from dask_onnx.planning.pipeline import Pieces
from dask_onnx.planning.resources import Cluster, Overhead
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import Course, predicted_seconds

_MOST_STAGES = 8
"""Pipelines of more stages than workers only where the memory asks for it."""
_MOST_SHARES = 16
"""Stages that workers of unequal memory share."""


LEAST_TASK_SECONDS = 0.05
"""What a task should compute at least: rows of a batch are not shared by shorter ones."""


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
    worker_groups: tuple[int, ...] = ()
    """The worker of each stage, where stages must not be everywhere."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was chosen, and what for."""

    best: Alternative
    sentence: str
    alternatives: tuple[Alternative, ...]
    word: Literal["chosen", "as asked"] = "chosen"
    """By whom `best` was taken: by us, or by the caller."""
    overhead: Overhead = field(default_factory=Overhead)
    """What the seconds count besides the work itself."""

    @property
    def chosen(self) -> str:
        return self.best.name

    def describe(self) -> list[str]:
        """As lines of text."""
        lines = [f"verdict: {self.sentence}"]
        for found in self.alternatives:
            needs = f"{format_bytes(found.worker_bytes)} a worker"
            lines.append(f"    {found.name:<22} {needs:>22}  {_state(found)}")
        if self.overhead != Overhead():
            lines.append(f"    as measured there: {_besides(self.overhead)}")
        return lines


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do."""

    batches: int
    """Runs of the plan's shapes."""
    rows: int | None = 1
    """Of a batch; None where no input has rows."""
    rows_depend: tuple[str, ...] = ()
    """Nodes that keep the rows of a batch together."""
    threads_of_task: int = 1
    """That ONNX Runtime may use for one run of the whole model."""

    @property
    def rows_to_share(self) -> int:
        return 1 if self.rows_depend else self.rows or 1


Way = tuple[Alternative, StageGraph]


def ways_of(cut: CutInputs, cluster: Cluster, work: Work) -> list[Way]:
    """The whole model first, then all that are worth a thought; those that do not fit too."""
    model = whole(cut)
    first = _whole(cut, model, cluster, work)
    return [
        (first, model),
        *_shared_ways(cut, model, cluster, work),
        *_pipelines(cut, cluster, work.batches, is_needed=bool(first.refused)),
    ]


def choose(cut: CutInputs, cluster: Cluster, work: Work) -> tuple[StageGraph, Verdict]:
    """The stage graph of the least predicted time that fits.

    Raises
    ------
    PlanError
        Nothing fits the cluster, with the numbers.
    """
    ways = ways_of(cut, cluster, work)
    fitting = [way for way in ways if not way[0].refused]
    if not fitting:
        raise _nowhere(cut, ways[0][0], cluster)
    best, graph = min(fitting, key=lambda way: way[0].seconds)
    found = tuple(way[0] for way in ways)
    sentence = _sentence(best, found, cluster, work)
    return graph, Verdict(best, sentence, found, overhead=cluster.overhead)


def judge(asked: Alternative, cut: CutInputs, cluster: Cluster, work: Work) -> Verdict:
    """What the caller asked for, beside the ways that "auto" would weigh."""
    found = [way[0] for way in ways_of(cut, cluster, work)]
    rivals = [each for each in found if not each.refused]
    best = min(rivals, key=lambda each: each.seconds, default=None)
    takes = _state(asked) if asked.refused else f"takes {format_seconds(asked.seconds)}"
    sentence = f"as asked, {asked.name} {takes} for {_where(cluster, work)}; "
    if best is None:
        sentence += "nothing else fits the workers either"
    elif asked.refused or best.seconds < asked.seconds:
        sentence += f"{best.name} would take {format_seconds(best.seconds)}, as predicted"
    else:
        sentence += "no other way is predicted to be faster"
    others = [each for each in found if each.name != asked.name]
    return Verdict(asked, sentence, (asked, *others), "as asked", cluster.overhead)


def as_asked(
    cut: CutInputs, graph: StageGraph, name: str, cluster: Cluster, work: Work, course: Course
) -> Alternative:
    """A plan that the caller made, as an alternative to others."""
    if len(graph.stages) == 1:
        uncut = _whole(cut, graph, cluster, work)
        return uncut if name == "whole" else replace(uncut, name=f"{name} (of one stage)")
    held = max(_held(graph, course.worker_groups or (0,) * len(graph.stages)).values())
    return Alternative(
        f"{name} of {len(graph.stages)}",
        predicted_seconds(graph, course),
        held,
        len(graph.stages),
        _too_large(held, cluster),
        strategy=name,
        worker_groups=course.worker_groups or (),
    )


def _shared_ways(cut: CutInputs, model: StageGraph, cluster: Cluster, work: Work) -> Iterator[Way]:
    """Where there are more workers than batches, one batch is the work of several."""
    share = cluster.slots // work.batches
    if share < 2:
        return
    parts = min(share, work.rows_to_share, int(model.seconds / LEAST_TASK_SECONDS))
    if parts > 1:
        yield _by_rows(cut, model, cluster, work, parts), model
    graph = branches(cut, n_workers=share)
    if len(graph.stages) > 1:
        yield _branches(cut, graph, cluster, work.batches, share), graph


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


def _whole(cut: CutInputs, graph: StageGraph, cluster: Cluster, work: Work) -> Alternative:
    active = min(cluster.threads, max(work.batches // cluster.workers, 1))
    need = cut.all_weights + active * cut.all_working
    at_a_time = min(max(cluster.slots // work.threads_of_task, 1), work.batches)
    slowdown = cluster.slowdowns(at_a_time, work.threads_of_task)[-1]
    seconds = _one_by_one(graph.seconds * slowdown, work.batches, at_a_time, cut, cluster)
    refused = _too_large(need, cluster)
    return Alternative("whole", seconds, need, 1, refused)


def _one_by_one(
    seconds: float, tasks: int, at_a_time: int, cut: CutInputs, cluster: Cluster
) -> float:
    """Of a request of equal tasks, each of which works for so long."""
    costs = cluster.costs(cut.costs)
    turns = math.ceil(tasks / at_a_time)
    return costs.seconds_per_request + turns * (seconds + costs.seconds_per_task)


def _by_rows(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, work: Work, parts: int
) -> Alternative:
    """The whole model, each batch's rows shared by several tasks."""
    rows = work.rows_to_share
    largest = math.ceil(rows / parts) / rows  # of three rows one of two tasks has two
    need = cut.all_weights + cut.all_working * largest * cluster.threads
    each = graph.seconds * largest * cluster.slowdowns(cluster.slots)[-1]
    seconds = _one_by_one(each, work.batches * parts, cluster.slots, cut, cluster)
    name = f"whole, rows by {parts}"
    return Alternative(name, seconds, need, 1, _too_large(need, cluster), parts=parts)


def _branches(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, share: int
) -> Alternative:
    """Each stage as soon as what it needs is there, on any worker."""
    need = cut.all_weights + cut.all_working
    slots = cluster.slots
    course = Course(batches, slots, cluster.costs(cut.costs), slowdowns=cluster.slowdowns(slots))
    return Alternative(
        f"branches of {share}",
        predicted_seconds(graph, course),
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
    worker_groups = in_proportion([stage.cost.held_bytes for stage in graph.stages], rooms)
    held = _held(graph, worker_groups)
    over = max(range(len(rooms)), key=lambda i: held[i] - rooms[i])
    costs, slowdowns = cluster.costs(cut.costs), cluster.slowdowns(len(rooms))
    course = Course(batches, len(rooms), costs, worker_groups, Schedule(), slowdowns)
    return Alternative(
        f"pipeline of {len(graph.stages)}",
        predicted_seconds(graph, course),
        max(held.values()),
        len(graph.stages),
        _too_large(held[over], cluster, rooms[over]),
        strategy="pipeline",
        options={
            "n_stages": len(graph.stages),
            "memory_limit": None if math.isinf(rooms[-1]) else max(int(rooms[-1]), 0),
        },
        worker_groups=worker_groups,
    )


def _held(graph: StageGraph, worker_groups: Sequence[int]) -> Counter[int]:
    """Bytes of the stages of each worker group."""
    held = Counter[int]()
    for stage, worker_group in zip(graph.stages, worker_groups, strict=True):
        held[worker_group] += stage.cost.held_bytes
    return held


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


def _where(cluster: Cluster, work: Work) -> str:
    kind = "thread" if cluster.is_local else "worker"
    count = cluster.slots if cluster.is_local else cluster.workers
    return f"{as_number(work.batches, 'batch', 'es')} on {as_number(count, kind)}"


def _state(found: Alternative) -> str:
    return f"refused: {found.refused}" if found.refused else format_seconds(found.seconds)


def _besides(overhead: Overhead) -> str:
    """What tasks cost besides their work."""
    found = []
    if overhead.seconds_per_request is not None:
        found.append(
            f"a request takes {format_seconds(overhead.seconds_per_request)} besides its tasks"
        )
    if overhead.seconds_per_task is not None:
        found.append(f"a task {format_seconds(overhead.seconds_per_task)} besides its work")
    if overhead.alone != 1.0:
        found.append(f"work {overhead.alone:.2f} times as long as here")
    crowded = overhead.crowded / overhead.alone
    found.append(f"where all threads are at work each takes {crowded:.2f} times as long")
    return ", ".join(found)


def _sentence(best: Alternative, found: Sequence[Alternative], cluster: Cluster, work: Work) -> str:
    others = [each for each in found if each.name != best.name and not each.refused]
    rival = min(others, key=lambda each: each.seconds, default=None)
    beside = f", {rival.name} {format_seconds(rival.seconds)}" if rival else ""
    numbers = (
        f"{_where(cluster, work)}: {best.name} {format_seconds(best.seconds)}{beside}, as predicted"
    )
    return f"{_reason(best, found, cluster, work)}; {numbers}"


def _reason(best: Alternative, found: Sequence[Alternative], cluster: Cluster, work: Work) -> str:
    if best.parts > 1:
        size = math.ceil(work.rows_to_share / best.parts)
        return (
            f"do not cut: rows are independent, {best.parts} tasks share each batch (of lazy "
            f"arrays those with chunks of {as_number(size, 'row')})"
        )
    if best.stages > 1:
        if found[0].refused:
            return "cut, since the whole model does not fit a worker"
        return "cut, since that is faster"
    if work.rows_depend:
        return f"do not cut, each batch in one task ({work.rows_depend[0]} keeps its rows together)"
    if cluster.slots == 1:
        return "do not cut: one task runs at a time, and a cut would add to its work"
    if work.batches == 1:
        return "do not cut: sharing one batch would gain less than it costs"
    if work.rows is None:
        return "do not cut: requests are independent, each is a task"
    kind = "thread" if cluster.is_local else "worker"
    return f"do not cut: rows are independent, each {kind} runs batches of its own"
