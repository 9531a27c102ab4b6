"""What stages took in this process: noted by their tasks, asked for afterwards."""

from __future__ import annotations

import re
import resource
import sys
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

_KEPT = 10_000
"""The newest runs, a few megabytes of them."""


@dataclass(frozen=True, slots=True)
class StageRun:
    """One task's work on one stage."""

    token: str
    """Of the stage."""
    started: float
    """Seconds since the epoch, by this host's clock."""
    seconds: float
    """In the stage's kernels alone, all runs together: no waiting, no loading."""
    runs: int
    rows: int | None
    """Of all runs together; None where no input has rows."""


_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)

_noted: deque[StageRun] = deque(maxlen=_KEPT)
_lock = threading.Lock()


def note(run: StageRun) -> None:
    with _lock:
        _noted.append(run)


def noted(tokens: Collection[str] | None = None) -> list[StageRun]:
    """What is noted of some stages, or of all, oldest first."""
    with _lock:
        return [run for run in _noted if tokens is None or run.token in tokens]


NOTES_TOPIC = "dask_onnx-runs"
"""Of Dask's events: what a worker that went had noted."""
_SENT = 2_000
"""The newest runs of a worker that goes."""


def as_message(worker: str, runs: Sequence[StageRun], peak: int) -> dict[str, Any]:
    """In plain lists, as Dask's events are."""
    return {"worker": worker, "peak": peak, "runs": [list(astuple(r)) for r in runs[-_SENT:]]}


def from_message(
    message: Mapping[str, Any], tokens: Collection[str]
) -> tuple[str, tuple[list[StageRun], int]]:
    """The worker, and what it had noted of some stages, with its peak."""
    runs = [StageRun(*each) for each in message["runs"]]
    return message["worker"], ([run for run in runs if run.token in tokens], message["peak"])


def peak_bytes() -> int:
    """The most that was ever resident of this process, mapped pages included."""
    # Linux hands ru_maxrss on to the processes that one starts; this it does not.
    status = Path("/proc/self/status")
    if status.exists() and (found := _PEAK.search(status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
