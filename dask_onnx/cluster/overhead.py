"""How fast tasks are done where they run, beside one alone in this process: measured from here."""

from __future__ import annotations

import time
import weakref
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
from dask_onnx.planning.resources import Cluster, Overhead
from dask_onnx.runtime.cores import available_cores, cpu_identity, host_digest
from dask_onnx.runtime.reference_workload import Laps, run_laps
from dask_onnx.runtime.session import has_onnxruntime
from dask_onnx.store.weight_store import Store

_ROUNDS = 4
"""Of alone and side by side by turns, so that a neighbour of the machine slows down both."""
_ROUNDS_HERE, _LAPS_HERE = 5, 2
_TASKS_PER_SLOT = 3


def with_overhead(cluster: Cluster, client: Any) -> Cluster:
    """The same, with how fast tasks are done there, if ``onnx.plan.calibrate`` allows to find
    out. Of a client's cluster that is measured when it is first asked for, and anew once it has
    other workers, while it has nothing else to do: about a second. Of this process it is measured
    once for the host.
    """
    if not config.get("plan.calibrate") or not has_onnxruntime():
        return cluster
    overhead = _local_overhead() if cluster.is_local else _overhead_of(client)
    return cluster if overhead is None else replace(cluster, overhead=overhead)


_known: weakref.WeakKeyDictionary[Any, tuple[Mapping[str, int], Overhead]] = (
    weakref.WeakKeyDictionary()
)


def _overhead_of(client: Any) -> Overhead | None:
    workers = workers_of(client)
    threads = {address: worker["nthreads"] for address, worker in workers.items()}
    known = _known.get(client)
    if known is None or known[0] != threads:
        if is_busy(client):
            return None if known is None else known[1]
        known = _known[client] = threads, _measure(client, workers)
    return known[1]


def _measure(client: Any, workers: Mapping[str, Mapping[str, Any]]) -> Overhead:
    """On the host with the most threads: what tasks share with their neighbours is a host."""
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
    except Exception:  # whatever it is: where nobody can be asked, plans go by what is usual
        return Overhead()
    alone = median(one.lap for one, _ in rounds)
    cpu = rounds[0][0].laps[0].cpu
    elsewhere = 1.0 if cpu == cpu_identity() else alone / _lap([run_laps(_LAPS_HERE)])
    crowded = _crowding(alone, median(many.lap for _, many in rounds), slots)
    request = min(one.seconds - one.work for one, _ in rounds)
    task = median(
        (many.seconds - request - many.work / slots) / _TASKS_PER_SLOT for _, many in rounds
    )
    return Overhead(elsewhere, elsewhere * crowded, max(task, 0.0), max(request, 0.0))


@dataclass(frozen=True, slots=True)
class _Request:
    seconds: float
    laps: Sequence[Laps]
    """Of each task."""

    @property
    def work(self) -> float:
        """Seconds of all tasks."""
        return sum(sum(each.seconds) for each in self.laps)

    @property
    def lap(self) -> float:
        return _lap(self.laps)


def _lap(laps: Iterable[Laps]) -> float:
    """The mean: who is interrupted loses all of it in few of its laps."""
    return fmean(second for each in laps for second in each.seconds)


def _crowding(alone: float, together: float, slots: int) -> float:
    """How many times as long a lap takes side by side as alone; not longer than by turns."""
    return min(max(together / alone, 1.0), float(slots))


def _warm_up(client: Any, workers: Iterable[str]) -> None:
    """Imports and sessions, on all of them at once."""
    for future in [submit(client, each, run_laps, 1) for each in workers]:
        future.result(timeout=TIMEOUT)


def _request(client: Any, workers: Sequence[str], tasks: int) -> _Request:
    """So many tasks, and one that gathers what they say, as Dask's collections do it."""
    leaves = [new_key() for _ in range(tasks)]
    last = new_key()
    graph = {key: Task(key, run_laps, 1) for key in leaves}
    graph[last] = Task(last, list, List(*map(TaskRef, leaves)))
    began = time.perf_counter()
    future = client.get(graph, last, sync=False, workers=workers, priority=PRIORITY)
    found = future.result(timeout=TIMEOUT)
    return _Request(time.perf_counter() - began, found)


def _local_overhead() -> Overhead | None:
    """Of threads of this process."""
    cores = available_cores()
    name = f"crowding-{host_digest()}-{cores}"
    try:
        noted = Store().measured(name)
        if noted is None:
            noted = {"crowded": _crowding(*_laps_here(cores), cores)}
            Store().note_measured(name, noted)
    except StoreError:
        return None
    return Overhead(crowded=noted["crowded"])


def _laps_here(cores: int) -> tuple[float, float]:
    """Seconds of a lap alone and side by side, as it went best: what is found stays."""
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(run_laps, [1] * cores))
        rounds = [
            (_lap([run_laps(_LAPS_HERE)]), _lap(pool.map(run_laps, [_LAPS_HERE] * cores)))
            for _ in range(_ROUNDS_HERE)
        ]
    alone, together = zip(*rounds, strict=True)
    return min(alone), min(together)
