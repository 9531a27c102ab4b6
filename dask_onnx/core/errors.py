"""What can go wrong, as types.

Every message says what, where, the numbers, and after a newline the next step. All of them survive
pickling, since most are raised on a worker and read on a client.
"""

from __future__ import annotations

from typing import Any


class DaskOnnxError(Exception):
    """The root of every error that dask_onnx raises on purpose.

    Parameters
    ----------
    cause : str
        One line: what happened, where, with the numbers.
    next_step : str
        One line: what the caller can do about it. Empty where nothing sensible can be said.
    """

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(cause, next_step)
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.cause}\n{self.next_step}" if self.next_step else self.cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cause, self.next_step)


class ModelError(DaskOnnxError):
    """A model cannot be read, or is not a model that can be run."""


class PlanError(DaskOnnxError):
    """A stage graph cannot be made as asked, or does not hold together."""


class InputError(DaskOnnxError, ValueError):
    """What the caller passed does not fit the model: names, dtypes, shapes, chunks, options."""


class StageError(DaskOnnxError, RuntimeError):
    """A stage failed on the worker that ran it."""


class RunError(StageError):
    """A kernel refused the values that it was given, or failed on them."""


class StoreError(DaskOnnxError):
    """Weights cannot be put into, or taken from, the host's store."""
