"""The scheduler that Dask would use here, and its client: one decision for all of the package.

`dask.base.get_scheduler` decides: the option ``scheduler`` of Dask's configuration, which may be a
name, a callable, an executor or a client, comes before a client that exists. The memory of workers,
the delivery of weights, placement and measurements go by the same decision.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import dask.config
import dask.local
import dask.threaded
from dask.base import compute, get_scheduler
from dask.core import flatten
from dask.utils import parse_timedelta
from distributed import Client, KilledWorker, get_client
from distributed.comm import CommClosedError

from dask_onnx.cluster.placement import effective_retries
from dask_onnx.cluster.worker_deaths import killed_worker_error
from dask_onnx.core.dask_internals import has_lost_scheduler
from dask_onnx.core.errors import ClusterError, InputError, Suggestion
from dask_onnx.core.peers import has_seceded, is_inside_task
from dask_onnx.core.task_watch import current_notice

_NAMES = ("distributed", "dask.distributed")
"""Values of Dask's option ``scheduler`` that stand for the client that exists."""
_POLL_SECONDS = 0.05
"""Seconds between looks at a client that connects again."""
_THREADS = (Suggestion("scheduler", "threads"),)


@dataclass(slots=True)
class _LastUsed:
    """The client that the last request of this process was made for; shared by its threads."""

    client: Callable[[], Any] = lambda: None
    """Weak reference to the client."""
    address: str = ""
    """Address of its scheduler, which a client that is closed does not know."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, client: Any) -> None:
        """Note the client of a request."""
        with self.lock:
            if self.client() is not client:
                self.client, self.address = weakref.ref(client), client.scheduler.address

    def known(self) -> tuple[Any, str]:
        """Return the client, None if there is none or it is gone, and its scheduler's address."""
        with self.lock:
            return self.client(), self.address


_last_used = _LastUsed()


_given_client: ContextVar[Any] = ContextVar("client that was given", default=None)
"""Client of the innermost `using_client` of this thread or task; None outside of it."""


@contextmanager
def using_client(client: Any) -> Iterator[None]:
    """Let `current_client` return a client in this thread.

    Dask's own `Client.as_current` also sets the option ``scheduler`` of the whole process, and sets
    it back when it ends: to a scheduler that is gone, if another thread has closed its client
    meanwhile.
    """
    token = _given_client.set(client)
    try:
        yield
    finally:
        _given_client.reset(token)


def current_client() -> Any:
    """Return the client that Dask would use here; no cluster is asked.

    None inside a task, if there is no client, or if Dask's option ``scheduler`` names another
    scheduler than a client's. A task that has left its worker's thread pool, as
    ``distributed.worker_client`` makes it do, counts as any other caller.
    """
    if is_inside_task():
        return None
    if (given := _given_client.get()) is not None:
        return given
    scheduler = dask.config.get("scheduler", None)
    if scheduler and not _names_a_client(scheduler):
        return client_of(scheduler)
    try:
        # A task that has left the pool may be the first one of its worker to need a client.
        client = get_client() if has_seceded() else Client.current(allow_global=True)
    except ValueError:
        return None
    has_fallback = dask.config.get("admin.async-client-fallback", None)
    return None if client.asynchronous and has_fallback else client


def client_of(scheduler: Any) -> Any:
    """Return the client that a value of Dask's option ``scheduler`` stands for, or None.

    Parameters
    ----------
    scheduler : Client, callable or str
        A client, its method ``get`` with or without bound arguments, or anything else that Dask
        takes.
    """
    while isinstance(scheduler, functools.partial):
        scheduler = scheduler.func
    client = getattr(scheduler, "__self__", scheduler)
    return client if isinstance(client, Client) else None


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
        Takes a graph and keys. Raises a ClusterError if the connection to the cluster is lost.
    client : distributed.Client or None
        None unless the scheduler is a client's.

    Raises
    ------
    ClusterError
        The option ``scheduler`` names a cluster, and there is no client; the client is
        asynchronous, or its connection is lost.
    InputError
        Dask knows no scheduler of the name in the option ``scheduler``.
    """
    if is_inside_task():
        return dask.local.get_sync, None
    ensure_connected(current_client())
    try:
        get = get_scheduler() or dask.threaded.get
    except ValueError as error:
        raise InputError(
            f"Dask's option 'scheduler' is {dask.config.get('scheduler', None)!r}: {error}",
            "set it to one of Dask's schedulers, or leave it out",
            option="scheduler",
            reason=str(error),
            suggestions=_THREADS,
        ) from error
    except RuntimeError as error:
        raise ClusterError(
            f"Dask has no cluster for this request: {error}",
            "connect a synchronous client: distributed.Client(address)",
            option="scheduler",
            reason=str(error),
            suggestions=_THREADS,
        ) from error
    client = client_of(get)
    if client is None:
        return get, None
    return functools.partial(_get_from_cluster, client, get, retries), client


def compute_now(lazy: Sequence[Any], retries: int | None = None) -> tuple[Any, ...]:
    """Compute lazy values at once on the scheduler that Dask chooses, as `chosen_scheduler` does.

    Parameters
    ----------
    lazy : sequence of collections or Delayed
    retries : int, optional
        Times that a cluster repeats a task that raised; ``onnx.retries`` by default.

    Raises
    ------
    ClusterError
        As for `chosen_scheduler`; besides, the cluster was lost.
    StageError
        Workers died while they ran a task.
    """
    get, _ = chosen_scheduler(effective_retries(retries))
    found: tuple[Any, ...] = compute(*lazy, scheduler=get)
    return found


def ensure_connected(client: Any) -> None:
    """Wait until a client that has lost its scheduler is connected again, and fail if it is not.

    Waits for as long as Dask tries to connect (``distributed.comm.timeouts.connect``).

    Parameters
    ----------
    client : distributed.Client or None
        Client that a request is about to use. None, for a request in this process, raises an error
        if the last cluster that predictions ran on was lost, and not closed by the caller: the work
        of a cluster must not start in this process unasked.

    Raises
    ------
    ClusterError
        The client is closed, or the scheduler does not answer.
    """
    if client is None:
        _refuse_after_a_loss()
        return
    if client.asynchronous:
        return
    seconds = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"), "s")
    until = time.monotonic() + seconds
    while client.status == "connecting" and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    if client.status != "running":
        raise _lost(client)
    _last_used.note(client)


def _names_a_client(scheduler: Any) -> bool:
    return isinstance(scheduler, str) and scheduler.lower() in _NAMES


def _get_from_cluster(
    client: Any, get: Callable[..., Any], retries: int, dsk: Any, keys: Any
) -> Any:
    try:
        notice = current_notice()
        if notice is None:
            return get(dsk, keys, retries=retries)
        futures = get(dsk, keys, retries=retries, sync=False)
        for future in flatten(futures, container=list):
            future.add_done_callback(lambda done: notice(done.key))
        return client.gather(futures)
    except KilledWorker as error:
        raise killed_worker_error(error) from None
    except (CancelledError, OSError) as error:
        if client.status != "running":
            raise _lost(client) from error
        if isinstance(error, CancelledError):
            raise cancelled_error("run it again") from error
        raise  # of a task


@contextlib.contextmanager
def explained_losses(
    client: Any, next_step: str = "", suggestions: Sequence[Suggestion] = ()
) -> Iterator[None]:
    """Turn errors of connections to a scheduler that is gone into a ClusterError.

    Parameters
    ----------
    client : distributed.Client or None
    next_step : str
        Advice to the caller; to connect a new client by default.
    suggestions : sequence of Suggestion

    Raises
    ------
    ClusterError
        The body has lost the scheduler. Notes of the original error are kept.
    """
    scheduler = getattr(client, "scheduler", None)
    address = "" if scheduler is None else scheduler.address
    try:
        yield
    except OSError as error:
        is_address_named = bool(address) and address in str(error)
        is_connection = isinstance(error, CommClosedError) or is_address_named
        if client is None or (client.status == "running" and not is_connection):
            raise
        lost = ClusterError(
            f"the connection to the scheduler at {address} was lost",
            next_step or "connect a new client, distributed.Client(address), and run it again",
            option="scheduler",
            reason=f"{type(error).__name__}: {error}",
            suggestions=suggestions,
        )
        for note in getattr(error, "__notes__", ()):
            lost.add_note(note)
        raise lost from error


def cancelled_error(next_step: str, suggestions: Sequence[Suggestion] = ()) -> ClusterError:
    """Return the error about tasks that somebody has cancelled, as by restarting the cluster.

    Parameters
    ----------
    next_step : str
    suggestions : sequence of Suggestion
    """
    return ClusterError(
        "the tasks of this request were cancelled: the cluster was restarted (client.restart()), "
        "or somebody cancelled them",
        next_step,
        option="scheduler",
        reason="cancelled",
        suggestions=suggestions,
    )


def _refuse_after_a_loss() -> None:
    """Raise an error if predictions were on a cluster that was lost, and nothing replaces it."""
    if is_inside_task() or dask.config.get("scheduler", None):
        return
    client, _ = _last_used.known()
    if client is not None and has_lost_scheduler(client):
        raise _lost(client)


def _lost(client: Any) -> ClusterError:
    last, address = _last_used.known()
    was_closed = client.status in ("closed", "closing") and not has_lost_scheduler(client)
    what = "is closed" if was_closed else "has lost its scheduler"
    at = "" if client is not last else f" of the scheduler at {address}"
    return ClusterError(
        f"the client{at} {what} (status {client.status!r})",
        "connect a new one, distributed.Client(address), or run in this process: "
        "dask.config.set(scheduler='threads')",
        option="scheduler",
        reason=str(client.status),
        suggestions=_THREADS,
    )
