"""Calls to the scheduler and to other workers from inside a task, over Dask's connections."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import distributed
from distributed import sync

from dask_onnx.core.dask_internals import (
    has_left_pool,
    is_running_task,
    run_function_on_scheduler,
    run_function_on_worker,
)

_ANSWER_SECONDS = 60
"""Longest wait for an answer of a worker or of the scheduler."""


def is_inside_task() -> bool:
    """Return whether this thread runs a task of a Dask cluster, and holds a thread of its worker.

    A task that has left its worker's thread pool, by `distributed.secede` or
    `distributed.worker_client`, counts as any other caller: it may wait for other tasks.
    """
    return is_running_task() and not has_left_pool()


def has_seceded() -> bool:
    """Return whether this thread runs a task that has left its worker's thread pool."""
    return is_running_task() and has_left_pool()


def current_worker() -> Any:
    """Return the Dask worker that runs this thread's task or lives in this process, or None."""
    try:
        return distributed.get_worker()
    except ValueError:
        return None


def ask_scheduler(worker: Any, function: Any, *arguments: Any) -> Any:
    """Return the result of ``function(*arguments, dask_scheduler=...)``, run on the scheduler.

    None if the scheduler does not answer in time or the function raises there.
    """
    return _answer(worker, run_function_on_scheduler(worker), function, arguments)


def ask_worker(worker: Any, address: str, function: Any, *arguments: Any) -> Any:
    """Return the result of ``function(*arguments)``, run on the worker at `address`.

    None if that worker is gone, does not answer in time, or the function raises there.
    """
    # Connecting to a worker that is gone fails only after Dask's connection timeout; the scheduler
    # knows at once.
    if not ask_scheduler(worker, is_alive, address):
        return None
    return _answer(worker, run_function_on_worker(worker, address), function, arguments)


def is_alive(address: str, dask_scheduler: Any = None) -> bool:
    """Return whether the scheduler has a worker at this address."""
    return address in dask_scheduler.workers


def _answer(worker: Any, call: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    async def ask() -> Any:
        return await call(function=pickle.dumps(function), args=pickle.dumps(arguments))

    with contextlib.suppress(OSError, TimeoutError):
        response = sync(worker.loop, ask, callback_timeout=_ANSWER_SECONDS)
        if response["status"] == "OK":
            return response["result"]
    return None
