"""Statistics of a stream while it runs: latencies, rate, drops, and frames in flight."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dask_onnx.core.errors import DaskOnnxError

_LATENCIES = 4096
"""Number of last frames whose latencies give the percentiles."""
_RATE_SECONDS = 10.0
"""Seconds over which the rate is counted, at most."""
_LETTERS = 32
"""Number of last frames that failed whose errors are kept."""


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """Counts, latencies and rate of a stream at one moment."""

    stream: str
    """Name of the stream."""
    read: int
    """Frames that the source has given."""
    done: int
    """Frames with a result."""
    late: int
    """Frames with a result that came after their deadline."""
    dropped_late: int
    """Frames that were dropped after their deadline."""
    dropped_for_newer: int
    """Frames that were dropped for a newer one."""
    failed: int
    """Frames that failed."""
    waiting: int
    """Frames that have not started."""
    running: int
    """Frames that are on the cluster."""
    untaken: int
    """Results that the consumer has not taken."""
    rate: float
    """Frames with a result per second, over the last ten seconds."""
    p50: float | None
    """Median latency in seconds, from a frame's arrival to its result; None before the first."""
    p90: float | None
    """Latency in seconds that nine of ten of the last 4096 frames did not exceed."""
    p99: float | None
    """Latency in seconds that 99 of 100 did not exceed."""
    longest: float | None
    """Longest latency in seconds."""
    swaps: int
    """Times that the model was replaced."""

    @property
    def dropped(self) -> int:
        """Frames that were dropped for either reason."""
        return self.dropped_late + self.dropped_for_newer

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        latency = "no latencies yet"
        if self.p50 is not None and self.p99 is not None:
            latency = f"p50 {1e3 * self.p50:.1f} ms, p99 {1e3 * self.p99:.1f} ms"
        return (
            f"{self.stream}: {self.done:,} of {self.read:,} frames, {self.rate:.1f}/s, {latency}; "
            f"{self.late:,} late, {self.dropped:,} dropped, {self.failed:,} failed; "
            f"{self.waiting} waiting, {self.running} running, {self.untaken} not taken"
        )


class StatisticsCounter:
    """Counts of one stream; safe to read while another thread counts."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("read", "done", "late", "dropped_late", "dropped_for_newer", "failed", "swaps"), 0
        )
        self._levels = dict.fromkeys(("waiting", "running", "untaken"), 0)
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._finished: deque[float] = deque(maxlen=_LATENCIES)
        self._letters: deque[dict[str, Any]] = deque(maxlen=_LETTERS)
        self._began: float | None = None

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count, named as the field of `StreamStatistics`."""
        with self._lock:
            self._counts[name] += number
            if name == "read" and self._began is None:
                self._began = time.monotonic()

    def add_result(self, latency: float, *, is_late: bool) -> None:
        """Count a frame with a result.

        Parameters
        ----------
        latency : float
            Seconds from its arrival to its result.
        is_late : bool
            True if that is past its deadline.
        """
        with self._lock:
            self._counts["done"] += 1
            self._counts["late"] += is_late
            self._latencies.append(latency)
            self._finished.append(time.monotonic())

    def add_failure(self, index: int, error: Exception) -> None:
        """Count a frame that failed, and keep its error as text."""
        cause = error.cause if isinstance(error, DaskOnnxError) else str(error)
        letter = {"frame": index, "error": type(error).__name__, "cause": cause}
        with self._lock:
            self._counts["failed"] += 1
            self._letters.append(letter)

    def as_plain(self) -> dict[str, Any]:
        """Return the fields of `snapshot` by name, and ``letters``: the last frames that failed."""
        found = self.snapshot().as_dict()
        with self._lock:
            return {**found, "letters": list(self._letters)}

    def set_levels(self, waiting: int, running: int, untaken: int) -> None:
        """Set the numbers of frames by where they are now."""
        with self._lock:
            self._levels = {"waiting": waiting, "running": running, "untaken": untaken}

    def snapshot(self) -> StreamStatistics:
        """Return the statistics of this moment."""
        with self._lock:
            latencies, finished = list(self._latencies), list(self._finished)
            counts, levels, began = dict(self._counts), dict(self._levels), self._began
        now = time.monotonic()
        # A full deque may hold less than the ten seconds.
        since = max(now - _RATE_SECONDS, began or now)
        if len(finished) == _LATENCIES:
            since = max(since, finished[0])
        recent = sum(1 for each in finished if each >= since)
        rate = recent / (now - since) if now > since else 0.0
        p50, p90, p99 = (
            map(float, np.percentile(latencies, [50, 90, 99])) if latencies else [None] * 3
        )
        return StreamStatistics(
            self._stream,
            **counts,
            **levels,
            rate=rate,
            p50=p50,
            p90=p90,
            p99=p99,
            longest=max(latencies, default=None),
        )
