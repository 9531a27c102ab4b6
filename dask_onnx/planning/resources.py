"""What a plan may run on, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.cost import CostTable
from dask_onnx.core.specs import SessionSpec

_LOCAL_TASK = 1e-4
"""Seconds that Dask's threaded scheduler spends on a task."""
_LOCAL_REQUEST = 2e-3
"""And on a request."""
_THREADS_GAIN = 0.7
"""n threads of ONNX Runtime within one run are taken to be n to this power as fast: two have been
measured to be 1.3 to 1.8 times as fast as one."""
LOADED = 200e6
"""Bytes of a worker's process once it has imported what runs a model."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """How fast tasks are done where they run, beside one task alone in this process."""

    alone: float = 1.0
    """How many times as long a task takes while nothing else runs there."""
    crowded: float = 1.0
    """The same while as many run as can."""
    seconds_per_task: float | None = None
    """What Dask adds to each; None goes by what is usual."""
    seconds_per_request: float | None = None
    """What Dask adds to a request; None goes by what is usual."""


@dataclass(frozen=True, slots=True)
class Link:
    """Between two workers, on different hosts where there are several."""

    seconds_per_hop: float
    """From the end of a small task to the end of one that needs it, on the other worker."""
    bytes_per_second: float
    """Of values that cannot be compressed."""


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
    overhead: Overhead = field(default_factory=Overhead)

    @property
    def slots(self) -> int:
        """Tasks that run at a time."""
        return self.total_threads or self.workers * self.threads

    def costs(self, costs: CostTable) -> CostTable:
        """The same, with what tasks and hops cost on this cluster."""
        if self.is_local:
            return replace(
                costs,
                seconds_per_task=_LOCAL_TASK,
                seconds_per_request=_LOCAL_REQUEST,
                seconds_per_hop=_LOCAL_TASK,
                link_bytes_per_second=math.inf,
            )
        task, request = self.overhead.seconds_per_task, self.overhead.seconds_per_request
        return replace(
            costs,
            seconds_per_task=costs.seconds_per_task if task is None else task,
            seconds_per_request=costs.seconds_per_request if request is None else request,
        )

    def threads_of_task(self, session: SessionSpec) -> int:
        """That ONNX Runtime has for one run."""
        return self.threads if session.takes_all_cores else 1

    def slowdowns(self, most: int, threads_of_task: int = 1) -> tuple[float, ...]:
        """How many times as long a task takes, beside one that has one thread here, while one, two,
        ... and at most so many are at work. What they share, caches and memory, is taken to be used
        up evenly; threads that ONNX Runtime has for a task, to be the cores of a worker."""
        return tuple(self._slowdown(busy, threads_of_task) for busy in range(1, max(most, 1) + 1))

    def _slowdown(self, busy: int, threads_of_task: int) -> float:
        threads = max(threads_of_task / math.ceil(busy / self.workers), 1.0)
        if threads > 1.0:
            return self.overhead.alone / float(threads**_THREADS_GAIN)
        share = min(busy - 1, self.slots - 1) / max(self.slots - 1, 1)
        return self.overhead.alone + share * (self.overhead.crowded - self.overhead.alone)

    @property
    def room(self) -> float:
        """Bytes that a worker has for weights and activations."""
        return self.memory_limit - self.resident

    @property
    def rooms(self) -> tuple[float, ...]:
        """The same of each worker, the roomiest first."""
        limits = self.limits or (self.memory_limit,) * self.workers
        return tuple(sorted((limit - self.resident for limit in limits), reverse=True))
