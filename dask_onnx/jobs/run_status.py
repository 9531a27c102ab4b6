"""Progress of the run that writes an output, read from the files beside the output."""

from __future__ import annotations

import datetime
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dask_onnx.core.errors import InputError
from dask_onnx.io.begun_outputs import BegunRun, find_begun
from dask_onnx.io.output_lock import LockHolder, lock_holder
from dask_onnx.io.targets import absolute_target, target_exists
from dask_onnx.jobs.completed_runs import change_of, completed_run

State = Literal["complete", "running", "ended", "foreign"]
_RECENT = 200
"""Blocks of whose times the rate is made."""
_LONGEST_GAP = 20.0
"""Times the usual time between two blocks after which a pause divides two runs."""
_LEAST_GAP_SECONDS = 60.0
"""Seconds that are no pause, whatever the usual time is."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """State of an output."""

    target: str
    """Absolute path, or URL."""
    state: State
    """State of the output: complete, being written, left incomplete by a run that ended, or not
    known to be written by a run."""
    blocks: int | None = None
    """Blocks that are complete; None if no run has begun the output."""
    all_blocks: int | None = None
    """Number of all blocks; None if it is not known."""
    rows: int | None = None
    """Rows of what is complete: pixels of a raster."""
    all_rows: int | None = None
    """Rows of the input; None if they are not known."""
    rate: float | None = None
    """Rows per second of the latest blocks; None of fewer than two."""
    holder: LockHolder | None = None
    """The run that writes the output at the moment."""
    reason: str | None = None
    """Reason that no run is known to have written the output; None where one has."""

    @property
    def rows_left(self) -> int | None:
        """Rows that are not complete; None if that is not known."""
        if self.rows is None or self.all_rows is None:
            return None
        return self.all_rows - self.rows

    @property
    def blocks_left(self) -> int | None:
        """Blocks that are not complete; None if that is not known."""
        if self.blocks is None or self.all_blocks is None:
            return None
        return self.all_blocks - self.blocks

    @property
    def seconds_left(self) -> float | None:
        """Time that a run needs for what is left, at its rate; None if that is not known."""
        if self.state != "running" or not self.rate:
            return None
        if self.rows_left is not None:
            return self.rows_left / self.rate
        if self.blocks_left is None or not self.blocks or not self.rows:
            return None
        return self.blocks_left * (self.rows / self.blocks) / self.rate


def run_status(path: str | os.PathLike[str]) -> RunStatus:
    """Return the state of an output.

    Parameters
    ----------
    path : path or URL
        Output of a run, complete or not.

    Raises
    ------
    InputError
        There is neither an output nor a run; the record of a run is damaged.
    """
    target = absolute_target(os.fspath(path))
    holder, begun = lock_holder(target), find_begun(target)
    if begun is not None:
        return _of_begun(target, begun, holder)
    if holder is not None:
        return RunStatus(target, "running", holder=holder)
    if not target_exists(target):
        raise InputError(
            f"there is neither an output {target} nor a run that has begun it",
            "check the path",
            option="path",
        )
    completed = completed_run(target)
    if completed is None:
        return RunStatus(target, "foreign", reason="there is no record of a run that wrote it")
    if (change := change_of(target, completed)) is not None:
        return RunStatus(target, "foreign", reason=change)
    result = completed.prediction([target])
    rows = result.rows if result.shape is None else math.prod(result.shape)
    return RunStatus(target, "complete", result.blocks, result.blocks, rows, rows)


def _of_begun(target: str, begun: BegunRun, holder: LockHolder | None) -> RunStatus:
    return RunStatus(
        target=target,
        state="ended" if holder is None else "running",
        blocks=begun.blocks,
        all_blocks=begun.manifest.blocks,
        rows=begun.rows,
        all_rows=begun.manifest.rows,
        rate=rate_of(
            *begun.done.latest(_RECENT, -float("inf") if holder is None else began(holder))
        ),
        holder=holder,
    )


def began(holder: LockHolder) -> float:
    """Return the time at which a run began, in seconds since the epoch."""
    try:
        return datetime.datetime.fromisoformat(holder.since).timestamp()
    except ValueError:
        return -float("inf")


def rate_of(times: Sequence[float], rows: Sequence[int]) -> float | None:
    """Return the rows per second of blocks; None of fewer than two.

    A long pause divides the blocks of two runs, of which the latter counts.

    Parameters
    ----------
    times : sequence of float
        Times of completion in seconds, ascending.
    rows : sequence of int
        Rows of each block.
    """
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if not gaps:
        return None
    longest = max(_LEAST_GAP_SECONDS, _LONGEST_GAP * sorted(gaps)[len(gaps) // 2])
    first = max((place + 1 for place, gap in enumerate(gaps) if gap > longest), default=0)
    seconds = times[-1] - times[first]
    # The first block was complete when the time began.
    return sum(rows[first + 1 :]) / seconds if seconds > 0 else None
