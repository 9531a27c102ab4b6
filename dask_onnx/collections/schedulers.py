"""Which of Dask's schedulers runs what is computed now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.local
import dask.threaded
from dask.base import get_scheduler

from dask_onnx.core.peers import is_inside_task


def chosen_scheduler(retries: int) -> tuple[Callable[..., Any], Any]:
    """Return Dask's choice of a scheduler's ``get``, and the client if it is one's.

    Inside a task that is the synchronous scheduler: what is asked for runs here and now.
    """
    if is_inside_task():
        return dask.local.get_sync, None
    get = get_scheduler() or dask.threaded.get
    client = getattr(get, "__self__", None)
    if client is None:
        return get, None
    return lambda dsk, keys: get(dsk, keys, retries=retries), client
