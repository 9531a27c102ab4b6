"""Check, before anything is sent, that a plan fits the memory of the workers."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_onnx.cluster.placement import Placement, cluster_facts
from dask_onnx.cluster.worker_groups import WorkerGroups
from dask_onnx.core import config
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_bytes, format_count
from dask_onnx.planning.resources import Cluster
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph

_LARGE_ROW_SCALE = 4.0
"""Elements of a row, divided by those that were planned for, above which it may be a picture."""
_WORTH_ASKING_BYTES = 64 * 2**20
"""Need of a plan below which the scheduler is not asked for the workers' memory."""

FewestStages = Callable[[int, float | None], int]
"""Function of a memory limit in bytes and the rows of a run to the fewest stages that fit."""


@dataclass(frozen=True, slots=True)
class Load:
    """Work that the workers need memory for."""

    model: str
    """Name of the model."""
    stages: StageGraph
    """Stages of the plan."""
    placement: Placement | None
    """Worker group of each stage; None lets each stage run anywhere."""
    rows: float | None
    """Rows of a run; None where they are unknown, and activations are not counted."""
    planned_rows: int | None
    """Rows of the run that the stages' costs are for."""
    schedule: Schedule | None = None
    """Schedule that bounds the micro-batches in flight."""
    scale: float = 1.0
    """Elements of a row, divided by those of the row that the stages' costs are for."""

    @property
    def growth(self) -> float:
        """Factor from the activations in the stages' costs to those of a run."""
        if self.rows is None:
            return 0.0
        return self.scale * (self.rows / self.planned_rows if self.planned_rows else 1.0)

    @property
    def worker_groups(self) -> tuple[int, ...]:
        """Worker group of each stage; one of its own where any worker may get any stage."""
        return self.only_worker_groups or tuple(range(len(self.stages.stages)))

    @property
    def only_worker_groups(self) -> tuple[int, ...] | None:
        """Worker group of each stage, if stages run nowhere else."""
        return None if self.placement is None else self.placement.only_worker_groups


@dataclass(slots=True)
class Need:
    """Bytes that a worker group needs."""

    labels: list[str]
    """Labels of its stages."""
    weights: int = 0
    """Bytes of the weights of all of its stages."""
    working: float = 0.0
    """Bytes of activations of the stage that needs most for one run."""
    transferred: float = 0.0
    """Bytes that arrive from or leave for other worker groups in one run, whichever are more."""

    @property
    def total(self) -> float:
        """Bytes of all parts together."""
        return self.weights + self.working + self.transferred


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a worker has for a worker group."""

    whole: float
    """Bytes until Dask pauses the worker, less those that its process has at the start."""
    taken: float = 0.0
    """Bytes that other worker groups need there."""

    @property
    def left(self) -> float:
        """Bytes that are left for the worker group."""
        return max(self.whole - self.taken, 0.0)


def check_fits(client: Any, load: Load, fewest_stages: FewestStages) -> None:
    """Check that weights, activations and transfers between worker groups fit the workers.

    One micro-batch that waits between stages is counted. A warning says where more are allowed in
    flight than fit, since Dask spills these to disk.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster. Nothing is checked without one, for an asynchronous one, or while
        the cluster has no workers, as one that scales up later.
    load : Load
        Stages that are to run.
    fewest_stages : callable
        Function of a memory limit and rows to the fewest stages of a pipeline that fit.

    Raises
    ------
    PlanError
        A worker group needs more than its worker has; a warning instead where
        ``onnx.plan.memory-check`` is "warn".
    """
    needs = _needs(load)
    if client is None or client.asynchronous:
        return
    if sum(need.total for need in needs.values()) < _WORTH_ASKING_BYTES:
        return
    if not client.scheduler_info(n_workers=-1)["workers"]:
        return  # each worker that joins later checks for itself
    cluster = cluster_facts(client)
    rooms = dict.fromkeys(needs, Room(cluster.room))
    if load.only_worker_groups is not None:
        rooms = _rooms_of(needs, cluster)
    for worker_group, need in needs.items():
        if need.total > rooms[worker_group].left:
            error = _too_large(load, need, rooms[worker_group], cluster, fewest_stages)
            if config.get("plan.memory-check") != "warn":
                raise error
            warnings.warn(str(error), stacklevel=5)
    _check_in_flight(load, needs, rooms)


def _check_in_flight(load: Load, needs: Mapping[int, Need], rooms: Mapping[int, Room]) -> None:
    """Warn where a worker has no room for the micro-batches that may wait there."""
    if load.schedule is None:
        return
    limit = load.schedule.limit(len(load.stages.stages))
    left = {
        worker_group: rooms[worker_group].left - need.weights - need.working
        for worker_group, need in needs.items()
    }
    most = {
        worker_group: left[worker_group] / need.transferred
        for worker_group, need in needs.items()
        if need.transferred
    }
    worker_group = min(most, key=most.__getitem__, default=None)
    if worker_group is None or not 1 <= most[worker_group] < limit:
        return
    warnings.warn(
        f"{' and '.join(needs[worker_group].labels)}: {limit} micro-batches in flight are up to "
        f"{format_bytes(limit * needs[worker_group].transferred)} on its worker, which has "
        f"{format_bytes(left[worker_group])} left: Dask would spill to disk\n"
        f"plan.with_schedule({load.schedule.mode!r}, in_flight={int(most[worker_group])}) "
        "keeps within it",
        stacklevel=6,
    )


def _needs(load: Load) -> dict[int, Need]:
    """Return the need of each worker group."""
    needs: defaultdict[int, Need] = defaultdict(lambda: Need([]))
    for worker_group, stage in zip(load.worker_groups, load.stages.stages, strict=True):
        needs[worker_group].labels.append(stage.label)
        needs[worker_group].weights += stage.cost.parameter_bytes
        working = stage.cost.working_bytes * load.growth
        needs[worker_group].working = max(needs[worker_group].working, working)
    if load.only_worker_groups is not None:
        for worker_group, size in _transferred(load.stages, load.only_worker_groups).items():
            needs[worker_group].transferred = size * load.growth
    return dict(needs)


def _transferred(stages: StageGraph, worker_groups: Sequence[int]) -> dict[int, int]:
    """Return the bytes that arrive at or leave each worker group, whichever are more.

    Each value counts once on each side.
    """
    arriving: defaultdict[int, dict[str, int]] = defaultdict(dict)
    leaving: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for edge in stages.edges:
        source, target = worker_groups[edge.producer], worker_groups[edge.consumer]
        if source != target:
            leaving[source][edge.value] = arriving[target][edge.value] = edge.bytes
    return {
        worker_group: max(sum(arriving[worker_group].values()), sum(leaving[worker_group].values()))
        for worker_group in {*arriving, *leaving}
    }


def _rooms_of(needs: Mapping[int, Need], cluster: Cluster) -> dict[int, Room]:
    """Return the room of each worker group, where the scheduler's plugin would assign it."""
    rooms = {str(i): room for i, room in enumerate(cluster.rooms)}
    limits = {
        name: None if math.isinf(room) else room + cluster.resident for name, room in rooms.items()
    }
    worker_groups = WorkerGroups()
    worker_groups.add(
        {("", worker_group): need.weights for worker_group, need in needs.items()}, limits, now=0.0
    )
    held = Counter[str]()
    for (_, worker_group), place in worker_groups.places.items():
        held[place] += needs[worker_group].weights
    return {
        worker_group: Room(rooms[place], held[place] - needs[worker_group].weights)
        for (_, worker_group), place in worker_groups.places.items()
    }


def _too_large(
    load: Load, need: Need, room: Room, cluster: Cluster, fewest_stages: FewestStages
) -> PlanError:
    """Return the error for a worker group that does not fit, with what would."""
    advice = _advice(load, need, room, cluster, fewest_stages)
    return PlanError(
        _cause(load, need, room, cluster),
        advice.next_step,
        option=advice.option,
        stage=need.labels[0],
        numbers={
            "needed_bytes": need.total,
            "weight_bytes": need.weights,
            "working_bytes": need.working,
            "transferred_bytes": need.transferred,
            "room_bytes": room.left,
            "workers": cluster.workers,
            **({} if load.rows is None else {"rows": load.rows}),
            **advice.numbers,
        },
        suggestions=advice.suggestions,
    )


def _cause(load: Load, need: Need, room: Room, cluster: Cluster) -> str:
    names = " and ".join(need.labels)
    has = f"{'has' if len(need.labels) == 1 else 'have'} {format_bytes(need.weights)} of weights"
    if need.working and load.rows is not None:
        has += (
            f", and about {format_bytes(need.working)} of activations in a run of "
            f"{format_count(round(load.rows), 'row')}"
        )
    if need.transferred:
        has += f", and {format_bytes(need.transferred)} to receive or send for each"
    taken = f", of which other stages have {format_bytes(room.taken)}" if room.taken else ""
    return (
        f"model {load.model!r}: {names} {has}; a worker has room for "
        f"{format_bytes(max(room.whole, 0))}{taken}: Dask "
        f"pauses it at {format_bytes(cluster.memory_limit)}, and its process has about "
        f"{format_bytes(cluster.resident)} before it holds anything"
    )


@dataclass(frozen=True, slots=True)
class _Advice:
    """Advice to the caller about a plan that does not fit."""

    next_step: str
    option: str
    numbers: Mapping[str, float]
    suggestions: tuple[Suggestion, ...] = ()


def _advice(
    load: Load, need: Need, room: Room, cluster: Cluster, fewest_stages: FewestStages
) -> _Advice:
    """Advise fewer rows where the weights fit, else more stages."""
    if need.weights < room.left and load.rows is not None:
        rows = int(load.rows * (room.left - need.weights) / (need.total - need.weights))
        if not rows and load.scale > _LARGE_ROW_SCALE:
            return _Advice(
                "if these are pictures or volumes, cut them into tiles: dx.predict_tiled(model, "
                "image, tile='auto'); else give workers more memory",
                "tile",
                {"most_rows": 0},
                (Suggestion("tile", "auto"),),
            )
        if rows:
            return _Advice(
                f"run fewer rows at a time, as batch_size={rows}, or give workers more memory",
                "batch_size",
                {"most_rows": rows},
                (Suggestion("batch_size", rows),),
            )
    limit = max(int(cluster.room), 0)
    try:
        count = fewest_stages(limit, load.rows)
    except PlanError as error:
        return _Advice(f"give workers more memory: {error.cause}", "plan", {})
    if count > cluster.workers:
        # Of a pipeline with more stages than workers, two would be on one worker.
        there = "there is 1" if cluster.workers == 1 else f"there are {cluster.workers}"
        return _Advice(
            f"add workers: it takes {count} like these, each with a stage of its own, and {there}; "
            "or give workers more memory",
            "plan",
            {"fewest_stages": count},
        )
    return _Advice(
        "give workers more memory, or let the planner cut: model.plan('auto'), or "
        f"model.plan('pipeline', n_stages={count}, memory_limit={limit}), the smallest that does",
        "plan",
        {"fewest_stages": count},
        (
            Suggestion("strategy", "auto"),
            Suggestion("n_stages", count),
            Suggestion("memory_limit", limit),
        ),
    )
