"""Parts of dask and distributed that are outside their documented interfaces.

All uses of such parts stand in this module, with the reason why no documented interface serves. A
release of Dask may change any of them; `tests/core/test_dask_internals.py` then names the part and
the installed version. Functions take Dask's own scheduler and task states, and must be called in
the scheduler's event loop, as plugins are.
"""

from __future__ import annotations

import pickle
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

# A graph of tasks is only sent as an expression.
from dask._expr import LLGExpr

# Graphs of other collections may still hold tuples, which no documented function turns into tasks.
from dask._task_spec import convert_legacy_graph

# Block-wise layers that read slices of a region have no documented input type.
from dask.layers import ArraySliceDep
from distributed.metrics import context_meter

# The documented serializers of arrays choose their own compression; this one takes a context.
from distributed.protocol.numpy import serialize_numpy_ndarray

# Every graph that is sent has such a record.
from distributed.spans import SpanMetadata

# A thread notes here whether it still belongs to its worker's thread pool.
from distributed.threadpoolexecutor import thread_state as pool_thread_state

# Workers have no documented way to run blocking work off their event loop in their own thread pool.
from distributed.utils import offload

# `get_worker` succeeds in every thread of a worker's process, not only in those that run a task.
from distributed.worker import WORKER_ANY_RUNNING, Worker, thread_state

__all__ = [
    "ArraySliceDep",
    "LogTail",
    "add_dependency",
    "annotate",
    "clock_shift_of",
    "convert_legacy_graph",
    "count_deaths_from",
    "digests_of",
    "executing_of",
    "expect_duration",
    "fail_waiting",
    "forget_events",
    "has_left_pool",
    "has_lost_scheduler",
    "has_metric_listeners",
    "is_running_task",
    "meta_of",
    "offload",
    "remove_dependency",
    "replace_task",
    "reschedule_unrunnable",
    "run_function_on_scheduler",
    "run_function_on_worker",
    "run_on_scheduler_async",
    "serialize_numpy_ndarray",
    "set_other_restrictions",
    "set_priority",
    "set_retries",
    "span_of",
    "submit_tasks",
    "transfer_logs_of",
    "unhashed_graph",
    "unrunnable_preferences",
    "worker_of_process",
]


def is_running_task() -> bool:
    """Return whether this thread runs a task of a Dask cluster."""
    return hasattr(thread_state, "execution_state")


def running_task_key() -> tuple[str, str]:
    """Return the address of the worker whose task this thread runs, and the task's key as text.

    `get_worker` gives the worker, but there is no documented way to ask for the key.

    Returns
    -------
    tuple of str
        Two empty texts outside the tasks of a cluster.
    """
    state = getattr(thread_state, "execution_state", None)
    return ("", "") if state is None else (state["worker"].address, str(thread_state.key))


def worker_of_process(address: str) -> Any:
    """Return the worker of this process that sends from an address, or None.

    `get_worker` knows the worker of a task, but not that of a transfer.

    Parameters
    ----------
    address : str
        Address of the worker, or of its end of a connection: where there is only one worker in the
        process, it is that one.
    """
    workers = [each for each in list(Worker._instances) if each.status in WORKER_ANY_RUNNING]
    exact = [each for each in workers if each.address == address]
    found = exact or workers
    return found[0] if len(found) == 1 else None


def has_metric_listeners() -> bool:
    """Return whether this thread works for a task or a transfer whose metrics Dask adds up.

    `context_meter.meter` costs some microseconds even if nobody listens, and no documented
    interface tells that.
    """
    return bool(context_meter._callbacks.get())


def digests_of(server: Any) -> dict[Any, float]:
    """Return a copy of the metrics that a worker or a scheduler has added up since its start.

    They are published by its dashboard and by ``/metrics``, but under no documented name.
    """
    return dict(server.digests_total)


TransferLog = deque[dict[str, Any]]
"""Newest transfers of a worker, `distributed.admin.low-level-log-length` at most."""


def transfer_logs_of(worker: Any) -> tuple[TransferLog, TransferLog]:
    """Return the logs of values that a worker got, and of those that it sent.

    Returns
    -------
    incoming, outgoing : deque of dict
        The logs themselves, which grow; times are of the scheduler's clock, by the worker's
        estimate.
    """
    return worker.transfer_incoming_log, worker.transfer_outgoing_log


class LogTail:
    """Reader of what is added to a log that forgets its oldest entries.

    Parameters
    ----------
    log : deque of dict
        One of `transfer_logs_of`. Entries that are there already are not read.
    """

    def __init__(self, log: TransferLog) -> None:
        self._log = log
        self._last = log[-1] if log else None
        self.has_missed = False
        """True if entries were forgotten before they were read."""

    def read(self) -> list[dict[str, Any]]:
        """Return the entries that are new, the oldest first."""
        found = []
        for entry in reversed(self._log):
            if entry is self._last:
                break
            found.append(entry)
        else:
            self.has_missed |= len(found) == self._log.maxlen
        if found:
            self._last = found[0]
        return found[::-1]


def clock_shift_of(worker: Any) -> float:
    """Return the seconds that a worker adds to its clock to estimate that of the scheduler.

    Each heartbeat estimates them anew; Dask publishes times of tasks with them included.
    """
    return float(worker.scheduler_delay)


def forget_events(scheduler: Any, topic: str) -> None:
    """Remove the events of a topic that a scheduler keeps for those who ask later.

    Dask does so itself for workers and clients that leave; there is no documented way.
    """
    scheduler._broker.truncate(topic)


def executing_of(worker: Any) -> list[tuple[str, float]]:
    """Return the key and the start, by the worker's clock, of each task that a worker runs now.

    The dashboard of a worker shows them, but there is no documented way to ask.
    """
    return [(str(each.key), float(each.start_time or 0.0)) for each in worker.state.executing]


def span_of(state: Any) -> str:
    """Return the span that the scheduler has put a task's group in; empty if there is none."""
    return getattr(state.group, "span_id", None) or ""


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


def run_on_scheduler_async(
    client: Any, function: Callable[..., Any], *arguments: Any
) -> Awaitable[Any]:
    """Return the call that runs a function on the scheduler, for the event loop of a client.

    `Client.run_on_scheduler` is the same, but of a synchronous client it waits for the answer.
    """
    call: Awaitable[Any] = client._run_on_scheduler(function, *arguments)
    return call


def run_function_on_worker(worker: Any, address: str) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Return the remote call that runs a pickled function on another worker.

    `Client.run` does the same, but a task should not open a client for one question.
    """
    call: Callable[..., Awaitable[dict[str, Any]]] = worker.rpc(address).run
    return call


def submit_tasks(
    client: Any,
    tasks: Mapping[Any, Any],
    keys: Sequence[Any],
    ranks: Mapping[Any, float],
    retries: int,
) -> list[Any]:
    """Start the tasks of a graph by rank, lower ones first; return a future for each key.

    Documented interfaces leave the order of tasks that do not depend on each other to Dask, whose
    order is the reverse of that of their keys as text. Priorities, which are documented, rank above
    the age of a graph, so that the graphs of other clients would always run before or after these.

    Parameters
    ----------
    client : Client
    tasks : mapping of key to task
        All tasks of the graph.
    keys : sequence of keys
        Tasks whose results are wanted.
    ranks : mapping of key to float
        Rank of each task.
    retries : int
        Times that a task is repeated if it raises.
    """
    futures = client._graph_to_futures(
        LLGExpr(dict(tasks)),
        keys,
        span_metadata=SpanMetadata(collections=[{"type": "low-level-graph"}]),
        internal_priority=dict(ranks),
        retries=retries,
    )
    return [futures[key] for key in keys]


def unhashed_graph(tasks: Mapping[Any, Any]) -> Any:
    """Return a graph for `Client.get` whose tasks and arrays are not hashed, as for a dict.

    Nothing reads the hash of a graph whose keys are unique; `Client.submit` leaves it out too.
    """
    return LLGExpr(dict(tasks), _determ_token=uuid.uuid4().hex)


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


def fail_waiting(scheduler: Any, states: Iterable[Any], error: Exception, stimulus_id: str) -> int:
    """Let tasks that wait for a worker fail with an error, and return their number.

    The documented setting ``distributed.scheduler.no-workers-timeout`` is read when the scheduler
    starts, holds for the tasks of all clients, and has errors of its own.
    """
    recommendations: dict[Any, str] = {}
    count = 0
    for state in states:
        if state.state in ("no-worker", "queued"):
            count += 1
            recommendations |= scheduler.transition(
                state.key,
                "erred",
                exception=pickle.dumps(error),
                cause=state.key,
                stimulus_id=stimulus_id,
            )
    scheduler.transitions(recommendations, stimulus_id=stimulus_id)
    return count


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
