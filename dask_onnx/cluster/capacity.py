"""Whether a plan fits the workers, asked before anything is sent."""

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
from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import as_number, format_bytes
from dask_onnx.planning.resources import Cluster
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph

_LARGE_ROW = 4.0
"""A row of more times the elements that its costs were planned for may be a large picture."""
_WORTH_ASKING = 64 * 2**20
"""Models of fewer bytes are not worth a question to the scheduler."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is to run."""

    model: str
    """Its name."""
    stages: StageGraph
    placement: Placement | None
    rows: float | None
    """Of a run; None where nobody knows yet, and what runs need is not counted."""
    planned_rows: int | None
    """That the stages' costs are for."""
    schedule: Schedule | None = None
    """What bounds the micro-batches in flight."""
    scale: float = 1.0
    """Elements of a row beside those of the row that the stages' costs are for."""

    @property
    def growth(self) -> float:
        """From the activations of the stages' costs to those of a run."""
        if self.rows is None:
            return 0.0
        return self.scale * (self.rows / self.planned_rows if self.planned_rows else 1.0)

    @property
    def worker_groups(self) -> tuple[int, ...]:
        """Stages that share a worker; each its own, where any worker may get any of them."""
        return self.only_worker_groups or tuple(range(len(self.stages.stages)))

    @property
    def only_worker_groups(self) -> tuple[int, ...] | None:
        return None if self.placement is None else self.placement.only_worker_groups


@dataclass(slots=True)
class Need:
    """Bytes of a worker group."""

    labels: list[str]
    weights: int = 0
    working: float = 0.0
    """Of the stage that needs most for one run."""
    passing: float = 0.0
    """What arrives from other worker groups, or goes there, for one run: whichever is more."""

    @property
    def total(self) -> float:
        return self.weights + self.working + self.passing


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a worker group's worker has for it."""

    whole: float
    """Until Dask pauses the worker, less what its process has before it holds anything."""
    taken: float = 0.0
    """By other worker groups."""

    @property
    def left(self) -> float:
        return max(self.whole - self.taken, 0.0)


FewestStages = Callable[[int, float | None], int]
"""Of a pipeline whose stages keep within so many bytes, in runs of so many rows."""


def check_fits(client: Any, load: Load, fewest_stages: FewestStages) -> None:
    """Whether weights, activations and what passes between worker groups fit the workers.

    Of micro-batches that wait between stages one is counted; a warning says where more are allowed
    in flight than fit, since Dask spills them to disk.

    Raises
    ------
    PlanError
        Naming the stage, the need, the limit and a way out; a warning where
        ``onnx.plan.memory-check`` is "warn".
    """
    needs = _needs(load)
    if client is None or client.asynchronous:
        return
    if sum(need.total for need in needs.values()) < _WORTH_ASKING:
        return
    if not client.scheduler_info(n_workers=-1)["workers"]:
        return  # they may come, as in a cluster that scales: then each worker looks for itself
    cluster = cluster_facts(client)
    rooms = dict.fromkeys(needs, Room(cluster.room))
    if load.only_worker_groups is not None:
        rooms = _rooms_of(needs, cluster)
    for worker_group, need in needs.items():
        if need.total > rooms[worker_group].left:
            error = _refusal(load, need, rooms[worker_group], cluster, fewest_stages)
            if config.get("plan.memory-check") != "warn":
                raise error
            warnings.warn(str(error), stacklevel=5)
    _check_in_flight(load, needs, rooms)


def _check_in_flight(load: Load, needs: Mapping[int, Need], rooms: Mapping[int, Room]) -> None:
    """Warn where the micro-batches that may wait on a worker are more than it has room for."""
    if load.schedule is None:
        return
    limit = load.schedule.limit(len(load.stages.stages))
    left = {
        worker_group: rooms[worker_group].left - need.weights - need.working
        for worker_group, need in needs.items()
    }
    most = {
        worker_group: left[worker_group] / need.passing
        for worker_group, need in needs.items()
        if need.passing
    }
    worker_group = min(most, key=most.__getitem__, default=None)
    if worker_group is None or not 1 <= most[worker_group] < limit:
        return
    warnings.warn(
        f"{' and '.join(needs[worker_group].labels)}: {limit} micro-batches in flight are up to "
        f"{format_bytes(limit * needs[worker_group].passing)} on its worker, which has "
        f"{format_bytes(left[worker_group])} left: Dask would spill to disk\n"
        f"plan.with_schedule({load.schedule.mode!r}, in_flight={int(most[worker_group])}) "
        "keeps within it",
        stacklevel=6,
    )


def _needs(load: Load) -> dict[int, Need]:
    needs: defaultdict[int, Need] = defaultdict(lambda: Need([]))
    for worker_group, stage in zip(load.worker_groups, load.stages.stages, strict=True):
        needs[worker_group].labels.append(stage.label)
        needs[worker_group].weights += stage.cost.parameter_bytes
        working = stage.cost.working_bytes * load.growth
        needs[worker_group].working = max(needs[worker_group].working, working)
    if load.only_worker_groups is not None:
        for worker_group, size in _passing(load.stages, load.only_worker_groups).items():
            needs[worker_group].passing = size * load.growth
    return dict(needs)


def _passing(stages: StageGraph, worker_groups: Sequence[int]) -> dict[int, int]:
    """Of each worker group the bytes that arrive, or those that leave, whichever are more; each
    value once on each side."""
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
    """What each worker group has where the scheduler will put it."""
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


def _refusal(
    load: Load, need: Need, room: Room, cluster: Cluster, fewest_stages: FewestStages
) -> PlanError:
    names = " and ".join(need.labels)
    has = f"{'has' if len(need.labels) == 1 else 'have'} {format_bytes(need.weights)} of weights"
    if need.working and load.rows is not None:
        has += (
            f", and about {format_bytes(need.working)} of activations in a run of "
            f"{as_number(round(load.rows), 'row')}"
        )
    if need.passing:
        has += f", and {format_bytes(need.passing)} to receive or send for each"
    taken = f", of which other stages have {format_bytes(room.taken)}" if room.taken else ""
    cause = (
        f"model {load.model!r}: {names} {has}; a worker has room for "
        f"{format_bytes(max(room.whole, 0))}{taken}: Dask "
        f"pauses it at {format_bytes(cluster.memory_limit)}, and its process has about "
        f"{format_bytes(cluster.resident)} before it holds anything"
    )
    if need.weights < room.left and load.rows is not None:
        rows = int(load.rows * (room.left - need.weights) / (need.total - need.weights))
        if not rows and load.scale > _LARGE_ROW:
            return PlanError(
                cause,
                "if these are pictures or volumes, cut them into tiles: dx.predict_tiled(model, "
                "image, tile='auto'); else give workers more memory",
            )
        if rows:
            return PlanError(
                cause,
                f"run fewer rows at a time, as batch_size={rows}, or give workers more memory",
            )
    return PlanError(cause, _way_out(load, cluster, fewest_stages))


def _way_out(load: Load, cluster: Cluster, fewest_stages: FewestStages) -> str:
    room = max(int(cluster.room), 0)
    try:
        count = fewest_stages(room, load.rows)
    except PlanError as error:
        return f"give workers more memory: {error.cause}"
    if count > cluster.workers:
        # Any pipeline of more stages than workers has two of them on one.
        return (
            f"add workers: it takes {count} like these, each with a stage of its own, and there "
            f"{'is' if cluster.workers == 1 else 'are'} {cluster.workers}; or give workers more "
            "memory"
        )
    return (
        "give workers more memory, or let the planner cut: model.plan('auto'), or "
        f"model.plan('pipeline', n_stages={count}, memory_limit={room}), the smallest that does"
    )
