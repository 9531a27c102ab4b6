"""Limits in time of single runs: requests to stop for ONNX Runtime, deadlines for Python kernels.

A ``Loop`` takes as many turns as a value tells that only the run knows, so that no check of a model
tells whether its runs end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

_deadline: ContextVar[float | None] = ContextVar("deadline of a run", default=None)
"""Monotonic time at which the run of this thread in the reference evaluator has to end."""


class RunTimeoutError(Exception):
    """A run took longer than it may.

    Parameters
    ----------
    seconds : float
        Time that it may take.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"it took longer than {self.seconds:,g} s"


class Stoppable(Protocol):
    """Options of a run of ONNX Runtime, which looks at them before each node, in bodies too."""

    terminate: bool
    """True to end the run with an error."""


@contextlib.contextmanager
def stops_after(seconds: float, options: Stoppable) -> Iterator[None]:
    """End a run of ONNX Runtime inside the context after some seconds, before its next node.

    Parameters
    ----------
    seconds : float
        Time that the run may take.
    options : Stoppable
        Options of this run alone.

    Raises
    ------
    RunTimeoutError
        The run was ended.
    """
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:  # ORT's own type, which tells no more
        if options.terminate:
            raise RunTimeoutError(seconds) from None
        raise
    finally:
        timer.cancel()


@contextlib.contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """Let `check_deadline` raise in this thread once some seconds have passed."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    except _DeadlineError:
        raise RunTimeoutError(seconds) from None
    finally:
        _deadline.reset(token)


def check_deadline() -> None:
    """Raise an error, which `deadline_in` turns into its own, if the deadline has passed."""
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline:
        raise _DeadlineError


class _DeadlineError(Exception):
    """The deadline of this thread has passed."""
