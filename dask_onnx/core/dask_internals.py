"""Parts of dask and distributed that are outside their documented interfaces.

All uses of such parts stand in this module, with the reason why no documented interface serves. A
release of Dask may change any of them; `tests/core/test_dask_internals.py` then names the part and
the installed version. Functions take Dask's own scheduler and task states, and must be called in
the scheduler's event loop, as plugins are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

# Block-wise layers that read slices of a region have no documented input type.
from dask.layers import ArraySliceDep

# The documented serializers of arrays choose their own compression; this one takes a context.
from distributed.protocol.numpy import serialize_numpy_ndarray

# A thread notes here whether it still belongs to its worker's thread pool.
from distributed.threadpoolexecutor import thread_state as pool_thread_state

# Workers have no documented way to run blocking work off their event loop in their own thread pool.
from distributed.utils import offload

# `get_worker` succeeds in every thread of a worker's process, not only in those that run a task.
from distributed.worker import thread_state

__all__ = [
    "ArraySliceDep",
    "add_dependency",
    "annotate",
    "count_deaths_from",
    "expect_duration",
    "has_left_pool",
    "has_lost_scheduler",
    "is_running_task",
    "meta_of",
    "offload",
    "remove_dependency",
    "replace_task",
    "reschedule_unrunnable",
    "run_function_on_scheduler",
    "run_function_on_worker",
    "serialize_numpy_ndarray",
    "set_other_restrictions",
    "set_priority",
    "set_retries",
    "unrunnable_preferences",
]


def is_running_task() -> bool:
    """Return whether this thread runs a task of a Dask cluster."""
    return hasattr(thread_state, "execution_state")


def has_left_pool() -> bool:
    """Return whether this thread's task has left the thread pool of its worker.

    `distributed.secede` and `distributed.worker_client` make it do so, and it may then wait for
    other tasks of the cluster. There is no documented way to tell.
    """
    return not getattr(pool_thread_state, "proceed", True)


def has_lost_scheduler(client: Any) -> bool:
    """Return whether a client was closed because it could not reach its scheduler again.

    A client that the caller closes, or that closes with a cluster of this process, keeps the
    connection as an attribute. `Client.status` is the same for both.
    """
    is_closed = client.status in ("closing", "closed", "connecting")
    return is_closed and client.scheduler_comm is None


def run_function_on_scheduler(worker: Any) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Return the remote call that runs a pickled function on the scheduler of a worker.

    `Client.run_on_scheduler` does the same, but a task should not open a client for one question.
    """
    call: Callable[..., Awaitable[dict[str, Any]]] = worker.scheduler.run_function
    return call


def run_function_on_worker(worker: Any, address: str) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Return the remote call that runs a pickled function on another worker.

    `Client.run` does the same, but a task should not open a client for one question.
    """
    call: Callable[..., Awaitable[dict[str, Any]]] = worker.rpc(address).run
    return call


def meta_of(table: Any) -> Any:
    """Return the empty pandas object with a lazy table's columns and dtypes; others as they are.

    Dask documents `_meta` as the place of these metadata, but gives no public name for it.
    """
    return getattr(table, "_meta", table)


def set_other_restrictions(
    state: Any,
    *,
    hosts: Collection[str] | None,
    resources: Mapping[str, float] | None,
    is_loose: bool,
) -> None:
    """Replace a task's restrictions besides those that `Scheduler.set_restrictions` replaces.

    That documented method knows addresses only. Hosts would add to them, since Dask takes the union
    of both; and whether a restriction is a mere preference is a field of its own.
    """
    state.host_restrictions = set(hosts) if hosts else None
    state.resource_restrictions = dict(resources) if resources else None
    state.loose_restrictions = is_loose


def reschedule_unrunnable(scheduler: Any, stimulus_id: str) -> None:
    """Start tasks in state "no-worker" that a worker may run now.

    The scheduler looks at them only when a worker joins or goes on, not when restrictions change.
    Even then it leaves out tasks that merely prefer workers that are gone or paused: it decides by
    the preferred workers alone.
    """
    if not scheduler.running:
        return
    runnable: dict[Any, str] = {}
    for worker in list(scheduler.running):
        runnable |= scheduler.bulk_schedule_unrunnable_after_adding_worker(worker)
    for state in unrunnable_preferences(scheduler):
        runnable.setdefault(state.key, "processing")
    scheduler.transitions(runnable, stimulus_id=stimulus_id)


def unrunnable_preferences(scheduler: Any) -> list[Any]:
    """Return the tasks in state "no-worker" that any worker may run, though they prefer some.

    Those that require resources are left out: Dask's preferences do not reserve them.
    """
    return [
        state
        for state in list(scheduler.unrunnable)
        if state.loose_restrictions and not state.resource_restrictions
    ]


def annotate(state: Any, name: str, value: Any) -> None:
    """Add an annotation to a task, which its next worker sees.

    The documented way to annotate is for graphs that are about to be submitted.
    """
    state.annotations = {**(state.annotations or {}), name: value}


def count_deaths_from(state: Any, first: int) -> None:
    """Let Dask's count of workers that died with a task begin at `first`.

    Dask gives a task up when the count exceeds ``allowed-failures``, which no documented interface
    changes for some tasks only.
    """
    state.suspicious = first


def replace_task(state: Any, spec: Any, *, retries: int) -> None:
    """Replace what a task runs, under the same key, and how often it is repeated if it raises.

    Nothing documented changes a graph that the scheduler already has.
    """
    state.run_spec = spec
    state.retries = retries


def set_retries(state: Any, retries: int) -> None:
    """Let a task be repeated at least `retries` times after an exception.

    The documented annotation is lost where `dask.array` optimises a graph.
    """
    state.retries = max(state.retries, retries)


def set_priority(state: Any, priority: tuple[Any, ...]) -> None:
    """Replace a task's priority; lower ones run first.

    The documented annotation is lost where `dask.array` optimises a graph, and it cannot order
    tasks within Dask's own order.
    """
    state.priority = priority


def expect_duration(state: Any, seconds: float) -> None:
    """Expect tasks of a state's prefix to take `seconds`, unless the scheduler has seen some.

    The documented setting ``distributed.scheduler.default-task-durations`` is read once, from the
    scheduler's own configuration.
    """
    if seconds > 0 and state.prefix.duration_average < 0:
        state.prefix.duration_average = seconds


def add_dependency(state: Any, dependency: Any) -> None:
    """Make a task that has not started wait for another one.

    Nothing documented changes a graph that the scheduler already has.
    """
    state.add_dependency(dependency)


def remove_dependency(state: Any, dependency: Any) -> None:
    """Undo `add_dependency`, so that the same graph can be submitted again."""
    state.dependencies.discard(dependency)
    dependency.dependents.discard(state)
