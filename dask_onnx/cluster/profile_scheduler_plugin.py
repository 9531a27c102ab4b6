"""Scheduler plugin of one profile: the steps of its tasks, and the notes of its workers.

It is registered while the profile records, and removed with it; another profile has its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from distributed.diagnostics.plugin import SchedulerPlugin

from dask_onnx.cluster.scheduler_plugin import is_barrier
from dask_onnx.core.dask_internals import forget_events, span_of
from dask_onnx.core.stage_tasks import block_number, hints_of

_MAX_ATTEMPTS = 500_000
"""Attempts at tasks that the scheduler keeps for a profile."""
_CLIENT_OF_WORKER = "Client-worker-"
"""Beginning of the identifiers of clients that tasks open on their workers."""
SPAN = "dask_onnx.profile"
"""Name of the spans of profiles."""
TOPIC = "dask_onnx-profile"
"""Topic of Dask's events under which workers send their notes, of all profiles."""
GROWING = ("phases", "stages", "incoming", "outgoing", "gauges")
"""Fields of `WorkerNotes` of which each message has what is new; others are complete in each."""
CANCELLED = "cancelled"
"""Outcome of an attempt whose result nobody wanted any more."""


class Attempt(NamedTuple):
    """One attempt at a task, as the scheduler saw it. Times are of its clock; 0 for none."""

    key: str
    name: str
    """Dask's prefix of the key, by which dashboards show the task."""
    block: int | None
    """Number of the block along the rows; None if the key has none."""
    submitted: float
    """Time at which its graph arrived."""
    ready: float
    """Time at which all that it depends on had been computed."""
    assigned: float
    """Time at which a worker was chosen."""
    finished: float
    """Time at which the scheduler learnt of its end; 0 if it has not ended."""
    worker: str
    """Address of the worker."""
    start: float
    """Time at which its function was called, by the worker's estimate of the scheduler's clock."""
    stop: float
    """Time at which it returned."""
    nbytes: int
    """Bytes of the result."""
    outcome: str
    """State that the task went into: "memory", "erred", "released" or "waiting"; "processing" if
    it has not ended, and `CANCELLED` if nobody wanted it any more."""
    error: str
    """Text of the exception; empty if there was none."""
    has_dependencies: bool
    is_stage: bool
    """True if the task runs a stage of a model."""


class SchedulerNotes(NamedTuple):
    """All that the scheduler has of a profile."""

    now: float
    attempts: list[Attempt]
    dropped: int
    """Attempts that were not kept, since there were too many."""
    dependencies: list[str]
    """Keys of other values that the tasks depend on."""
    spans: list[str]
    """Identifiers of the spans that the tasks are in."""
    presence: list[tuple[str, int, int | None, str, float, float]]
    """Address, threads, memory limit, host, and times of joining and leaving of each worker; 0 for
    one that has not left."""
    messages: dict[str, dict[str, Any]]
    """Notes that each worker has sent so far, by the names of the fields of `WorkerNotes`."""
    others: list[tuple[str, float, float]]
    """Worker, start and stop of each task that ended meanwhile and is not of the profile."""
    edges: list[tuple[str, str]]
    """Names of tasks, of which those of the second depend on those of the first."""


class _OpenTask:
    """Times of a task that has not ended."""

    __slots__ = ("assigned", "ready", "submitted", "worker")

    def __init__(self, submitted: float) -> None:
        self.submitted = submitted
        self.ready = self.assigned = 0.0
        self.worker = ""


def plugin_name(profile: str) -> str:
    """Return the name under which both plugins of a profile are registered."""
    return f"dask_onnx-profile-{profile}"


class ProfileSchedulerPlugin(SchedulerPlugin):
    """Notes each attempt at the tasks of one profile: those of its client, or in its span.

    Parameters
    ----------
    profile : str
        Identifier of the profile.
    client : str
        Identifier of the client.
    span : str
        Identifier of the span that the profile's graphs are submitted in.
    """

    idempotent = True

    def __init__(self, profile: str, client: str, span: str) -> None:
        self.name = plugin_name(profile)
        self.profile, self.client, self.span = profile, client, span
        self.scheduler: Any = None
        self.open: dict[Any, _OpenTask] = {}
        self.attempts: list[Attempt] = []
        self.dropped = 0
        self.spans: set[str] = set()
        self.dependencies: set[str] = set()
        self.presence: dict[str, tuple[str, int, int | None, str, float, float]] = {}
        self.messages: dict[str, dict[str, Any]] = {}
        self.others: list[tuple[str, float, float]] = []
        self.edges: set[tuple[str, str]] = set()

    async def start(self, scheduler: Any) -> None:
        """Note the workers that are there."""
        self.scheduler = scheduler
        for address in scheduler.workers:
            self.add_worker(scheduler, address)

    def restart(self, scheduler: Any) -> None:
        """Forget the tasks that have not ended, as the scheduler does."""
        self.open.clear()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Note a worker, and when it joined."""
        state = scheduler.workers[worker]
        facts = (worker, state.nthreads, state.memory_limit, state.host, time.time(), 0.0)
        self.presence[worker] = facts

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Note when a worker left."""
        if worker in self.presence:
            self.presence[worker] = (*self.presence[worker][:-1], time.time())

    def update_graph(
        self,
        scheduler: Any,
        *,
        client: str,
        tasks: Sequence[Any],
        annotations: Mapping[str, Mapping[Any, Any]],
        **_: Any,
    ) -> None:
        """Note the tasks of a graph that belongs to the profile."""
        now, spans = time.time(), annotations.get("span") or {}
        for key in tasks:
            state = scheduler.tasks.get(key)
            if state is None or key in self.open:
                continue
            span = spans.get(key) or (state.annotations or {}).get("span")
            if self._is_ours(client, span):
                self.spans.add(span_of(state))
                self.dependencies.update(str(each.key) for each in state.dependencies)
                self.edges.update(_edges_to(state))
                self.open[key] = _OpenTask(now)

    def _is_ours(self, client: str, span: Mapping[str, Any] | None) -> bool:
        ids = () if span is None else span.get("ids", ())
        if self.span in ids:
            # Tasks of the profile may submit more, by the client of their worker.
            return client == self.client or client.startswith(_CLIENT_OF_WORKER)
        # A graph may be submitted by another thread than that of the profile, or share its tasks
        # with an earlier one; but not if another profile claims it.
        names = () if span is None else span.get("name", ())
        return client == self.client and SPAN not in names

    def transition(self, key: Any, start: str, finish: str, *args: Any, **facts: Any) -> None:
        """Note the steps of a task of the profile."""
        task = self.open.get(key)
        if task is None:
            if start == "processing" and len(self.others) < _MAX_ATTEMPTS:
                self._note_other(facts)
            return
        now = time.time()
        if start == "waiting" and finish in ("processing", "queued", "no-worker"):
            task.ready = now
        if finish == "processing":
            task.assigned = now
            on = self.scheduler.tasks[key].processing_on
            task.worker = "" if on is None else on.address
        elif start == "processing":
            state = self.scheduler.tasks[key]
            is_cancelled = finish == "released" and not (state.who_wants or state.waiters)
            self._ended(key, task, CANCELLED if is_cancelled else finish, now, facts)
        if finish in ("memory", "erred", "forgotten"):
            # Work that is repeated later is noted again: the task stays known by its times.
            self.open.pop(key, None)
            if finish == "memory":
                self.open[key] = _OpenTask(task.submitted)
        elif finish == "released":
            task.ready = task.assigned = 0.0

    def _note_other(self, facts: Mapping[str, Any]) -> None:
        for step in facts.get("startstops") or ():
            if step["action"] == "compute":
                self.others.append((facts.get("worker") or "", step["start"], step["stop"]))

    def _ended(
        self, key: Any, task: _OpenTask, finish: str, now: float, facts: Mapping[str, Any]
    ) -> None:
        if len(self.attempts) >= _MAX_ATTEMPTS:
            self.dropped += 1
            return
        self.attempts.append(self._attempt(key, task, finish, now, facts))

    def _attempt(
        self, key: Any, task: _OpenTask, finish: str, now: float, facts: Mapping[str, Any]
    ) -> Attempt:
        state = self.scheduler.tasks[key]
        steps = [s for s in facts.get("startstops") or () if s["action"] == "compute"]
        return Attempt(
            key=str(key),
            name=state.prefix.name,
            block=block_number(key),
            submitted=task.submitted,
            ready=task.ready or task.assigned,
            assigned=task.assigned,
            finished=now,
            worker=facts.get("worker") or task.worker,
            start=steps[-1]["start"] if steps else 0.0,
            stop=steps[-1]["stop"] if steps else 0.0,
            nbytes=int(facts.get("nbytes") or 0),
            outcome=finish,
            error=str(facts.get("exception_text") or ""),
            has_dependencies=bool(state.dependencies),
            is_stage=next(hints_of(state.run_spec), None) is not None,
        )

    def log_event(self, topic: str, msg: Any) -> None:
        """Keep what is new in a worker's message; Dask shall not keep the message as well."""
        if topic != TOPIC or msg.get("profile") != self.profile:
            return
        forget_events(self.scheduler, TOPIC)
        known = self.messages.setdefault(msg["worker"], {name: [] for name in GROWING})
        for name, value in msg.items():
            if name in GROWING:
                known[name] += value
            else:
                known[name] = value

    def notes(self) -> SchedulerNotes:
        """Return all notes, those of tasks that have not ended included."""
        now = time.time()
        pending = [
            self._attempt(key, task, "processing", 0.0, {})
            for key, task in self.open.items()
            if task.assigned and key in self.scheduler.tasks
        ]
        return SchedulerNotes(
            now,
            self.attempts + pending,
            self.dropped,
            sorted(self.dependencies),
            sorted(filter(None, self.spans)),
            list(self.presence.values()),
            self.messages,
            self.others,
            sorted(self.edges),
        )


def _edges_to(state: Any) -> Iterator[tuple[str, str]]:
    """Yield the names of the tasks whose results a task reads, each with its own name."""
    if not is_barrier(state.run_spec):
        for each in state.dependencies:
            if not is_barrier(each.run_spec):
                yield each.prefix.name, state.prefix.name


def scheduler_notes(profile: str, dask_scheduler: Any = None) -> SchedulerNotes | None:
    """Return what the scheduler has noted of a profile; for `Client.run_on_scheduler`."""
    plugin = dask_scheduler.plugins.get(plugin_name(profile))
    return None if plugin is None else plugin.notes()


def read_clock(dask_scheduler: Any = None) -> float:
    """Return the scheduler's time in seconds since the epoch."""
    return time.time()
