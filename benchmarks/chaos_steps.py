"""Functions that the tasks of `chaos` run; importable on its workers."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ROWS, WIDTH = 16, 64
"""Rows of a block, and features of a row."""
STEP_SECONDS = 0.04
"""Seconds that a stage takes besides its work, so that a fault meets tasks that run."""


def rest(seconds: float) -> None:
    """Sleep; under libfaketime a busy machine makes the system refuse times that have passed."""
    with contextlib.suppress(OSError):
        time.sleep(seconds)


def load_block(block_info: Any = None) -> Array:
    """Return one block of input: float32, shape (ROWS, WIDTH), the same each time."""
    number = block_info[None]["chunk-location"][0]
    rng = np.random.default_rng(number)
    return rng.standard_normal((ROWS, WIDTH)).astype(np.float32)


def slow_block(block_info: Any = None) -> Array:
    """Return what `load_block` does, after some time: for plans of one stage, fused with it."""
    rest(2 * STEP_SECONDS)
    return load_block(block_info)


def slow_relu(x: Array) -> Array:
    rest(STEP_SECONDS)
    return np.maximum(x, 0)


slow_relu.axes = "independent"  # type: ignore[attr-defined]  # read by dask_onnx.load


def slow_identity(block: Array) -> Array:
    """Preparation of a block on the command line."""
    rest(STEP_SECONDS)
    return block
