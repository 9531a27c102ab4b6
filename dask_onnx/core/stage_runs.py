"""Timings of stages in this process: recorded by their tasks, collected afterwards."""

from __future__ import annotations

import re
import resource
import sys
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

_MAX_RECORDED = 10_000
"""Number of newest runs that a process keeps: a few megabytes."""


@dataclass(frozen=True, slots=True)
class StageRun:
    """Timing of one task's work on one stage."""

    token: str
    """Token of the stage."""
    started: float
    """Seconds since the epoch, by this host's clock."""
    seconds: float
    """Seconds inside the stage's kernel, all runs together, without waiting or loading."""
    runs: int
    """Number of kernel runs."""
    rows: int | None
    """Rows of all runs together; None where no input has rows."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of the stage's inputs, in its order: of all rows of the task, or of the first run
    where they came in micro-batches."""
    threads: int = 1
    """Threads that a run could use."""


_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)

_recorded: deque[StageRun] = deque(maxlen=_MAX_RECORDED)
_lock = threading.Lock()


def record_run(run: StageRun) -> None:
    """Keep a run for `recorded_runs`; the oldest is dropped when too many are kept."""
    with _lock:
        _recorded.append(run)


def recorded_runs(tokens: Collection[str] | None = None) -> list[StageRun]:
    """Return the runs of the stages with these tokens, or of all stages, oldest first."""
    with _lock:
        return [run for run in _recorded if tokens is None or run.token in tokens]


RUNS_TOPIC = "dask_onnx-runs"
"""Topic of the Dask events with the runs of workers that have closed."""
_MAX_SENT = 2_000
"""Number of newest runs that a closing worker sends: events stay in the scheduler's memory."""


def runs_to_message(worker: str, runs: Sequence[StageRun], peak: int) -> dict[str, Any]:
    """Return a Dask event of plain lists with a worker's newest runs.

    Parameters
    ----------
    worker : str
        Address of the worker.
    peak : int
        Its `peak_bytes`.
    """
    return {"worker": worker, "peak": peak, "runs": [list(astuple(r)) for r in runs[-_MAX_SENT:]]}


def runs_from_message(
    message: Mapping[str, Any], tokens: Collection[str]
) -> tuple[str, tuple[list[StageRun], int]]:
    """Return the worker's address, its runs of the stages with these tokens, and its peak bytes."""
    runs = [_run_of(each) for each in message["runs"]]
    return message["worker"], ([run for run in runs if run.token in tokens], message["peak"])


def _run_of(fields: Sequence[Any]) -> StageRun:
    """Return the run of a list of its fields, as which events carry it."""
    run = StageRun(*fields)
    return replace(run, shapes=tuple(map(tuple, run.shapes)))


def peak_bytes() -> int:
    """Return the largest resident size that this process has had, mapped pages included."""
    # On Linux, children inherit ru_maxrss from their parent, so the kernel's own record goes first.
    status = Path("/proc/self/status")
    if status.exists() and (found := _PEAK.search(status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
