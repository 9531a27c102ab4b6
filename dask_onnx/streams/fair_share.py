"""Shares of several streams in the tasks of one cluster: by priority, then by weight.

Pure logic: stride scheduling (Waldspurger and Weihl, 1995). Each start moves a stream's virtual
time on by the cost of a frame over the stream's weight; the stream that is furthest behind starts
next. A cost is the seconds of a thread that a frame takes; before any is known, frames are equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Share:
    """Share of one stream."""

    weight: float
    """Seconds of this stream for each second of a stream of weight 1, while both have frames."""
    priority: int
    """Streams of a larger priority come first, whatever their weight is."""
    time: float = 0.0
    """Virtual time: cost of the frames that were started, over the weight."""
    cost: float | None = None
    """Seconds that a frame takes; None as long as that is unknown."""


@dataclass(slots=True)
class FairShare:
    """Order in which the frames of several streams start."""

    shares: dict[int, Share] = field(default_factory=dict)
    """Share of each stream."""
    _waiting: frozenset[int] = frozenset()
    """Streams that had frames to start when one was last chosen."""

    def add(self, stream: int, weight: float, priority: int) -> None:
        """Add a stream; it starts where the others are."""
        self.shares[stream] = Share(weight, priority, self._now())

    def remove(self, stream: int) -> None:
        """Remove a stream."""
        self.shares.pop(stream, None)

    def choose(self, waiting: Collection[int]) -> int | None:
        """Return the stream whose frame starts next, and count that start; None if none waits.

        Parameters
        ----------
        waiting : collection
            Streams that have a frame to start.
        """
        if not waiting:
            return None
        # A stream that had nothing to start does not save up its share.
        now = min((self.shares[s].time for s in waiting if s in self._waiting), default=self._now())
        for stream in waiting:
            if stream not in self._waiting:
                self.shares[stream].time = max(self.shares[stream].time, now)
        self._waiting = frozenset(waiting)
        chosen = min(waiting, key=lambda s: (-self.shares[s].priority, self.shares[s].time))
        self.shares[chosen].time += self._cost(chosen) / self.shares[chosen].weight
        return chosen

    def set_costs(self, costs: Mapping[int, float]) -> None:
        """Set the seconds that a frame takes of those streams of which it is known."""
        if all(share.cost is None for share in self.shares.values()) and costs:
            # Virtual times were in frames until now, and are in seconds from now on.
            for share in self.shares.values():
                share.time = 0.0
        for stream, cost in costs.items():
            self.shares[stream].cost = cost

    def _cost(self, stream: int) -> float:
        """Return the cost of a stream's frame: the mean of the others' where it is unknown."""
        own = self.shares[stream].cost
        if own is not None:
            return own
        known = [share.cost for share in self.shares.values() if share.cost is not None]
        return sum(known) / len(known) if known else 1.0

    def _now(self) -> float:
        return min((share.time for share in self.shares.values()), default=0.0)
