"""Runs of tasks that may end their process: recorded, and repeated in a subprocess.

A task runs in its worker first, and a record says so (`run_records`). If the worker dies meanwhile,
Dask sends the task out again; the process that gets it finds the record, and runs the task in a
subprocess (`core.guard_process`). If that dies too, halves of the rows run there, until the rows
that end it are found. Where memory was short, the halves are the result. Values between stages are
cut between their micro-batches, and inside them where the axis of their rows is known.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask.config
import numpy as np
from distributed import warn

from dask_onnx.core import config
from dask_onnx.core.errors import (
    CrashError,
    DaskOnnxError,
    RunError,
    TimeLimitError,
)
from dask_onnx.core.guard_process import GuardProcess, ProcessDiedError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.runtime.batching import MicroBatches, SplitInputs, row_count, take_rows
from dask_onnx.runtime.crash_errors import Crash, crash_error
from dask_onnx.runtime.memory_faults import bytes_for_a_run, is_memory_fault
from dask_onnx.runtime.row_runs import (
    Computed,
    RunCut,
    compute_rows,
    first_runs,
    joined_parts,
    row_axes,
    run_cut,
)
from dask_onnx.runtime.run_records import RunningTask, RunRecords, run_records, running_task
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.runtime.stage_sessions import bring_stage, with_threads
from dask_onnx.runtime.tuning import (
    fitting_rows,
    has_fitting_rows,
    note_fitting_rows,
    row_shapes,
)

log = logging.getLogger(__name__)

_SEARCH_SECONDS = 120.0
"""Seconds after which no more rows of a task are looked for; those found are told."""

_guard = GuardProcess((__name__, "onnxruntime"))
"""Subprocess of this process; it starts with the first run that needs it."""
_overdue: BoundedCache[bytes, TimeLimitError] = BoundedCache(
    "runs out of time", 1024, max_age_seconds=60.0
)
"""Errors of tasks that took too long, which Dask repeats at once as it does any that raised."""
_verdicts: BoundedCache[str, CrashError] = BoundedCache("crashes", 1024)
"""Errors of runs that ended the subprocess, by task and inputs: Dask repeats a task that raised."""


def compute_safely(
    call: StageCall, stage: StageRef, values: Sequence[Any], supplies: Sequence[Any]
) -> Computed:
    """Run a stage on the rows of a task, in a subprocess if the task may end this process.

    Parameters
    ----------
    call, stage, values, supplies
        As for `row_runs.compute_rows`.

    Raises
    ------
    CrashError
        The run ended the subprocess.
    InputError, RunError, StageError, StoreError, TimeLimitError
        As for `row_runs.compute_rows`.
    """
    task = running_task()
    token = call.stage.token
    shapes = _shapes(call, values) if has_fitting_rows(token) else None
    max_rows = None if shapes is None else fitting_rows(token, shapes)
    if task is None:
        computed = compute_rows(call, stage, values, supplies, max_rows)
    else:
        computed = _compute_recorded(call, stage, values, supplies, max_rows, task)
    rows = computed.fitting_rows
    shapes = None if rows is None else _shapes(call, values)
    if shapes is not None and rows is not None and note_fitting_rows(token, shapes, rows):
        warn(
            f"memory was short for a run of stage {stage.label}: its runs have at most {rows:,} "
            "rows on this host from now on; results are complete"
        )
    return computed


def _compute_recorded(
    call: StageCall,
    stage: StageRef,
    values: Sequence[Any],
    supplies: Sequence[Any],
    max_rows: int | None,
    task: RunningTask,
) -> Computed:
    records = run_records()
    has_limit = call.options.session.max_run_seconds is not None
    if has_limit and (known := _overdue.get(task.digest)) is not None:
        raise known.with_traceback(None)
    if records.is_suspect(task, call.stage.token):
        limits = _limits()
        bring_stage(stage, supplies)
        try:
            return _Search(call, stage, values, max_rows, task, records, limits).run()
        except (CrashError, TimeLimitError):
            raise
        except (DaskOnnxError, RuntimeError) as error:
            if isinstance(error, RunError) and is_memory_fault(error):
                raise
            # It ends with an error rather than a crash, or there is no subprocess. A kernel of the
            # caller's may need its worker.
            log.info("task %s runs in its worker after all: %s", task.key, error)
    slot = records.begin(task)
    try:
        return compute_rows(call, stage, values, supplies, max_rows)
    except TimeLimitError as error:
        _overdue.put(task.digest, error)
        raise
    finally:
        records.end(slot)


def _shapes(call: StageCall, values: Sequence[Any]) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes of one row of each input; None if rows must not be split."""
    cut = run_cut(call, values, row_axes(call, values))
    return None if cut is None else row_shapes(first_runs(values), cut.axes)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Limits of a search for rows."""

    seconds: float | None
    """Seconds that a run may take; None for any time."""
    max_crashes: int
    """Crashes after which no more rows are looked for."""


def _limits() -> _Limits:
    """Return the limits that are set.

    Raises
    ------
    InputError
        A setting is no such limit.
    """
    return _Limits(config.seconds("guard.seconds"), config.count("guard.max-crashes"))


@dataclass(slots=True)
class _Search:
    """Run of a task in the subprocess, and the search for the rows that end it."""

    call: StageCall
    stage: StageRef
    values: Sequence[Any]
    max_rows: int | None
    task: RunningTask
    records: RunRecords
    limits: _Limits
    deaths: list[ProcessDiedError] = field(default_factory=list)
    """Ends of the subprocess so far."""
    found: dict[int, ProcessDiedError] = field(default_factory=dict)
    """First row of each part, of `unit` rows, that ends the subprocess by itself."""
    cut: RunCut | None = None
    """The way in which a run may be cut; None if it must not be."""
    unit: int = 1
    """Rows that are cut apart by `cut` alone: those of a micro-batch."""
    is_incomplete: bool = False
    """True if some rows have no result."""
    until: float = 0.0
    """Monotonic time at which the search ends."""

    def run(self) -> Computed:
        """Return the results of all rows.

        Raises
        ------
        CrashError
            Some rows, or all of them together, end the subprocess.
        """
        name = self._name()
        if (known := _verdicts.get(name)) is not None:
            raise known.at_rows(known.rows)  # one that is raised again would collect tracebacks
        self.until = time.monotonic() + _SEARCH_SECONDS
        axes = row_axes(self.call, self.values)
        self.cut = run_cut(self.call, self.values, axes)
        rows = self._count_rows(axes)
        computed = self._compute(self.values, axes, 0, rows)
        # Without a proof, rows that ran apart may have other results than together.
        halved = bool(self.deaths) and self.cut is None
        if computed is not None and not self.is_incomplete and not halved:
            return computed
        unit = self.unit if self.cut is None else 1
        crash = Crash(self.stage.label, self.task.key, rows, unit, self.deaths[0], self.found)
        error = crash_error(crash, self.limits.seconds)
        _verdicts.put(name, error)
        if self.deaths[0].cause in ("signal", "exit"):
            self.records.note_crash(self.call.stage.token, self.task)
        raise error

    def _count_rows(self, axes: Sequence[int | None]) -> int | None:
        """Return the rows of the task, and note which of them are one micro-batch."""
        batches = [value for value in self.values if isinstance(value, MicroBatches)]
        joins = self.cut is not None and self.cut.joins is not None
        if not batches and self.cut is not None and joins:
            rows = row_count(self.values, self.cut.axes)
        else:
            rows = batches[0].rows if batches else row_count(self.values, axes)
        if rows is not None and (batches or joins):
            self.unit = self.call.options.batching.rows_per_run or rows
        return rows

    def _part(
        self, values: Sequence[Any], axes: Sequence[int | None], start: int, rows: int
    ) -> list[Any]:
        """Return some of the rows of the inputs; `start` is a multiple of `unit`."""
        first, last = start // self.unit, -(-(start + rows) // self.unit)
        arrays = [None if isinstance(value, MicroBatches) else value for value in values]
        axes = [None if array is None else axis for array, axis in zip(arrays, axes, strict=True)]
        return [
            replace(value, pieces=value.pieces[first:last], rows=rows)
            if isinstance(value, MicroBatches)
            else array
            for value, array in zip(values, take_rows(arrays, axes, start, rows), strict=True)
        ]

    def _compute(
        self, values: Sequence[Any], axes: Sequence[int | None], start: int, rows: int | None
    ) -> Computed | None:
        """Return the results of rows from `start` on; None if none of them has one."""
        try:
            return self._run(values)
        except ProcessDiedError as died:
            self.deaths.append(died)
        last = self.deaths[-1]
        is_least = rows is not None and rows <= self.unit
        if is_least and rows is not None and rows > 1 and self._has_joins and self._goes_on(last):
            return self._compute_run(first_runs(values), start, rows)
        if is_least:
            self.found[start] = last
        if rows is None or is_least or not self._goes_on(last):
            self.is_incomplete = True
            return None
        half = max(rows // 2 // self.unit, 1) * self.unit
        first = self._compute(self._part(values, axes, 0, half), axes, start, half)
        rest = self._part(values, axes, half, rows - half)
        second = self._compute(rest, axes, start + half, rows - half)
        if first is None or second is None:
            return first or second
        fitting = half if last.cause == "memory" and self.unit == 1 else None
        return replace(_both(first, second, fitting), split=replace(first.split, rows=rows))

    @property
    def _has_joins(self) -> bool:
        """True if the rows of a micro-batch may be cut apart, and the results put together."""
        return self.cut is not None and self.cut.joins is not None

    def _compute_run(self, feeds: list[Any], start: int, rows: int) -> Computed | None:
        """Return the result of a micro-batch that ends the subprocess, from those of its parts."""
        assert self.cut is not None and self.cut.joins is not None
        last, half = self.deaths[-1], rows // 2
        first, second = (
            self._compute_part(take_rows(feeds, self.cut.axes, place, size), start + place, size)
            for place, size in ((0, half), (half, rows - half))
        )
        if first is None or second is None:
            return first or second
        both = _both(first, second, half if last.cause == "memory" else None)
        results = [joined_parts(both.results, self.cut.joins)]
        return replace(both, results=results, split=SplitInputs([], rows, is_padded=False))

    def _compute_part(self, feeds: list[Any], start: int, rows: int) -> Computed | None:
        """Return the result of some rows of a micro-batch; None if none of them has one."""
        try:
            return self._run(feeds)
        except ProcessDiedError as died:
            self.deaths.append(died)
        if rows == 1:
            self.found[start] = self.deaths[-1]
        elif self._goes_on(self.deaths[-1]):
            return self._compute_run(feeds, start, rows)
        self.is_incomplete = True
        return None

    def _run(self, values: Sequence[Any]) -> Computed:
        options = self.call.options
        # The worker knows its threads, and has brought the model into the store.
        options = replace(options, session=with_threads(options.session))
        call = replace(self.call, options=options, supplies=0)
        settings = {"onnx": dask.config.get("onnx", {})}
        return _guard.run(
            compute_in_guard,
            settings,
            list(sys.path),
            (call, self.stage, list(values), self.max_rows),
            seconds=self.limits.seconds,
            memory_bytes=bytes_for_a_run(),
        )

    def _goes_on(self, died: ProcessDiedError) -> bool:
        # Each part of a run without end would take the whole time again.
        is_early = time.monotonic() < self.until
        return died.cause != "time" and len(self.deaths) < self.limits.max_crashes and is_early

    def _name(self) -> str:
        content = hashlib.blake2b(self.task.digest)
        content.update(self.call.stage.token.encode())
        for value in self.values:
            is_plain = isinstance(value, np.ndarray) and not value.dtype.hasobject
            content.update(
                np.ascontiguousarray(value).tobytes() if is_plain else pickle.dumps(value)
            )
        return content.hexdigest()


def _both(first: Computed, second: Computed, fitting: int | None) -> Computed:
    """Return the results of two parts, with the rows of a run that memory sufficed for."""
    fits = [each for each in (fitting, first.fitting_rows, second.fitting_rows) if each is not None]
    return replace(
        first,
        results=first.results + second.results,
        seconds=first.seconds + second.seconds,
        fitting_rows=min(fits, default=None),
    )


def compute_in_guard(
    settings: Mapping[str, Any],
    path: list[str],
    work: tuple[StageCall, StageRef, list[Any], int | None],
) -> Computed:
    """Run a stage; what the subprocess calls.

    Parameters
    ----------
    settings : mapping
        Dask's configuration under ``onnx`` in the worker.
    path : list of str
        The worker's ``sys.path``: files may have been uploaded to it.
    work : tuple
        Arguments of `row_runs.compute_rows` without supplies: the model is in the store. The call
        has the worker's number of threads.
    """
    sys.path[:] = path
    dask.config.set(settings)
    call, stage, values, max_rows = work
    return compute_rows(call, stage, values, (), max_rows)


def end_guard() -> None:
    """End the subprocess of this process; the next run that needs one starts another."""
    _guard.close()
