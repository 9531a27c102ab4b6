"""What a schedule makes of predicted times: a simulation."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.cost import CostTable
from dask_onnx.planning.schedule import Passage, Schedule, barriers
from dask_onnx.planning.stages import StageGraph


@dataclass(frozen=True, slots=True)
class Span:
    """One stage's work on one micro-batch."""

    stage: int
    chunk: int
    worker: int
    start: float
    """Seconds since the beginning."""
    stop: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a schedule makes of predicted times."""

    spans: tuple[Span, ...]
    workers: int
    around: float = 0.0
    """Seconds of the request before its first and after its last work."""

    @property
    def seconds(self) -> float:
        """Of the whole request."""
        return self.around + self.busy_seconds

    @property
    def busy_seconds(self) -> float:
        """From the first work to the last."""
        return max((span.stop for span in self.spans), default=0.0)

    @property
    def bubble(self) -> float:
        """Share of the workers' time in which none of their stages is at work."""
        busy = sum(span.stop - span.start for span in self.spans)
        return 1 - busy / (self.workers * self.busy_seconds) if self.spans else 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """What `timeline` needs to know besides the stages."""

    chunks: int
    """Micro-batches."""
    workers: int
    """Stages that run at a time."""
    costs: CostTable
    worker_groups: tuple[int, ...] | None = None
    """The worker of each stage, modulo `workers`; None lets each run anywhere."""
    schedule: Schedule | None = None
    """None bounds nothing."""
    slowdowns: tuple[float, ...] = (1.0,)
    """How many times as long a stage takes while one, two, ... of the workers are at work; for more
    than there are numbers the last."""

    def slowdown(self, busy: int) -> float:
        return self.slowdowns[min(busy, len(self.slowdowns)) - 1]


def timeline(graph: StageGraph, course: Course) -> Timeline:
    """When each stage would work on each micro-batch.

    A worker that is free takes, of what is ready and allowed there, the oldest micro-batch, and of
    that the stage with the longest way still to go. What comes from another worker arrives a hop
    later. All that are at work at a time slow each other down.
    """
    return _Simulation(graph, course).run()


def predicted_seconds(graph: StageGraph, course: Course) -> float:
    """Of a request for so many micro-batches.

    Of very many, some are played through, and the rest follow at the pace of the last half of them.
    """
    some = max(_MOST_SPANS // max(len(graph.stages), 1), 2 * course.workers, 2)
    if course.chunks <= some:
        return timeline(graph, course).seconds
    half, all_of_them = (
        timeline(graph, replace(course, chunks=chunks)).seconds for chunks in (some // 2, some)
    )
    overhead = (all_of_them - half) / (some - some // 2)
    return all_of_them + overhead * (course.chunks - some)


_MOST_SPANS = 1000


_Work = tuple[int, int]
"""A stage and a chunk."""
_NOTHING = 1e-12
"""Seconds that are none, where times have been subtracted from one another."""


@dataclass(slots=True)
class _Running:
    work: _Work
    start: float
    left: float
    """Seconds that it would still take alone."""


@dataclass
class _Simulation:
    graph: StageGraph
    course: Course
    now: float = 0.0
    events: list[tuple[float, int, _Work | None]] = field(default_factory=list)
    """When something changes that does not depend on who else is at work; and the work that is
    ready then, or None where a worker is free or has received what it waits for."""
    running: dict[int, _Running] = field(default_factory=dict)
    """By worker."""
    arriving: dict[int, tuple[float, _Work]] = field(default_factory=dict)
    """Worker to when it has received what it needs for its next work."""
    spans: dict[_Work, Span] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.graph.stages)
        self.sources: list[dict[int, int]] = [{} for _ in range(count)]
        for edge in self.graph.edges:
            sources = self.sources[edge.consumer]
            sources[edge.producer] = sources.get(edge.producer, 0) + edge.bytes
        self.waits: defaultdict[_Work, set[_Work]] = defaultdict(set)
        self.releases: defaultdict[_Work, list[_Work]] = defaultdict(list)
        self.free = [0.0] * self.course.workers
        self.serial = itertools.count()

    def run(self) -> Timeline:
        passages = []
        for chunk in range(self.course.chunks):
            needs = {
                (number, chunk): [(source, chunk) for source in sources]
                for number, sources in enumerate(self.sources)
            }
            for work, before in needs.items():
                self._wait(work, before)
            passages.append(Passage.of(needs))
        if self.course.schedule is not None:
            for barrier in barriers(self.course.schedule, len(self.graph.stages), passages):
                for work in barrier.before:
                    self._wait(work, barrier.after)
        for passage in passages:
            for work in passage.levels:
                if not self.waits[work]:
                    self._push(0.0, work)
        self._play()
        around = self.course.costs.seconds_per_request
        return Timeline(tuple(self.spans.values()), self.course.workers, around)

    def _wait(self, work: _Work, before: Sequence[_Work]) -> None:
        for each in before:
            if each not in self.waits[work]:
                self.waits[work].add(each)
                self.releases[each].append(work)

    def _push(self, time: float, work: _Work | None = None) -> None:
        heapq.heappush(self.events, (time, next(self.serial), work))

    def _play(self) -> None:
        ready: list[tuple[int, float, _Work]] = []
        while self.events or self.running:
            self._advance()
            while self.events and self.events[0][0] <= self.now:
                work = heapq.heappop(self.events)[2]
                if work is not None:
                    heapq.heappush(ready, (work[1], -self.graph.seconds_left[work[0]], work))
            kept = []
            while ready and min(self.free) <= self.now:
                entry = heapq.heappop(ready)
                worker = self._worker(entry[2])
                if worker is None:
                    kept.append(entry)
                else:
                    self._take(entry[2], worker)
            for entry in kept:
                heapq.heappush(ready, entry)
            for worker, (time, work) in list(self.arriving.items()):
                if time <= self.now:
                    del self.arriving[worker]
                    seconds = self.graph.stages[work[0]].cost.seconds
                    self.running[worker] = _Running(work, self.now, seconds)

    def _advance(self) -> None:
        """To when next something changes; all that run get on by then, the slower the more run."""
        until = self.events[0][0] if self.events else math.inf
        if self.running:
            slowdown = self.course.slowdown(len(self.running))
            first = min(each.left for each in self.running.values())
            done = self.now + first * slowdown
            until, gone = min((until, (until - self.now) / slowdown), (done, first))
            for worker, each in list(self.running.items()):
                each.left -= gone
                if each.left <= _NOTHING:
                    self._finish(worker, each, until)
        self.now = until

    def _finish(self, worker: int, done: _Running, now: float) -> None:
        del self.running[worker]
        self.spans[done.work] = Span(*done.work, worker, done.start, now)
        # Dask's own work for the task keeps the worker from the next one.
        self.free[worker] = now + self.course.costs.seconds_per_task
        self._push(self.free[worker])
        for later in self.releases[done.work]:
            self.waits[later].discard(done.work)
            if not self.waits[later]:
                self._push(now, later)

    def _worker(self, work: _Work) -> int | None:
        """A free worker that may run it: where most of its input is, if that is possible."""
        if self.course.worker_groups is not None:
            own = self.course.worker_groups[work[0]] % self.course.workers
            return own if self.free[own] <= self.now else None
        idle = [worker for worker, free in enumerate(self.free) if free <= self.now]
        held: Counter[int] = Counter()
        for source, size in self.sources[work[0]].items():
            held[self.spans[source, work[1]].worker] += size + 1
        return max(idle, key=lambda worker: (held[worker], -worker), default=None)

    def _take(self, work: _Work, worker: int) -> None:
        """What it needs and has not got travels first."""
        number, chunk = work
        costs, time = self.course.costs, self.now
        for source, size in self.sources[number].items():
            before = self.spans[source, chunk]
            if before.worker != worker:
                hop = costs.seconds_per_hop + size / costs.link_bytes_per_second
                time = max(time, before.stop + hop)
        self.free[worker] = math.inf
        self.arriving[worker] = time, work
        self._push(time)
