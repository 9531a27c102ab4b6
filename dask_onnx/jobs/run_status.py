"""Progress of the run that writes an output, read from the files beside the output."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dask_onnx.core.errors import InputError
from dask_onnx.io.begun_outputs import find_begun
from dask_onnx.io.block_journal import DoneBlock
from dask_onnx.io.output_lock import LockHolder, lock_holder
from dask_onnx.io.targets import absolute_target, target_exists

_RECENT = 200
"""Blocks of whose times the rate is made."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """State of an output."""

    target: str
    """Absolute path, or URL."""
    state: Literal["complete", "running", "ended"]
    """State of the output: complete, being written, or left incomplete by a run that ended."""
    blocks: int | None = None
    """Blocks that are complete; None if no run has begun the output."""
    all_blocks: int | None = None
    """Number of all blocks; None if it is not known."""
    rows: int | None = None
    """Rows of the blocks that are complete: pixels of a raster."""
    all_rows: int | None = None
    """Rows of the input; None if they are not known."""
    rate: float | None = None
    """Rows per second of the latest blocks; None of fewer than two."""
    holder: LockHolder | None = None
    """The run that writes the output at the moment."""

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
    if begun is None:
        if holder is not None:
            return RunStatus(target, "running", holder=holder)
        if not target_exists(target):
            raise InputError(
                f"there is neither an output {target} nor a run that has begun it",
                "check the path",
                option="path",
            )
        return RunStatus(target, "complete")
    manifest = begun.manifest
    return RunStatus(
        target=target,
        state="ended" if holder is None else "running",
        blocks=begun.blocks,
        all_blocks=manifest.blocks,
        rows=begun.rows,
        all_rows=manifest.rows,
        rate=rate_of(begun.done_blocks),
        holder=holder,
    )


def rate_of(done: Iterable[DoneBlock]) -> float | None:
    """Return the rows per second of the latest blocks; None of fewer than two.

    Parameters
    ----------
    done : iterable of DoneBlock
    """
    latest = sorted(done, key=lambda block: block.at)[-_RECENT:]
    seconds = latest[-1].at - latest[0].at if latest else 0.0
    if seconds <= 0:
        return None
    # The first block was complete when the time began.
    return sum(block.counts[0] for block in latest[1:] if block.counts) / seconds
