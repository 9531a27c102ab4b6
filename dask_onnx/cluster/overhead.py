"""Overhead of tasks where they run, relative to one task in this process: measured and remembered.

Measuring is a verb: `known_overhead` runs nothing, `measure_overhead` runs tasks of the reference
workload on the workers or, without a client, on threads of this process.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from dask.task_spec import List, Task, TaskRef

from dask_onnx.cluster.links import PRIORITY, TIMEOUT, is_busy, new_key, submit, workers_of
from dask_onnx.core import config
from dask_onnx.core.errors import StoreError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.planning.resources import Cluster, Overhead
from dask_onnx.runtime.cores import available_cores, cpu_identity, host_digest
from dask_onnx.runtime.reference_workload import WorkloadTimes, time_workload
from dask_onnx.runtime.session import has_onnxruntime
from dask_onnx.store.weight_store import Store

_ROUNDS = 4
"""Rounds on a cluster, alone and side by side in turns, so that a neighbour slows down both."""
_LOCAL_ROUNDS = 5
"""Rounds in this process."""
_LOCAL_RUNS = 2
"""Runs of the reference workload in each task of this process."""
_SCHEDULER_TASKS = 100
"""Tasks by which the scheduler's own time is measured."""
_TASKS_PER_SLOT = 3
"""Tasks of a crowded round for each thread of the workers."""

_known: BoundedCache[str, tuple[Mapping[str, int], Overhead]] = BoundedCache(
    "overheads of clusters", 64
)
"""Threads of each worker when it was measured, and the overhead, by the client's id."""
_measuring = threading.Lock()


def known_overhead(client: Any) -> Overhead | None:
    """Return the overhead that has been measured, without running anything.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster; None for this process.

    Returns
    -------
    Overhead or None
        None if it has not been measured, or the cluster has other workers since.
    """
    if client is None:
        return _stored_overhead()
    found = None if client.asynchronous else _known.get(client.id)
    return None if found is None or found[0] != _threads_of(workers_of(client)) else found[1]


def measure_overhead(client: Any) -> Overhead | None:
    """Measure the overhead of tasks, and remember it.

    On a cluster it takes about a second, and is done only while nothing else runs there. In this
    process it is stored for all processes of the host.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster; None for this process.

    Returns
    -------
    Overhead or None
        None if it cannot be measured: there is no onnxruntime, the cluster is busy, the client is
        asynchronous, or the host's store cannot be used. Workers that cannot run the reference
        workload have the default overhead.
    """
    if not has_onnxruntime() or (client is not None and client.asynchronous):
        return None
    with _measuring:
        if client is None:
            return _measure_local()
        if is_busy(client):
            return None
        workers = workers_of(client)
        found = _measure(client, workers)
        _known.put(client.id, (_threads_of(workers), found))
        return found


def with_known_overhead(cluster: Cluster, client: Any) -> Cluster:
    """Return `cluster` with its overhead if that has been measured; nothing is run.

    Where ``onnx.plan.calibrate`` is off, `cluster` is returned as it is.
    """
    if not config.get("plan.calibrate"):
        return cluster
    overhead = known_overhead(None if cluster.is_local else client)
    return cluster if overhead is None else replace(cluster, overhead=overhead)


def _threads_of(workers: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {address: worker["nthreads"] for address, worker in workers.items()}


def _measure(client: Any, workers: Mapping[str, Mapping[str, Any]]) -> Overhead:
    """Measure the host with the most threads, since tasks share caches and memory of a host."""
    hosts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for address, worker in workers.items():
        hosts[worker["host"]][address] = worker["nthreads"]
    threads = max(hosts.values(), key=lambda own: sum(own.values()))
    slots, first = sum(threads.values()), min(threads)
    try:
        _warm_up(client, threads)
        rounds = [
            (_request(client, [first], 1), _request(client, list(threads), _TASKS_PER_SLOT * slots))
            for _ in range(_ROUNDS)
        ]
    except Exception:  # whatever it is: plans for workers that cannot answer use the defaults
        return Overhead()
    alone = median(one.run_seconds for one, _ in rounds)
    cpu = rounds[0][0].times[0].cpu
    is_same_cpu = cpu == cpu_identity()
    idle = 1.0 if is_same_cpu else alone / _mean_seconds([time_workload(_LOCAL_RUNS)])
    crowding = _crowding(alone, median(many.run_seconds for _, many in rounds), slots)
    request = min(one.seconds - one.work_seconds for one, _ in rounds)
    task = median(
        (many.seconds - request - many.work_seconds / slots) / _TASKS_PER_SLOT for _, many in rounds
    )
    scheduler = _scheduler_seconds(client, list(threads))
    return Overhead(idle, idle * crowding, max(task, 0.0), max(request, 0.0), scheduler)


def _scheduler_seconds(client: Any, workers: Sequence[str]) -> float | None:
    """Return the CPU seconds of the scheduler's event loop for a task; None if it cannot be told.

    In a cluster of this process the client's own work for the task may be included.
    """
    keys = [new_key() for _ in range(_SCHEDULER_TASKS)]
    graph = {key: Task(key, _do_nothing) for key in keys}
    try:
        before = client.run_on_scheduler(time.thread_time)
        futures = client.get(graph, keys, sync=False, workers=workers, priority=PRIORITY)
        for future in futures:
            future.result(timeout=TIMEOUT)
        after = client.run_on_scheduler(time.thread_time)
    except Exception:  # whatever it is: the default is assumed
        return None
    return float(max(after - before, 0.0) / _SCHEDULER_TASKS) or None


def _do_nothing() -> None:
    """Return None: the function of tasks that cost the scheduler's time only."""


@dataclass(frozen=True, slots=True)
class _Request:
    seconds: float
    """Seconds from submission to the result."""
    times: Sequence[WorkloadTimes]
    """Times of each task."""

    @property
    def work_seconds(self) -> float:
        """Seconds of the work of all tasks."""
        return sum(sum(each.seconds) for each in self.times)

    @property
    def run_seconds(self) -> float:
        """Mean seconds of a run of the reference workload."""
        return _mean_seconds(self.times)


def _mean_seconds(times: Iterable[WorkloadTimes]) -> float:
    # Not the median: an interrupted process loses all of its time in few of its runs.
    return fmean(second for each in times for second in each.seconds)


def _crowding(alone: float, together: float, slots: int) -> float:
    """Return the slowdown of a run side by side; at most that of running one after the other."""
    return min(max(together / alone, 1.0), float(slots))


def _warm_up(client: Any, workers: Iterable[str]) -> None:
    """Import modules and build sessions, on all workers at once."""
    for future in [submit(client, each, time_workload, 1) for each in workers]:
        future.result(timeout=TIMEOUT)


def _request(client: Any, workers: Sequence[str], tasks: int) -> _Request:
    """Run tasks of the workload and one that gathers their results, as Dask's collections do."""
    leaves = [new_key() for _ in range(tasks)]
    last = new_key()
    graph = {key: Task(key, time_workload, 1) for key in leaves}
    graph[last] = Task(last, list, List(*map(TaskRef, leaves)))
    began = time.perf_counter()
    future = client.get(graph, last, sync=False, workers=workers, priority=PRIORITY)
    found = future.result(timeout=TIMEOUT)
    return _Request(time.perf_counter() - began, found)


def _local_name() -> str:
    """Return the name of this process's measurement in the host's store."""
    return f"loaded-slowdown-{host_digest()}-{available_cores()}"


def _stored_overhead() -> Overhead | None:
    try:
        found = Store().measurement(_local_name())
    except StoreError:
        return None
    return None if found is None else Overhead(loaded_slowdown=found["loaded_slowdown"])


def _measure_local() -> Overhead | None:
    cores = available_cores()
    found = _crowding(*_local_run_seconds(cores), cores)
    try:
        Store().save_measurement(_local_name(), {"loaded_slowdown": found})
    except StoreError:
        return None
    return Overhead(loaded_slowdown=found)


def _local_run_seconds(cores: int) -> tuple[float, float]:
    """Return the seconds of a run alone and on every core, each of the best of some rounds.

    The best, since the result is stored and a passing load should not stay in it.
    """
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(time_workload, [1] * cores))
        rounds = [
            (
                _mean_seconds([time_workload(_LOCAL_RUNS)]),
                _mean_seconds(pool.map(time_workload, [_LOCAL_RUNS] * cores)),
            )
            for _ in range(_LOCAL_ROUNDS)
        ]
    alone, together = zip(*rounds, strict=True)
    return min(alone), min(together)
