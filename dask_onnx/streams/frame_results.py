"""Records of a stream's frames without a result, and of its swaps of models."""

from __future__ import annotations

from dataclasses import dataclass

from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.streams.flow_control import DropReason


@dataclass(frozen=True, slots=True)
class Dropped:
    """The result of a frame that was dropped: there is none."""

    index: int
    """Number of the frame, from 0 on."""
    reason: DropReason
    """"deadline": it was late. "newer": a newer frame took its place before it started."""
    seconds: float
    """Age of the frame when it was dropped."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The result of a frame that failed, where ``on_error="dead_letter"``."""

    index: int
    """Number of the frame, from 0 on."""
    error: Exception
    """Reason; errors of dask_onnx have the frame as ``numbers["frame"]``."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Replacement of a stream's model."""

    frame: int
    """First frame that the new model runs."""
    old_token: str
    """Token of the model that ran the frames before."""
    new_token: str
    """Token of the model that runs this frame and those after it."""


def at_frame(error: Exception, index: int, stream: str) -> Exception:
    """Return an error with the frame that it is about; errors of others as they are, with a note.

    Parameters
    ----------
    error : Exception
    index : int
        Number of the frame.
    stream : str
        Name of the stream.
    """
    where = f"frame {index:,} of stream {stream!r}"
    if not isinstance(error, DaskOnnxError):
        error.add_note(f"in {where}")
        return error
    located = type(error).__new__(type(error))
    located.__dict__.update(error.__dict__)
    located.cause = f"{where}: {error.cause}"
    located.args = (located.cause, error.next_step)
    located.numbers = {**error.numbers, "frame": index}
    located.__cause__, located.__traceback__ = error.__cause__, error.__traceback__
    return located
