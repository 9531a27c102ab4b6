"""The record of a profile, put together from the notes of the scheduler and of the workers."""

from __future__ import annotations

import bisect
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dask_onnx.cluster.profile_scheduler_plugin import CANCELLED, Attempt, SchedulerNotes
from dask_onnx.cluster.profile_worker_plugin import WorkerNotes
from dask_onnx.core.meters import PhaseNote, StageNote
from dask_onnx.diagnostics.profiling.run_profile import (
    Digest,
    ErrorRecord,
    Gauge,
    Phase,
    StageRecord,
    TaskRecord,
    WorkerRecord,
)

_READS = ("read", "load", "open", "imread", "getter", "from")
_WRITES = ("write", "store", "save", "to")
"""First words of the names of tasks of Dask that read or write."""
LOST = "lost"
"""Kind of the errors of tasks whose worker was lost, or that were given to another one."""


@dataclass(frozen=True)
class Notes:
    """All notes of a profile, with one clock."""

    started: float
    """Begin of the profile in seconds since the epoch, by the scheduler's clock."""
    wall: float
    """Seconds from begin to end."""
    scheduler: SchedulerNotes
    workers: Mapping[str, WorkerNotes]
    """Notes of each worker by its address, those of lost ones included."""

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the profile's tasks and of what they depend on."""
        own = (attempt.key for attempt in self.scheduler.attempts)
        return frozenset((*own, *self.scheduler.dependencies))

    def at(self, seconds: float) -> float:
        """Return a time of the scheduler's clock as seconds since the begin, within the profile."""
        return min(max(seconds - self.started, 0.0), self.wall)

    def worker_time(self, worker: str, seconds: float) -> float:
        """Return a time of a worker's own clock as seconds since the begin."""
        own = self.workers.get(worker)
        return self.at(seconds - (0.0 if own is None else own.offset))

    @cached_property
    def _shifts(self) -> Mapping[str, tuple[list[float], list[float], float, float]]:
        """Times of each worker's clock, what Dask's estimate adds from then on, least and most."""
        found = {}
        for worker, own in self.workers.items():
            shifts = [float(shift) for _, shift in own.shifts]
            found[worker] = ([at for at, _ in own.shifts], shifts, min(shifts), max(shifts))
        return found

    def span_of(self, worker: str, start: float, stop: float) -> tuple[float, float]:
        """Return two times of the scheduler's clock by a worker's estimate, likewise.

        The estimate of Dask at the time of the second is taken out of both, and the one that the
        profile has measured put in.
        """
        error = self._error_of(worker, stop, -math.inf, self.started + self.wall)
        return self.at(start - error), self.at(stop - error)

    def times_of(self, attempt: Attempt) -> tuple[float, float]:
        """Return start and stop of an attempt that has both, as seconds since the begin."""
        latest = attempt.finished or math.inf
        earliest = attempt.assigned or -math.inf
        duration = max(attempt.stop - attempt.start, 0.0)
        error = self._error_of(attempt.worker, attempt.start, earliest, latest - duration)
        start = min(max(attempt.start - error, earliest), max(latest - duration, earliest))
        return self.at(start), self.at(start + duration)

    def _error_of(self, worker: str, seconds: float, earliest: float, latest: float) -> float:
        """Return what a time by a worker's estimate is ahead of the scheduler's clock.

        Parameters
        ----------
        worker : str
        seconds : float
            Time since the epoch, with the shift that Dask has added when it was measured.
        earliest, latest : float
            Limits of the time by the scheduler's clock.
        """
        own = self.workers.get(worker)
        if own is None:
            return 0.0
        sinces, shifts, least, most = self._shifts[worker]
        # The shift must have been in force at the time that it leads to.
        first = max(bisect.bisect_right(sinces, seconds - most) - 1, 0)
        last = bisect.bisect_right(sinces, seconds - least)
        best, fewest = shifts[first], math.inf
        for number in range(first, max(last, first + 1)):
            since, shift = sinces[number], shifts[number]
            end = sinces[number + 1] if number + 1 < len(sinces) else math.inf
            then = seconds - shift
            outside = max(since - then, then - end, 0.0)
            outside += max(earliest - (then - own.offset), then - own.offset - latest, 0.0)
            if outside <= fewest:
                best, fewest = shift, outside
        return best + own.offset


def sent_notes(message: Mapping[str, Any]) -> WorkerNotes:
    """Return what a worker has sent, such as one that is lost, as its notes."""
    return WorkerNotes(**{name: message[name] for name in WorkerNotes._fields})


def worker_records(notes: Notes) -> list[WorkerRecord]:
    """Return a record of each worker that was there for some time."""
    found = []
    for address, threads, limit, host, joined, left in notes.scheduler.presence:
        own = notes.workers.get(address)
        record = WorkerRecord(
            name=address,
            host=host if own is None else own.host,
            threads=threads,
            memory_limit=int(limit) if limit else None,
            joined=notes.at(joined),
            left=notes.at(left) if left else notes.wall,
        )
        if own is not None:
            record = replace(
                record,
                clock_offset=own.offset,
                clock_error=own.error,
                peak_bytes=own.peak,
                gpu=own.gpu,
            )
        found.append(record)
    return found


def task_records(notes: Notes) -> list[TaskRecord]:
    """Return a record of each attempt at a task that ran, in the order of their starts."""
    stages, phases = _notes_by_key(notes)
    attempts = Counter((each.worker, each.key) for each in notes.scheduler.attempts)
    running = {
        (worker, key): start
        for worker, own in notes.workers.items()
        for key, start in own.executing
    }
    found = []
    for attempt in notes.scheduler.attempts:
        key = (attempt.worker, attempt.key)
        own, inner = stages.get(key, ()), phases.get(key, ())
        started = running.get(key)
        if attempt.start:
            start, stop = notes.times_of(attempt)
        elif attempt.outcome == "processing" and started:
            start, stop = notes.worker_time(attempt.worker, started), notes.wall
        elif own and attempts[key] == 1:
            # The scheduler has not waited for its end: it was cancelled, or given to another one.
            start = min(note.start for note in own)
            stop = max(note.start + note.seconds for note in own)
        else:
            continue
        record = _task(notes, attempt, start, max(start, stop))
        if attempts[key] > 1:
            own = [note for note in own if _overlaps(note, record)]
            inner = [note for note in inner if _overlaps(note, record)]
        found.append(with_work(record, own, inner))
    return with_lanes(sorted(found, key=lambda task: task.start))


def _task(notes: Notes, attempt: Attempt, start: float, stop: float) -> TaskRecord:
    assigned = min(notes.at(attempt.assigned), start) if attempt.assigned else start
    ready = min(notes.at(attempt.ready), assigned) if attempt.ready else assigned
    return TaskRecord(
        key=attempt.key,
        name=attempt.name,
        stage="",
        label=attempt.name,
        block=attempt.block,
        worker=attempt.worker,
        lane=0,
        submitted=min(notes.at(attempt.submitted), ready),
        ready=ready,
        assigned=assigned,
        start=start,
        stop=stop,
        output_bytes=attempt.nbytes,
        category="model" if attempt.is_stage else category_of(attempt.name),
        error=CANCELLED if attempt.outcome == CANCELLED else error_kind(attempt.error),
    )


def _notes_by_key(
    notes: Notes,
) -> tuple[dict[tuple[str, str], list[StageNote]], dict[tuple[str, str], list[PhaseNote]]]:
    """Return the notes of each worker's tasks by worker and key, with times of the one clock."""
    stages: defaultdict[tuple[str, str], list[StageNote]] = defaultdict(list)
    phases: defaultdict[tuple[str, str], list[PhaseNote]] = defaultdict(list)
    for worker, own in notes.workers.items():
        for each in map(_stage_note, own.stages):
            note = each._replace(start=notes.worker_time(worker, each.start))
            stages[worker, each.key].append(note)
        for phase in map(_phase_note, own.phases):
            if phase.key:
                start = notes.worker_time(worker, phase.start)
                phases[worker, phase.key].append(phase._replace(start=start))
    return stages, phases


def _stage_note(fields: Sequence[Any]) -> StageNote:
    return StageNote(*fields)


def _phase_note(fields: Sequence[Any]) -> PhaseNote:
    return PhaseNote(*fields)


def with_work(
    task: TaskRecord, stages: Iterable[StageNote], phases: Iterable[PhaseNote]
) -> TaskRecord:
    """Return a task with what was noted inside it."""
    own, inner = list(stages), list(phases)
    found = [*_stage_phases(own, inner), *_phases(own, inner)]
    found = [_inside(phase, task) for phase in found]
    if not own:
        return replace(task, phases=tuple(found))
    last = own[-1]
    return replace(
        task,
        stage=last.token,
        label=last.label,
        category="model",
        phases=tuple(found),
        rows=_rows(own),
        runs=sum(note.runs for note in own),
        input_bytes=own[0].input_bytes,
        output_bytes=max(task.output_bytes, last.output_bytes),
        error=task.error or last.error,
    )


def _rows(notes: Sequence[StageNote]) -> int | None:
    """Return the rows of a task: those of the stage that ran most of them.

    The stages of one task work on the same rows one after another; several runs of one stage work
    on different rows.
    """
    finished = [note for note in notes if not note.error] or notes
    by_stage: Counter[str] = Counter()
    for note in finished:
        if note.rows is not None:
            by_stage[note.token] += note.rows
    return max(by_stage.values(), default=None)


def _overlaps(note: StageNote | PhaseNote, task: TaskRecord) -> bool:
    """Return whether a note is of an attempt, among several of the same task on a worker."""
    # Dask's clock of a task and that of its notes may differ by some milliseconds.
    margin = 0.02
    return note.start < task.stop + margin and note.start + note.seconds > task.start - margin


def _stage_phases(stages: Sequence[StageNote], phases: Sequence[PhaseNote]) -> Iterator[Phase]:
    for note in stages:
        inner = sum(p.own_seconds for p in phases if _is_within(p, note))
        own = max(note.seconds - inner, 0.0)
        yield Phase("stage", note.start, note.seconds, own, note.token)
        if note.run_seconds and not any(p.phase == "run" and _is_within(p, note) for p in phases):
            # It ran in the subprocess that guards this one.
            run = min(note.run_seconds, own)
            yield Phase("run", note.start, run, run, note.token)
            yield Phase("stage", note.start, 0.0, -run, note.token)


def _phases(stages: Sequence[StageNote], phases: Iterable[PhaseNote]) -> Iterator[Phase]:
    for phase in phases:
        token = next((note.token for note in stages if _is_within(phase, note)), "")
        yield Phase(phase.phase, phase.start, phase.seconds, phase.own_seconds, token)


def _is_within(phase: PhaseNote, stage: StageNote) -> bool:
    middle = phase.start + phase.seconds / 2
    return phase.thread == stage.thread and stage.start <= middle <= stage.start + stage.seconds


def _inside(phase: Phase, task: TaskRecord) -> Phase:
    """Return a phase moved by the few milliseconds by which it lies outside its task."""
    start = min(max(phase.start, task.start), task.stop)
    seconds = min(phase.seconds, task.stop - start)
    return replace(phase, start=start, seconds=seconds)


def with_lanes(tasks: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Return tasks, ordered by their starts, with the thread slot that each ran in."""
    free: defaultdict[str, list[int]] = defaultdict(list)
    ending: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    lanes: Counter[str] = Counter()
    found = []
    for task in tasks:
        worker = task.worker
        while ending[worker] and ending[worker][0][0] <= task.start + 1e-6:
            heapq.heappush(free[worker], heapq.heappop(ending[worker])[1])
        if free[worker]:
            lane = heapq.heappop(free[worker])
        else:
            lane = lanes[worker]
            lanes[worker] += 1
        heapq.heappush(ending[worker], (task.stop, lane))
        found.append(replace(task, lane=lane))
    return found


def category_of(name: str) -> str:
    """Return whether a task of Dask reads, writes or does something else, by its name."""
    first = name.replace("_", "-").partition("-")[0]
    if first in _READS:
        return "reading"
    return "writing" if first in _WRITES else "other"


def error_kind(text: str) -> str:
    """Return the class of an exception from its text, as Dask gives it."""
    return text.partition("(")[0] if text else ""


def stage_records(stages: Iterable[StageNote]) -> list[StageRecord]:
    """Return a record of each stage that was noted, in the order of their first runs."""
    found: dict[str, StageRecord] = {}
    for note in sorted(stages, key=lambda each: each.start):
        found.setdefault(
            note.token,
            StageRecord(note.token, note.label, note.model, note.kernel, note.nodes, note.threads),
        )
    return list(found.values())


def stage_notes(notes: Notes) -> list[StageNote]:
    """Return the notes of all stages of the profile's tasks, errors included."""
    keys = notes.keys
    each = (_stage_note(fields) for own in notes.workers.values() for fields in own.stages)
    return [note for note in each if note.key in keys]


def error_records(notes: Notes) -> list[ErrorRecord]:
    """Return how often tasks failed, by kind, stage and worker."""
    counts: Counter[tuple[str, str, str]] = Counter()
    messages: dict[tuple[str, str, str], str] = {}
    noted = set()
    for note in stage_notes(notes):
        if note.error:
            kind = (note.error, note.label, note.owner)
            counts[kind] += 1
            messages.setdefault(kind, note.message)
            noted.add(note.key)
    for attempt in notes.scheduler.attempts:
        if attempt.outcome == "erred" and attempt.key not in noted:
            kind = (error_kind(attempt.error) or "error", attempt.name, attempt.worker)
            messages.setdefault(kind, attempt.error)
        elif attempt.outcome in ("released", "waiting") and not attempt.start:
            if attempt.key in noted:
                continue
            kind = (LOST, attempt.name, attempt.worker)
            messages.setdefault(kind, "the worker was lost, or the task was given to another one")
        else:
            continue
        counts[kind] += 1
    return [ErrorRecord(*kind, count, messages[kind]) for kind, count in counts.items()]


def gauges_of(notes: Notes) -> list[Gauge]:
    """Return the measurements of each worker's process."""
    return [
        Gauge(worker, notes.worker_time(worker, row[0]), *row[1:])
        for worker, own in notes.workers.items()
        for row in own.gauges
    ]


def digests_of_notes(notes: Notes) -> list[Digest]:
    """Return the growth of Dask's metrics, of tasks only as far as they are the profile's."""
    spans = set(notes.scheduler.spans)
    return [
        Digest(worker, context, name, label, unit, value)
        for worker, own in notes.workers.items()
        for context, span, name, label, unit, value in own.digests
        if context != "execute" or not span or span in spans
    ]
