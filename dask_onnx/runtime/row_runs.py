"""Runs of one stage on the rows of one task: split, tuned, and halved where memory is short."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dask_onnx.core.errors import RunError
from dask_onnx.core.meters import metered
from dask_onnx.runtime.batching import (
    MicroBatches,
    SplitInputs,
    concatenated,
    row_count,
    split_rows,
    take_rows,
)
from dask_onnx.runtime.kernel_timing import profiled_session, times_all_nodes
from dask_onnx.runtime.memory_check import return_memory
from dask_onnx.runtime.memory_faults import is_memory_fault, lacking_memory
from dask_onnx.runtime.session_cache import Runnable
from dask_onnx.runtime.session_runs import run_session
from dask_onnx.runtime.size_advice import size_advice
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.runtime.stage_sessions import (
    in_model_names,
    stage_proto,
    stage_session,
    with_threads,
)
from dask_onnx.runtime.tuning import row_shapes, run_sizes


@dataclass(frozen=True, slots=True)
class Computed:
    """Results of the runs of a task."""

    results: list[list[Any]]
    """For every run the outputs of the stage."""
    split: SplitInputs
    """Split of the rows, without the inputs themselves."""
    started: float
    """Time at which the first run began, in seconds since the epoch."""
    seconds: float
    """Duration of the runs."""
    threads: int
    """Threads that a run could use."""
    fitting_rows: int | None = None
    """Rows of the largest run that memory sufficed for, where a larger one failed; else None."""
    sizes: tuple[int, ...] = ()
    """Rows of each run, where the task chose them itself."""


def compute_rows(
    call: StageCall,
    stage: StageRef,
    values: Sequence[Any],
    supplies: Sequence[Any] = (),
    max_rows: int | None = None,
    session: Runnable | None = None,
    sizes: Sequence[int] = (),
) -> Computed:
    """Run a stage on all rows of a task, in this process.

    Parameters
    ----------
    call : StageCall
        Call of the stage.
    stage : StageRef
        The stage, with the types of its inputs.
    values : sequence of ndarray or MicroBatches
        Inputs of the stage.
    supplies : sequence
        Results of tasks that bring the model here.
    max_rows : int, optional
        Rows of a run above which memory is known to be too short, if rows may be split.
    session : Runnable, optional
        Session to run; by default that of the stage.
    sizes : sequence of int
        Rows of each run, to repeat what a task chose before; by default it chooses, and measures
        what it has chosen.

    Raises
    ------
    InputError
        The inputs differ in their number of rows.
    RunError
        The kernels failed, or memory does not even suffice for one row.
    TimeLimitError
        A run took longer than it may.
    StageError, StoreError
        The stage cannot be built or run here.
    """
    spec = with_threads(call.options.session)
    threads = spec.intra_op_num_threads or 1
    if session is None:
        session = profiled_session(call.stage, spec) if times_all_nodes() else None
    if session is None:
        session = stage_session(stage, spec, supplies)
    axes = row_axes(call, values)
    runs = _Runs(session, stage, call, axes, run_cut(call, values, axes), max_rows)
    rows = row_count(values, axes) if call.options.batching.is_auto else None
    started, began = time.time(), time.perf_counter()
    with metered("run"):
        if rows is not None and rows > 1:
            chosen = sizes or run_sizes(
                call.stage.token, threads, row_shapes(values, axes), rows, max_rows
            )
            results = _run_sizes(runs, values, chosen)
            split = SplitInputs([], rows, is_padded=False)
        else:
            split = split_rows(values, axes, call.options.batching)
            results = [result for feeds in split.feeds for result in runs.run(feeds)]
            split = SplitInputs([], split.rows, split.is_padded)
    seconds = time.perf_counter() - began
    return Computed(results, split, started, seconds, threads, runs.fitting_rows, tuple(runs.sizes))


def row_axes(call: StageCall, values: Sequence[Any]) -> Sequence[int | None]:
    """Return the axes to split rows on; none if inputs turn out to have different numbers of rows.

    That is known before, except of Delayed: names of dimensions say that sizes are equal, and
    ONNX Runtime takes inputs in which they are not.
    """
    is_whole = call.options.batching.is_auto and "split" not in call.join_axes
    if not is_whole or any(isinstance(value, MicroBatches) for value in values):
        return call.row_axes
    pairs = zip(values, call.row_axes, strict=True)
    counts = {value.shape[axis] for value, axis in pairs if axis is not None}
    return call.row_axes if len(counts) <= 1 else (None,) * len(values)


def is_divisible(call: StageCall, values: Sequence[Any], axes: Sequence[int | None]) -> bool:
    """Return whether the rows of a run may be split further, and the results joined."""
    batching = call.options.batching
    return (
        (batching.is_auto or batching.is_divisible)
        and any(axis is not None for axis in axes)
        and all(isinstance(axis, int) for axis in call.join_axes)
        and not any(isinstance(value, MicroBatches) for value in values)
    )


@dataclass(frozen=True, slots=True)
class RunCut:
    """The way in which one run may be cut further."""

    axes: Sequence[int | None]
    """For each input its batch axis; None for one that every part gets whole."""
    joins: Sequence[int | None] | None
    """For each output the axis on which the results of the parts are joined to that of the run;
    None if parts may stay apart, since the results of all runs are joined in the end."""


def run_cut(call: StageCall, values: Sequence[Any], axes: Sequence[int | None]) -> RunCut | None:
    """Return how a run may be cut; None if it must not.

    Parameters
    ----------
    call : StageCall
    values : sequence of ndarray or MicroBatches
        Inputs of the stage.
    axes : sequence of int or None
        Axes by which the rows of the task are split, as from `row_axes`.
    """
    if is_divisible(call, values, axes):
        return RunCut(axes, None)
    found = call.run_axes
    if found is None or not call.options.batching.is_divisible:
        return None
    has_rows = any(axis is not None for axis in found.inputs)
    return RunCut(found.inputs, found.outputs) if has_rows else None


def first_runs(values: Sequence[Any]) -> list[Any]:
    """Return the inputs of one run of a stage that gets micro-batches."""
    return [value.pieces[0] if isinstance(value, MicroBatches) else value for value in values]


def joined_parts(results: Sequence[Sequence[Any]], joins: Sequence[int | None]) -> list[Any]:
    """Return the outputs of one run from those of its parts.

    Parameters
    ----------
    results : sequence of sequence of ndarray
        For every part the outputs of the stage.
    joins : sequence of int or None
        For each output its batch axis; None for one without rows.
    """
    return [
        pieces[0] if axis is None else concatenated(pieces, axis)
        for pieces, axis in zip(zip(*results, strict=True), joins, strict=True)
    ]


@dataclass(slots=True)
class _Runs:
    """Runs of a session, with what is learnt of the memory that they need."""

    session: Runnable
    stage: StageRef
    call: StageCall
    axes: Sequence[int | None]
    """Batch axis of each input."""
    cut: RunCut | None
    """The way in which a run may be cut; None if it must not be."""
    max_rows: int | None
    """Rows of a run above which memory is known to be too short."""
    fitting_rows: int | None = None
    """See `Computed.fitting_rows`."""
    sizes: list[int] = field(default_factory=list)
    """See `Computed.sizes`."""

    def run(self, feeds: list[Any]) -> list[list[Any]]:
        """Return the results of one run; of several smaller ones if memory is too short for it."""
        if self.max_rows is not None:
            rows = self._divisible_rows(feeds)
            if rows is not None and rows > self.max_rows:
                return self._pieces(feeds, rows, self.max_rows)
        try:
            return [_run(self.session, feeds, self.stage)]
        except RunError as error:
            if not is_memory_fault(error):
                raise
            fault = error
        rows = self._divisible_rows(feeds)
        if rows is None or rows < 2:
            raise lacking_memory(fault, rows) from None
        return_memory()
        half = -(-rows // 2)
        self.max_rows = half
        results = self._pieces(feeds, rows, half)
        # Noted after the fact: a single row that needs too much says nothing of the others.
        self.fitting_rows = min(half, self.fitting_rows or half)
        return results

    def _divisible_rows(self, feeds: list[Any]) -> int | None:
        """Return the rows of a run; None if they must not be split."""
        return None if self.cut is None else row_count(feeds, self.cut.axes)

    def _pieces(self, feeds: list[Any], rows: int, size: int) -> list[list[Any]]:
        assert self.cut is not None
        results = [
            result
            for start in range(0, rows, size)
            for result in self.run(take_rows(feeds, self.cut.axes, start, size))
        ]
        return results if self.cut.joins is None else [joined_parts(results, self.cut.joins)]


def _run(session: Runnable, feeds: list[Any], stage: StageRef) -> list[Any]:
    names = [spec.name for spec in stage.inputs]
    try:
        return run_session(session, feeds, stage.label, names, partial(in_model_names, stage))
    except RunError as error:
        # Where memory was short, smaller runs follow, and no size is wrong.
        advice = None if is_memory_fault(error) else size_advice(stage, stage_proto(stage), feeds)
        if advice is None:
            raise
        numbers = {**error.numbers, "size": advice.size, "multiple": advice.multiple}
        fields = {**error.fields, "input": advice.input, "axis": advice.axis, "numbers": numbers}
        raise RunError(error.cause, str(advice), **fields) from None


def _run_sizes(runs: _Runs, values: Sequence[Any], sizes: Iterable[int]) -> list[list[Any]]:
    """Run in micro-batches of some sizes, each known only when the one before has run."""
    results: list[list[Any]] = []
    start = 0
    for size in sizes:
        results += runs.run(take_rows(values, runs.axes, start, size))
        runs.sizes.append(size)
        start += size
    return results
