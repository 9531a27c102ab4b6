"""Notice of the tasks of a computation that complete, on whatever scheduler it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from dask.callbacks import Callback

Notice = Callable[[Any], None]
"""Function of the key of a task that has completed; called in any thread."""

_notice: ContextVar[Notice | None] = ContextVar("dask_onnx_task_notice", default=None)


def current_notice() -> Notice | None:
    """Return who wants to know of completed tasks in this thread; None if nobody does."""
    return _notice.get()


@contextlib.contextmanager
def watched_tasks(notice: Notice) -> Iterator[None]:
    """Tell of each task that completes in computations that are started inside the block.

    Dask's local schedulers tell by a callback; what computes on a cluster asks `current_notice`.

    Parameters
    ----------
    notice : callable
        Function of a key.
    """

    def completed(key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        notice(key)

    token = _notice.set(notice)
    try:
        with Callback(posttask=completed):
            yield
    finally:
        _notice.reset(token)
