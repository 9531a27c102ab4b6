"""Bytes that a worker has sent over each link, read off Dask's log of transfers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from dask_onnx.core.dask_internals import LogTail, transfer_logs_of

_MOST_RECEIVERS = 64
"""Receivers that a worker tells of, those that got most."""


class LinkBytes(NamedTuple):
    """Bytes of all values that went over a link."""

    plain: int
    """Bytes in memory."""
    wire: int
    """Bytes of Dask's messages with these values, as packed; headers of packets come on top."""


class SentBytes:
    """Sums of what one worker has sent since this was made.

    Dask keeps the newest thousand transfers or so: what is sent beyond that between two looks is
    missing.

    Parameters
    ----------
    worker : distributed.Worker
    """

    def __init__(self, worker: Any) -> None:
        self._tail = LogTail(transfer_logs_of(worker)[1])
        self._sums: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))

    def read(self) -> dict[str, tuple[int, int]]:
        """Return plain and wire bytes by receiver, as a heartbeat may tell them."""
        for entry in self._tail.read():
            plain, wire = self._sums[entry["who"] or ""]
            sums = plain + int(entry["total"]), wire + int(entry["compressed"] or 0)
            self._sums[entry["who"] or ""] = sums
        most = sorted(self._sums.items(), key=lambda item: -item[1][0])
        return dict(most[:_MOST_RECEIVERS])
