"""Plans that this process has made tasks of, and the memory that they project for workers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dask_onnx.cluster.placement import Placement
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.planning.resources import PROCESS_BYTES
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.worker_memory import project


@dataclass(frozen=True, slots=True)
class LoweredPlan:
    """The stages of one request, and how they are placed and scheduled."""

    stages: StageGraph
    placement: Placement | None
    schedule: Schedule | None


_plans: BoundedCache[tuple[str, ...], LoweredPlan] = BoundedCache("lowered plans", 32)
"""The last plans, by the tokens of their stages."""


def note_plan(
    tokens: Sequence[str],
    stages: StageGraph,
    placement: Placement | None,
    schedule: Schedule | None,
) -> None:
    """Remember a plan that tasks were made of.

    Parameters
    ----------
    tokens : sequence of str
        Token of each stage, in their order.
    stages : StageGraph
        The stages.
    placement : Placement or None
        Worker group of each stage; None where any worker runs any stage.
    schedule : Schedule or None
        Order of micro-batches; None leaves it to Dask.
    """
    _plans.put(tuple(tokens), LoweredPlan(stages, placement, schedule))


def projected_bytes(tokens: Collection[str], process: float = PROCESS_BYTES) -> int | None:
    """Return the largest memory that the remembered plans project for a worker.

    Parameters
    ----------
    tokens : collection of str
        Tokens of the stages that the worker has run.
    process : float
        Bytes of a process that holds nothing of a model.

    Returns
    -------
    int or None
        None if no plan with these stages is remembered.
    """
    found: list[float] = []
    for known, plan in _plans.items():
        own = [number for number, token in enumerate(known) if token in tokens]
        if not own:
            continue
        in_flight = (plan.schedule or Schedule()).limit(len(known))
        groups = None if plan.placement is None else plan.placement.only_worker_groups
        found += [
            memory.total
            for memory in project(plan.stages, groups, in_flight, process)
            if set(memory.stages).intersection(own)
        ]
    return int(max(found)) if found else None
