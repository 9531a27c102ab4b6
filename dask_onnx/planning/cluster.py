"""What a plan may run on, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dask_onnx.analysis.cost import CostTable

_LOCAL_TASK = 1e-4
"""Seconds that Dask's threaded scheduler spends on a task."""
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

    def costs(self, costs: CostTable) -> CostTable:
        """The same, with what tasks and hops cost on this cluster."""
        if not self.is_local:
            return costs
        return replace(
            costs,
            seconds_per_task=_LOCAL_TASK,
            seconds_per_hop=_LOCAL_TASK,
            link_bytes_per_second=math.inf,
        )

    @property
    def room(self) -> float:
        """Bytes that a worker has for weights and activations."""
        return self.memory_limit - self.resident

    @property
    def rooms(self) -> tuple[float, ...]:
        """The same of each worker, the roomiest first."""
        limits = self.limits or (self.memory_limit,) * self.workers
        return tuple(sorted((limit - self.resident for limit in limits), reverse=True))
