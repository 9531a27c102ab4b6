"""What runs on Dask's scheduler: it reads off our tasks what they ask for.

Annotations could say it for graphs that are ours alone. dask.array drops annotations when it
optimises, and fuses our tasks into others; so the scheduler is taught to read the wish off the task
itself.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dask.task_spec import Task
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_onnx.cluster.worker_groups import TAKEOVER_SECONDS, WorkerGroups
from dask_onnx.core.stage_tasks import Hints, WorkerGroup, barrier_key_of, hints_of, passed

if TYPE_CHECKING:
    from distributed import Scheduler

PLUGIN_NAME = "dask_onnx-stages"
_UNDER_WAY = ("processing", "memory", "forgotten")
"""States of tasks that no longer ask for a worker."""

log = logging.getLogger(__name__)


class StagePlugin(SchedulerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Tells the scheduler what it cannot know of our tasks.

    Retries; how long a stage is expected to take, until it has run; which of a micro-batch's stages
    has the longest way still to go, and so comes first. It keeps worker groups of stages on
    workers, as `WorkerGroups` says: tasks are restricted to a worker group's worker, so that no
    other one loads what does not fit it, or loosely, so that an idle one may steal them; they are
    restricted anew when a worker group moves. And what loads a micro-batch waits for the gate that
    the micro-batch itself waits for.
    """

    name = PLUGIN_NAME
    idempotent = True

    def __init__(self) -> None:
        self.worker_groups = WorkerGroups()
        self.restricted: set[Any] = set()
        """Keys of the tasks that are restricted by us, not by the caller."""
        self.held: dict[Any, tuple[Any, Any]] = {}
        """Key of a task that waits for a gate because of us: its state, and the gate's."""

    @property
    def places(self) -> dict[WorkerGroup, str]:
        """WorkerGroup to the address of its worker."""
        return self.worker_groups.places

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        found: list[tuple[Any, list[Hints]]] = []
        for key in tasks:
            state = scheduler.tasks.get(key)
            if state is None:
                continue
            if is_barrier(state.run_spec):
                # Its work is nothing, and others wait for it.
                state.priority = (*state.priority[:-1], -1)
            elif hints := list(hints_of(state.run_spec)):
                state.retries = max(state.retries, *(each.retries for each in hints))
                _expect(state, sum(each.seconds for each in hints))
                found.append((state, hints))
        _rank(found)
        self._keep_groups(scheduler, found)
        for state, _hints in found:
            for load, barrier_key in hold_inputs(scheduler, state):
                self.held[load.key] = load, barrier_key

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if key in self.held and finish in ("memory", "erred", "forgotten"):
            # Who asks for the same again is to find the task as it is in the graph.
            load, barrier_key = self.held.pop(key)
            load.dependencies.discard(barrier_key)
            barrier_key.dependents.discard(load)

    def _keep_groups(self, scheduler: Scheduler, found: list[tuple[Any, list[Hints]]]) -> None:
        placed = [(state, hint) for state, hints in found for hint in hints if hint.worker_group]
        if not placed:
            return
        sizes = {
            hint.worker_group: hint.group_bytes
            for _, hint in placed
            if hint.worker_group is not None
        }
        self.restricted.intersection_update(scheduler.tasks)
        if self.worker_groups.sizes.keys() - sizes.keys():
            self.worker_groups.forget(_plans_with_tasks(scheduler))
        self._note_demands(scheduler, placed)
        new = self.worker_groups.add(sizes, limits_of(scheduler), time.monotonic())
        if new & self.worker_groups.waiting.keys():
            self._look_again(scheduler)
        for state, hint in placed:
            self._restrict(scheduler, state, hint)

    def _note_demands(self, scheduler: Scheduler, placed: list[tuple[Any, Hints]]) -> None:
        """Which workers the caller lets worker groups have, as by workers=... or resources=..."""
        for state, hint in placed:
            if hint.worker_group is None or hint.is_loose or not self._is_demanded(state):
                continue
            workers = frozenset(each.address for each in scheduler.valid_workers(state) or ())
            both = workers & self.worker_groups.allowed.get(hint.worker_group, workers)
            if both:
                self.worker_groups.allowed[hint.worker_group] = both
            else:
                log.warning(
                    "no worker may run all tasks of worker group %s; they run apart",
                    hint.worker_group,
                )

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        if self.worker_groups.lost(worker, time.monotonic()):
            self._look_again(scheduler)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        # It may not be running yet, but is about to.
        limits = limits_of(scheduler) | {worker: scheduler.workers[worker].memory_limit}
        self._restrict_anew(scheduler, self.worker_groups.joined(worker, limits))
        if self.worker_groups.waiting:
            # The others that are to come have not been there yet.
            self._look_again(scheduler)

    def _look_again(self, scheduler: Scheduler) -> None:
        # A moment later than what waits now is due.
        scheduler.loop.call_later(TAKEOVER_SECONDS + 0.1, self._take_over, scheduler)

    def _take_over(self, scheduler: Scheduler) -> None:
        moved = self.worker_groups.overdue(limits_of(scheduler), time.monotonic())
        self._restrict_anew(scheduler, moved)

    def _is_demanded(self, state: Any) -> bool:
        """Whether the caller has said where a task must run."""
        restrictions = (
            state.worker_restrictions,
            state.host_restrictions,
            state.resource_restrictions,
        )
        return (
            any(restrictions) and not state.loose_restrictions and state.key not in self.restricted
        )

    def _restrict(self, scheduler: Scheduler, state: Any, hint: Hints) -> None:
        # Of a worker group without a worker the tasks wait for one, if they may not run elsewhere.
        place = None if hint.worker_group is None else self.places.get(hint.worker_group)
        if self._is_demanded(state):
            allowed = {each.address for each in scheduler.valid_workers(state) or ()}
            if hint.is_loose or place not in allowed:
                return  # what the caller demands comes before a wish, and before a worker group
        state.worker_restrictions = {place or "waiting for a worker"}
        state.loose_restrictions = hint.is_loose
        self.restricted.add(state.key)

    def _restrict_anew(self, scheduler: Scheduler, moved: set[WorkerGroup]) -> None:
        if not moved:
            return
        for state in scheduler.tasks.values():
            hint = placed_hint(state.run_spec)
            if hint and hint.worker_group in moved and state.state not in _UNDER_WAY:
                self._restrict(scheduler, state, hint)
        for worker in list(scheduler.workers.values()):
            runnable = scheduler.bulk_schedule_unrunnable_after_adding_worker(worker)
            scheduler.transitions(runnable, stimulus_id=PLUGIN_NAME)


def limits_of(scheduler: Scheduler) -> dict[str, float | None]:
    """Memory of the workers that take tasks: none that is paused, or about to go."""
    workers = scheduler.running or scheduler.workers.values()
    return {worker.address: worker.memory_limit for worker in workers}


def _plans_with_tasks(scheduler: Scheduler) -> set[str]:
    hints = (placed_hint(state.run_spec) for state in scheduler.tasks.values())
    return {
        hint.worker_group[0] for hint in hints if hint is not None and hint.worker_group is not None
    }


def is_configured(dask_scheduler: Any) -> bool:
    """Whether the plugin is there; what a client has the scheduler run."""
    return PLUGIN_NAME in dask_scheduler.plugins


def hold_inputs(scheduler: Scheduler, state: Any) -> Iterator[tuple[Any, Any]]:
    """What loads a micro-batch waits for the gate that its first stages wait for.

    Else idle threads would load all of the input: what loads it needs nothing, so that it can run
    at any time. What others read too is left alone. It is loaded where it is wanted, if that is
    said.

    Yields
    ------
    each task that now waits, and the gate
    """
    barrier_key = scheduler.tasks.get(barrier_key_of(state.run_spec))
    if barrier_key is None:
        return
    micro_batch = _micro_batch(state)
    seen: set[Any] = set()
    pending = [each for each in state.dependencies if each is not barrier_key]
    while pending:
        load = pending.pop()
        if load in seen or load.state != "released" or is_barrier(load.run_spec):
            continue
        if _micro_batch(load) is not None:
            continue  # a stage
        if any(d not in seen and _micro_batch(d) != micro_batch for d in load.dependents):
            continue
        seen.add(load)
        if load.dependencies:
            pending += load.dependencies
        else:
            load.add_dependency(barrier_key)
            yield load, barrier_key
        if state.worker_restrictions and not load.worker_restrictions:
            load.worker_restrictions = set(state.worker_restrictions)
            load.loose_restrictions = True


def _micro_batch(state: Any) -> tuple[str, int] | None:
    """Which request and which of its micro-batches a stage's task is for; None of other tasks."""
    hint = next(iter(hints_of(state.run_spec)), None)
    if hint is None or not isinstance(state.key, tuple):
        return None
    return hint.request, _chunk(state.key)


def _chunk(key: tuple[Any, ...]) -> int:
    """The number of a task's chunk; the axes beside that of the rows have one chunk, 0."""
    return sum(place for place in key[1:] if isinstance(place, int))


def _expect(state: Any, seconds: float) -> None:
    """How long tasks of its kind take, as long as the scheduler has seen none."""
    if seconds > 0 and state.prefix.duration_average < 0:
        state.prefix.duration_average = seconds


def _rank(found: Iterable[tuple[Any, list[Hints]]]) -> None:
    """Among the stages of one micro-batch, the longest way to go first.

    Dask's order, which knows no times, has them in places that follow one another; they change
    places with each other only, so that older micro-batches stay ahead.
    """
    groups: defaultdict[tuple[str, int], list[tuple[float, Any]]] = defaultdict(list)
    for state, hints in found:
        if len(hints) == 1 and isinstance(state.key, tuple) and state.state == "released":
            groups[hints[0].request, _chunk(state.key)].append((hints[0].left, state))
    for group in groups.values():
        if len(group) > 1:
            places = sorted(state.priority for _, state in group)
            group.sort(key=lambda item: (-item[0], item[1].priority))
            for (_, state), place in zip(group, places, strict=True):
                state.priority = place


def is_barrier(spec: Any) -> bool:
    return isinstance(spec, Task) and spec.func is passed


def placed_hint(spec: Any) -> Hints | None:
    """What a task says of itself that is for a worker group."""
    return next((each for each in hints_of(spec) if each.worker_group is not None), None)
