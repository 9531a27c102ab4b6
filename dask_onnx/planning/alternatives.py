"""Alternatives that strategy "auto" compares: their predicted time and need of memory."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dask_onnx.core.formatting import format_bytes
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.resources import Cluster, Overhead
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import Scenario, predicted_seconds


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to run the work."""

    name: str
    """Name as people see it, such as "pipeline of 2"."""
    seconds: float
    """Predicted seconds for all batches."""
    worker_bytes: float
    """Most bytes that one worker holds: mapped weights, and activations at work."""
    stages: int
    """Number of stages."""
    refused: str = ""
    """Reason why it cannot run on the cluster; empty if it can."""
    strategy: str = "whole"
    """Name of the strategy that cuts it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the strategy's function."""
    parts: int = 1
    """Number of tasks that share the rows of a batch."""
    worker_groups: tuple[int, ...] = ()
    """Worker group of each stage, where stages must not be on every worker; else empty."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Alternative that was taken, and those that it was compared with."""

    best: Alternative
    """Alternative that was taken."""
    sentence: str
    """Reason and numbers, in one sentence."""
    alternatives: tuple[Alternative, ...]
    """All alternatives that were considered, refused ones too."""
    word: Literal["chosen", "as asked"] = "chosen"
    """``"chosen"`` if "auto" took `best`, ``"as asked"`` if the caller did."""
    overhead: Overhead = field(default_factory=Overhead)
    """Measured overhead that the predicted seconds include."""

    @property
    def chosen(self) -> str:
        """Name of the alternative that was taken."""
        return self.best.name


@dataclass(frozen=True, slots=True)
class Work:
    """Work that alternatives are compared for."""

    batches: int
    """Number of runs of the plan's shapes."""
    rows: int | None = 1
    """Rows of a batch; None where no input has rows."""
    rows_depend: tuple[str, ...] = ()
    """Names of the nodes because of which the rows of a batch cannot be split."""
    threads_of_task: int = 1
    """Threads that ONNX Runtime may use for one run of the whole model."""

    @property
    def rows_to_share(self) -> int:
        """Number of rows of a batch that tasks may share among them."""
        return 1 if self.rows_depend else self.rows or 1


def alternative_of_plan(
    cut: CutInputs, graph: StageGraph, name: str, cluster: Cluster, work: Work, scenario: Scenario
) -> Alternative:
    """Return the caller's own plan as an alternative, to compare with others.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    graph : StageGraph
        Stages of the plan.
    name : str
        Name of its strategy.
    cluster : Cluster
        The workers.
    work : Work
        Number of batches and their rows.
    scenario : Scenario
        Conditions of the simulation of the plan.
    """
    if len(graph.stages) == 1:
        uncut = whole_model(cut, graph, cluster, work)
        return uncut if name == "whole" else replace(uncut, name=f"{name} (of one stage)")
    groups = scenario.worker_groups or (0,) * len(graph.stages)
    held = max(_bytes_by_group(graph, groups).values())
    return Alternative(
        f"{name} of {len(graph.stages)}",
        predicted_seconds(graph, scenario),
        held,
        len(graph.stages),
        _refusal(held, cluster),
        strategy=name,
        worker_groups=scenario.worker_groups or (),
    )


def proportional_groups(sizes: Sequence[float], rooms: Sequence[float]) -> tuple[int, ...]:
    """Return the worker group of each stage, so that workers hold bytes in proportion to rooms.

    Parameters
    ----------
    sizes : sequence of float
        Bytes of each stage; consecutive stages share a worker.
    rooms : sequence of float
        Bytes that each worker has room for; infinite rooms count as equal.
    """
    if any(map(math.isinf, rooms)):
        rooms = [1.0] * len(rooms)
    ends = [end / sum(rooms) for end in itertools.accumulate(rooms)]
    total, before, found = sum(sizes) or 1.0, 0.0, []
    for size in sizes:
        middle = (before + size / 2) / total
        found.append(next((i for i, end in enumerate(ends) if middle <= end), len(rooms) - 1))
        before += size
    return tuple(found)


def whole_model(cut: CutInputs, graph: StageGraph, cluster: Cluster, work: Work) -> Alternative:
    """Return the whole model as one stage, batches on all workers."""
    active = min(cluster.threads, max(work.batches // cluster.workers, 1))
    need = cut.all_weights + active * cut.all_working
    at_a_time = min(max(cluster.slots // work.threads_of_task, 1), work.batches)
    slowdown = cluster.slowdowns(at_a_time, work.threads_of_task)[-1]
    seconds = _seconds_in_turns(graph.seconds * slowdown, work.batches, at_a_time, cut, cluster)
    return Alternative("whole", seconds, need, 1, _refusal(need, cluster))


def _seconds_in_turns(
    seconds: float, tasks: int, at_a_time: int, cut: CutInputs, cluster: Cluster
) -> float:
    """Return the seconds of a request of equal tasks, each of which computes for `seconds`."""
    costs = cluster.costs(cut.costs)
    turns = math.ceil(tasks / at_a_time)
    return costs.seconds_per_request + turns * (seconds + costs.seconds_per_task)


def rows_shared(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, work: Work, parts: int
) -> Alternative:
    """Return the whole model as one stage, the rows of each batch shared by `parts` tasks."""
    rows = work.rows_to_share
    largest = math.ceil(rows / parts) / rows  # of three rows, one of two tasks has two
    need = cut.all_weights + cut.all_working * largest * cluster.threads
    each = graph.seconds * largest * cluster.slowdowns(cluster.slots)[-1]
    seconds = _seconds_in_turns(each, work.batches * parts, cluster.slots, cut, cluster)
    name = f"whole, rows by {parts}"
    return Alternative(name, seconds, need, 1, _refusal(need, cluster), parts=parts)


def branches_side_by_side(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, share: int
) -> Alternative:
    """Return branches, each of which runs on any worker as soon as its inputs are available."""
    need = cut.all_weights + cut.all_working
    slots = cluster.slots
    costs, slowdowns = cluster.costs(cut.costs), cluster.slowdowns(slots)
    return Alternative(
        f"branches of {share}",
        predicted_seconds(graph, Scenario(batches, slots, costs, slowdowns=slowdowns)),
        need,
        len(graph.stages),
        _refusal(need, cluster),
        strategy="branches",
        options={"n_workers": share},
    )


def pipeline_shared(
    cut: CutInputs, graph: StageGraph, cluster: Cluster, batches: int, rooms: Sequence[float]
) -> Alternative:
    """Return a pipeline whose stages workers share in proportion to their rooms."""
    sizes = [stage.cost.held_bytes for stage in graph.stages]
    worker_groups = proportional_groups(sizes, rooms)
    held = _bytes_by_group(graph, worker_groups)
    over = max(range(len(rooms)), key=lambda i: held[i] - rooms[i])
    costs, slowdowns = cluster.costs(cut.costs), cluster.slowdowns(len(rooms))
    scenario = Scenario(batches, len(rooms), costs, worker_groups, Schedule(), slowdowns)
    return Alternative(
        f"pipeline of {len(graph.stages)}",
        predicted_seconds(graph, scenario),
        max(held.values()),
        len(graph.stages),
        _refusal(held[over], cluster, rooms[over]),
        strategy="pipeline",
        options={
            "n_stages": len(graph.stages),
            "memory_limit": None if math.isinf(rooms[-1]) else max(int(rooms[-1]), 0),
        },
        worker_groups=worker_groups,
    )


def _bytes_by_group(graph: StageGraph, worker_groups: Sequence[int]) -> Counter[int]:
    """Return the bytes that the stages of each worker group need together."""
    held = Counter[int]()
    for stage, worker_group in zip(graph.stages, worker_groups, strict=True):
        held[worker_group] += stage.cost.held_bytes
    return held


def _refusal(need: float, cluster: Cluster, room: float | None = None) -> str:
    """Return why `need` bytes do not fit a worker; empty if they do.

    The default room is that of the smallest worker, since anything may run there.
    """
    room = cluster.room if room is None else room
    if need <= room:
        return ""
    return (
        f"a worker has room for {format_bytes(max(room, 0))} "
        f"(pauses at {format_bytes(room + cluster.resident)}, holds "
        f"{format_bytes(cluster.resident)} already)"
    )
