"""Which worker has which lane of stages: events in, moves out; Dask's scheduler asks.

A lane has one worker at a time, since its weights must not be everywhere. Lanes of a worker that is
lost wait for the one that comes in its place, together: nannies start a worker again within
seconds, and the others have no room to spare. Only when none has come are they shared out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dask_onnx.core.stage_tasks import Lane

TAKEOVER_SECONDS = 10.0
"""So long lanes wait for a new worker before those that are there take them too."""
_SHARE = 0.8
"""Of a worker's memory: Dask pauses it beyond that."""

Limits = Mapping[str, float | None]
"""Address of each worker that takes tasks to its memory in bytes; None where it has no limit."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A lane without a worker."""

    with_: str
    """What waits for the same worker: those that one worker had."""
    since: float
    """Seconds, by a clock that the caller keeps."""


@dataclass
class Lanes:
    """Lanes of all plans of a cluster."""

    places: dict[Lane, str] = field(default_factory=dict)
    """Lane to a worker's address; those that wait for one are left out."""
    waiting: dict[Lane, Wait] = field(default_factory=dict)
    sizes: dict[Lane, int] = field(default_factory=dict)
    """Bytes of a lane's weights."""
    allowed: dict[Lane, frozenset[str]] = field(default_factory=dict)
    """Workers that the caller lets a lane's tasks run on; left out where that is any."""

    def add(self, sizes: Mapping[Lane, int], limits: Limits, now: float) -> set[Lane]:
        """Lanes of a request, those that are known among them. What is new gets a worker.

        Returns
        -------
        the lanes that were new
        """
        new = {lane for lane in sizes if lane not in self.places and lane not in self.waiting}
        self.sizes.update(sizes)
        # The largest first: the small ones fill what is left.
        for lane in sorted(new, key=self._largest_first):
            self._place(lane, limits, now)
        return new

    def forget(self, live: Collection[str]) -> None:
        """Plans that have no tasks any more weigh on no worker.

        Parameters
        ----------
        live : plans that have some
        """
        for table in (self.places, self.waiting, self.sizes, self.allowed):
            for lane in [lane for lane in table if lane[0] not in live]:
                del table[lane]

    def lost(self, worker: str, now: float) -> set[Lane]:
        """A worker is gone: its lanes wait."""
        lanes = {lane for lane, place in self.places.items() if place == worker}
        for lane in lanes:
            del self.places[lane]
            self.waiting[lane] = Wait(worker, now)
        return lanes

    def joined(self, worker: str, limits: Limits) -> set[Lane]:
        """A worker has come: it takes what one lost worker had, the most that it has room for; then
        what doubled up elsewhere, as long as it is fuller by less.

        Returns
        -------
        the lanes that moved to it
        """
        moved = self._inherited(worker, limits.get(worker))
        for lane in moved:
            self._assign(lane, worker)
        for lane in sorted(self.places, key=self._largest_first):
            place = self.places[lane]
            if place == worker or not self._may(lane, worker):
                continue
            if self._share(worker, limits, lane) < self._share(place, limits):
                self._assign(lane, worker)
                moved.add(lane)
        return moved

    def overdue(self, limits: Limits, now: float) -> set[Lane]:
        """No new worker came in time: those that are there take the lanes.

        Returns
        -------
        the lanes that moved
        """
        due = {
            lane
            for lane, wait in self.waiting.items()
            if now - wait.since >= TAKEOVER_SECONDS and self._candidates(lane, limits)
        }
        for lane in sorted(due, key=self._largest_first):
            self._place(lane, limits, now)
        return due

    def _inherited(self, worker: str, limit: float | None) -> set[Lane]:
        batches: defaultdict[str, set[Lane]] = defaultdict(set)
        for lane, wait in self.waiting.items():
            if self._may(lane, worker):
                batches[wait.with_].add(lane)
        fitting = {
            name: size
            for name, lanes in batches.items()
            if (size := self._bytes(lanes)) <= _SHARE * (limit or float("inf"))
        }
        # Ties in the order in which they were lost.
        return batches[max(fitting, key=fitting.__getitem__)] if fitting else set()

    def _place(self, lane: Lane, limits: Limits, now: float) -> None:
        """On the worker that it fills least: with its own plan's lanes, then with all."""
        candidates = self._candidates(lane, limits)
        if not candidates:
            self.waiting[lane] = Wait(f"{lane}", now)
            return
        self._assign(
            lane,
            min(
                candidates,
                key=lambda address: (
                    self._share(address, limits, lane, plan=lane[0]),
                    self._share(address, limits, lane),
                    address,
                ),
            ),
        )

    def _candidates(self, lane: Lane, limits: Limits) -> list[str]:
        return [address for address in limits if self._may(lane, address)]

    def _may(self, lane: Lane, worker: str) -> bool:
        return lane not in self.allowed or worker in self.allowed[lane]

    def _assign(self, lane: Lane, worker: str) -> None:
        self.places[lane] = worker
        self.waiting.pop(lane, None)

    def _largest_first(self, lane: Lane) -> tuple[int, Lane]:
        return -self.sizes[lane], lane

    def _share(
        self, worker: str, limits: Limits, more: Lane | None = None, *, plan: str | None = None
    ) -> float:
        """How full a worker's memory is of lanes, or would be with one more; of a plan or of all.

        Where some worker has no limit, all count as equal.
        """
        room = limits.get(worker) if all(limits.values()) else None
        held = [
            lane
            for lane, place in self.places.items()
            if place == worker and lane != more and plan in (None, lane[0])
        ]
        return self._bytes([*held, *([] if more is None else [more])]) / (room or 1)

    def _bytes(self, lanes: Iterable[Lane]) -> int:
        # One byte at least, so that lanes without weights count too.
        return sum(self.sizes[lane] + 1 for lane in lanes)
