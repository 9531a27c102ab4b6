"""Questions that each side of a cluster is asked when it is diagnosed, and their answers.

The functions that are sent use nothing but the standard library, and are sent by value: sides that
lack this package, or have another version of it, can answer all the same.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.core.dashboard_internals import run_within

PACKAGES = (
    "dask",
    "distributed",
    "dask-onnx",
    "onnxruntime",
    "onnx",
    "numpy",
    "lz4",
    "msgpack",
    "cloudpickle",
)
"""Distributions whose versions are compared."""
_REPORT_MODULE = "dask_onnx.cluster.host_report"
_ANSWER_SECONDS = 20.0
"""Time in which a process has to answer; it may have to import the package first."""
_MOST_ASKED_AT_ONCE = 32
_MOST_TASKS = 20
"""Tasks of each state that the scheduler lists."""


@dataclass(frozen=True, slots=True)
class Side:
    """Answer of one process: the client, the scheduler or a worker."""

    name: str
    """ "client", "scheduler", or the address of a worker."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """Installed version of each of `PACKAGES`, and of "python"; None where it is not installed."""
    clock_offset: float = 0.0
    """Seconds that its clock is ahead of the client's."""
    clock_error: float = 0.0
    """Largest error of `clock_offset` in seconds: half the time that question and answer took."""
    package: Mapping[str, Any] | None = None
    """Its `host_report`; None if it cannot import dask_onnx."""
    package_error: str = ""
    """Error of its import of dask_onnx; empty if there is none."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts only a scheduler or a worker knows; see `scheduler_question` and `worker_question`."""
    error: str = ""
    """Error that it gave instead of an answer; empty if it answered."""
    host: str = ""
    """Name of its host."""


@dataclass(frozen=True, slots=True)
class ClusterAnswers:
    """Answers of all sides of a cluster."""

    client: Side
    """This process."""
    scheduler: Side | None = None
    """The scheduler; None without a cluster."""
    workers: tuple[Side, ...] = ()
    """The workers, by address."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """All sides that were asked."""
        scheduler = () if self.scheduler is None else (self.scheduler,)
        return (self.client, *scheduler, *self.workers)


def ask_cluster(client: Any) -> ClusterAnswers:
    """Ask all sides of a cluster; nothing on them is changed.

    Parameters
    ----------
    client : distributed.Client or None
        A synchronous client; None for this process alone.
    """
    here = _side("client", _process_question()(PACKAGES, _REPORT_MODULE), 0.0, 0.0)
    if client is None:
        return ClusterAnswers(here)
    scheduler = _ask(
        "scheduler", lambda: run_within(client, _ANSWER_SECONDS, None, *_scheduler_call())
    )
    addresses = sorted(scheduler.details.get("workers", {}))
    if not addresses:
        return ClusterAnswers(here, scheduler)
    call = worker_question(), PACKAGES, _REPORT_MODULE

    def ask(address: str) -> Side:
        return _ask(address, lambda: run_within(client, _ANSWER_SECONDS, address, *call))

    with ThreadPoolExecutor(min(len(addresses), _MOST_ASKED_AT_ONCE)) as pool:
        return ClusterAnswers(here, scheduler, tuple(pool.map(ask, addresses)))


def _scheduler_call() -> tuple[Any, ...]:
    return scheduler_question(), PACKAGES, _REPORT_MODULE, _MOST_TASKS


def _ask(name: str, question: Callable[[], Any]) -> Side:
    began = time.time()
    try:
        answer = question()
    except Exception as error:  # whatever a side raises is what is wrong with it
        return Side(name, error=f"{type(error).__name__}: {error}")
    ended = time.time()
    # As NTP does: the work there, such as an import, is no part of the way there and back.
    first, last = answer["clocks"]
    offset = (first - began + last - ended) / 2
    return _side(name, answer, offset, max((ended - began) - (last - first), 0.0) / 2)


def _side(name: str, answer: Mapping[str, Any], offset: float, error: float) -> Side:
    return Side(
        name,
        answer["versions"],
        offset,
        error,
        answer["package"],
        answer["package_error"],
        answer["details"],
        host=answer["host"],
    )


def _process_question() -> Callable[..., dict[str, Any]]:
    """Return a function that tells what any process knows, to be sent by value."""

    def ask(packages: Any, report_module: str) -> dict[str, Any]:
        clock = time.time()
        versions: dict[str, str | None] = {"python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = None
        package, package_error = None, ""
        try:
            package = importlib.import_module(report_module).host_report()
        except Exception as error:  # of any type: an import runs the package's code
            package_error = f"{type(error).__name__}: {error}"
        return {
            "clocks": (clock, time.time()),
            "host": platform.node(),
            "versions": versions,
            "package": package,
            "package_error": package_error,
            "details": {},
        }

    return ask


def worker_question() -> Callable[..., dict[str, Any]]:
    """Return the function that a worker is asked, to be sent by value.

    Its ``details``: ``plugins``, by name; ``threads``; ``memory_limit`` in bytes, None if there is
    none; ``variables``, the values of environment variables that limit threads.
    """
    ask_process = _process_question()

    def ask(packages: Any, report_module: str, dask_worker: Any = None) -> dict[str, Any]:
        answer = ask_process(packages, report_module)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        answer["details"] = {
            "plugins": sorted(dask_worker.plugins),
            "threads": dask_worker.state.nthreads,
            "memory_limit": dask_worker.memory_manager.memory_limit,
            "variables": {name: os.environ[name] for name in names if name in os.environ},
        }
        return answer

    return ask


def scheduler_question() -> Callable[..., dict[str, Any]]:
    """Return the function that a scheduler is asked, to be sent by value.

    Its ``details``: ``plugins``, by name; ``worker_ttl`` in seconds; ``workers``, by address;
    ``states``, the number of tasks by state; ``no_worker``, ``waiting`` and ``erred``, lists of
    some tasks with what they need, wait for, or raised; ``expected``, the seconds that tasks of a
    name take, where that is known; ``bandwidths``, bytes per second by pair of addresses.
    """
    ask_process = _process_question()
    describe_worker, describe_tasks = _worker_description(), _task_descriptions()

    def ask(
        packages: Any, report_module: str, most: int, dask_scheduler: Any = None
    ) -> dict[str, Any]:
        answer = ask_process(packages, report_module)
        now = time.time()
        pairs = dask_scheduler.bandwidth_workers.items()
        answer["details"] = {
            "plugins": sorted(dask_scheduler.plugins),
            "worker_ttl": dask_scheduler.worker_ttl,
            "workers": {
                address: describe_worker(state, now)
                for address, state in dask_scheduler.workers.items()
            },
            "bandwidths": [(one, other, rate) for (one, other), rate in pairs],
            **describe_tasks(dask_scheduler, most),
        }
        return answer

    return ask


def _worker_description() -> Callable[..., dict[str, Any]]:
    def describe(state: Any, now: float) -> dict[str, Any]:
        running = {
            str(task.key): (task.prefix.name, float(seconds))
            for task, seconds in state.executing.items()
        }
        return {
            "host": state.host,
            "status": state.status.name,
            "threads": state.nthreads,
            "memory_limit": state.memory_limit,
            "memory": state.metrics.get("memory", 0),
            "spilled_bytes": (state.metrics.get("spilled_bytes") or {}).get("disk", 0),
            "seconds_silent": now - state.last_seen if state.last_seen else 0.0,
            "loop_seconds": state.metrics.get("event_loop_interval", 0.0),
            "processing": len(state.processing),
            "running": running,
        }

    return describe


def _task_descriptions() -> Callable[..., dict[str, Any]]:
    def restrictions(task: Any) -> dict[str, Any]:
        return {
            "workers": sorted(task.worker_restrictions or ()),
            "hosts": sorted(task.host_restrictions or ()),
            "resources": dict(task.resource_restrictions or {}),
        }

    def waits(task: Any) -> list[tuple[str, str]]:
        return [(str(each.key), each.state) for each in list(task.waiting_on or ())[:3]]

    def describe(scheduler: Any, most: int) -> dict[str, Any]:
        found: dict[str, list[Any]] = {"no-worker": [], "waiting": [], "erred": []}
        states: dict[str, int] = {}
        for task in scheduler.tasks.values():
            states[task.state] = states.get(task.state, 0) + 1
            if len(found.get(task.state, range(most))) < most:
                found[task.state].append(task)
        return {
            "states": states,
            "no_worker": [(str(each.key), restrictions(each)) for each in found["no-worker"]],
            "waiting": [(str(each.key), waits(each)) for each in found["waiting"]],
            "erred": [
                (str(each.key), str(each.exception_text or "")[:500]) for each in found["erred"]
            ],
            "expected": {
                name: prefix.duration_average
                for name, prefix in scheduler.task_prefixes.items()
                if prefix.duration_average > 0
            },
        }

    return describe
