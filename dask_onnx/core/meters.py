"""Meters of what tasks and transfers do: seconds, bytes and counts of their phases.

Meters go to distributed's `context_meter`. So inside a task they are part of Dask's fine
performance metrics, which the scheduler adds up, its dashboard shows, and the loss of a worker does
not take away. Beyond that, nothing is kept unless a profile records here (`begin_recording`).
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from distributed.metrics import context_meter

from dask_onnx.core.dask_internals import has_metric_listeners, running_task_key

P = ParamSpec("P")
Result = TypeVar("Result")
PREFIX = "onnx-"
"""Beginning of the labels of this package among Dask's metrics."""
NodesMode = Literal["sample", "all", "none"]
"""Tasks whose nodes a profile times."""
_MAX_NOTES = 500_000
"""Notes of a kind that a recording keeps: some hundred megabytes at most."""


class PhaseNote(NamedTuple):
    """One phase of a task or of a transfer, as it is noted where it happens."""

    owner: str
    """Address of the worker; empty where no task of a worker runs in this thread."""
    key: str
    """Dask's key of the task; empty where none runs in this thread."""
    thread: int
    """Identifier of the thread."""
    phase: str
    """Name of the phase, such as "run"."""
    start: float
    """Seconds since the epoch, by this host's clock."""
    seconds: float
    """Seconds from begin to end."""
    own_seconds: float
    """The same, without metered phases inside."""
    plain_bytes: int = 0
    """Bytes of values in memory, where the phase moves any."""
    wire_bytes: int = 0
    """Bytes of the same values as they are sent."""
    peer: str = ""
    """Host that they are sent to."""


class StageNote(NamedTuple):
    """Work of one task on one stage, as it is noted where it happens."""

    owner: str
    """Address of the worker; empty in this process outside workers."""
    key: str
    """Dask's key of the task; empty outside workers."""
    thread: int
    """Identifier of the thread."""
    start: float
    """Seconds since the epoch at which the task's function was entered, by this host's clock."""
    seconds: float
    """Seconds until it returned or raised."""
    token: str
    """Token of the stage."""
    label: str
    """Label of the stage."""
    model: str
    """Token of the model."""
    kernel: str
    """Kernel that runs the stage."""
    nodes: int
    """Nodes of the stage."""
    run_seconds: float
    """Seconds of its runs."""
    runs: int
    """Number of its runs."""
    rows: int | None
    """Rows of all runs; None where no input has rows."""
    threads: int
    """Threads that a run could use."""
    input_bytes: int
    """Bytes of the inputs."""
    output_bytes: int
    """Bytes of the outputs."""
    error: str = ""
    """Class of the exception that ended it; empty if it returned."""
    message: str = ""
    """First line of the exception."""


@dataclass(slots=True)
class Recording:
    """Notes of one profile in one process, or of one of its workers."""

    profile: str
    """Identifier of the profile."""
    owner: str
    """Address of the worker; empty for this process outside workers."""
    nodes: NodesMode = "none"
    """Tasks whose nodes are timed."""
    phases: list[PhaseNote] = field(default_factory=list)
    stages: list[StageNote] = field(default_factory=list)
    dropped: int = 0
    """Notes that were not kept, since there were too many."""
    samples: dict[str, list[Any]] = field(default_factory=dict)
    """Stage token to tasks that are kept for a replay (`runtime.node_samples`)."""
    seen: dict[str, int] = field(default_factory=dict)
    """Stage token to the number of tasks that might have been kept."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    """Source of the random choice of samples."""
    is_open: bool = True
    """False once no more notes are kept."""

    def takes(self, owner: str) -> bool:
        """Return whether notes of a worker belong here; those without a worker belong anywhere."""
        return self.is_open and owner in ("", self.owner)

    def add(self, notes: list[Any], note: Any) -> None:
        """Append a note to `phases` or `stages`, unless there are too many."""
        if len(notes) < _MAX_NOTES:
            notes.append(note)
        else:
            self.dropped += 1


_recordings: tuple[Recording, ...] = ()
_lock = threading.Lock()


def begin_recording(profile: str, owner: str = "", nodes: NodesMode = "none") -> Recording:
    """Keep notes in this process from now on, and return where they are kept.

    Parameters
    ----------
    profile : str
        Identifier of the profile.
    owner : str
        Address of the worker whose notes are kept; empty for those outside workers.
    nodes : {"sample", "all", "none"}
        Tasks whose nodes are timed.
    """
    global _recordings
    recording = Recording(profile, owner, nodes)
    with _lock:
        _recordings = (*_recordings, recording)
    return recording


def end_recording(recording: Recording) -> None:
    """Forget a recording; it may have been ended before."""
    global _recordings
    recording.is_open = False
    with _lock:
        _recordings = tuple(each for each in _recordings if each is not recording)


def recordings_of(owner: str) -> tuple[Recording, ...]:
    """Return the recordings that notes of a worker belong to; without any nothing is recorded."""
    return tuple(each for each in _recordings if each.takes(owner)) if _recordings else ()


def is_recording() -> bool:
    """Return whether any profile records in this process."""
    return bool(_recordings)


def recording_of(profile: str, owner: str) -> Recording | None:
    """Return the recording of a profile for a worker, if there is one."""
    found = (e for e in _recordings if e.profile == profile and e.owner == owner)
    return next(found, None)


def record_stage(note: StageNote) -> None:
    """Keep a note of a task's work on a stage in the recordings that it belongs to."""
    for recording in recordings_of(note.owner):
        recording.add(recording.stages, note)


def record_phase(note: PhaseNote) -> None:
    """Keep a note of a phase in the recordings that it belongs to."""
    for recording in recordings_of(note.owner):
        recording.add(recording.phases, note)


class Moved:
    """Bytes that a metered phase moves, set while it runs."""

    __slots__ = ("peer", "plain_bytes", "wire_bytes")

    def __init__(self) -> None:
        self.plain_bytes = 0
        """Bytes of values in memory."""
        self.wire_bytes = 0
        """Bytes of the same values as they are sent."""
        self.peer = ""
        """Host that they are sent to."""


class metered:  # noqa: N801 - used as a function is: `with metered("run"):`, or `@metered("read")`
    """Meter of the seconds of a phase, without those of metered phases inside it.

    A context manager, or a decorator of functions. It costs next to nothing where nobody listens:
    outside tasks and transfers of a cluster, unless a profile records.

    Parameters
    ----------
    phase : str
        Name of the phase. Its label among Dask's metrics begins with `PREFIX`.
    """

    __slots__ = ("_meter", "_moved", "_running", "_started", "phase")

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self._running: Any = None

    def __enter__(self) -> Moved:
        """Begin the phase, and return where the caller notes the bytes that it moves."""
        self._moved = Moved()
        if is_metered():
            self._started = time.time()
            self._running = context_meter.meter(PREFIX + self.phase)
            self._meter = self._running.__enter__()
        return self._moved

    def __exit__(self, *error: Any) -> None:
        if self._running is None:
            return
        self._running.__exit__(*error)
        moved, meter = self._moved, self._meter
        if moved.plain_bytes:
            count("plain", moved.plain_bytes, "bytes")
            count("wire", moved.wire_bytes, "bytes")
        if _recordings:
            owner, key = running_task_key()
            whole = meter.stop - meter.start
            place = (owner, key, threading.get_ident(), self.phase, self._started)
            bytes_moved = (moved.plain_bytes, moved.wire_bytes, moved.peer)
            record_phase(PhaseNote(*place, whole, meter.delta, *bytes_moved))

    def __call__(self, function: Callable[P, Result]) -> Callable[P, Result]:
        """Return a function whose calls are metered."""

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            with metered(self.phase):
                return function(*args, **kwargs)

        return call


def is_metered() -> bool:
    """Return whether anybody listens to what is metered in this thread."""
    return bool(_recordings) or has_metric_listeners()


def count(label: str, value: float, unit: str = "count") -> None:
    """Add to a count of the task, or the transfer, that this thread works on.

    Parameters
    ----------
    label : str
        Name of the count, without `PREFIX`.
    value : number
        Number to add.
    unit : str
        "count" or "bytes".
    """
    context_meter.digest_metric(PREFIX + label, value, unit)
