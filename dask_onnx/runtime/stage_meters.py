"""Meters of one task's work on a stage: rows, runs, bytes and errors."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dask_onnx.core.dask_internals import running_task_key
from dask_onnx.core.meters import StageNote, count, is_metered, is_recording, record_stage
from dask_onnx.runtime.batching import MicroBatches
from dask_onnx.runtime.node_samples import keep_sample
from dask_onnx.runtime.row_runs import Computed
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.runtime.transfer import unwrap

_MAX_MESSAGE = 300
"""Characters of an exception that a note keeps."""


class StageMeter:
    """Facts known so far of one task's work on a stage."""

    def __init__(self) -> None:
        self.values: Sequence[Any] = ()
        """Inputs of the stage."""
        self.computed: Computed | None = None
        """Result of its runs."""
        self.rows: int | None = None
        """Rows of its runs; None where no input has rows."""
        self.outputs: Sequence[Any] = ()
        """Values that the task returns."""


@contextlib.contextmanager
def metered_stage(call: StageCall) -> Iterator[StageMeter]:
    """Count rows, runs, bytes and errors of a stage's task, and note them if a profile records.

    Parameters
    ----------
    call : StageCall
        Call of the stage.

    Yields
    ------
    StageMeter
        Filled by the caller as far as it gets.
    """
    meter = StageMeter()
    if not is_metered():
        yield meter
        return
    started, began = time.time(), time.perf_counter()
    try:
        yield meter
    except BaseException as error:
        kind = type(error).__name__
        count(f"error-{kind}", 1)
        if is_recording():
            text = str(error).partition("\n")[0][:_MAX_MESSAGE]
            _record(call.stage, meter, started, time.perf_counter() - began, kind, text)
        raise
    seconds, computed = time.perf_counter() - began, meter.computed
    if computed is None:
        return
    count("batches", 1)
    count("runs", len(computed.results))
    if meter.rows is not None:
        count("rows", meter.rows)
    count("input", bytes_of(meter.values), "bytes")
    count("output", bytes_of(meter.outputs), "bytes")
    if is_recording():
        keep_sample(call, meter.values, computed, meter.rows)
        _record(call.stage, meter, started, seconds)


def _record(
    stage: StageRef,
    meter: StageMeter,
    started: float,
    seconds: float,
    error: str = "",
    message: str = "",
) -> None:
    computed = meter.computed
    owner, key = running_task_key()
    record_stage(
        StageNote(
            owner=owner,
            key=key,
            thread=threading.get_ident(),
            start=started,
            seconds=seconds,
            token=stage.token,
            label=stage.label,
            model=stage.model.token,
            kernel=stage.kernel,
            nodes=sum(stop - start for start, stop in stage.nodes),
            run_seconds=0.0 if computed is None else computed.seconds,
            runs=0 if computed is None else len(computed.results),
            rows=meter.rows,
            threads=1 if computed is None else computed.threads,
            input_bytes=bytes_of(meter.values),
            output_bytes=bytes_of(meter.outputs),
            error=error,
            message=message,
        )
    )


def bytes_of(values: Sequence[Any]) -> int:
    """Return the bytes of the arrays among some values, and of those in micro-batches."""
    total = 0
    for value in map(unwrap, values):
        pieces = value.pieces if isinstance(value, MicroBatches) else (value,)
        total += sum(int(getattr(piece, "nbytes", 0)) for piece in pieces)
    return total
