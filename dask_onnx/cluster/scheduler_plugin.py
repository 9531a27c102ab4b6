"""Plugin of Dask's scheduler that applies the hints that tasks of this package carry.

Annotations would do for graphs of this package alone. But `dask.array` drops annotations when it
optimises, and fuses our tasks into others; so the plugin reads the hints off the tasks themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dask.task_spec import Task
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_onnx.cluster.no_workers import NoWorkers
from dask_onnx.cluster.stage_names import StageNames
from dask_onnx.cluster.task_restrictions import TaskRestrictions
from dask_onnx.cluster.worker_deaths import WorkerDeaths
from dask_onnx.cluster.worker_groups import TAKEOVER_SECONDS, WorkerGroups
from dask_onnx.core.dask_internals import (
    add_dependency,
    expect_duration,
    remove_dependency,
    reschedule_unrunnable,
    set_priority,
    set_retries,
    unrunnable_preferences,
)
from dask_onnx.core.stage_tasks import (
    Hints,
    Key,
    WorkerGroup,
    barrier_key_of,
    block_number,
    hints_of,
    pass_barrier,
)
from dask_onnx.core.structured_logs import log_event
from dask_onnx.core.tracing import span

if TYPE_CHECKING:
    from distributed import Scheduler

PLUGIN_NAME = "dask_onnx-stages"
_RECHECK_SECONDS = 1.0
"""Seconds between looks at tasks that could run on any worker, but have none."""

log = logging.getLogger(__name__)


class StagePlugin(SchedulerPlugin):
    """Applies hints to tasks: retries, expected durations, priorities and worker groups.

    Tasks of a worker group are restricted to its worker, so that no other worker loads weights for
    which it has no room; or loosely, so that an idle worker may steal them. They are restricted
    anew when the worker group moves (see `WorkerGroups`). The caller's own restrictions come first,
    and are restored when ours end (see `TaskRestrictions`). Tasks that load a micro-batch's input
    wait for the barrier that the micro-batch itself waits for.
    """

    name = PLUGIN_NAME
    idempotent = True

    def __init__(self, no_workers_seconds: float | None = None) -> None:
        self.no_workers = NoWorkers(no_workers_seconds)
        """End of requests that have lost all workers."""
        self.scheduler: Scheduler | None = None
        """The scheduler that the plugin is registered with."""
        self.worker_groups = WorkerGroups()
        """Worker of each worker group."""
        self.restrictions = TaskRestrictions()
        """Tasks that are restricted by this plugin."""
        self.deaths = WorkerDeaths()
        """Tasks whose workers may die."""
        self.inputs: dict[Key, tuple[Any, Any]] = {}
        """State of each input task that has not run, and of the barrier that was added to it.

        The barrier is None for tasks that have dependencies of their own.
        """
        self.names = StageNames()
        """Stages and models of groups of tasks."""
        self._is_rechecking = False
        """True if `_recheck` is going to be called."""

    @property
    def places(self) -> dict[WorkerGroup, str]:
        """Address of each worker group's worker."""
        return self.worker_groups.places

    @property
    def models(self) -> dict[str, str]:
        """Name of each group of stages' tasks on the dashboard to the name of its model."""
        return self.names.models

    async def start(self, scheduler: Scheduler) -> None:
        """Keep a reference to the scheduler, which `transition` is not given."""
        self.scheduler = scheduler
        self.deaths.threads = {each.address: each.nthreads for each in scheduler.workers.values()}

    def restart(self, scheduler: Scheduler) -> None:
        """Forget all tasks and worker groups, as the scheduler does."""
        self.worker_groups = WorkerGroups()
        self.restrictions = TaskRestrictions()
        self.deaths = WorkerDeaths()
        self.inputs = {}

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Key], **_: Any) -> None:
        """Apply the hints of a graph's tasks before any of them starts."""
        found: list[tuple[Any, list[Hints]]] = []
        states = [scheduler.tasks[key] for key in tasks if key in scheduler.tasks]
        for state in states:
            if is_barrier(state.run_spec):
                # It takes no time, and other tasks wait for it.
                set_priority(state, (*state.priority[:-1], -1))
            elif hints := list(hints_of(state.run_spec)):
                self.names.note(scheduler, state, hints[-1])
                set_retries(state, max(each.retries for each in hints))
                expect_duration(state, sum(each.seconds for each in hints))
                found.append((state, hints))
        if found:
            self.deaths.watch(scheduler, states, {state.key for state, _ in found})
        for trace in {each.trace for _, hints in found for each in hints if each.trace}:
            with span("schedule", trace, tasks=len(found)):
                log_event(log, logging.DEBUG, "tasks submitted", tasks=len(found))
        _rank(found)
        self._place_worker_groups(scheduler, found)
        for state, _hints in found:
            self._hold_inputs(scheduler, state)

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Leave tasks as they are in their graph once they have run."""
        if key in self.inputs and finish in ("memory", "erred", "forgotten"):
            # Submitting the graph again must find the task with the graph's own dependencies.
            state, barrier = self.inputs.pop(key)
            if barrier is not None:
                remove_dependency(state, barrier)
            if self.scheduler is not None and finish != "forgotten":
                self.restrictions.restore(self.scheduler, state)
        if finish == "released" and start == "processing" and self.scheduler is not None:
            self.deaths.released(self.scheduler.tasks[key])
        elif finish == "erred" and key in self.deaths.given_up and self.scheduler is not None:
            self.deaths.ended(self.scheduler.tasks[key])
        if finish == "forgotten":
            self.restrictions.forget(key)
            self.deaths.forget(key)
        elif finish == "no-worker":
            self._schedule_recheck()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Let the worker groups of a lost worker wait for the one that replaces it."""
        self.deaths.removed(worker)
        self.no_workers.removed(scheduler, self.deaths.watched)
        # An input may prefer a worker that its worker group has left since.
        for state, _ in self.inputs.values():
            if state.worker_restrictions and worker in state.worker_restrictions:
                self.restrictions.restore(scheduler, state)
        lost = self.worker_groups.lost(worker, time.monotonic())
        if lost:
            self._restrict_tasks(scheduler, lost, "lost-worker")
            self._schedule_takeover()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Move worker groups to a new worker."""
        self.deaths.threads[worker] = scheduler.workers[worker].nthreads
        # The new worker is not in state "running" yet, but is about to be.
        limits = memory_limits(scheduler) | {worker: scheduler.workers[worker].memory_limit}
        self._refresh_demands(scheduler)
        moved = self.worker_groups.joined(worker, limits)
        self._restrict_tasks(scheduler, moved, "new-worker")
        if self.worker_groups.waiting:
            # Other workers that are to join have not been counted yet.
            self._schedule_takeover()

    def _schedule_takeover(self) -> None:
        # A moment later than what waits now is due.
        asyncio.get_running_loop().call_later(TAKEOVER_SECONDS + 0.1, self._take_over)

    def _schedule_recheck(self) -> None:
        if not self._is_rechecking:
            self._is_rechecking = True
            asyncio.get_running_loop().call_later(_RECHECK_SECONDS, self._recheck)

    def _recheck(self) -> None:
        """Start tasks that prefer workers that are gone or paused, once another worker runs.

        No event tells a plugin that a worker goes on; so it looks again as long as there are any.
        """
        self._is_rechecking = False
        scheduler = self.scheduler
        if scheduler is None or not unrunnable_preferences(scheduler):
            return
        reschedule_unrunnable(scheduler, f"dask-onnx-recheck-{time.time()}")
        if unrunnable_preferences(scheduler):
            self._schedule_recheck()

    def _take_over(self) -> None:
        scheduler = self.scheduler
        if scheduler is None:
            return
        self._refresh_demands(scheduler)
        moved = self.worker_groups.overdue(memory_limits(scheduler), time.monotonic())
        self._restrict_tasks(scheduler, moved, "takeover")

    def _place_worker_groups(
        self, scheduler: Scheduler, found: list[tuple[Any, list[Hints]]]
    ) -> None:
        placed = [
            (state, hint)
            for state, hints in found
            for hint in hints
            if hint.worker_group is not None
        ]
        if not placed:
            return
        sizes = {
            hint.worker_group: hint.group_bytes
            for _, hint in placed
            if hint.worker_group is not None
        }
        if self.worker_groups.sizes.keys() - sizes.keys():
            self.worker_groups.forget({plan for plan, _ in _groups_with_tasks(scheduler)})
        self._note_demands(scheduler, placed)
        new = self.worker_groups.add(sizes, memory_limits(scheduler), time.monotonic())
        if new & self.worker_groups.waiting.keys():
            self._schedule_takeover()
        for state, hint in placed:
            self._restrict(scheduler, state, hint)

    def _note_demands(self, scheduler: Scheduler, placed: Iterable[tuple[Any, Hints]]) -> None:
        """Note the workers that callers require for worker groups, by ``workers=`` and the like."""
        allowed = self.worker_groups.allowed
        for state, hint in placed:
            if hint.worker_group is None or hint.is_loose:
                continue
            demanded = self.restrictions.demanded_workers(scheduler, state)
            if demanded is None:
                continue
            common = demanded & allowed.get(hint.worker_group, demanded)
            if common or not demanded:
                allowed[hint.worker_group] = common
            else:
                log.warning(
                    "no worker may run all tasks of worker group %s; they run apart",
                    hint.worker_group,
                )

    def _refresh_demands(self, scheduler: Scheduler) -> None:
        """Note demands anew, since other workers may satisfy them now."""
        if self.worker_groups.allowed:
            self.worker_groups.allowed.clear()
            self._note_demands(scheduler, _placed_tasks(scheduler))

    def _restrict(self, scheduler: Scheduler, state: Any, hint: Hints) -> None:
        """Restrict a task as its worker group asks, unless the caller's demand forbids it."""
        place = None if hint.worker_group is None else self.places.get(hint.worker_group)
        demanded = self.restrictions.demanded_workers(scheduler, state)
        if demanded is not None and (
            hint.is_loose or (place is not None and place not in demanded)
        ):
            self.restrictions.restore(scheduler, state)
        elif place is not None:
            self.restrictions.restrict(scheduler, state, place, is_loose=hint.is_loose)
        elif hint.is_loose:
            # Dask never looks again at loosely restricted tasks in state "no-worker".
            self.restrictions.restore(scheduler, state)
        else:
            self.restrictions.hold(scheduler, state)

    def _restrict_tasks(
        self, scheduler: Scheduler, worker_groups: set[WorkerGroup], reason: str
    ) -> None:
        """Restrict the tasks of worker groups that have moved, and start those that can run.

        Tasks that run or have run are restricted too, since they may have to be repeated.
        """
        if not worker_groups:
            return
        for state, hint in list(_placed_tasks(scheduler)):
            if hint.worker_group in worker_groups and state.state != "forgotten":
                self._restrict(scheduler, state, hint)
        reschedule_unrunnable(scheduler, f"dask-onnx-{reason}-{time.time()}")

    def _hold_inputs(self, scheduler: Scheduler, state: Any) -> None:
        """Let the input of a stage's task wait for the task's barrier, and load where it runs."""
        barrier = scheduler.tasks.get(barrier_key_of(state.run_spec))
        if barrier is None:
            return
        for load in input_tasks(state, barrier):
            is_first = not load.dependencies
            if is_first:
                add_dependency(load, barrier)
            self.inputs.setdefault(load.key, (load, barrier if is_first else None))
            if state.worker_restrictions:
                self.restrictions.prefer(scheduler, load, state.worker_restrictions)


def memory_limits(scheduler: Scheduler) -> dict[str, float | None]:
    """Return the memory in bytes of the workers that accept tasks, by address.

    Workers that are paused or about to go are left out, unless all are.
    """
    workers = scheduler.running or scheduler.workers.values()
    return {worker.address: worker.memory_limit for worker in workers}


def is_configured(dask_scheduler: Any) -> bool:
    """Return whether a scheduler has the plugin; for `Client.run_on_scheduler`."""
    return PLUGIN_NAME in dask_scheduler.plugins


def is_barrier(spec: Any) -> bool:
    """Return whether a task is a barrier."""
    return isinstance(spec, Task) and spec.func is pass_barrier


def placed_hint(spec: Any) -> Hints | None:
    """Return a task's hint that names a worker group; None if there is none."""
    return next((each for each in hints_of(spec) if each.worker_group is not None), None)


def _placed_tasks(scheduler: Scheduler) -> Iterator[tuple[Any, Hints]]:
    for state in scheduler.tasks.values():
        hint = placed_hint(state.run_spec)
        if hint is not None:
            yield state, hint


def _groups_with_tasks(scheduler: Scheduler) -> set[WorkerGroup]:
    groups = (hint.worker_group for _, hint in _placed_tasks(scheduler))
    return {group for group in groups if group is not None}


def input_tasks(state: Any, barrier: Any) -> Iterator[Any]:
    """Yield the tasks that load the input of a stage's task, and nothing else.

    Without a barrier, idle threads would load all of the input at once: tasks without dependencies
    can run at any time. Input that other tasks read too is left alone.

    Parameters
    ----------
    state : TaskState
        Task of a stage.
    barrier : TaskState
        Task that the stage's task waits for.
    """
    micro_batch = _micro_batch(state)
    seen: set[Any] = set()
    pending = [each for each in state.dependencies if each is not barrier]
    while pending:
        load = pending.pop()
        if load in seen or load.state != "released" or is_barrier(load.run_spec):
            continue
        if _micro_batch(load) is not None:
            continue  # another stage
        if any(d not in seen and _micro_batch(d) != micro_batch for d in load.dependents):
            continue
        seen.add(load)
        pending += load.dependencies
        yield load


def _micro_batch(state: Any) -> tuple[str, int] | None:
    """Return the request and the micro-batch of a stage's task; None for other tasks."""
    hint = next(iter(hints_of(state.run_spec)), None)
    if hint is None or not isinstance(state.key, tuple):
        return None
    return hint.request, block_number(state.key) or 0


def _rank(found: Iterable[tuple[Any, list[Hints]]]) -> None:
    """Give the stages of each micro-batch priorities by their longest path to the end.

    Dask's order knows no durations and puts these stages in consecutive places. They exchange only
    these places among them, so that older micro-batches stay ahead of newer ones.
    """
    groups: defaultdict[tuple[str, int], list[tuple[float, Any]]] = defaultdict(list)
    for state, hints in found:
        if len(hints) == 1 and isinstance(state.key, tuple) and state.state == "released":
            place = hints[0].request, block_number(state.key) or 0
            groups[place].append((hints[0].seconds_left, state))
    for group in groups.values():
        if len(group) > 1:
            priorities = sorted(state.priority for _, state in group)
            group.sort(key=lambda item: (-item[0], item[1].priority))
            for (_, state), priority in zip(group, priorities, strict=True):
                set_priority(state, priority)
