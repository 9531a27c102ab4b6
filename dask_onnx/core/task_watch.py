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
    """Return the function that this thread calls for each completed task; None without one."""
    return _notice.get()


@contextlib.contextmanager
def watched_tasks(notice: Notice) -> Iterator[None]:
    """Call a function for each task that completes in computations started inside the block.

    Dask's local schedulers call it; code that computes on a cluster asks `current_notice` for it.

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
