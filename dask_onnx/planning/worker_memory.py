"""What a worker would hold while a plan runs, as Dask's own memory monitor would see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dask_onnx.core.formatting import format_bytes
from dask_onnx.planning.stages import StageGraph


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The projected peak of a worker's process, in bytes at the plan's shapes."""

    stages: tuple[int, ...]
    """Positions of those that run there."""
    process: float
    """Before it holds anything of the model."""
    weights: int
    """Mapped ones too: the monitor counts their pages in every process."""
    working: int
    """Activations of the stage that needs most of them, for one run at a time."""
    waiting: int
    """Values that arrive or leave, of all micro-batches that may be in flight. Dask can spill
    them."""

    @property
    def total(self) -> float:
        return self.process + self.weights + self.working + self.waiting

    def describe(self) -> str:
        return (
            f"projected {format_bytes(self.total)}: {format_bytes(self.process)} the process, "
            f"{format_bytes(self.weights)} weights, {format_bytes(self.working)} at work, "
            f"{format_bytes(self.waiting)} waiting"
        )


def project(
    graph: StageGraph, worker_groups: Sequence[int] | None, in_flight: int, process: float
) -> Iterator[WorkerMemory]:
    """The memory of each worker group's worker; of any worker where stages run anywhere.

    Parameters
    ----------
    in_flight : micro-batches between their first and their last stage at most
    process : bytes of a process that holds nothing of the model
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
