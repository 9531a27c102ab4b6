"""Worker plugin of one profile: notes of phases, stages, transfers, memory and Dask's own metrics.

Workers send their notes to the scheduler every second, so that those of a lost worker are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distributed.diagnostics.plugin import WorkerPlugin

from dask_onnx.cluster.profile_scheduler_plugin import TOPIC, plugin_name, read_clock
from dask_onnx.core.dask_internals import (
    LogTail,
    clock_shift_of,
    digests_of,
    executing_of,
    run_function_on_scheduler,
    transfer_logs_of,
)
from dask_onnx.core.meters import NodesMode, Recording, begin_recording, end_recording
from dask_onnx.core.stage_runs import peak_bytes

_FLUSH_SECONDS = 1.0
"""Seconds between messages of a worker."""
_CLOCK_ROUNDS = 7
"""Questions for the scheduler's time, of which that with the fastest answer counts."""


class WorkerNotes(NamedTuple):
    """Notes of a worker since its last message. Times are of its own clock."""

    worker: str
    host: str
    """Name of the host."""
    offset: float
    """Seconds by which its clock is ahead of the scheduler's."""
    error: float
    """Largest error of `offset`, in seconds."""
    shifts: list[Any]
    """Time, and the seconds that Dask's own estimate of the scheduler's clock adds to it since."""
    executing: list[Any]
    """Key and start of each task that runs."""
    phases: list[Any]
    """Fields of each `PhaseNote`."""
    stages: list[Any]
    """Fields of each `StageNote`."""
    incoming: list[Any]
    """Values that it got: start, stop, sender, bytes, keys; times are Dask's estimates."""
    outgoing: list[Any]
    """Values that it sent: start, stop, receiver, bytes in memory, bytes sent, keys; likewise."""
    has_missed: bool
    """True if Dask's log of transfers had forgotten some before they were read."""
    gauges: list[Any]
    """Time, CPU in percent, resident bytes, bytes received and sent per second by the host's
    network, percent of the GPU, and bytes of its memory."""
    digests: list[Any]
    """Dask's metrics since the profile began: context, span, name, label, unit, value."""
    peak: int
    """Largest resident bytes so far."""
    dropped: int
    """Notes that were not kept."""
    gpu: str
    """Name of the GPU; empty if there is none."""


class _Mark(NamedTuple):
    """Notes that have been sent."""

    phases: int = 0
    stages: int = 0
    gauges: int = 0
    incoming: int = 0
    outgoing: int = 0


class ProfileWorkerPlugin(WorkerPlugin):
    """Records on one worker while a profile runs.

    Parameters
    ----------
    profile : str
        Identifier of the profile.
    nodes : {"sample", "all", "none"}
        Tasks whose nodes are timed.
    """

    idempotent = True

    def __init__(self, profile: str, nodes: NodesMode) -> None:
        self.name = plugin_name(profile)
        self.profile, self.nodes = profile, nodes
        self.worker: Any = None
        self.recording: Recording | None = None
        self.offset, self.error = 0.0, 0.0
        self.began = 0.0
        self.before: dict[Any, float] = {}
        self.shifts: list[tuple[float, float]] = []
        self.began_with = self.sent = _Mark()
        self.tails: tuple[LogTail, LogTail] | None = None
        self.incoming: list[tuple[Any, ...]] = []
        self.outgoing: list[tuple[Any, ...]] = []
        self.is_closed = False
        self._flushing: asyncio.Task[None] | None = None

    async def setup(self, worker: Any) -> None:
        """Measure the worker's clock, and record from now on."""
        self.worker, self.began = worker, time.time()
        self.before = digests_of(worker)
        self.recording = begin_recording(self.profile, worker.address, self.nodes)
        self._note_shift()
        incoming, outgoing = transfer_logs_of(worker)
        self.tails = LogTail(incoming), LogTail(outgoing)
        self.began_with = self.sent = _Mark(gauges=worker.monitor.count)
        with contextlib.suppress(OSError, RuntimeError):
            self.offset, self.error = await _measure_clock(worker)
        self._flushing = asyncio.create_task(self._flush_often())

    def _note_shift(self) -> float:
        """Note what Dask adds to the times of this worker, if that has changed, and return it."""
        shift = clock_shift_of(self.worker)
        if not self.shifts or self.shifts[-1][1] != shift:
            self.shifts.append((time.time(), shift))
        return shift

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Note the shift of a task's times when it starts: each heartbeat changes it.

        When a value has come, read what was logged of it, since Dask's log is short.
        """
        if finish == "executing":
            self._note_shift()
        elif start == "flight":
            self._read_logs()

    def _read_logs(self) -> None:
        """Keep what is new in Dask's logs of transfers."""
        if self.tails is None or self.recording is None:
            return
        incoming, outgoing = self.tails
        for entry in incoming.read():
            self.recording.add(self.incoming, _arrival(entry))
        for entry in outgoing.read():
            self.recording.add(self.outgoing, _sending(entry))

    async def teardown(self, worker: Any) -> None:
        """Send what is left, and record no more."""
        if self._flushing is not None:
            self._flushing.cancel()
        if self.recording is not None:
            self.flush()
            end_recording(self.recording)
            self.recording = None

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Send the notes that are new to the scheduler."""
        if self.recording is None or self.is_closed:
            return
        new, self.sent = self.notes_since(self.sent)
        self.worker.log_event(TOPIC, {"profile": self.profile, **_plain(new._asdict())})

    def close(self) -> WorkerNotes:
        """Keep no more notes, and return all of them."""
        assert self.recording is not None
        self.recording.is_open, self.is_closed = False, True
        return self.notes_since(self.began_with)[0]

    def notes_since(self, mark: _Mark) -> tuple[WorkerNotes, _Mark]:
        """Return the notes that are newer than a mark, and the mark of the newest.

        Dask's metrics are always those since the profile began.
        """
        recording, worker = self.recording, self.worker
        assert recording is not None
        self._note_shift()
        self._read_logs()
        phases, stages = recording.phases[mark.phases :], recording.stages[mark.stages :]
        new = _Mark(
            mark.phases + len(phases),
            mark.stages + len(stages),
            worker.monitor.count,
            len(self.incoming),
            len(self.outgoing),
        )
        return self._notes(mark, phases, stages), new

    def _notes(self, mark: _Mark, phases: list[Any], stages: list[Any]) -> WorkerNotes:
        worker = self.worker
        return WorkerNotes(
            worker=worker.address,
            host=socket.gethostname(),
            offset=self.offset,
            error=self.error,
            shifts=list(self.shifts),
            executing=executing_of(worker),
            phases=phases,
            stages=stages,
            incoming=self.incoming[mark.incoming :],
            outgoing=self.outgoing[mark.outgoing :],
            has_missed=any(tail.has_missed for tail in self.tails or ()),
            gauges=_gauges(worker.monitor.range_query(mark.gauges)),
            digests=_new_digests(digests_of(worker), self.before),
            peak=peak_bytes(),
            dropped=0 if self.recording is None else self.recording.dropped,
            gpu=worker.monitor.gpu_name or "",
        )


def worker_notes(profile: str, dask_worker: Any = None) -> WorkerNotes | None:
    """Close a profile on a worker and return its notes; for `Client.run`."""
    plugin = dask_worker.plugins.get(plugin_name(profile))
    return None if plugin is None or plugin.recording is None else plugin.close()


async def _measure_clock(worker: Any) -> tuple[float, float]:
    """Return the seconds by which a worker's clock is ahead of the scheduler's, and the error.

    The answer that took the shortest time lies best between question and answer (as in NTP).
    """
    call = run_function_on_scheduler(worker)
    found: list[tuple[float, float]] = []
    for _ in range(_CLOCK_ROUNDS):
        asked = time.time()
        answer = await call(function=pickle.dumps(read_clock), args=pickle.dumps(()))
        answered = time.time()
        if answer["status"] == "OK":
            found.append((answered - asked, (asked + answered) / 2 - answer["result"]))
    took, offset = min(found, default=(0.0, 0.0))
    return offset, took / 2


def _arrival(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = list(map(str, entry["keys"]))
    return entry["start"], entry["stop"], entry["who"], int(entry["total"]), keys


def _sending(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = int(entry["total"]), int(entry["compressed"] or 0)
    keys = list(map(str, entry["keys"]))
    return (entry["start"], entry["stop"], entry["who"] or "", *sizes, keys)


_GAUGES = (
    "time",
    "cpu",
    "memory",
    "host_net_io.read_bps",
    "host_net_io.write_bps",
    "gpu_utilization",
    "gpu_memory_used",
)


def _gauges(columns: Mapping[str, Sequence[Any]]) -> list[tuple[float, ...]]:
    """Return rows of what Dask's monitor of a process has measured."""
    count = len(columns["time"])
    series = [columns.get(name) or [0.0] * count for name in _GAUGES]
    return [tuple(float(value or 0.0) for value in row) for row in zip(*series, strict=True)]


def _new_digests(now: Mapping[Any, float], before: Mapping[Any, float]) -> list[tuple[Any, ...]]:
    """Return the metrics that grew: context, span, name, label, unit and growth."""
    found = []
    for name, value in now.items():
        grown = value - before.get(name, 0)
        if not isinstance(name, tuple) or not grown or len(name) < 3:
            continue
        context, *middle, label, unit = map(str, name)
        span, task = middle if len(middle) == 2 else ("", "")
        found.append((context, span, task, label, unit, float(grown)))
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return notes as what a message may hold: lists and plain values."""
    return {
        name: [list(row) for row in value] if isinstance(value, list) else value
        for name, value in values.items()
    }
