"""What runs on Dask's scheduler: it reads off our tasks what they ask for.

Annotations could say it for graphs that are ours alone. dask.array drops annotations when it
optimises, and fuses our tasks into others; so the scheduler is taught to read the wish off the task
itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dask.task_spec import Task
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_onnx.tasks import Hints, Lane, hints_of, passed

if TYPE_CHECKING:
    from distributed import Scheduler

PLUGIN_NAME = "dask_onnx-stages"
TAKEOVER_SECONDS = 10.0
"""So long a lost worker's lanes wait for a new one, before another worker takes them too: nannies
start a worker again within seconds, and the others have no room to spare."""
_UNDER_WAY = ("processing", "memory", "forgotten")
"""States of tasks that no longer ask for a worker."""


class StagePlugin(SchedulerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Tells the scheduler what it cannot know of our tasks.

    Retries; how long a stage is expected to take, until it has run; which of a micro-batch's stages
    has the longest way still to go, and so comes first. And it keeps lanes of stages on workers: a
    lane has one worker at a time. Tasks are restricted to it, so that no other worker loads what
    does not fit it, or loosely, so that an idle one may steal them; they are restricted anew when
    it is lost or when a new worker has more room.
    """

    name = PLUGIN_NAME
    idempotent = True

    def __init__(self) -> None:
        self.places: dict[Lane, str] = {}
        """Lane to a worker's address; lanes that wait for one are left out."""
        self.waiting: set[Lane] = set()
        self.sizes: dict[Lane, int] = {}
        """Lane to the bytes of its weights."""

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        found: list[tuple[Any, list[Hints]]] = []
        for key in tasks:
            state = scheduler.tasks.get(key)
            if state is None:
                continue
            if is_gate(state.run_spec):
                # Its work is nothing, and others wait for it.
                state.priority = (*state.priority[:-1], -1)
            elif hints := list(hints_of(state.run_spec)):
                state.retries = max(state.retries, *(each.retries for each in hints))
                _expect(state, sum(each.seconds for each in hints))
                found.append((state, hints))
        _rank(found)
        self._keep_lanes(scheduler, found)

    def _keep_lanes(self, scheduler: Scheduler, found: list[tuple[Any, list[Hints]]]) -> None:
        placed = [(state, hint) for state, hints in found for hint in hints if hint.lane]
        sizes = {hint.lane: hint.lane_bytes for _, hint in placed if hint.lane is not None}
        new = [lane for lane in sizes if lane not in self.places and lane not in self.waiting]
        if new and self.sizes:
            self._forget_plans(scheduler)
        self.sizes.update(sizes)
        # The largest first: the small ones fill what is left.
        for lane in sorted(new, key=self._largest_first):
            if scheduler.workers:
                self._assign(lane, self._roomiest(scheduler, lane))
            else:
                self.waiting.add(lane)
        for state, hint in placed:
            self._restrict(state, hint)

    def _forget_plans(self, scheduler: Scheduler) -> None:
        """Lanes of plans that have no tasks any more weigh on no worker."""
        states = scheduler.tasks.values()
        hints = filter(None, (placed_hint(state.run_spec) for state in states))
        live = {hint.lane[0] for hint in hints if hint.lane is not None}
        self.places = {lane: place for lane, place in self.places.items() if lane[0] in live}
        self.sizes = {lane: size for lane, size in self.sizes.items() if lane[0] in live}
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
        # What doubled up elsewhere moves on, as long as the new worker is fuller by less.
        for lane in sorted(self.places, key=self._largest_first):
            share = self._share(scheduler, worker, lane)
            if self.places[lane] != worker and share < self._share(scheduler, self.places[lane]):
                self._assign(lane, worker)
                moved.add(lane)
        self._restrict_anew(scheduler, moved)

    def _take_over(self, scheduler: Scheduler) -> None:
        """No new worker came: those that are there take the lanes."""
        if not scheduler.workers or not self.waiting:
            return
        moved = set(self.waiting)
        for lane in sorted(moved, key=self._largest_first):
            self._assign(lane, self._roomiest(scheduler, lane))
        self._restrict_anew(scheduler, moved)

    def _largest_first(self, lane: Lane) -> Any:
        return -self.sizes[lane], lane

    def _assign(self, lane: Lane, worker: str) -> None:
        self.places[lane] = worker
        self.waiting.discard(lane)

    def _roomiest(self, scheduler: Scheduler, lane: Lane) -> str:
        """The worker that a lane would fill least: with its own plan's lanes, then with all."""
        address: str = min(
            scheduler.workers,
            key=lambda a: (
                self._share(scheduler, a, lane, plan=lane[0]),
                self._share(scheduler, a, lane),
                a,
            ),
        )
        return address

    def _share(
        self,
        scheduler: Scheduler,
        worker: str,
        more: Lane | None = None,
        *,
        plan: str | None = None,
    ) -> float:
        """How full a worker's memory is of lanes, or would be with one more; of a plan or of all.

        Where some worker has no limit, all count as equal.
        """
        limits = {a: state.memory_limit for a, state in scheduler.workers.items()}
        room = limits.get(worker) if all(limits.values()) else None
        held = [
            lane
            for lane, place in self.places.items()
            if place == worker and lane != more and plan in (None, lane[0])
        ]
        # One byte at least, so that lanes without weights count too.
        size = sum(self.sizes[lane] + 1 for lane in [*held, *([] if more is None else [more])])
        return float(size / (room or 1))

    def _restrict(self, state: Any, hint: Hints) -> None:
        if hint.is_loose and _is_bound(state):
            return  # a wish must not loosen what the caller demands, as by workers=...
        # Of a lane without a worker the tasks wait for one, if they may not run elsewhere.
        place = None if hint.lane is None else self.places.get(hint.lane)
        state.worker_restrictions = {place or "waiting for a worker"}
        state.loose_restrictions = hint.is_loose

    def _restrict_anew(self, scheduler: Scheduler, lanes: Iterable[Lane]) -> None:
        moved = set(lanes)
        if not moved:
            return
        for state in scheduler.tasks.values():
            hint = placed_hint(state.run_spec)
            if hint and hint.lane in moved and state.state not in _UNDER_WAY:
                self._restrict(state, hint)
        for worker in list(scheduler.workers.values()):
            runnable = scheduler.bulk_schedule_unrunnable_after_adding_worker(worker)
            scheduler.transitions(runnable, stimulus_id=PLUGIN_NAME)


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
            chunk = sum(place for place in state.key[1:] if isinstance(place, int))
            groups[hints[0].request, chunk].append((hints[0].left, state))
    for group in groups.values():
        if len(group) > 1:
            places = sorted(state.priority for _, state in group)
            group.sort(key=lambda item: (-item[0], item[1].priority))
            for (_, state), place in zip(group, places, strict=True):
                state.priority = place


def is_gate(spec: Any) -> bool:
    return isinstance(spec, Task) and spec.func is passed


def placed_hint(spec: Any) -> Hints | None:
    """What a task says of itself that is for a lane."""
    return next((each for each in hints_of(spec) if each.lane is not None), None)


def _is_bound(state: Any) -> bool:
    """Whether it must run on certain workers."""
    restrictions = (
        state.worker_restrictions,
        state.host_restrictions,
        state.resource_restrictions,
    )
    return any(restrictions) and not state.loose_restrictions
