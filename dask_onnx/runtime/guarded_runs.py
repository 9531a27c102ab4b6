"""Runs of tasks that may end their process: recorded, and repeated in a subprocess.

A task runs in its worker first, and a record says so (`run_records`). If the worker dies meanwhile,
Dask sends the task out again; the process that gets it finds the record, and runs the task in a
subprocess (`core.guard_process`). If that dies too, halves of the rows run there, until the rows
that end it are found. Where memory was short, the halves are the result.
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
from dask_onnx.core.errors import CrashError, DaskOnnxError, RunError, Suggestion
from dask_onnx.core.guard_process import GuardProcess, ProcessDiedError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.stage_tasks import block_number
from dask_onnx.runtime.batching import row_count, take_rows
from dask_onnx.runtime.memory_faults import bytes_for_a_run, is_memory_fault, lacking_memory
from dask_onnx.runtime.row_runs import Computed, compute_rows, is_divisible, row_axes
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
_NAMED_ROWS = 5
"""Rows that a message names at most; the field has them all."""

_guard = GuardProcess((__name__, "onnxruntime"))
"""Subprocess of this process; it starts with the first run that needs it."""
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
    InputError, RunError, StageError, StoreError
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
    if records.is_suspect(task, call.stage.token):
        bring_stage(stage, supplies)
        try:
            return _Search(call, stage, values, max_rows, task, records).run()
        except CrashError:
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
    finally:
        records.end(slot)


def _shapes(call: StageCall, values: Sequence[Any]) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes of one row of each input; None if rows must not be split."""
    axes = row_axes(call, values)
    return row_shapes(values, axes) if is_divisible(call, values, axes) else None


@dataclass(slots=True)
class _Search:
    """Run of a task in the subprocess, and the search for the rows that end it."""

    call: StageCall
    stage: StageRef
    values: Sequence[Any]
    max_rows: int | None
    task: RunningTask
    records: RunRecords
    deaths: list[ProcessDiedError] = field(default_factory=list)
    """Ends of the subprocess so far."""
    found: dict[int, ProcessDiedError] = field(default_factory=dict)
    """Rows that end the subprocess by themselves."""
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
            raise known
        self.until = time.monotonic() + _SEARCH_SECONDS
        axes = row_axes(self.call, self.values)
        rows = row_count(self.values, axes)
        computed = self._compute(self.values, axes, 0, rows)
        halved = bool(self.deaths) and not is_divisible(self.call, self.values, axes)
        if computed is not None and not self.is_incomplete and not halved:
            return computed
        error = self._error(rows)
        _verdicts.put(name, error)
        if self.deaths[0].cause in ("signal", "exit"):
            self.records.note_crash(self.call.stage.token, self.task)
        raise error

    def _compute(
        self, values: Sequence[Any], axes: Sequence[int | None], start: int, rows: int | None
    ) -> Computed | None:
        """Return the results of rows from `start` on; None if none of them has one."""
        try:
            return self._run(values)
        except ProcessDiedError as died:
            self.deaths.append(died)
        last = self.deaths[-1]
        if rows == 1:
            self.found[start] = last
        if rows is None or rows < 2 or not self._goes_on(last):
            self.is_incomplete = True
            return None
        half = rows // 2
        first = self._compute(take_rows(values, axes, 0, half), axes, start, half)
        rest = take_rows(values, axes, half, rows - half)
        second = self._compute(rest, axes, start + half, rows - half)
        if first is None or second is None:
            return first or second
        fitting = [half] if last.cause == "memory" else []
        fitting += [f for f in (first.fitting_rows, second.fitting_rows) if f is not None]
        return replace(
            first,
            results=first.results + second.results,
            split=replace(first.split, rows=rows),
            seconds=first.seconds + second.seconds,
            fitting_rows=min(fitting, default=None),
        )

    def _run(self, values: Sequence[Any]) -> Computed:
        limit = config.get("guard.seconds")
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
            seconds=None if limit is None else float(limit),
            memory_bytes=bytes_for_a_run(),
        )

    def _goes_on(self, died: ProcessDiedError) -> bool:
        # Each part of a run without end would take the whole time again.
        most = int(config.get("guard.max-crashes"))
        return died.cause != "time" and len(self.deaths) < most and time.monotonic() < self.until

    def _name(self) -> str:
        content = hashlib.blake2b(self.task.digest)
        content.update(self.call.stage.token.encode())
        for value in self.values:
            is_plain = isinstance(value, np.ndarray) and not value.dtype.hasobject
            content.update(
                np.ascontiguousarray(value).tobytes() if is_plain else pickle.dumps(value)
            )
        return content.hexdigest()

    def _error(self, rows: int | None) -> CrashError:
        """Return the error about the rows that were found."""
        bad = sorted(self.found)
        died = self.found[bad[0]] if bad else self.deaths[0]
        where = "its input" if rows is None else f"its {rows:,} rows"
        if bad:
            names = ", ".join(f"{row:,}" for row in bad[:_NAMED_ROWS])
            more = f" and {len(bad) - _NAMED_ROWS} more" if len(bad) > _NAMED_ROWS else ""
            where = f"row{'s' if len(bad) > 1 else ''} {names}{more} of {rows:,}"
        block = block_number(self.task.key)
        numbers: dict[str, float] = {} if rows is None else {"rows": rows, "bad_rows": len(bad)}
        numbers |= {} if died.signal is None else {"signal": died.signal}
        numbers |= {"row": bad[0]} if bad else {}
        numbers |= {} if block is None else {"block": block}
        cause = (
            f"stage {self.stage.label} ends its process on {where}"
            f"{'' if block is None else f' in block {block:,}'}: {died}"
        )
        fields: dict[str, Any] = {"stage": self.stage.label, "reason": str(died)}
        if died.cause == "memory":
            short = lacking_memory(RunError(cause, **fields, numbers=numbers), len(bad) or rows)
            return CrashError(cause, short.next_step, bad, **short.fields)
        return CrashError(
            cause,
            "remove or mend these rows; of tables and bags, on_error='null' or predict_checked "
            "set them aside",
            bad,
            numbers=numbers,
            suggestions=[Suggestion("on_error", "null")],
            **fields,
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
