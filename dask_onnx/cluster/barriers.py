"""Barriers among the tasks of a plan, as dependencies, which bound the micro-batches in flight.

Dask holds back tasks without dependencies until workers have room, but not tasks that are
restricted to workers; so a plan bounds them by dependencies. A task that depends on another one
would be sent its result. Therefore a *barrier task* stands between them, which runs where the
result is and returns None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dask.task_spec import Task, TaskRef

from dask_onnx.core.stage_tasks import AFTER, Key, StageTask, digest, pass_barrier
from dask_onnx.planning.schedule import Barrier, MicroBatch, Schedule, barriers


@dataclass(frozen=True, slots=True)
class BarrierTasks:
    """Schedule of one request, as barrier tasks."""

    schedule: Schedule
    """Order in which micro-batches go through the stages."""
    stages: int
    """Number of stages of the plan."""
    places: Mapping[Key, tuple[int, int]]
    """Micro-batch and stage of each task, by its key."""
    token: str
    """Token of the request, which is part of the barrier tasks' keys."""

    def apply(self, tasks: Mapping[Key, Task]) -> dict[Key, Task]:
        """Return tasks of the request with barrier tasks among them, in topological order.

        Micro-batches whose tasks are missing are not waited for: a caller who asks for the last one
        alone does not get the others computed.
        """
        dependencies: defaultdict[int, dict[Key, list[Key]]] = defaultdict(dict)
        for key, task in tasks.items():
            before = [each for each in task.dependencies if each in tasks]
            dependencies[self.places[key][0]][key] = before
        micro_batches = [
            MicroBatch.from_dependencies(dependencies[chunk]) for chunk in sorted(dependencies)
        ]
        barrier_tasks: dict[Key, Task] = {}
        after: dict[Key, Key] = {}
        for barrier in barriers(self.schedule, self.stages, micro_batches):
            barrier_key = self._add_barrier(barrier, barrier_tasks)
            after.update(dict.fromkeys(barrier.before, barrier_key))
        return {
            **{key: _with_barrier(task, after.get(key)) for key, task in tasks.items()},
            **barrier_tasks,
        }

    def _add_barrier(self, barrier: Barrier[Key], barrier_tasks: dict[Key, Task]) -> Key:
        """Add the tasks of a barrier, and return the key of the one that is done last."""
        passed = []
        for key in barrier.after:
            barrier_key = (f"passed-{self.token}", *self.places[key])
            barrier_tasks[barrier_key] = StageTask(barrier_key, pass_barrier, TaskRef(key))
            passed.append(barrier_key)
        if len(passed) == 1:
            return passed[0]
        joined = (f"barrier-{self.token}", digest(passed))
        barrier_tasks[joined] = StageTask(joined, pass_barrier, *map(TaskRef, passed))
        return joined


def _with_barrier(task: Task, barrier_key: Key | None) -> Task:
    if barrier_key is None:
        return task
    arguments = {**task.kwargs, AFTER: TaskRef(barrier_key)}
    return StageTask(task.key, task.func, *task.args, **arguments)
