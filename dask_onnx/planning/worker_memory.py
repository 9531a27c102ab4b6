"""Projection of the memory that a worker holds while a plan runs, as Dask's monitor sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dask_onnx.core.formatting import format_bytes
from dask_onnx.planning.stages import StageGraph


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Projected peak of a worker's process, in bytes at the plan's shapes."""

    stages: tuple[int, ...]
    """Positions of the stages that run there."""
    process: float
    """Bytes of the process before it holds anything of the model."""
    weights: int
    """Bytes of weights, mapped ones too: Dask counts their pages in every process."""
    working: int
    """Bytes of activations of the stage that needs most of them, for one run at a time."""
    waiting: int
    """Bytes that arrive or leave, for all micro-batches in flight; Dask can spill them."""

    @property
    def total(self) -> float:
        """Bytes of all parts together."""
        return self.process + self.weights + self.working + self.waiting

    def describe(self) -> str:
        """Return the projection as a line of text."""
        return (
            f"projected {format_bytes(self.total)}: {format_bytes(self.process)} the process, "
            f"{format_bytes(self.weights)} weights, {format_bytes(self.working)} at work, "
            f"{format_bytes(self.waiting)} waiting"
        )


def project(
    graph: StageGraph, worker_groups: Sequence[int] | None, in_flight: int, process: float
) -> Iterator[WorkerMemory]:
    """Yield the projected memory of each worker group's worker.

    Parameters
    ----------
    graph : StageGraph
        Stages of the plan.
    worker_groups : sequence of int, optional
        Worker group of each stage; None where any worker runs any stage, which yields one
        projection that holds for every worker.
    in_flight : int
        Most micro-batches between their first and their last stage.
    process : float
        Bytes of a process that holds nothing of the model.
    """
    worker_groups = worker_groups or (0,) * len(graph.stages)
    for worker_group in sorted(set(worker_groups)):
        members = {i for i, own in enumerate(worker_groups) if own == worker_group}
        costs = [graph.stages[i].cost for i in members]
        arriving = {e.value: e.bytes for e in graph.edges if e.consumer in members}
        leaving = {e.value: e.bytes for e in graph.edges if e.producer in members}
        yield WorkerMemory(
            tuple(sorted(members)),
            process,
            sum(cost.parameter_bytes for cost in costs),
            max((cost.working_bytes for cost in costs), default=0),
            in_flight * max(sum(arriving.values()), sum(leaving.values())),
        )
