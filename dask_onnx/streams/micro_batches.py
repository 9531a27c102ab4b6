"""Micro-batches over frames and streams: which streams may start a run now. Pure logic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Head:
    """A stream with frames to start."""

    stream: int
    key: Any
    """Key that streams share whose frames may share a run; None if this one's do not."""
    size: int
    """Frames of a micro-batch."""
    count: int
    """Frames that wait."""
    due: float
    """Time at which the oldest of them starts, however few there are."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Streams that may start a run now."""

    streams: tuple[int, ...]
    size: Mapping[int, int]
    """Stream to the frames that its run may have."""


def plan_batch(heads: Iterable[Head], now: float) -> BatchPlan | float | None:
    """Return the streams that may start a run now.

    Parameters
    ----------
    heads : iterable of Head
        Streams with frames to start.
    now : float
        Monotonic time in seconds.

    Returns
    -------
    BatchPlan, float or None
        If none may start now, the time at which the first one will; None if no frame waits.
    """
    groups: defaultdict[Any, list[Head]] = defaultdict(list)
    for head in heads:
        groups[("alone", head.stream) if head.key is None else head.key].append(head)
    size: dict[int, int] = {}
    later: list[float] = []
    for group in groups.values():
        count, due = sum(head.count for head in group), min(head.due for head in group)
        if group[0].key is None or count >= group[0].size or due <= now:
            size |= {
                head.stream: 1 if head.key is None else min(count, head.size) for head in group
            }
        else:
            later.append(due)
    if size:
        return BatchPlan(tuple(size), size)
    return min(later, default=None)
