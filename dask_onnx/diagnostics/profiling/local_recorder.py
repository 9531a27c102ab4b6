"""Recording of a profile in this process, for Dask's local schedulers.

Dask's callbacks tell when a task was given to a thread and when it ended; notes of stages tell what
it did. Profiles of several threads of this process cannot be told apart: each has all tasks.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import psutil
from dask.callbacks import Callback
from dask.utils import key_split
from distributed.system_monitor import SystemMonitor

from dask_onnx.core.meters import (
    NodesMode,
    PhaseNote,
    StageNote,
    begin_recording,
    end_recording,
)
from dask_onnx.core.stage_runs import peak_bytes
from dask_onnx.core.stage_tasks import block_number, stage_tokens_of
from dask_onnx.diagnostics.profiling.node_records import Sample, take_samples
from dask_onnx.diagnostics.profiling.profile_assembly import (
    category_of,
    stage_records,
    with_lanes,
    with_work,
)
from dask_onnx.diagnostics.profiling.run_profile import (
    THIS_PROCESS,
    ErrorRecord,
    Gauge,
    RunProfile,
    TaskRecord,
    WorkerRecord,
)
from dask_onnx.runtime.cores import available_cores

_GAUGE_SECONDS = 0.2
"""Seconds between measurements of this process."""


class _Step(NamedTuple):
    """One task, in seconds since the epoch."""

    key: Any
    arrived: float
    """Arrival of its graph."""
    ready: float
    start: float
    stop: float
    thread: int
    nbytes: int
    """Bytes of the result."""
    tokens: tuple[str, ...]
    """Stages that it is known to run."""


class _Steps(Callback):
    """Notes the begin and the end of each task of Dask's local schedulers."""

    def __init__(self) -> None:
        self.began: dict[tuple[int, Any], float] = {}
        self.tasks: list[_Step] = []
        self.arrived: dict[int, float] = {}
        self.stopped: dict[tuple[int, Any], float] = {}
        self.edges: set[tuple[str, str]] = set()

    def _start_state(self, dsk: Any, state: Mapping[str, Any]) -> None:
        self.arrived[id(dsk)] = time.time()

    def _pretask(self, key: Any, dsk: Any, state: Mapping[str, Any]) -> None:
        self.began[id(dsk), key] = time.time()

    def _posttask(
        self, key: Any, result: Any, dsk: Any, state: Mapping[str, Any], worker_id: Any
    ) -> None:
        run = id(dsk)
        start, stop = self.began.pop((run, key), 0.0), time.time()
        self.stopped[run, key] = stop
        arrived = self.arrived.get(run, start)
        needed = state.get("dependencies", {}).get(key, ())
        self.edges.update((str(key_split(each)), str(key_split(key))) for each in needed)
        ready = max((self.stopped.get((run, each), arrived) for each in needed), default=arrived)
        # The synchronous scheduler has no threads of its own.
        thread = worker_id if isinstance(worker_id, int) else threading.get_ident()
        size = int(getattr(result, "nbytes", 0) or 0)
        tokens = tuple(stage_tokens_of(dsk[key])) if key in dsk else ()
        self.tasks.append(_Step(key, arrived, ready, start, stop, thread, size, tokens))

    def _finish(self, dsk: Any, state: Mapping[str, Any], failed: bool) -> None:
        run = id(dsk)
        self.arrived.pop(run, None)
        self.stopped = {each: at for each, at in self.stopped.items() if each[0] != run}


class LocalRecorder:
    """Recorder of one profile in this process.

    Parameters
    ----------
    profile : str
        Identifier of the profile.
    nodes : {"sample", "all", "none"}
        Tasks whose nodes are timed.
    """

    def __init__(self, profile: str, nodes: NodesMode) -> None:
        self.profile, self.nodes = profile, nodes
        self.recording = begin_recording(profile, "", nodes)
        self.steps = _Steps()
        # Dask exchanges this set for another one while a scheduler runs in some thread.
        self._registry = Callback.active
        self._registry.add(self.steps._callback)
        self.monitor = SystemMonitor()
        self.rows: list[tuple[float, dict[str, Any]]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="dask-onnx-profile", daemon=True)
        self._thread.start()
        self.began = time.time()

    def finish(self) -> RunProfile:
        """Stop recording, and return the record."""
        wall = time.time() - self.began
        self._stop()
        recording = self.recording
        recording.is_open = False
        own = [note for note in recording.stages if not note.owner]
        tokens = list(dict.fromkeys(note.token for note in own if not note.error))
        samples = {}
        if self.nodes != "none" and tokens:
            samples[THIS_PROCESS] = Sample.take(self.profile, "", tokens)
        end_recording(recording)
        tasks = self._tasks(wall, own)
        worker = WorkerRecord(
            name=THIS_PROCESS,
            host=socket.gethostname(),
            threads=max([available_cores(), *(task.lane + 1 for task in tasks)]),
            memory_limit=psutil.virtual_memory().total,
            joined=0.0,
            left=wall,
            peak_bytes=peak_bytes(),
            gpu=self.monitor.gpu_name or "",
        )
        sampled = take_samples(stage_records(own), own, [worker], samples)
        dropped = f"{recording.dropped:,} notes were not kept, since there were too many"
        return RunProfile(
            id=self.profile,
            started=self.began,
            wall=wall,
            mode=self.nodes,
            scheduler="threads",
            workers=sampled.workers,
            stages=sampled.stages,
            tasks=tuple(tasks),
            nodes=sampled.nodes,
            gauges=tuple(self._gauges(wall)),
            errors=tuple(_errors(own)),
            edges=tuple(sorted(self.steps.edges)),
            notes=(dropped,) if recording.dropped else (),
        )

    def abandon(self) -> None:
        """Stop recording without a result."""
        self._stop()
        end_recording(self.recording)

    def _stop(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._registry.discard(self.steps._callback)
        self.monitor.close()

    def _measure(self) -> None:
        while not self._is_over.wait(_GAUGE_SECONDS):
            self.rows.append((time.time(), self.monitor.update()))

    def _gauges(self, wall: float) -> Iterable[Gauge]:
        for at, row in self.rows:
            yield Gauge(
                THIS_PROCESS,
                min(max(at - self.began, 0.0), wall),
                float(row["cpu"]),
                float(row["memory"]),
                float(row.get("host_net_io.read_bps", 0.0)),
                float(row.get("host_net_io.write_bps", 0.0)),
                float(row.get("gpu_utilization", 0.0)),
                float(row.get("gpu_memory_used", 0.0)),
            )

    def _tasks(self, wall: float, notes: Sequence[StageNote]) -> list[TaskRecord]:
        stages, phases = _by_thread(notes), _by_thread(self.recording.phases)
        found = []
        left: list[StageNote] = []
        steps = _by_thread(self.steps.tasks)
        for thread in {*steps, *stages}:
            inner = phases.get(thread, [])
            matched, rest = _matched(steps.get(thread, []), stages.get(thread, []))
            left += rest
            for step, own in matched:
                task = _task_of(step)
                found.append(with_work(task, own, [p for p in inner if _is_inside(p, task)]))
        found += _direct_tasks(left, phases)
        moved = (self._since_begin(task, wall) for task in found)
        return with_lanes(sorted(moved, key=lambda task: task.start))

    def _since_begin(self, task: TaskRecord, wall: float) -> TaskRecord:
        def at(seconds: float) -> float:
            return min(max(seconds - self.began, 0.0), wall)

        return replace(
            task,
            submitted=at(task.submitted),
            ready=at(task.ready),
            assigned=at(task.assigned),
            start=at(task.start),
            stop=at(task.stop),
            phases=tuple(replace(phase, start=at(phase.start)) for phase in task.phases),
        )


_Matched = list[tuple[_Step, list[StageNote]]]


def _matched(
    steps: Sequence[_Step], notes: Sequence[StageNote]
) -> tuple[_Matched, list[StageNote]]:
    """Return the tasks of a thread with their notes, and the notes that belong to none of them.

    Dask tells of ends in their order, but late: by then the thread may be in its next task. So
    notes of known stages go to the tasks of these in order, and bound their times.
    """
    queues: defaultdict[str, deque[StageNote]] = defaultdict(deque)
    for note in sorted(notes, key=lambda each: each.start):
        if not note.error:
            queues[note.token].append(note)
    found: _Matched = []
    end = 0.0
    for step, following in itertools.zip_longest(steps, steps[1:]):
        own = [queues[token].popleft() for token in step.tokens if queues[token]]
        start = max(step.start, end)
        last = max((note.start + note.seconds for note in own), default=start)
        stop = step.stop if following is None else min(step.stop, following.start)
        end = max(stop, last, start)
        found.append((step._replace(start=start, stop=end), own))
    rest = [note for queue in queues.values() for note in queue]
    rest += [note for note in notes if note.error]
    for note in list(rest):
        middle = note.start + note.seconds / 2
        fitting = [
            own for step, own in found if not step.tokens and step.start <= middle <= step.stop
        ]
        if fitting and not note.error:
            fitting[0].append(note)
            rest.remove(note)
    return found, rest


def _task_of(step: _Step) -> TaskRecord:
    """Return the record of a task, with times since the epoch."""
    name = str(key_split(step.key))
    return TaskRecord(
        key=str(step.key),
        name=name,
        stage="",
        label=name,
        block=block_number(step.key),
        worker=THIS_PROCESS,
        lane=0,
        submitted=step.arrived,
        ready=min(step.ready, step.start),
        assigned=step.start,
        start=step.start,
        stop=step.stop,
        output_bytes=step.nbytes,
        category=category_of(name),
    )


def _by_thread(notes: Iterable[Any]) -> dict[int, list[Any]]:
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for note in notes:
        found[note.thread].append(note)
    return found


def _is_inside(note: StageNote | PhaseNote, task: TaskRecord) -> bool:
    return task.start <= note.start + note.seconds / 2 <= task.stop


def _direct_tasks(
    notes: Iterable[StageNote], phases: Mapping[int, Sequence[PhaseNote]]
) -> Iterable[TaskRecord]:
    """Yield a task for each stage that ran outside the tasks that Dask told of."""
    for note in notes:
        end = note.start + note.seconds
        task = TaskRecord(
            *("", note.label, note.token, note.label, None, THIS_PROCESS, 0),
            *(note.start, note.start, note.start, note.start, end),
        )
        inner = [each for each in phases.get(note.thread, ()) if _is_inside(each, task)]
        yield with_work(task, [note], inner)


def _errors(notes: Iterable[StageNote]) -> list[ErrorRecord]:
    found: dict[tuple[str, str], ErrorRecord] = {}
    for note in notes:
        if note.error:
            kind = (note.error, note.label)
            first = ErrorRecord(note.error, note.label, THIS_PROCESS, 0, note.message)
            known = found.get(kind, first)
            found[kind] = replace(known, count=known.count + 1)
    return list(found.values())
