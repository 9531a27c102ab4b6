"""The function that a task runs: a reference to a stage, applied to arrays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from distributed import warn

from dask_onnx.core.errors import InputError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import Dim, TensorSpec, converts, dtype_name
from dask_onnx.core.stage_runs import StageRun, record_run
from dask_onnx.core.stage_tasks import Hints
from dask_onnx.runtime.batching import (
    MicroBatches,
    SplitInputs,
    join,
    join_micro_batches,
    keep_split,
    row_count,
    split_rows,
    take_rows,
)
from dask_onnx.runtime.codec import apply_loss
from dask_onnx.runtime.session import run_session
from dask_onnx.runtime.session_cache import Runnable
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.runtime.stage_refs import StageRef, with_value_types
from dask_onnx.runtime.stage_sessions import stage_session, with_threads
from dask_onnx.runtime.transfer import StageOutput, sendable, unwrap
from dask_onnx.runtime.tuning import row_shapes, run_sizes

_shape_warnings: BoundedCache[tuple[str, str], bool] = BoundedCache(
    "warnings about declared shapes", 10_000
)
"""Stage token and output name of shapes that were warned about."""


@dataclass(frozen=True, slots=True)
class StageCall:
    """Call of one stage by a task: the stage, and where its inputs are among the arguments."""

    stage: StageRef
    """Stage to run."""
    options: StageOptions
    """Options of the request."""
    picks: tuple[tuple[int, int | None], ...]
    """For each stage input the argument that has it, and the position inside if that is a tuple."""
    row_axes: tuple[int | None, ...]
    """For each stage input the axis to split rows on; None for one that is given whole or in
    micro-batches."""
    join_axes: tuple[int | Literal["split"] | None, ...]
    """For each stage output the axis to join the runs on; None if it has no rows; "split" leaves
    it in micro-batches for the next stage."""
    hints: Hints = field(default_factory=Hints)
    """Facts for Dask's scheduler; no part of what is computed."""
    supplies: int = 0
    """Number of last arguments that bring the model to this host; no part of what is computed."""


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
        The stage cannot be built or run here.
    StoreError
        The model cannot be found from here.
    """
    values = [
        unwrap(arguments[i] if position is None else arguments[i][position])
        for i, position in call.picks
    ]
    stage = with_value_types(call.stage, values)
    values = [_checked(v, spec) for v, spec in zip(values, stage.inputs, strict=True)]
    supplies = arguments[len(arguments) - call.supplies :]
    spec = with_threads(call.options.session)
    session = stage_session(stage, spec, supplies)
    rows = row_count(values, call.row_axes) if call.options.batching.is_auto else None
    started, began = time.time(), time.perf_counter()
    if rows is not None and rows > 1:
        split = SplitInputs([], rows, is_padded=False)
        results = _run_tuned(session, values, call, spec.intra_op_num_threads or 1, rows)
    else:
        split = split_rows(values, call.row_axes, call.options.batching)
        names = [spec.name for spec in stage.inputs]
        results = [run_session(session, feeds, stage.label, names) for feeds in split.feeds]
    seconds = time.perf_counter() - began
    record_run(StageRun(call.stage.token, started, seconds, len(results), split.rows))
    _warn_about_shapes(stage, results[0])
    outputs = tuple(
        _for_next_stage(keep_split(pieces, split), call.options)
        if axis == "split"
        else sendable(join(pieces, axis, split))
        for pieces, axis in zip(zip(*results, strict=True), call.join_axes, strict=True)
    )
    return outputs if len(outputs) > 1 else outputs[0]


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


def _checked(value: Any, spec: TensorSpec) -> Any:
    """Return an input as an array for ORT, checked where the graph could not tell before."""
    if isinstance(value, MicroBatches) or spec.dtype is None:
        return value
    array = np.asarray(value)
    if spec.dtype == object and array.dtype.kind in "UST":
        array = array.astype(object)
    elif converts(array.dtype, spec.dtype):
        array = array.astype(spec.dtype, copy=False)
    if array.dtype != spec.dtype:
        raise InputError(
            f"input {spec.name!r} has dtype {array.dtype}; "
            f"the model takes {dtype_name(spec.dtype)}",
            f"convert it: .astype({dtype_name(spec.dtype)!r})",
            input=spec.name,
        )
    if spec.shape is not None and array.ndim != len(spec.shape):
        raise InputError(
            f"input {spec.name!r} has rank {array.ndim}, shape {array.shape}; "
            f"the model takes {spec}",
            "give every axis that the model names, the batch axis included",
            input=spec.name,
            numbers={"rank": array.ndim, "expected_rank": len(spec.shape)},
        )
    return array


def _run_tuned(
    session: Runnable, values: Sequence[Any], call: StageCall, threads: int, rows: int
) -> list[list[Any]]:
    """Run in micro-batches of the best size, or of several sizes while that is not known yet."""
    shapes = row_shapes(values, call.row_axes)
    names = [spec.name for spec in call.stage.inputs]
    results: list[list[Any]] = []
    start = 0
    for size in run_sizes(call.stage.token, threads, shapes, rows):
        feeds = take_rows(values, call.row_axes, start, size)
        results.append(run_session(session, feeds, call.stage.label, names))
        start += size
    return results


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


def _for_next_stage(value: Any, options: StageOptions) -> StageOutput:
    lossy = options.lossy
    if lossy is not None and options.always_lossy:
        if isinstance(value, MicroBatches):
            value = replace(value, pieces=tuple(apply_loss(p, lossy) for p in value.pieces))
        elif isinstance(value, np.ndarray):
            value = apply_loss(value, lossy)
    return StageOutput(value, lossy)
