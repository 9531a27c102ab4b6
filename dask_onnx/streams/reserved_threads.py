"""Threads of a cluster that are kept free for each stream of a group. Pure logic.

The streams of one group are the models of a composite whose results do not wait for each other. A
task cannot be interrupted, so a slow model must leave a thread to each of the others before they
ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHORT_SECONDS = 0.05
"""Seconds of a thread for which frames may queue: who waits for it notices no more than that."""
_FRAMES_PER_THREAD = 4
"""Frames of quick models that may queue for each thread of the cluster."""


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """Tasks on the cluster of one stream of a group."""

    running: int
    """Tasks that have started and not finished."""
    seconds: float | None
    """Seconds that one takes; None if none has finished."""

    @property
    def is_quick(self) -> bool:
        """True if one more task holds nobody up."""
        return self.seconds is not None and (self.running + 1) * self.seconds <= _SHORT_SECONDS


@dataclass(slots=True, eq=False)
class StreamGroup:
    """Streams for each of which a thread is kept free, also before it has started."""

    size: int
    """Number of its streams."""
    joined: int = 0
    """Number of those that have started."""

    @property
    def missing(self) -> list[ThreadUse]:
        """Threads that those use which have not started."""
        return [ThreadUse(0, None)] * (self.size - self.joined)


def may_start(own: ThreadUse, others: Sequence[ThreadUse], threads: int) -> bool:
    """Return whether a stream may start another task.

    Its first one always may. Another one may if it is quick, or if a thread is left then for each
    of the other streams.

    Parameters
    ----------
    own : ThreadUse
    others : sequence of ThreadUse
        The other streams of the group that have not ended.
    threads : int
        Threads of the cluster.
    """
    if own.running == 0:
        return True
    if own.is_quick:
        return own.running < _FRAMES_PER_THREAD * threads
    taken = sum(1 if other.is_quick else max(1, other.running) for other in others)
    return own.running + 1 + taken <= threads
