"""What stages took in this process: noted by their tasks, asked for afterwards."""

from __future__ import annotations

import re
import resource
import sys
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

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


def noted(tokens: Collection[str]) -> list[StageRun]:
    """What is noted of some stages, oldest first."""
    with _lock:
        return [run for run in _noted if run.token in tokens]


def peak_bytes() -> int:
    """The most that was ever resident of this process, mapped pages included."""
    # Linux hands ru_maxrss on to the processes that one starts; this it does not.
    status = Path("/proc/self/status")
    if status.exists() and (found := _PEAK.search(status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
