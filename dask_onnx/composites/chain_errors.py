"""Errors of a step of a chain, with the step and the frame."""

from __future__ import annotations

from dask_onnx.core.errors import DaskOnnxError, StageError


def at_step(error: Exception, step: str, frame: int | None) -> DaskOnnxError:
    """Return an error that names the step and the frame.

    Parameters
    ----------
    error : Exception
        What the step raised.
    step : str
        Name of the step.
    frame : int or None
        Number of the frame; None if it is not known here.

    Returns
    -------
    DaskOnnxError
        Of the type that it had; a `StageError` for errors of other code, with its text as
        ``reason``. ``stage`` is the step, ``numbers["frame"]`` the frame.
    """
    where = f"step {step!r}" + ("" if frame is None else f", frame {frame:,}")
    numbers = {} if frame is None else {"frame": frame}
    if isinstance(error, DaskOnnxError):
        located = type(error).__new__(type(error))
        located.__dict__.update(error.__dict__)
        located.cause, located.stage = f"{where}: {error.cause}", step
        located.args = (located.cause, error.next_step)
        located.numbers = {**error.numbers, **numbers}
        return located
    return StageError(
        f"{where}: {type(error).__name__}: {error}",
        "the function before the models, or between them, raised this; its traceback is above",
        stage=step,
        reason=f"{type(error).__name__}: {error}",
        numbers=numbers,
    )
