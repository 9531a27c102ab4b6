"""Which worker has which worker group of stages: events in, moves out; Dask's scheduler asks.

A worker group has one worker at a time, since its weights must not be everywhere. WorkerGroups of
a worker that is lost wait for the one that comes in its place, together: nannies start a worker
again within seconds, and the others have no room to spare. Only when none has come are they shared
out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dask_onnx.core.stage_tasks import WorkerGroup

TAKEOVER_SECONDS = 10.0
"""So long worker groups wait for a new worker before those that are there take them too."""
_SHARE = 0.8
"""Of a worker's memory: Dask pauses it beyond that."""

Limits = Mapping[str, float | None]
"""Address of each worker that takes tasks to its memory in bytes; None where it has no limit."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A worker group without a worker."""

    with_: str
    """What waits for the same worker: those that one worker had."""
    since: float
    """Seconds, by a clock that the caller keeps."""


@dataclass
class WorkerGroups:
    """WorkerGroups of all plans of a cluster."""

    places: dict[WorkerGroup, str] = field(default_factory=dict)
    """WorkerGroup to a worker's address; those that wait for one are left out."""
    waiting: dict[WorkerGroup, Wait] = field(default_factory=dict)
    sizes: dict[WorkerGroup, int] = field(default_factory=dict)
    """Bytes of a worker group's weights."""
    allowed: dict[WorkerGroup, frozenset[str]] = field(default_factory=dict)
    """Workers that the caller lets a worker group's tasks run on; left out where that is any."""

    def add(self, sizes: Mapping[WorkerGroup, int], limits: Limits, now: float) -> set[WorkerGroup]:
        """WorkerGroups of a request, those that are known among them. What is new gets a worker.

        Returns
        -------
        the worker groups that were new
        """
        new = {
            worker_group
            for worker_group in sizes
            if worker_group not in self.places and worker_group not in self.waiting
        }
        self.sizes.update(sizes)
        # The largest first: the small ones fill what is left.
        for worker_group in sorted(new, key=self._largest_first):
            self._place(worker_group, limits, now)
        return new

    def forget(self, live: Collection[str]) -> None:
        """Plans that have no tasks any more weigh on no worker.

        Parameters
        ----------
        live : plans that have some
        """
        for table in (self.places, self.waiting, self.sizes, self.allowed):
            for worker_group in [
                worker_group for worker_group in table if worker_group[0] not in live
            ]:
                del table[worker_group]

    def lost(self, worker: str, now: float) -> set[WorkerGroup]:
        """A worker is gone: its worker groups wait."""
        worker_groups = {
            worker_group for worker_group, place in self.places.items() if place == worker
        }
        for worker_group in worker_groups:
            del self.places[worker_group]
            self.waiting[worker_group] = Wait(worker, now)
        return worker_groups

    def joined(self, worker: str, limits: Limits) -> set[WorkerGroup]:
        """A worker has come: it takes what one lost worker had, the most that it has room for; then
        what doubled up elsewhere, as long as it is fuller by less.

        Returns
        -------
        the worker groups that moved to it
        """
        moved = self._inherited(worker, limits.get(worker))
        for worker_group in moved:
            self._assign(worker_group, worker)
        for worker_group in sorted(self.places, key=self._largest_first):
            place = self.places[worker_group]
            if place == worker or not self._may(worker_group, worker):
                continue
            if self._share(worker, limits, worker_group) < self._share(place, limits):
                self._assign(worker_group, worker)
                moved.add(worker_group)
        return moved

    def overdue(self, limits: Limits, now: float) -> set[WorkerGroup]:
        """No new worker came in time: those that are there take the worker groups.

        Returns
        -------
        the worker groups that moved
        """
        due = {
            worker_group
            for worker_group, wait in self.waiting.items()
            if now - wait.since >= TAKEOVER_SECONDS and self._candidates(worker_group, limits)
        }
        for worker_group in sorted(due, key=self._largest_first):
            self._place(worker_group, limits, now)
        return due

    def _inherited(self, worker: str, limit: float | None) -> set[WorkerGroup]:
        batches: defaultdict[str, set[WorkerGroup]] = defaultdict(set)
        for worker_group, wait in self.waiting.items():
            if self._may(worker_group, worker):
                batches[wait.with_].add(worker_group)
        fitting = {
            name: size
            for name, worker_groups in batches.items()
            if (size := self._bytes(worker_groups)) <= _SHARE * (limit or float("inf"))
        }
        # Ties in the order in which they were lost.
        return batches[max(fitting, key=fitting.__getitem__)] if fitting else set()

    def _place(self, worker_group: WorkerGroup, limits: Limits, now: float) -> None:
        """On the worker that it fills least: with its own plan's worker groups, then with all."""
        candidates = self._candidates(worker_group, limits)
        if not candidates:
            self.waiting[worker_group] = Wait(f"{worker_group}", now)
            return
        self._assign(
            worker_group,
            min(
                candidates,
                key=lambda address: (
                    self._share(address, limits, worker_group, plan=worker_group[0]),
                    self._share(address, limits, worker_group),
                    address,
                ),
            ),
        )

    def _candidates(self, worker_group: WorkerGroup, limits: Limits) -> list[str]:
        return [address for address in limits if self._may(worker_group, address)]

    def _may(self, worker_group: WorkerGroup, worker: str) -> bool:
        return worker_group not in self.allowed or worker in self.allowed[worker_group]

    def _assign(self, worker_group: WorkerGroup, worker: str) -> None:
        self.places[worker_group] = worker
        self.waiting.pop(worker_group, None)

    def _largest_first(self, worker_group: WorkerGroup) -> tuple[int, WorkerGroup]:
        return -self.sizes[worker_group], worker_group

    def _share(
        self,
        worker: str,
        limits: Limits,
        more: WorkerGroup | None = None,
        *,
        plan: str | None = None,
    ) -> float:
        """How full a worker's memory is of worker groups, or would be with one more; of a plan or
        of all.

        Where some worker has no limit, all count as equal.
        """
        room = limits.get(worker) if all(limits.values()) else None
        held = [
            worker_group
            for worker_group, place in self.places.items()
            if place == worker and worker_group != more and plan in (None, worker_group[0])
        ]
        return self._bytes([*held, *([] if more is None else [more])]) / (room or 1)

    def _bytes(self, worker_groups: Iterable[WorkerGroup]) -> int:
        # One byte at least, so that worker groups without weights count too.
        return sum(self.sizes[worker_group] + 1 for worker_group in worker_groups)
