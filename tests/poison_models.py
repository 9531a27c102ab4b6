"""Models whose kernels end their process on some rows, or need more memory than there is."""

from __future__ import annotations

import ctypes
import os
import signal

import dask
import numpy as np
import onnx
from builders import make_model, node, value

from dask_onnx.runtime import guarded_runs
from dask_onnx.runtime.guarded_runs import compute_safely
from dask_onnx.runtime.run_records import RunningTask

MARK = np.float32(-12345.0)
"""Value of a row that ends the process."""


def _ends(x: np.ndarray) -> bool:
    return bool((x == MARK).any())


def abort_on_mark(x):
    """Add 1; abort if there is a marked value."""
    if _ends(x):
        os.abort()
    return x + np.float32(1)


def segfault_on_mark(x):
    """Add 1; read address 0 if there is a marked value."""
    if _ends(x):
        ctypes.string_at(0)
    return x + np.float32(1)


def kill_on_mark(x):
    """Add 1; send SIGKILL, as the kernel does when memory is short, if there is a marked value."""
    if _ends(x):
        os.kill(os.getpid(), signal.SIGKILL)
    return x + np.float32(1)


def abort_among_others(x):
    """Add 1; abort if there is a marked value in a run of more than one row."""
    if len(x) > 1 and _ends(x):
        os.abort()
    return x + np.float32(1)


def abort_on_white(x):
    """Return pixel values as they are; abort if one is 255."""
    if (x >= 255).any():
        os.abort()
    return x


for _function in (
    abort_on_mark,
    segfault_on_mark,
    kill_on_mark,
    abort_among_others,
    abort_on_white,
):
    _function.axes = "independent"


def run_as_task(call, key, x, store):
    """Return the rows of a stage that runs as the task of a worker, with a record of it."""
    dask.config.set({"onnx.store.directory": store})
    guarded_runs.running_task = lambda: RunningTask(key)
    return compute_safely(call, call.stage, [x], ()).results


def step_model(width: int = 4) -> onnx.ModelProto:
    """Return x (N, width) -> y (N, width): an operator of one's own, `poison::Step`, alone."""
    return make_model(
        [node("Step", "x", "y", "step", domain="poison")],
        [value("x", ["N", width])],
        [value("y", ["N", width])],
        domains={"poison": 1},
    )


def marked_model(width: int = 4) -> onnx.ModelProto:
    """Return x (N, width) -> y (N, width): Neg after an operator of one's own, `poison::Step`."""
    return make_model(
        [node("Step", "x", "s", "step", domain="poison"), node("Neg", "s", "y", "negate")],
        [value("x", ["N", width])],
        [value("y", ["N", width])],
        domains={"poison": 1},
    )


def picture_model() -> onnx.ModelProto:
    """Return x (N, 3, H, W) -> y (N, 3): means of channels after `poison::Step`."""
    return make_model(
        [
            node("Step", "x", "s", "step", domain="poison"),
            node("ReduceMean", "s", "y", "means", axes=[2, 3], keepdims=0),
        ],
        [value("x", ["N", 3, "H", "W"])],
        [value("y", ["N", 3])],
        domains={"poison": 1},
    )


def word_model(vectors: np.ndarray) -> onnx.ModelProto:
    """Return input_ids (N, T) -> y (N, T, width): `poison::Step` after a lookup of words."""
    return make_model(
        [
            node("Gather", "E input_ids", "e", "embed"),
            node("Step", "e", "y", "step", domain="poison"),
        ],
        [value("input_ids", ["N", "T"], onnx.TensorProto.INT64)],
        [value("y", ["N", "T", vectors.shape[1]])],
        {"E": vectors},
        domains={"poison": 1},
    )


def plain_model(width: int = 4) -> onnx.ModelProto:
    """Return x (N, width) -> y (N, width): Neg, which ends nothing."""
    return make_model(
        [node("Neg", "x", "y", "negate")],
        [value("x", ["N", width])],
        [value("y", ["N", width])],
    )


def expanding_model(elements: int) -> onnx.ModelProto:
    """Return x (N, 1) -> y (N,): a sum over `elements` copies of each row's number."""
    return make_model(
        [
            node("Expand", "x shape", "many", "expand"),
            node("ReduceSum", "many axis", "y", "total", keepdims=0),
        ],
        [value("x", ["N", 1])],
        [value("y", ["N"])],
        {"shape": np.array([1, elements]), "axis": np.array([1])},
    )


def hungry(x):
    """Add 1, with 16 MB of memory for each row meanwhile."""
    many = np.ones((len(x), 4_000_000), np.float32)
    return x + many[:, :1]


hungry.axes = "independent"
