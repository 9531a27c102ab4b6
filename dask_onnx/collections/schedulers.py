"""The scheduler of Dask that runs work which is computed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.local
import dask.threaded
from dask.base import get_scheduler

from dask_onnx.cluster.delivery import client_of
from dask_onnx.core.peers import is_inside_task


def chosen_scheduler(retries: int) -> tuple[Callable[..., Any], Any]:
    """Return the function ``get`` of the scheduler that Dask chooses, and its client.

    Inside a task the synchronous scheduler is used: the work runs in the task's own thread.

    Parameters
    ----------
    retries : int
        Times that a cluster repeats a task that raised.

    Returns
    -------
    get : callable
        Takes a graph and keys.
    client : distributed.Client or None
        None unless the scheduler is a client's.
    """
    if is_inside_task():
        return dask.local.get_sync, None
    get = get_scheduler() or dask.threaded.get
    client = client_of(get)
    if client is None:
        return get, None
    return lambda dsk, keys: get(dsk, keys, retries=retries), client
