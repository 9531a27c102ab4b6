"""Asking other processes of the cluster from inside a task, over Dask's own connections."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import distributed
from distributed.utils import sync
from distributed.worker import thread_state

_ASK_SECONDS = 60
"""How long a worker or the scheduler may take to answer."""


def is_inside_task() -> bool:
    """Whether this thread runs a task of a Dask cluster."""
    return hasattr(thread_state, "execution_state")


def own_worker() -> Any:
    """The Dask worker that this thread runs a task of, or that this process is; None if neither."""
    try:
        return distributed.get_worker()
    except ValueError:
        return None


def ask_scheduler(worker: Any, function: Any, *arguments: Any) -> Any:
    """What `function(*arguments, dask_scheduler=...)` returns there; None if it cannot say."""
    return _answer(worker, worker.scheduler.run_function, function, arguments)


def ask_worker(worker: Any, address: str, function: Any, *arguments: Any) -> Any:
    """What `function(*arguments)` returns on another worker; None if it is gone or cannot say."""
    # Connecting to a worker that is gone takes Dask's whole timeout to fail: ask whether it is.
    if not ask_scheduler(worker, is_alive, address):
        return None
    return _answer(worker, worker.rpc(address).run, function, arguments)


def is_alive(address: str, dask_scheduler: Any = None) -> bool:
    """Whether the scheduler still has a worker at this address."""
    return address in dask_scheduler.workers


def _answer(worker: Any, call: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    async def ask() -> Any:
        return await call(function=pickle.dumps(function), args=pickle.dumps(arguments))

    with contextlib.suppress(OSError, TimeoutError):
        response = sync(worker.loop, ask, callback_timeout=_ASK_SECONDS)
        if response["status"] == "OK":
            return response["result"]
    return None
