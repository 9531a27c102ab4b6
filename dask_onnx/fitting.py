"""Whether a plan fits the workers, asked before anything is sent."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_onnx import config
from dask_onnx.errors import PlanError
from dask_onnx.placement import Placement, cluster_facts
from dask_onnx.planning.choose import Cluster
from dask_onnx.planning.explain import as_number, format_bytes
from dask_onnx.planning.stages import StageGraph

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

    @property
    def growth(self) -> float:
        """From the activations of the stages' costs to those of a run."""
        if self.rows is None:
            return 0.0
        return self.rows / self.planned_rows if self.planned_rows else 1.0

    @property
    def lanes(self) -> tuple[int, ...]:
        """Stages that share a worker; each its own, where any worker may get any of them."""
        return self.only_lanes or tuple(range(len(self.stages.stages)))

    @property
    def only_lanes(self) -> tuple[int, ...] | None:
        return None if self.placement is None else self.placement.only_lanes


@dataclass(slots=True)
class Need:
    """Bytes of a lane."""

    labels: list[str]
    weights: int = 0
    working: float = 0.0
    """Of the stage that needs most for one run."""

    @property
    def total(self) -> float:
        return self.weights + self.working


def check_fits(client: Any, load: Load, fewest_stages: Callable[[int], int]) -> None:
    """Whether weights and activations fit the workers.

    What waits between stages is not counted: Dask can spill it.

    Parameters
    ----------
    fewest_stages : of a pipeline whose stages keep within so many bytes

    Raises
    ------
    PlanError
        Naming the stage, the need, the limit and a way out; a warning where
        ``dask_onnx.plan.memory-check`` is "warn".
    """
    needs = _needs(load)
    if client is None or client.asynchronous:
        return
    if sum(need.total for need in needs.values()) < _WORTH_ASKING:
        return
    if not client.scheduler_info(n_workers=-1)["workers"]:
        return  # they may come, as in a cluster that scales: then each worker looks for itself
    cluster = cluster_facts(client)
    rooms = dict.fromkeys(needs, cluster.room)
    if load.only_lanes is not None:
        rooms = _rooms_of(needs, cluster)
    for lane, need in needs.items():
        if need.total > rooms[lane]:
            error = _refusal(load, need, max(rooms[lane], 0.0), cluster, fewest_stages)
            if config.get("plan.memory-check") != "warn":
                raise error
            warnings.warn(str(error), stacklevel=4)


def _needs(load: Load) -> dict[int, Need]:
    needs: defaultdict[int, Need] = defaultdict(lambda: Need([]))
    for lane, stage in zip(load.lanes, load.stages.stages, strict=True):
        needs[lane].labels.append(stage.label)
        needs[lane].weights += stage.cost.parameter_bytes
        working = stage.cost.working_bytes * load.growth
        needs[lane].working = max(needs[lane].working, working)
    return dict(needs)


def _rooms_of(needs: Mapping[int, Need], cluster: Cluster) -> dict[int, float]:
    """What each lane has where the scheduler will put it: the largest first, each where it fills
    least of the worker's limit, as `StagePlugin` does."""
    limits = [room + cluster.resident for room in cluster.rooms]
    held = [0] * len(limits)
    found = {}
    for lane in sorted(needs, key=lambda lane: (-needs[lane].weights, lane)):
        own = needs[lane].weights
        place = min(range(len(limits)), key=lambda i: (held[i] + own) / limits[i])
        found[lane] = cluster.rooms[place] - held[place]
        held[place] += own
    return found


def _refusal(
    load: Load, need: Need, room: float, cluster: Cluster, fewest_stages: Callable[[int], int]
) -> PlanError:
    names = " and ".join(need.labels)
    has = f"{'has' if len(need.labels) == 1 else 'have'} {format_bytes(need.weights)} of weights"
    if need.working and load.rows is not None:
        has += (
            f", and about {format_bytes(need.working)} of activations in a run of "
            f"{as_number(round(load.rows), 'row')}"
        )
    cause = (
        f"model {load.model!r}: {names} {has}; a worker has room for {format_bytes(room)}: Dask "
        f"pauses it at {format_bytes(cluster.memory_limit)}, and its process has about "
        f"{format_bytes(cluster.resident)} before it holds anything"
    )
    if need.weights < room and load.rows is not None:
        rows = int(load.rows * (room - need.weights) / need.working)
        if rows:
            return PlanError(
                cause,
                f"run fewer rows at a time, as batch_size={rows}, or give workers more memory",
            )
    return PlanError(cause, _way_out(max(int(cluster.room), 0), fewest_stages))


def _way_out(room: int, fewest_stages: Callable[[int], int]) -> str:
    try:
        count = fewest_stages(room)
    except PlanError as error:
        return f"give workers more memory: {error.cause}"
    return (
        "give workers more memory, or let the planner cut: model.plan('auto'), or "
        f"model.plan('pipeline', n_stages={count}, memory_limit={room}), the smallest that does"
    )
