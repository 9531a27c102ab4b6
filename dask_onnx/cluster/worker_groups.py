"""Assignment of worker groups to workers: events in, moves out, without I/O.

A worker group has one worker at a time, since its weights must not be on every worker. The worker
groups of a lost worker wait together for the one that replaces it: a nanny restarts its worker
within seconds, and the other workers have no room to spare. Only when no worker comes in time are
they distributed over the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dask_onnx.core.stage_tasks import WorkerGroup

TAKEOVER_SECONDS = 10.0
"""Seconds that worker groups wait for a new worker before the other workers take them over."""
_USABLE_SHARE = 0.8
"""Share of a worker's memory at which Dask pauses it."""

Limits = Mapping[str, float | None]
"""Memory in bytes of each worker that accepts tasks, by its address; None where unlimited."""


@dataclass(frozen=True, slots=True)
class Wait:
    """State of a worker group without a worker."""

    batch: str
    """Name shared by the worker groups that wait for one worker: those of one lost worker."""
    since: float
    """Seconds on the caller's clock at which the wait began."""


@dataclass
class WorkerGroups:
    """Worker groups of all plans of a cluster."""

    places: dict[WorkerGroup, str] = field(default_factory=dict)
    """Address of each worker group's worker; those that wait for one are not in it."""
    waiting: dict[WorkerGroup, Wait] = field(default_factory=dict)
    """Worker groups without a worker."""
    sizes: dict[WorkerGroup, int] = field(default_factory=dict)
    """Bytes of each worker group's weights."""
    allowed: dict[WorkerGroup, frozenset[str]] = field(default_factory=dict)
    """Addresses that the caller allows for a worker group; not in it where any is allowed."""

    def add(self, sizes: Mapping[WorkerGroup, int], limits: Limits, now: float) -> set[WorkerGroup]:
        """Assign the worker groups of a request that are not known yet.

        Parameters
        ----------
        sizes : mapping of worker group to int
            Bytes of weights of all worker groups of the request, known ones too.
        limits : mapping of str to float or None
            Memory of the workers that accept tasks.
        now : float
            Seconds on the caller's clock.

        Returns
        -------
        set of worker groups
            The new ones.
        """
        new = {
            worker_group
            for worker_group in sizes
            if worker_group not in self.places and worker_group not in self.waiting
        }
        self.sizes.update(sizes)
        # The largest first, so that small ones fill what is left.
        for worker_group in sorted(new, key=self._largest_first):
            self._place(worker_group, limits, now)
        return new

    def forget(self, live: Collection[str]) -> None:
        """Drop the worker groups of all plans but those in `live`, which have tasks left."""
        for table in (self.places, self.waiting, self.sizes, self.allowed):
            gone = [worker_group for worker_group in table if worker_group[0] not in live]
            for worker_group in gone:
                del table[worker_group]

    def lost(self, worker: str, now: float) -> set[WorkerGroup]:
        """Let the worker groups of a worker that is gone wait, and return them."""
        worker_groups = {
            worker_group for worker_group, place in self.places.items() if place == worker
        }
        for worker_group in worker_groups:
            del self.places[worker_group]
            self.waiting[worker_group] = Wait(worker, now)
        return worker_groups

    def joined(self, worker: str, limits: Limits) -> set[WorkerGroup]:
        """Move worker groups to a worker that has joined, and return those that moved.

        It takes the worker groups of one lost worker, the most bytes that it has room for. Then it
        takes worker groups that share a worker, as long as its own memory is less full with them
        than that worker's.
        """
        moved = self._inherited(worker, limits.get(worker))
        for worker_group in moved:
            self._assign(worker_group, worker)
        for worker_group in sorted(self.places, key=self._largest_first):
            place = self.places[worker_group]
            if place == worker or not self._is_allowed(worker_group, worker):
                continue
            if self._fullness(worker, limits, worker_group) < self._fullness(place, limits):
                self._assign(worker_group, worker)
                moved.add(worker_group)
        return moved

    def overdue(self, limits: Limits, now: float) -> set[WorkerGroup]:
        """Assign worker groups that have waited too long, and return those that moved."""
        due = {
            worker_group
            for worker_group, wait in self.waiting.items()
            if now - wait.since >= TAKEOVER_SECONDS and self._candidates(worker_group, limits)
        }
        for worker_group in sorted(due, key=self._largest_first):
            self._place(worker_group, limits, now)
        return due

    def _inherited(self, worker: str, limit: float | None) -> set[WorkerGroup]:
        """Return the waiting worker groups that a new worker should take."""
        batches: defaultdict[str, set[WorkerGroup]] = defaultdict(set)
        for worker_group, wait in self.waiting.items():
            if self._is_allowed(worker_group, worker):
                batches[wait.batch].add(worker_group)
        fitting = {
            name: size
            for name, worker_groups in batches.items()
            if (size := self._bytes(worker_groups)) <= _USABLE_SHARE * (limit or float("inf"))
        }
        # `max` takes the first of equals: the batch that was lost first.
        return batches[max(fitting, key=fitting.__getitem__)] if fitting else set()

    def _place(self, worker_group: WorkerGroup, limits: Limits, now: float) -> None:
        """Assign a worker group to the worker that is least full with it.

        Only the worker groups of its own plan count first, those of all plans second.
        """
        candidates = self._candidates(worker_group, limits)
        if not candidates:
            self.waiting[worker_group] = Wait(f"{worker_group}", now)
            return
        self._assign(
            worker_group,
            min(
                candidates,
                key=lambda address: (
                    self._fullness(address, limits, worker_group, plan=worker_group[0]),
                    self._fullness(address, limits, worker_group),
                    address,
                ),
            ),
        )

    def _candidates(self, worker_group: WorkerGroup, limits: Limits) -> list[str]:
        return [address for address in limits if self._is_allowed(worker_group, address)]

    def _is_allowed(self, worker_group: WorkerGroup, worker: str) -> bool:
        return worker_group not in self.allowed or worker in self.allowed[worker_group]

    def _assign(self, worker_group: WorkerGroup, worker: str) -> None:
        self.places[worker_group] = worker
        self.waiting.pop(worker_group, None)

    def _largest_first(self, worker_group: WorkerGroup) -> tuple[int, WorkerGroup]:
        return -self.sizes[worker_group], worker_group

    def _fullness(
        self,
        worker: str,
        limits: Limits,
        more: WorkerGroup | None = None,
        *,
        plan: str | None = None,
    ) -> float:
        """Return the share of a worker's memory that worker groups take.

        Where some worker has no limit, all count as equal, and the result is in bytes.

        Parameters
        ----------
        worker : str
            Address of the worker.
        limits : mapping of str to float or None
            Memory of the workers.
        more : worker group, optional
            A worker group to count too.
        plan : str, optional
            Token of the only plan whose worker groups count.
        """
        room = limits.get(worker) if all(limits.values()) else None
        held = [
            worker_group
            for worker_group, place in self.places.items()
            if place == worker and worker_group != more and plan in (None, worker_group[0])
        ]
        return self._bytes([*held, *([] if more is None else [more])]) / (room or 1)

    def _bytes(self, worker_groups: Iterable[WorkerGroup]) -> int:
        # At least one byte each, so that worker groups without weights count too.
        return sum(self.sizes[worker_group] + 1 for worker_group in worker_groups)
