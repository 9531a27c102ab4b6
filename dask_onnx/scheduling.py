"""What runs on Dask's scheduler: it reads off our tasks what they ask for.

Annotations could say it for graphs that are ours alone. dask.array drops annotations when it
optimises, and fuses our tasks into others; so the scheduler is taught to read the wish off the task
itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dask.task_spec import GraphNode, Task
from distributed.diagnostics.plugin import SchedulerPlugin

if TYPE_CHECKING:
    from distributed import Scheduler

PLUGIN_NAME = "dask_onnx-stages"
TAKEOVER_SECONDS = 10.0
"""So long a lost worker's lanes wait for a new one, before another worker takes them too: nannies
start a worker again within seconds, and the others have no room to spare."""

Lane = tuple[str, int]
"""A plan, and the number of a lane in it."""


class StagePlugin(SchedulerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Gives tasks the retries that they name, and keeps lanes of stages on workers of their own.

    A lane has one worker at a time. Tasks are restricted to it, so that no other worker loads what
    does not fit it; they are restricted anew when it is lost or when a new worker has more room.
    """

    name = PLUGIN_NAME
    idempotent = True

    def __init__(self) -> None:
        self.places: dict[Lane, str] = {}
        """Lane to a worker's address; lanes that wait for one are left out."""
        self.waiting: set[Lane] = set()

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        known = len(self.places) + len(self.waiting)
        for key in tasks:
            state = scheduler.tasks.get(key)
            if state is None:
                continue
            calls = list(stage_calls(state.run_spec))
            wanted = max((call.retries for call in calls), default=0)
            state.retries = max(state.retries, wanted)
            lane = lane_of(calls)
            if lane is not None:
                self._restrict(state, self._place(scheduler, lane))
        if known and len(self.places) + len(self.waiting) > known:
            self._forget_plans(scheduler)

    def _forget_plans(self, scheduler: Scheduler) -> None:
        """Lanes of plans that have no tasks any more weigh on no worker."""
        states = scheduler.tasks.values()
        live = {lane[0] for s in states if (lane := lane_of(stage_calls(s.run_spec))) is not None}
        self.places = {lane: place for lane, place in self.places.items() if lane[0] in live}
        self.waiting = {lane for lane in self.waiting if lane[0] in live}

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        lost = {lane for lane, place in self.places.items() if place == worker}
        if not lost:
            return
        for lane in lost:
            del self.places[lane]
        self.waiting |= lost
        scheduler.loop.call_later(TAKEOVER_SECONDS, self._take_over, scheduler)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        moved = set(self.waiting)
        for lane in moved:
            self._assign(lane, worker)
        # What doubled up elsewhere moves on, until the new worker has its share.
        load = Counter(self.places.values())
        for lane, place in sorted(self.places.items()):
            if load[place] > load[worker] + 1:
                self.places[lane] = worker
                load[place] -= 1
                load[worker] += 1
                moved.add(lane)
        self._restrict_anew(scheduler, moved)

    def _take_over(self, scheduler: Scheduler) -> None:
        """No new worker came: those that are there take the lanes."""
        if not scheduler.workers or not self.waiting:
            return
        moved = set(self.waiting)
        for lane in moved:
            self._assign(lane, self._least_loaded(scheduler))
        self._restrict_anew(scheduler, moved)

    def _place(self, scheduler: Scheduler, lane: Lane) -> str | None:
        if lane not in self.places and lane not in self.waiting:
            if scheduler.workers:
                self._assign(lane, self._least_loaded(scheduler, lane[0]))
            else:
                self.waiting.add(lane)
        return self.places.get(lane)

    def _assign(self, lane: Lane, worker: str) -> None:
        self.places[lane] = worker
        self.waiting.discard(lane)

    def _least_loaded(self, scheduler: Scheduler, plan: str | None = None) -> str:
        """The worker with the fewest lanes, of one plan first, then the one with most memory."""
        own = Counter(place for lane, place in self.places.items() if lane[0] == plan)
        every = Counter(self.places.values())
        address: str = min(
            scheduler.workers,
            key=lambda a: (own[a], every[a], -(scheduler.workers[a].memory_limit or 0), a),
        )
        return address

    def _restrict(self, state: Any, place: str | None) -> None:
        # Of a lane without a worker the tasks wait for one.
        state.worker_restrictions = {place or "waiting for a worker"}
        state.loose_restrictions = False

    def _restrict_anew(self, scheduler: Scheduler, lanes: Iterable[Lane]) -> None:
        moved = set(lanes)
        if not moved:
            return
        for state in scheduler.tasks.values():
            lane = lane_of(stage_calls(state.run_spec))
            if lane in moved and state.state not in ("processing", "memory", "forgotten"):
                self._restrict(state, self.places.get(lane))
        for worker in list(scheduler.workers.values()):
            runnable = scheduler.bulk_schedule_unrunnable_after_adding_worker(worker)
            scheduler.transitions(runnable, stimulus_id=PLUGIN_NAME)


def lane_of(calls: Iterable[Any]) -> Lane | None:
    return next((call.lane for call in calls if getattr(call, "lane", None) is not None), None)


def stage_calls(spec: Any) -> Iterator[Any]:
    """What a task, or a task fused into it, says of its stage: anything with `retries`."""
    if not isinstance(spec, Task):
        return
    for holder in (spec.func, *spec.args[:1]):
        if isinstance(getattr(holder, "retries", None), int):
            yield holder
    for argument in spec.args:
        if isinstance(argument, dict):
            for inner in argument.values():
                yield from stage_calls(inner)
        elif isinstance(argument, GraphNode):
            yield from stage_calls(argument)
