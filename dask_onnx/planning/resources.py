"""The workers that a plan may run on, as numbers: threads, memory, overhead and links."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.cost import CostTable
from dask_onnx.core.specs import SessionSpec

_LOCAL_SECONDS_PER_TASK = 1e-4
"""Seconds that Dask's threaded scheduler spends on a task."""
_LOCAL_SECONDS_PER_REQUEST = 2e-3
"""Seconds that Dask's threaded scheduler spends on a request."""
_THREADS_GAIN = 0.7
"""Exponent of the speed-up from n threads of ONNX Runtime within one run: n ** 0.7.

Two threads have been measured to be 1.3 to 1.8 times as fast as one.
"""
PROCESS_BYTES = 200e6
"""Bytes of a worker's process after it has imported what runs a model, before it holds any."""


def thread_gain(threads: float) -> float:
    """Return how many times as fast a run is on several threads of ONNX Runtime as on one."""
    return float(max(threads, 1.0) ** _THREADS_GAIN)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time that tasks take on a cluster beyond their work, relative to one task in this process."""

    idle_slowdown: float = 1.0
    """Run time of a task on an otherwise idle cluster, divided by its run time here."""
    loaded_slowdown: float = 1.0
    """Run time of a task while every thread runs one, divided by its run time alone here."""
    seconds_per_task: float | None = None
    """Seconds that Dask adds to each task; None stands for the default of `CostTable`."""
    seconds_per_request: float | None = None
    """Seconds that Dask adds to each request; None stands for the default of `CostTable`."""
    scheduler_seconds_per_task: float | None = None
    """CPU seconds of Dask's scheduler for each task; None stands for a usual value."""


@dataclass(frozen=True, slots=True)
class Link:
    """Connection between two workers, on different hosts where there are several."""

    seconds_per_hop: float
    """Seconds from the end of a small task to the end of its consumer on the other worker."""
    bytes_per_second: float
    """Bandwidth for values that cannot be compressed."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers that a plan may run on."""

    workers: int
    """Number of workers."""
    threads: int
    """Tasks that a worker runs at a time; the largest such number where workers differ."""
    memory_limit: float
    """Bytes at which Dask pauses the smallest worker; infinite where it never does."""
    resident: float = PROCESS_BYTES
    """Bytes of a worker's process before it holds anything of the model."""
    is_local: bool = False
    """True if tasks are threads of this process, so that no value travels."""
    limits: tuple[float, ...] = ()
    """`memory_limit` of each worker in bytes, where they differ."""
    total_threads: int | None = None
    """Threads of all workers together, where workers differ."""
    overhead: Overhead = field(default_factory=Overhead)
    """Measured overhead of tasks there; the default assumes none beyond `CostTable`."""

    @property
    def slots(self) -> int:
        """Number of tasks that run at a time."""
        return self.total_threads or self.workers * self.threads

    @property
    def parallel_workers(self) -> int:
        """Number of stages that can run side by side: threads in this process, else workers."""
        return self.slots if self.is_local else self.workers

    def costs(self, costs: CostTable) -> CostTable:
        """Return `costs` with what tasks, requests and hops cost on this cluster."""
        if self.is_local:
            return replace(
                costs,
                seconds_per_task=_LOCAL_SECONDS_PER_TASK,
                seconds_per_request=_LOCAL_SECONDS_PER_REQUEST,
                seconds_per_hop=_LOCAL_SECONDS_PER_TASK,
                link_bytes_per_second=math.inf,
            )
        task, request = self.overhead.seconds_per_task, self.overhead.seconds_per_request
        return replace(
            costs,
            seconds_per_task=costs.seconds_per_task if task is None else task,
            seconds_per_request=costs.seconds_per_request if request is None else request,
        )

    def threads_of_task(self, session: SessionSpec) -> int:
        """Return the number of threads that ONNX Runtime has for one run."""
        return self.threads if session.takes_all_cores else 1

    def slowdowns(self, most: int, threads_of_task: int = 1) -> tuple[float, ...]:
        """Return the slowdown of a task while 1, 2, ..., `most` tasks run.

        Shared caches and memory bandwidth are assumed to be used up linearly, and the threads that
        ONNX Runtime has for a task to be cores of its worker.

        Parameters
        ----------
        most : int
            Largest number of tasks at a time.
        threads_of_task : int
            Threads that ONNX Runtime may use for one run.

        Returns
        -------
        tuple of float
            `most` factors, relative to a single task with one thread in this process.
        """
        return tuple(self._slowdown(busy, threads_of_task) for busy in range(1, max(most, 1) + 1))

    def _slowdown(self, busy: int, threads_of_task: int) -> float:
        idle, loaded = self.overhead.idle_slowdown, self.overhead.loaded_slowdown
        threads = max(threads_of_task / math.ceil(busy / self.workers), 1.0)
        if threads > 1.0:
            return idle / thread_gain(threads)
        share = min(busy - 1, self.slots - 1) / max(self.slots - 1, 1)
        return idle + share * (loaded - idle)

    @property
    def room(self) -> float:
        """Bytes that the smallest worker has for weights and activations."""
        return self.memory_limit - self.resident

    @property
    def rooms(self) -> tuple[float, ...]:
        """Bytes that each worker has for weights and activations, largest first."""
        limits = self.limits or (self.memory_limit,) * self.workers
        return tuple(sorted((limit - self.resident for limit in limits), reverse=True))
