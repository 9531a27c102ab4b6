"""Numbers of chunks that one task computes, so that Dask's scheduler can keep all workers busy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dask_onnx.core.formatting import format_count, format_seconds
from dask_onnx.planning.resources import Cluster

SCHEDULER_SECONDS_PER_TASK = 8e-4
"""CPU seconds of Dask's scheduler for a task, where that has not been measured."""
_SCHEDULER_SHARE = 0.5
"""Share of its time that the scheduler may spend on tasks: it also serves heartbeats and clients,
and beyond about this share messages queue."""
_TASKS_PER_SLOT = 8
"""Least tasks for each task that runs at a time, so that groups do not leave workers idle at the
end."""


@dataclass(frozen=True, slots=True)
class ChunkGroups:
    """Rule for the number of consecutive chunks of a lazy array that one task computes."""

    chunks: int | None = None
    """Number of chunks that the caller asked for; None to decide by the seconds of a chunk."""
    least_seconds: float = 0.0
    """Seconds that a task should take at least, so that the scheduler is not the limit."""
    slots: int = 1
    """Tasks that the cluster runs at a time."""

    def applies_to(self, chunk_seconds: float) -> bool:
        """Return whether a task should compute several chunks that each take so long."""
        return self.chunks is not None or chunk_seconds < self.least_seconds

    def size(self, chunks: int, chunk_seconds: float) -> int:
        """Return the number of chunks of a task.

        Parameters
        ----------
        chunks : int
            Number of chunks of the array.
        chunk_seconds : float
            Predicted seconds of a chunk.
        """
        if self.chunks is not None:
            return max(min(self.chunks, chunks), 1)
        if not self.applies_to(chunk_seconds):
            return 1
        most = max(chunks // (_TASKS_PER_SLOT * self.slots), 1)
        needed = math.inf if chunk_seconds <= 0 else self.least_seconds / chunk_seconds
        return max(min(math.ceil(min(needed, chunks)), most), 1)


def groups_for(cluster: Cluster) -> ChunkGroups | None:
    """Return the rule for a cluster; None in this process, which has no scheduler to relieve.

    Workers that run `slots` tasks of t seconds at a time ask the scheduler for slots / t tasks a
    second.
    """
    if cluster.is_local:
        return None
    least = cluster.slots * scheduler_seconds(cluster) / _SCHEDULER_SHARE
    return ChunkGroups(None, least, cluster.slots)


def scheduler_seconds(cluster: Cluster) -> float:
    """Return the CPU seconds of the cluster's scheduler for a task."""
    measured = cluster.overhead.scheduler_seconds_per_task
    return SCHEDULER_SECONDS_PER_TASK if measured is None else measured


def grouping_reason(groups: ChunkGroups, cluster: Cluster, chunk_seconds: float) -> str:
    """Return why, and how many, chunks of a lazy array are computed by one task.

    Parameters
    ----------
    groups : ChunkGroups
        Rule for the cluster.
    cluster : Cluster
        The workers.
    chunk_seconds : float
        Predicted seconds of a batch of the plan's shapes.
    """
    cost = scheduler_seconds(cluster)
    how = "measured" if cluster.overhead.scheduler_seconds_per_task is not None else "assumed"
    count = "as many as leave"
    if chunk_seconds > 0:
        count = f"up to {math.ceil(groups.least_seconds / chunk_seconds):,}, which leaves"
    return (
        f"chunks of a lazy array that take less than {format_seconds(groups.least_seconds)} are "
        f"computed in groups, {count} at least {_TASKS_PER_SLOT} tasks for each of "
        f"{format_count(groups.slots, 'thread')}: Dask's scheduler takes {format_seconds(cost)} "
        f"for a task ({how}), and could not keep them busy"
    )
