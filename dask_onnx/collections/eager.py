"""Predictions for arrays in memory, computed at once on the scheduler that Dask chooses."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dask.local
import dask.threaded
from dask.base import tokenize
from dask.callbacks import Callback
from dask.task_spec import Task

from dask_onnx.cluster.current_scheduler import chosen_scheduler
from dask_onnx.cluster.delivery import hold
from dask_onnx.collections.bad_rows import crashes_in_blocks
from dask_onnx.collections.kinds import is_empty, most_rows
from dask_onnx.collections.prediction_progress import current_progress
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import check_arrays
from dask_onnx.collections.row_checks import check_joins
from dask_onnx.core.peers import is_inside_task
from dask_onnx.lowering.lower import Feeds, lower, stage_ref
from dask_onnx.planning.choice import LEAST_TASK_SECONDS
from dask_onnx.runtime.batching import concatenated
from dask_onnx.runtime.cores import available_cores, task_threads
from dask_onnx.runtime.kernel import take_output
from dask_onnx.runtime.tuning import find_tuning, row_shapes

_ROWS_TO_SPREAD = 64
"""Rows from which on they are spread over all cores, while a model's speed is unknown."""
_TASKS_PER_SLOT = 8
"""Largest number of tasks for each that runs at a time: enough to balance, few enough to be cheap.
"""


def _is_main_thread() -> bool:
    """Return whether this is the main thread; others, tasks among them, seldom run alone."""
    return threading.current_thread() is threading.main_thread()


def predict_eager(
    request: Request, feeds: Mapping[str, Any], *, inline: bool = False
) -> dict[str, Any]:
    """Compute the requested outputs at once, and return arrays by output name.

    With a batch size, rows are spread over tasks that each run so many rows at a time; with "auto"
    too, if there is enough work. Without one, all rows are one task and one run, as in ORT.

    Parameters
    ----------
    request : Request
        Checked request.
    feeds : mapping of str to array
        Inputs by name, converted by `build_request`.
    inline : bool
        True to run in this thread rather than on Dask's scheduler.

    Raises
    ------
    InputError
        Dtypes or shapes do not fit the model.
    StageError, StoreError
        See `runtime.kernel.run_stage`.
    """
    get, client = (
        (_inline_get(request), None) if inline else chosen_scheduler(request.options.retries)
    )
    is_local = client is None
    pieces = _cut(request, feeds, client, inline=inline or is_inside_task())
    chunks = max(map(len, pieces.values()), default=1)
    cuts_rows = request.batching.rows_per_run or request.batching.is_auto
    cuts_rows = cuts_rows or _can_pad_no_rows(request, feeds)
    axes = request.batch.input_axes if cuts_rows else dict.fromkeys(feeds)
    # Keys matter only on a cluster, where clients share results; hashing costs more than a small
    # model.
    token = "inline" if is_local else str(tokenize(dict(feeds)))
    session = request.options.run.session
    is_alone = is_local and chunks == len(request.stages.stages) == 1
    if is_alone and session.intra_op_num_threads is None and _is_main_thread():
        session = replace(session, intra_op_num_threads=0)
    firsts = {name: own[0] for name, own in pieces.items()}
    lowered = lower(
        request.model,
        request.stages,
        Feeds(pieces, axes, token, chunks, most_rows(firsts, request.batch.input_axes)),
        replace(request.options, run=replace(request.options.run, session=session)),
        supplies=request.supplies,
    )
    wanted = [(name, lowered.outputs[name]) for name in request.wanted.names]
    keys: list[Any] = [
        [output.layout.key(output.layer, chunk) for chunk in range(chunks)] for _, output in wanted
    ]
    starts = _starts(pieces, request.batch.input_axes)
    with crashes_in_blocks(starts), _progress(keys, starts):
        results = get({**lowered.tasks, **_supplies(request, client)}, keys)
    return {
        name: _join(
            [take_output(r, output.position, request.batch.output_axes[name]) for r in column],
            request.batch.output_axes[name],
        )
        for (name, output), column in zip(wanted, results, strict=True)
    }


def _inline_get(request: Request) -> Any:
    """Return the function that computes tasks in this thread.

    Tasks of one stage need nothing of each other. Ordering them for a scheduler would cost more
    than a small model; only callbacks of the caller's, such as a progress bar, need one.
    """
    if len(request.stages.stages) > 1 or Callback.active:
        return dask.local.get_sync
    return _run_each


def _run_each(tasks: Mapping[Any, Task], keys: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Run tasks that depend on nothing, one after another."""
    results = {key: task() for key, task in tasks.items()}
    return [[results[key] for key in column] for column in keys]


def _progress(
    keys: Sequence[Sequence[Any]], starts: Sequence[int]
) -> contextlib.AbstractContextManager[None]:
    """Return a block in which the caller's progress counts the rows of each piece.

    Parameters
    ----------
    keys : sequence of sequence of key
        For each output, the key of each piece: a piece is complete with its last output.
    starts : sequence of int
        First row of each piece, and the number of all rows; empty without rows.
    """
    shown = current_progress()
    if shown is None:
        return contextlib.nullcontext()
    rows = [stop - start for start, stop in itertools.pairwise(starts)] or [1] * len(keys[-1])
    return shown.watch(dict(zip(keys[-1], rows, strict=True)))


def _starts(pieces: Mapping[str, Sequence[Any]], axes: Mapping[str, int | None]) -> tuple[int, ...]:
    """Return the first row of each piece, and the number of all rows; empty without rows."""
    for name, own in pieces.items():
        if (axis := axes.get(name)) is not None:
            return tuple(itertools.accumulate((each.shape[axis] for each in own), initial=0))
    return ()


def _can_pad_no_rows(request: Request, arrays: Mapping[str, Any]) -> bool:
    """Return whether there are no rows, and one that is made up can be removed from all outputs.

    Kernels differ in what they do with empty tensors; some end the process.
    """
    output_axes = request.batch.output_axes
    return is_empty(arrays, request.batch.input_axes) and all(
        output_axes[name] is not None for name in request.wanted.names
    )


def _supplies(request: Request, client: Any) -> Mapping[str, Any]:
    """Return the tasks that bring the model to workers; a cluster keeps their results for later."""
    if request.delivery is None:
        return {}
    return request.delivery.tasks if client is None else hold(client, request.delivery)


def _cut(
    request: Request, arrays: Mapping[str, Any], client: Any, *, inline: bool
) -> dict[str, list[Any]]:
    """Return the pieces of each input, one for each task; an input without rows is one piece."""
    axes = request.batch.input_axes
    per_run = request.batching.rows_per_run
    if per_run is None and not request.batching.is_auto:
        check_arrays(arrays, request.stages.inputs, dict.fromkeys(arrays))
        return {name: [array] for name, array in arrays.items()}
    check_arrays(arrays, request.stages.inputs, axes)
    rows = max((arrays[n].shape[axis] for n in arrays if (axis := axes[n]) is not None), default=0)
    if per_run is None:
        step = max(1, rows if inline else _rows_of_task(request, arrays, rows, client))
    else:
        runs = -(-rows // per_run)
        # With several stages each batch of the caller's is a task, so that stages overlap;
        # otherwise a task runs several batches.
        is_pipelined = request.is_batched and len(request.stages.stages) > 1
        tasks = runs if is_pipelined else _TASKS_PER_SLOT * _slots(client)
        step = per_run * max(1, -(-runs // max(tasks, 1)))
        check_joins(
            request.batch,
            request.wanted.names,
            model=request.model.token,
            chunks=1,
            rows_per_run=None if runs <= 1 else per_run,
        )
    starts = range(0, max(rows, 1), step)
    return {
        name: [array]
        if (axis := axes[name]) is None
        else [array[(slice(None),) * axis + (slice(s, s + step),)] for s in starts]
        for name, array in arrays.items()
    }


def _rows_of_task(request: Request, arrays: Mapping[str, Any], rows: int, client: Any) -> int:
    """Return the rows of each task, which finds the best batch size by itself.

    There are enough tasks for all workers, but none shorter than `LEAST_TASK_SECONDS`.
    """
    (stage,) = request.stages.stages
    axes = [request.batch.input_axes[spec.name] for spec in stage.inputs]
    shapes = row_shapes([arrays[spec.name] for spec in stage.inputs], axes)
    token = stage_ref(request.model, stage, request.options.custom).token
    tuned = find_tuning(
        token, task_threads(request.options.run.session.intra_op_num_threads), shapes
    )
    if tuned is None:
        return rows if rows < _ROWS_TO_SPREAD else -(-rows // (2 * _slots(client)))
    tasks = int(rows / tuned.rate / LEAST_TASK_SECONDS)
    if tasks > 1:
        tasks = min(tasks, _TASKS_PER_SLOT * _slots(client))
    step = -(-rows // max(1, tasks))
    return min(rows, -(-step // tuned.rows) * tuned.rows)


def _slots(client: Any) -> int:
    """Return the number of tasks that run at a time; 1 on a cluster that has no workers yet."""
    if client is None:
        return available_cores()
    return int(client.scheduler_info(n_workers=0)["total_threads"]) or 1


def _join(pieces: list[Any], axis: int | None) -> Any:
    return pieces[0] if axis is None else concatenated(pieces, axis)
