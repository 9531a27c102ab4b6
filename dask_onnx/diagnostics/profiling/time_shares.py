"""Shares of the time of all workers: every second of every slot in one category.

A slot that runs a task is in the categories of the task's phases. A slot that runs none is

- transferring, if a task waits on its worker for values that are on their way;
- kept by Dask, if a task waits there, or for a worker, though all that it needs is there;
- waiting, if tasks of the profile have not ended, but none of them can start;
- idle, if there are no tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dask_onnx.diagnostics.profiling.run_profile import RunProfile, TaskRecord, WorkerRecord

MODEL, SESSIONS, TRANSFER = "model", "building sessions", "transfer"
WAITING, DASK, READING, WRITING = "waiting", "Dask", "reading", "writing"
OTHER_TASKS, OTHER_CLIENTS, IDLE = "other tasks", "other clients", "idle"
CATEGORIES = (
    *(MODEL, SESSIONS, TRANSFER, WAITING, DASK),
    *(READING, WRITING, OTHER_TASKS, OTHER_CLIENTS, IDLE),
)
"""Categories of time, in the order in which they are shown."""
_OF_PHASE = {
    "run": MODEL,
    "session": SESSIONS,
    "weights": SESSIONS,
    "convert": DASK,
    "stage": DASK,
    "read": READING,
    "write": WRITING,
}
_OF_TASK = {"model": MODEL, "reading": READING, "writing": WRITING, "other": OTHER_TASKS}
Seconds = npt.NDArray[np.float64]
_Spans = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Seconds of slots by category; their sum is that of all slots."""

    seconds: Mapping[str, float]
    """Category to seconds, in the order of `CATEGORIES`."""
    by_worker: Mapping[str, Mapping[str, float]]
    """The same for each worker."""

    @property
    def total(self) -> float:
        """Seconds of all slots."""
        return sum(self.seconds.values())

    def share(self, category: str) -> float:
        """Return the share of a category, from 0 to 1."""
        return self.seconds.get(category, 0.0) / self.total if self.total else 0.0


def time_shares(profile: RunProfile) -> TimeShares:
    """Return the seconds of all slots of a profile by category."""
    tasks = [task for task in profile.tasks if task.stop > task.start]
    edges = _edges(profile, tasks)
    if len(edges) < 2:
        return TimeShares(dict.fromkeys(CATEGORIES, 0.0), {})
    middles = (edges[:-1] + edges[1:]) / 2
    pending = _count([(task.submitted, task.stop) for task in profile.tasks], middles)
    # A task is ready for a worker from the end of what it depends on.
    unassigned = _count([(task.ready, task.assigned) for task in tasks], middles)
    loads = {worker.name: _Load.of(profile, worker, tasks, middles) for worker in profile.workers}
    free = sum((load.free for load in loads.values()), np.zeros(len(middles)))
    called = np.divide(np.minimum(unassigned, free), free, out=np.zeros_like(free), where=free > 0)
    by_worker = {
        name: _of_worker(load, [t for t in tasks if t.worker == name], edges, pending, called)
        for name, load in loads.items()
    }
    seconds = {
        category: sum(own[category] for own in by_worker.values()) for category in CATEGORIES
    }
    return TimeShares(seconds, by_worker)


@dataclass(frozen=True, slots=True)
class _Load:
    """Use of a worker's slots in each interval, as numbers of slots."""

    running: Seconds
    """Tasks of the profile that run."""
    others: Seconds
    """Tasks of other clients that run."""
    weight: Seconds
    """Slots of each task that runs: 1, or less where there are more tasks than slots."""
    free: Seconds
    """Slots without a task, and without one that waits here."""
    transfer: Seconds
    """Slots whose tasks wait for values that are on their way."""
    dask: Seconds
    """Slots whose tasks wait here, though nothing is on its way."""

    @classmethod
    def of(
        cls,
        profile: RunProfile,
        worker: WorkerRecord,
        tasks: Iterable[TaskRecord],
        middles: Seconds,
    ) -> _Load:
        """Return the load of a worker in the intervals with these middles."""
        own = [task for task in tasks if task.worker == worker.name]
        is_here = (middles >= worker.joined) & (middles <= worker.left)
        slots = np.where(is_here, float(worker.threads), 0.0)
        running = _count([(task.start, task.stop) for task in own], middles)
        others = _count([(s, e) for name, s, e in profile.others if name == worker.name], middles)
        busy = running + others
        weight = np.divide(np.minimum(busy, slots), busy, out=np.zeros_like(slots), where=busy > 0)
        unused = np.maximum(slots - busy, 0.0)
        queued = np.minimum(_count([(task.assigned, task.start) for task in own], middles), unused)
        arrivals = [(t.start, t.stop) for t in profile.transfers if t.receiver == worker.name]
        is_arriving = _count(arrivals, middles) > 0
        return cls(
            running,
            others,
            weight,
            unused - queued,
            np.where(is_arriving, queued, 0.0),
            np.where(is_arriving, 0.0, queued),
        )


def _of_worker(
    load: _Load,
    tasks: Iterable[TaskRecord],
    edges: Seconds,
    pending: Seconds,
    called: Seconds,
) -> dict[str, float]:
    """Return the seconds of a worker's slots by category.

    Parameters
    ----------
    load : _Load
    tasks : iterable of TaskRecord
        Tasks of this worker.
    edges : array, shape (intervals + 1,)
    pending : array, shape (intervals,)
        Tasks of the profile that have not ended.
    called : array, shape (intervals,)
        Share of the free slots of all workers that a task is on its way to.
    """
    lengths = np.diff(edges)
    found = dict.fromkeys(CATEGORIES, 0.0)
    used = np.concatenate([[0.0], np.cumsum(load.weight * lengths)])
    for task in tasks:
        seconds = float(np.interp(task.stop, edges, used) - np.interp(task.start, edges, used))
        for category, share in _shares_of(task).items():
            found[category] += seconds * share
    found[OTHER_CLIENTS] += float(np.sum(load.others * load.weight * lengths))
    found[TRANSFER] += float(np.sum(load.transfer * lengths))
    found[DASK] += float(np.sum((load.dask + load.free * called) * lengths))
    rest = load.free * (1 - called) * lengths
    found[WAITING] += float(np.sum(rest[pending > 0]))
    found[IDLE] += float(np.sum(rest[pending <= 0]))
    return found


def _shares_of(task: TaskRecord) -> dict[str, float]:
    """Return the share of each category in a task's time; they add up to 1."""
    found: defaultdict[str, float] = defaultdict(float)
    for phase in task.phases:
        found[_OF_PHASE.get(phase.name, OTHER_TASKS)] += phase.own_seconds
    known = sum(found.values())
    whole = max(task.seconds, known)
    # What is not metered: functions of the caller and of Dask.
    own = _OF_TASK[task.category]
    found[OTHER_TASKS if task.phases and own == MODEL else own] += whole - known
    return {category: seconds / whole for category, seconds in found.items()} if whole else {}


def _edges(profile: RunProfile, tasks: Iterable[TaskRecord]) -> Seconds:
    """Return all times at which the load of some worker may change."""
    times: list[float] = [0.0, profile.wall]
    for task in tasks:
        times += (task.submitted, task.ready, task.assigned, task.start, task.stop)
    for transfer in profile.transfers:
        times += (transfer.start, transfer.stop)
    for worker in profile.workers:
        times += (worker.joined, worker.left)
    for _, start, stop in profile.others:
        times += (start, stop)
    return np.unique(np.clip(np.asarray(times, np.float64), 0.0, profile.wall))


def _count(spans: _Spans, middles: Seconds) -> Seconds:
    """Return the number of spans that are open at each time."""
    if not spans:
        return np.zeros(len(middles))
    found = np.asarray([(start, max(start, stop)) for start, stop in spans], np.float64)
    begun = np.searchsorted(np.sort(found[:, 0]), middles, "right")
    ended = np.searchsorted(np.sort(found[:, 1]), middles, "right")
    return (begun - ended).astype(np.float64)
