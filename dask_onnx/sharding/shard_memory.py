"""Check, before anything is sent, that sequence shards fit the memory of the workers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask_onnx.cluster.placement import cluster_facts
from dask_onnx.core import config
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_bytes
from dask_onnx.planning.resources import Cluster

_WORTH_ASKING_BYTES = 64 * 2**20
"""Need of a plan below which the scheduler is not asked for the workers' memory."""


@dataclass(frozen=True, slots=True)
class ShardMemory:
    """Bytes that a request on shards holds at its peak, as predicted."""

    task_bytes: int
    """Inputs, intermediate values, outputs and weights of the largest task."""
    spread_bytes: int
    """Values in shards that wait for a later segment, of all workers together."""
    copied_bytes: int
    """Whole values that wait for a later segment, on each worker that reads them."""

    def on_each_of(self, cluster: Cluster) -> float:
        """Return the bytes on a worker if the workers have equal shares of the shards."""
        spread = self.spread_bytes / cluster.workers
        return self.task_bytes * cluster.threads + spread + self.copied_bytes


def check_shards_fit(
    client: Any, shards: int, memory: ShardMemory, with_shards: Callable[[int], ShardMemory]
) -> None:
    """Check that the tasks of a request and the values between them fit the workers.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster. Nothing is checked without one, for an asynchronous one, or while
        the cluster has no workers.
    shards : int
        Number of shards.
    memory : ShardMemory
        Bytes that the request holds.
    with_shards : callable
        Function of another number of shards to the bytes that they hold. Raises a PlanError for a
        number that is not possible.

    Raises
    ------
    PlanError
        A worker needs more than it has; a warning instead where ``onnx.plan.memory-check`` is
        "warn".
    """
    total = memory.task_bytes + memory.spread_bytes + memory.copied_bytes
    if client is None or client.asynchronous or total < _WORTH_ASKING_BYTES:
        return
    if not client.scheduler_info(n_workers=-1)["workers"]:
        return
    cluster = cluster_facts(client)
    if memory.on_each_of(cluster) <= cluster.room:
        return
    error = _too_large(cluster, shards, memory, with_shards)
    if config.get("plan.memory-check") != "warn":
        raise error
    warnings.warn(str(error), stacklevel=5)


def _too_large(
    cluster: Cluster, shards: int, memory: ShardMemory, with_shards: Callable[[int], ShardMemory]
) -> PlanError:
    needed, room = memory.on_each_of(cluster), max(cluster.room, 0.0)
    tasks = "a task" if cluster.threads == 1 else f"each of {cluster.threads} tasks at a time"
    numbers: dict[str, float] = {
        "needed_bytes": needed,
        "task_bytes": memory.task_bytes,
        "spread_bytes": memory.spread_bytes,
        "copied_bytes": memory.copied_bytes,
        "room_bytes": room,
        "shards": shards,
        "workers": cluster.workers,
    }
    suggestions: tuple[Suggestion, ...] = ()
    fitting = _fitting_shards(cluster, shards, with_shards)
    waiting = memory.spread_bytes / cluster.workers + memory.copied_bytes
    if fitting is not None:
        next_step = f"cut it into more shards: n={fitting}"
        suggestions = (Suggestion("n", fitting),)
        numbers["fitting_shards"] = fitting
    elif waiting > room / 2:
        next_step = "add workers, which share the values that wait, or give them more memory"
    else:
        next_step = "give the workers more memory, or fewer threads"
    return PlanError(
        f"a worker needs about {format_bytes(needed)} for {shards} shards: "
        f"{format_bytes(memory.task_bytes)} for {tasks}, and {format_bytes(waiting)} for values "
        f"that later tasks read; it has room for {format_bytes(room)}: Dask pauses it at "
        f"{format_bytes(cluster.memory_limit)}, and its process has about "
        f"{format_bytes(cluster.resident)} before it holds anything",
        next_step,
        option="n",
        numbers=numbers,
        suggestions=suggestions,
    )


def _fitting_shards(
    cluster: Cluster, shards: int, with_shards: Callable[[int], ShardMemory]
) -> int | None:
    """Return the least doubling of the shards that fits; None once more shards save little."""
    held = math.inf
    count = shards
    while True:
        count *= 2
        try:
            memory = with_shards(count)
        except PlanError:
            return None
        needed = memory.on_each_of(cluster)
        if needed <= cluster.room:
            return count
        if needed > 0.98 * held:
            return None
        held = needed
