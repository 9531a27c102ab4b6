"""The function that a task runs: a reference to a stage, applied to arrays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import warn

from dask_onnx.core.errors import InputError
from dask_onnx.core.meters import metered
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.core.stage_runs import StageRun, record_run
from dask_onnx.core.structured_logs import log_event
from dask_onnx.core.tracing import span
from dask_onnx.runtime.batching import MicroBatches, join, join_micro_batches, keep_split
from dask_onnx.runtime.codec import apply_loss
from dask_onnx.runtime.guarded_runs import compute_safely
from dask_onnx.runtime.host_contracts import check_contract
from dask_onnx.runtime.input_values import as_input
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_meters import StageMeter, metered_stage
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.runtime.stage_refs import StageRef, with_value_types
from dask_onnx.runtime.transfer import StageOutput, rows_of_sent, sendable, unwrap

log = logging.getLogger(__name__)

_shape_warnings: BoundedCache[tuple[str, str], bool] = BoundedCache(
    "warnings about declared shapes", 10_000
)
"""Stage token and output name of shapes that were warned about."""


def run_stage(call: StageCall, *arguments: Any, after: None = None) -> Any:
    """Run a stage on arrays: the function of every task that dask_onnx makes.

    Parameters
    ----------
    call : StageCall
        Stage to run, and its options.
    arguments : ndarray, MicroBatches, or tuple of these
        Results of other stages' tasks, or the caller's arrays; last, `call.supplies` of them,
        results of tasks that bring the model here.
    after : None
        Result of a task that had to run before; only a dependency.

    Returns
    -------
    ndarray or MicroBatches, or a tuple of them
        The stage's outputs in its order; a tuple if there are several.

    Raises
    ------
    InputError
        An array does not fit the model.
    StageError
        The stage cannot be built or run here. A CrashError if it ended a worker process before,
        and ends a subprocess now.
    StoreError
        The model cannot be found from here.
    """
    label = call.stage.label
    with span("stage", call.hints.trace, stage=label), metered_stage(call) as meter:
        outputs = _run(call, arguments, meter)
        meter.outputs = outputs
    return outputs if len(outputs) > 1 else outputs[0]


def _run(call: StageCall, arguments: Sequence[Any], meter: StageMeter) -> tuple[Any, ...]:
    """Return the outputs of a stage, and pass what was computed to a meter."""
    with metered("convert"):
        picked = [
            arguments[i] if position is None else arguments[i][position]
            for i, position in call.picks
        ]
        values = [unwrap(value) for value in picked]
        stage = with_value_types(call.stage, values)
        values = [_checked(v, spec) for v, spec in zip(values, stage.inputs, strict=True)]
    meter.values = values
    check_contract(call.options.host, call.stage.label)
    supplies = arguments[len(arguments) - call.supplies :]
    computed = meter.computed = compute_safely(call, stage, values, supplies)
    results, split = computed.results, computed.split
    sent = rows_of_sent(picked)
    found = (split.rows, sent, counted_rows(values, call.count_axes))
    rows = meter.rows = next((each for each in found if each is not None), None)
    record_run(
        StageRun(
            call.stage.token,
            computed.started,
            computed.seconds,
            len(results),
            rows,
            tuple(map(_shape_of, values)),
            computed.threads,
        )
    )
    log_event(
        log,
        logging.DEBUG,
        "stage run",
        stage=call.stage.label,
        seconds=computed.seconds,
        runs=len(results),
        rows=rows,
    )
    _warn_about_shapes(stage, results[0])
    return tuple(
        _for_next_stage(keep_split(pieces, split), call.options, rows)
        if axis == "split"
        else sendable(join(pieces, axis, split))
        for pieces, axis in zip(zip(*results, strict=True), call.join_axes, strict=True)
    )


def counted_rows(values: Sequence[Any], axes: Sequence[int | None]) -> int | None:
    """Return the rows of a task that gets them whole; None where no input has rows.

    Parameters
    ----------
    values : sequence of ndarray or MicroBatches
        Inputs of the stage.
    axes : sequence of int or None
        For each of them the axis that its rows lie on; empty if that is not known.
    """
    for value, axis in zip(values, axes or (None,) * len(values), strict=True):
        shape = getattr(value, "shape", ())
        if axis is not None and axis < len(shape):
            return int(shape[axis])
    return None


def take_output(result: Any, position: int | None, axis: int | None) -> Any:
    """Return one output of a stage's task, its micro-batches joined.

    Parameters
    ----------
    result : ndarray, MicroBatches, or tuple of these
        Result of the task.
    position : int or None
        Position of the output; None if the stage has one output.
    axis : int or None
        Batch axis of the output.
    """
    value = unwrap(result if position is None else result[position])
    return sendable(join_micro_batches(value, axis) if isinstance(value, MicroBatches) else value)


def _shape_of(value: Any) -> tuple[int, ...]:
    array = value.pieces[0] if isinstance(value, MicroBatches) else value
    return tuple(getattr(array, "shape", ()))


def _checked(value: Any, spec: TensorSpec) -> Any:
    """Return an input as an array for ORT, checked where the graph could not tell before."""
    if isinstance(value, MicroBatches):
        return value
    array = as_input(value, spec) if spec.dtype is not None or spec.kind is not None else value
    if spec.dtype is not None and spec.shape is not None and array.ndim != len(spec.shape):
        raise InputError(
            f"input {spec.name!r} has rank {array.ndim}, shape {array.shape}; "
            f"the model takes {spec}",
            "give every axis that the model names, the batch axis included",
            input=spec.name,
            numbers={"rank": array.ndim, "expected_rank": len(spec.shape)},
        )
    return array


def _warn_about_shapes(stage: StageRef, results: Sequence[Any]) -> None:
    """Warn once about a result whose shape the model declares otherwise; the result is right."""
    for spec, value in zip(stage.outputs, results, strict=True):
        if spec.shape is None or not isinstance(value, np.ndarray) or _fits(value, spec.shape):
            continue
        key = (stage.token, spec.name)
        if _shape_warnings.get(key) is None:
            _shape_warnings.put(key, True)
            warn(
                f"the model declares {spec}, and stage {stage.label} gives {value.shape}; "
                "the result is kept as it came"
            )


def _fits(value: np.ndarray, shape: Sequence[Dim]) -> bool:
    return value.ndim == len(shape) and all(
        not isinstance(dim, int) or dim == size
        for dim, size in zip(shape, value.shape, strict=True)
    )


def _for_next_stage(value: Any, options: StageOptions, rows: int | None) -> StageOutput:
    lossy = options.lossy
    if lossy is not None and options.always_lossy:
        if isinstance(value, MicroBatches):
            value = replace(value, pieces=tuple(apply_loss(p, lossy) for p in value.pieces))
        elif isinstance(value, np.ndarray):
            value = apply_loss(value, lossy)
    return StageOutput(value, lossy, rows)
