"""Computation of many blocks with a bounded number in flight, in the order of the blocks.

The client builds graphs for a few blocks at a time, so that neither it nor the scheduler ever holds
a graph of all. The bound follows the threads of the cluster, whose workers may come and go.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future, as_completed

from dask_onnx.cluster.current_scheduler import cancelled_error
from dask_onnx.core.errors import ClusterError, Suggestion
from dask_onnx.jobs.job_progress import JobProgress, block_result

_BLOCKS_PER_THREAD = 8
"""Blocks in flight for each thread: enough that none waits while the next graph is built."""
_LEAST_SLICE, _MOST_SLICE = 16, 256
"""Bounds of the number of blocks of one graph."""
_BUILD_SHARE = 0.02
"""Share of the time that building graphs may take before graphs become larger."""


@dataclass(frozen=True, slots=True)
class BlockWork:
    """Blocks of a job, and how they are computed."""

    count: int
    """Number of all blocks."""
    submit: Callable[[range], Sequence[Future]]
    """Starts consecutive blocks; returns a future for each, in order."""
    units_of: Callable[[int], int]
    """Units that a block completes, by its position."""
    unit: str
    """Noun of the units, such as "rows"."""
    is_done: Callable[[int], bool]
    """Tells by its position whether a block was complete before."""
    collect: Callable[[Any], None] | None = None
    """Takes the result of each block; None if results are of no interest."""
    suggestions: Sequence[Suggestion] = ()
    """Options that reduce the memory of a block."""


def compute_blocks(client: Client, work: BlockWork, progress: JobProgress) -> int:
    """Compute the blocks that are not complete, and report each that is.

    Parameters
    ----------
    client : Client
    work : BlockWork
    progress : JobProgress

    Returns
    -------
    int
        Number of blocks that were computed.

    Raises
    ------
    ClusterError
        The scheduler was lost, or the cluster was restarted.
    StageError
        Workers died while they ran a block; besides, whatever a block raised. Blocks in flight are
        cancelled, also on an interruption.
    """
    window = _Window(client, work, progress)
    try:
        return window.run()
    except BaseException as error:
        progress.stopping()
        # The scheduler may be what failed.
        with contextlib.suppress(Exception):
            client.cancel(list(window.in_flight), force=True)
        if isinstance(error, CancelledError | OSError) and client.status != "running":
            raise _lost(client) from error
        if isinstance(error, CancelledError):
            raise cancelled_error(
                "go on with resume=True (--resume)", [Suggestion("resume", True)]
            ) from error
        raise


def _lost(client: Client) -> ClusterError:
    return ClusterError(
        f"the scheduler was lost while the job ran (the client is {client.status!r})",
        "start the cluster again, and go on with resume=True (--resume)",
        option="scheduler",
        reason=str(client.status),
        suggestions=[Suggestion("resume", True)],
    )


class _Window:
    """Blocks in flight."""

    def __init__(self, client: Client, work: BlockWork, progress: JobProgress) -> None:
        self.client, self.work, self.progress = client, work, progress
        self.in_flight: dict[Future, int] = {}
        """Futures of blocks, with the units that each completes."""
        self._next, self._slice = 0, _LEAST_SLICE
        self._completed = as_completed(loop=client.loop)
        self._submitted_at = time.perf_counter()

    def run(self) -> int:
        """Compute the blocks that are not complete, and return their number."""
        work, computed = self.work, 0
        total = sum(map(work.units_of, range(work.count)))
        done = sum(work.units_of(block) for block in range(work.count) if work.is_done(block))
        self.progress.advanced(done, total, work.unit)
        self._fill()
        while self.in_flight:
            batch = self._completed.next_batch()
            self._collect(batch)
            for future in batch:
                done += self.in_flight.pop(future)
            computed += len(batch)
            self.progress.advanced(done, total, work.unit)
            self._fill()
        return computed

    def _collect(self, batch: Sequence[Future]) -> None:
        """Raise what a block raised, and pass results on: one request for all."""
        for future in batch:
            if future.status != "finished":
                block_result(future, self.work.suggestions)
        if self.work.collect is not None:
            for result in self.client.gather(batch):
                self.work.collect(result)

    def _fill(self) -> None:
        """Start blocks until enough are in flight."""
        if self._next >= self.work.count:
            return
        threads = max(1, sum(self.client.nthreads().values()))
        room = max(_BLOCKS_PER_THREAD * threads, 2 * self._slice)
        size = max(self._slice, _BLOCKS_PER_THREAD * threads // 2)
        while len(self.in_flight) + size <= room and (blocks := self._take(size)):
            began = time.perf_counter()
            futures = self.work.submit(blocks)
            self.in_flight.update(zip(futures, map(self.work.units_of, blocks), strict=True))
            self._completed.update(futures)
            now = time.perf_counter()
            is_slow = now - began > _BUILD_SHARE * (now - self._submitted_at)
            if is_slow and len(blocks) == size:
                self._slice = min(max(size, 2 * self._slice), _MOST_SLICE)
            self._submitted_at = now

    def _take(self, size: int) -> range:
        """Return the next blocks that are not complete and follow each other, at most `size`."""
        count, is_done = self.work.count, self.work.is_done
        while self._next < count and is_done(self._next):
            self._next += 1
        start = self._next
        while self._next < min(count, start + size) and not is_done(self._next):
            self._next += 1
        return range(start, self._next)
