"""Streams of this process: what they count, for profiles and for the page of the dashboard."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

STREAMS_TOPIC = "dask_onnx-streams"
"""Topic of the Dask events in which a client tells of its streams, once a second."""
_MOST_RECORDS = 256
"""Number of newest streams that a process keeps, those that have ended included."""


@dataclass(slots=True, eq=False)
class StreamRecord:
    """One stream of this process."""

    name: str
    """Name of the stream."""
    snapshot: Callable[[], Mapping[str, Any]]
    """Function that returns its counts and latencies of this moment, as plain values: the fields of
    `StreamStatistics`, and ``letters``, the last frames that failed."""
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    ended: float | None = None
    """Seconds since the epoch; None while the stream runs."""

    def end(self) -> None:
        """Note the end of the stream, and keep its counts as they are now; only once."""
        if self.ended is None:
            self.ended = time.time()
            last = dict(self.snapshot())
            self.snapshot = lambda: last

    def as_dict(self) -> dict[str, Any]:
        """Return times and counts as plain values."""
        return {"started": self.started, "ended": self.ended, **self.snapshot()}


_records: deque[StreamRecord] = deque(maxlen=_MOST_RECORDS)
_lock = threading.Lock()


def add_stream(record: StreamRecord) -> None:
    """Keep a stream for `stream_records`; the oldest is dropped when too many are kept."""
    with _lock:
        _records.append(record)


def stream_records() -> tuple[StreamRecord, ...]:
    """Return the streams of this process that have started, oldest first."""
    with _lock:
        return tuple(_records)
