"""Snapshot of what a cluster does at a moment: its stages, workers and links, as plain records.

Only the scheduler is asked, by a function that is sent by value and reads what workers have told
it with their heartbeats; workers are not disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_onnx.cluster.scheduler_plugin import PLUGIN_NAME


@dataclass(frozen=True, slots=True)
class StageActivity:
    """Tasks of one name on the dashboard: of a stage, or of anything else."""

    name: str
    model: str
    """Name of its model, or "several models"; empty for tasks that are no stages."""
    states: Mapping[str, int]
    """Number of tasks by state, now."""
    completed: int
    """Tasks that have completed since the scheduler began, those that are forgotten too."""
    seconds: float
    """Mean seconds of recent tasks; 0 if none has run."""
    bytes: int
    """Bytes of all results that were ever in memory."""


@dataclass(frozen=True, slots=True)
class WorkerActivity:
    """State of a worker."""

    address: str
    status: str
    threads: int
    running: tuple[str, ...]
    """Names of the tasks that it runs."""
    processing: int
    """Tasks that it runs or is about to run."""
    cpu: float
    """Percent of one core."""
    memory: int
    """Resident bytes."""
    memory_limit: int
    """Bytes; 0 if there is no limit."""
    spilled: int
    """Bytes on its disk."""
    read_rate: float
    """Bytes per second that its host receives."""
    write_rate: float
    """Bytes per second that its host sends."""


@dataclass(frozen=True, slots=True)
class LinkActivity:
    """Transfers from one worker to another."""

    sender: str
    receiver: str
    rate: float
    """Bytes per second of recent transfers, while they last."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of a cluster at a moment."""

    time: float
    """Seconds since the epoch, by the scheduler's clock."""
    address: str
    """Address of the scheduler."""
    stages: tuple[StageActivity, ...]
    workers: tuple[WorkerActivity, ...]
    links: tuple[LinkActivity, ...]


def take_snapshot(client: Any) -> Snapshot:
    """Ask the scheduler of a synchronous client what its cluster does."""
    found = client.run_on_scheduler(snapshot_question(), PLUGIN_NAME)
    return Snapshot(
        found["time"],
        found["address"],
        tuple(StageActivity(**each) for each in found["stages"]),
        tuple(WorkerActivity(**each) for each in found["workers"]),
        tuple(LinkActivity(*each) for each in found["links"]),
    )


def snapshot_question() -> Callable[..., dict[str, Any]]:
    """Return the function that a scheduler is asked, to be sent by value."""
    describe_stage, describe_worker = _stage_description(), _worker_description()

    def ask(plugin_name: str, dask_scheduler: Any = None) -> dict[str, Any]:
        models = getattr(dask_scheduler.plugins.get(plugin_name), "models", {})
        return {
            "time": time.time(),
            "address": dask_scheduler.address,
            "stages": [
                describe_stage(prefix, models.get(name, ""))
                for name, prefix in dask_scheduler.task_prefixes.items()
            ],
            "workers": [describe_worker(state) for state in dask_scheduler.workers.values()],
            "links": [
                (sender, receiver, rate)
                # Workers tell what they received, and from whom.
                for (receiver, sender), rate in dask_scheduler.bandwidth_workers.items()
            ],
        }

    return ask


def _stage_description() -> Callable[..., dict[str, Any]]:
    def describe(prefix: Any, model: str) -> dict[str, Any]:
        return {
            "name": prefix.name,
            "model": model,
            "states": {state: count for state, count in prefix.states.items() if count},
            "completed": prefix.state_counts["memory"],
            "seconds": max(prefix.duration_average, 0.0),
            "bytes": prefix.nbytes_total,
        }

    return describe


def _worker_description() -> Callable[..., dict[str, Any]]:
    def describe(state: Any) -> dict[str, Any]:
        metrics = state.metrics
        network = metrics.get("host_net_io") or {}
        return {
            "address": state.address,
            "status": state.status.name,
            "threads": state.nthreads,
            "running": tuple(task.prefix.name for task in state.executing),
            "processing": len(state.processing),
            "cpu": float(metrics.get("cpu", 0.0)),
            "memory": int(metrics.get("memory", 0)),
            "memory_limit": int(state.memory_limit or 0),
            "spilled": int((metrics.get("spilled_bytes") or {}).get("disk", 0)),
            "read_rate": float(network.get("read_bps", 0.0)),
            "write_rate": float(network.get("write_bps", 0.0)),
        }

    return describe
