"""Bounds on what is in flight and barriers, as dependencies among the tasks of a plan.

Dask holds back tasks that need nothing until workers have room, but not those that are restricted
to workers; so a plan says it with dependencies. A task that needs another one's result would be
sent it: between them stands a *gate*, which runs where the result is and gives nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dask.task_spec import Task, TaskRef

from dask_onnx.core.stage_tasks import AFTER, Key, StageTask, digest, passed
from dask_onnx.planning.schedule import Barrier, Passage, Schedule, barriers


@dataclass(frozen=True, slots=True)
class BarrierTasks:
    """A schedule, for the tasks of one request."""

    schedule: Schedule
    stages: int
    """Of the plan."""
    places: Mapping[Key, tuple[int, int]]
    """Task to its micro-batch and its stage."""
    token: str

    def apply(self, tasks: Mapping[Key, Task]) -> dict[Key, Task]:
        """Some of the request's tasks, in an order in which they can run, and gates among them.

        Micro-batches that are not there are not waited for: who asks for the last one alone does
        not get all others computed.
        """
        needs: defaultdict[int, dict[Key, list[Key]]] = defaultdict(dict)
        for key, task in tasks.items():
            before = [each for each in task.dependencies if each in tasks]
            needs[self.places[key][0]][key] = before
        passages = [Passage.of(needs[chunk]) for chunk in sorted(needs)]
        barrier_tasks: dict[Key, Task] = {}
        after: dict[Key, Key] = {}
        for barrier in barriers(self.schedule, self.stages, passages):
            barrier_key = self._barrier_task(barrier, barrier_tasks)
            after.update(dict.fromkeys(barrier.before, barrier_key))
        return {
            **{key: _waiting(task, after.get(key)) for key, task in tasks.items()},
            **barrier_tasks,
        }

    def _barrier_task(self, barrier: Barrier[Key], barrier_tasks: dict[Key, Task]) -> Key:
        """The key of a task that is done when all that must be done before is done."""
        opened = []
        for key in barrier.after:
            barrier_key = (f"passed-{self.token}", *self.places[key])
            barrier_tasks[barrier_key] = StageTask(barrier_key, passed, TaskRef(key))
            opened.append(barrier_key)
        if len(opened) == 1:
            return opened[0]
        joined = (f"barrier-{self.token}", digest(opened))
        barrier_tasks[joined] = StageTask(joined, passed, *map(TaskRef, opened))
        return joined


def _waiting(task: Task, barrier_key: Key | None) -> Task:
    if barrier_key is None:
        return task
    named = {**task.kwargs, AFTER: TaskRef(barrier_key)}
    return StageTask(task.key, task.func, *task.args, **named)
