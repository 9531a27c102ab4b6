"""numpy in, numpy out: on the scheduler that Dask itself would use."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dask.local
import dask.threaded
import numpy as np
from dask.base import tokenize

from dask_onnx.cluster.delivery import hold
from dask_onnx.collections.kinds import as_array, is_empty, most_rows
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import check_arrays, check_joins
from dask_onnx.collections.schedulers import chosen_scheduler
from dask_onnx.core.peers import is_inside_task
from dask_onnx.lowering.lower import Feeds, lower, stage_ref
from dask_onnx.planning.choice import LEAST_TASK_SECONDS
from dask_onnx.runtime.cores import available_cores, task_threads
from dask_onnx.runtime.kernel import take_output
from dask_onnx.runtime.tuning import look_up, row_shapes

_ROWS_TO_SPREAD = 64
"""While nothing is known of a model, so many rows are worth a task on each core."""
_TASKS_PER_SLOT = 8
"""Rows are cut into up to so many tasks for each that runs at a time: enough to balance, few enough
to be cheap."""


def _is_main_thread() -> bool:
    """Whether one request may take all cores: other threads, tasks among them, are seldom alone."""
    return threading.current_thread() is threading.main_thread()


def predict_eager(
    request: Request, feeds: Mapping[str, Any], *, inline: bool = False
) -> dict[str, Any]:
    """Run now; arrays by output name.

    With a `batch_size` the rows are spread over tasks that each run so many rows at a time; with
    "auto" too, if there is enough to do; with None all rows are one task and one run, as ORT would
    do it. `inline` keeps it in this thread.
    """
    specs = {spec.name: spec for spec in request.stages.inputs}
    arrays = {name: as_array(value, specs[name]) for name, value in feeds.items()}
    get, client = (dask.local.get_sync, None) if inline else chosen_scheduler(request.retries)
    is_local = client is None
    pieces = _cut(request, arrays, client, inline=inline or is_inside_task())
    chunks = max(map(len, pieces.values()), default=1)
    cuts_rows = request.batching.rows_per_run or request.batching.is_auto
    cuts_rows = cuts_rows or _stands_in(request, arrays)
    axes = request.batch.input_axes if cuts_rows else dict.fromkeys(arrays)
    # Keys matter only where others may ask for the same: hashing costs more than a small model.
    token = "inline" if is_local else str(tokenize(arrays))
    session = request.session
    is_alone = is_local and chunks == len(request.stages.stages) == 1
    if is_alone and session.intra_op_num_threads is None and _is_main_thread():
        session = replace(session, intra_op_num_threads=0)
    firsts = {name: own[0] for name, own in pieces.items()}
    lowered = lower(
        request.model,
        request.stages,
        Feeds(pieces, axes, token, chunks, most_rows(firsts, request.batch.input_axes)),
        replace(request.options, session=session),
        supplies=request.supplies,
    )
    wanted = [(name, lowered.outputs[name]) for name in request.wanted.names]
    keys: list[Any] = [
        [output.layout.key(output.layer, chunk) for chunk in range(chunks)] for _, output in wanted
    ]
    results = get({**lowered.tasks, **_supplies(request, client)}, keys)
    return {
        name: _join(
            [take_output(r, output.position, request.batch.output_axes[name]) for r in column],
            request.batch.output_axes[name],
        )
        for (name, output), column in zip(wanted, results, strict=True)
    }


def _stands_in(request: Request, arrays: Mapping[str, Any]) -> bool:
    """Whether one row is to run in place of none, as kernels disagree on empty tensors, and can be
    cut off what comes of it."""
    output_axes = request.batch.output_axes
    return is_empty(arrays, request.batch.input_axes) and all(
        output_axes[name] is not None for name in request.wanted.names
    )


def _supplies(request: Request, client: Any) -> Mapping[str, Any]:
    """What brings the model to its workers; on a cluster it stays there for the next request."""
    if request.delivery is None:
        return {}
    return request.delivery.tasks if client is None else hold(client, request.delivery)


def _cut(
    request: Request, arrays: Mapping[str, Any], client: Any, *, inline: bool
) -> dict[str, list[Any]]:
    """For each input the pieces that the tasks get; one that has no rows is given to all."""
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
        # Through several stages the caller's batches are micro-batches; else tasks do several.
        is_apart = request.is_batched and len(request.stages.stages) > 1
        tasks = runs if is_apart else _TASKS_PER_SLOT * _slots(client)
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
    """Rows of each task where every task finds its own best runs.

    Enough tasks for all workers, but none that is over before it was worth starting.
    """
    (stage,) = request.stages.stages
    axes = [request.batch.input_axes[spec.name] for spec in stage.inputs]
    shapes = row_shapes([arrays[spec.name] for spec in stage.inputs], axes)
    token = stage_ref(request.model, stage, request.custom).token
    tuned = look_up(token, task_threads(request.session.intra_op_num_threads), shapes)
    if tuned is None:
        return rows if rows < _ROWS_TO_SPREAD else -(-rows // (2 * _slots(client)))
    tasks = int(rows / tuned.rate / LEAST_TASK_SECONDS)
    if tasks > 1:
        tasks = min(tasks, _TASKS_PER_SLOT * _slots(client))
    step = -(-rows // max(1, tasks))
    return min(rows, -(-step // tuned.rows) * tuned.rows)


def _slots(client: Any) -> int:
    """Tasks that run at a time; on a cluster without workers they may still come."""
    if client is None:
        return available_cores()
    return int(client.scheduler_info(n_workers=0)["total_threads"]) or 1


def _join(pieces: list[Any], axis: int | None) -> Any:
    return pieces[0] if len(pieces) == 1 or axis is None else np.concatenate(pieces, axis=axis)
