"""What a schedule makes of predicted times: a simulation."""

from __future__ import annotations

import heapq
import itertools
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

    @property
    def seconds(self) -> float:
        return max((span.stop for span in self.spans), default=0.0)

    @property
    def bubble(self) -> float:
        """Share of the workers' time in which none of their stages is at work."""
        busy = sum(span.stop - span.start for span in self.spans)
        return 1 - busy / (self.workers * self.seconds) if self.spans else 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """What `timeline` needs to know besides the stages."""

    chunks: int
    """Micro-batches."""
    workers: int
    """Stages that run at a time."""
    costs: CostTable
    lanes: tuple[int, ...] | None = None
    """The worker of each stage, modulo `workers`; None lets each run anywhere."""
    schedule: Schedule | None = None
    """None bounds nothing."""


def timeline(graph: StageGraph, course: Course) -> Timeline:
    """When each stage would work on each micro-batch.

    A worker that is free takes, of what is ready and allowed there, the oldest micro-batch, and of
    that the stage with the longest way still to go. What comes from another worker arrives a hop
    later.
    """
    return _Simulation(graph, course).run()


def predicted_seconds(graph: StageGraph, course: Course) -> float:
    """From the start of the first micro-batch to the end of the last.

    Of very many, some are played through, and the rest follow at the pace of the last half of them.
    """
    some = max(_MOST_SPANS // max(len(graph.stages), 1), 2 * course.workers, 2)
    if course.chunks <= some:
        return timeline(graph, course).seconds
    half, all_of_them = (
        timeline(graph, replace(course, chunks=chunks)).seconds for chunks in (some // 2, some)
    )
    pace = (all_of_them - half) / (some - some // 2)
    return all_of_them + pace * (course.chunks - some)


_MOST_SPANS = 1000


_Work = tuple[int, int]
"""A stage and a chunk."""


@dataclass
class _Simulation:
    graph: StageGraph
    course: Course
    events: list[tuple[float, int, _Work | None]] = field(default_factory=list)
    """When something changes; and the work that is ready then, or None where a worker is free."""
    spans: dict[_Work, Span] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.graph.stages)
        self.arriving: list[dict[int, int]] = [{} for _ in range(count)]
        for edge in self.graph.edges:
            sources = self.arriving[edge.consumer]
            sources[edge.producer] = sources.get(edge.producer, 0) + edge.bytes
        self.waits: defaultdict[_Work, set[_Work]] = defaultdict(set)
        self.releases: defaultdict[_Work, list[_Work]] = defaultdict(list)
        self.ready: defaultdict[_Work, float] = defaultdict(float)
        """When the last of what was waited for, of what has started, is done."""
        self.free = [0.0] * self.course.workers
        self.serial = itertools.count()

    def run(self) -> Timeline:
        passages = []
        for chunk in range(self.course.chunks):
            needs = {
                (number, chunk): [(source, chunk) for source in sources]
                for number, sources in enumerate(self.arriving)
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
        return Timeline(tuple(self.spans.values()), self.course.workers)

    def _wait(self, work: _Work, before: Sequence[_Work]) -> None:
        for each in before:
            if each not in self.waits[work]:
                self.waits[work].add(each)
                self.releases[each].append(work)

    def _push(self, time: float, work: _Work | None) -> None:
        heapq.heappush(self.events, (time, next(self.serial), work))

    def _play(self) -> None:
        ready: list[tuple[int, float, _Work]] = []
        while self.events:
            now = self.events[0][0]
            while self.events and self.events[0][0] <= now:
                work = heapq.heappop(self.events)[2]
                if work is not None:
                    heapq.heappush(ready, (work[1], -self.graph.seconds_left[work[0]], work))
            kept = []
            while ready and min(self.free) <= now:
                entry = heapq.heappop(ready)
                worker = self._worker(entry[2], now)
                if worker is None:
                    kept.append(entry)
                else:
                    self._start(entry[2], worker, now)
            for entry in kept:
                heapq.heappush(ready, entry)

    def _worker(self, work: _Work, now: float) -> int | None:
        """A free worker that may run it: where most of its input is, if that is possible."""
        if self.course.lanes is not None:
            own = self.course.lanes[work[0]] % self.course.workers
            return own if self.free[own] <= now else None
        idle = [worker for worker, free in enumerate(self.free) if free <= now]
        held: Counter[int] = Counter()
        for source, size in self.arriving[work[0]].items():
            held[self.spans[source, work[1]].worker] += size + 1
        return max(idle, key=lambda worker: (held[worker], -worker), default=None)

    def _start(self, work: _Work, worker: int, now: float) -> None:
        number, chunk = work
        costs = self.course.costs
        start = now
        for source, size in self.arriving[number].items():
            before = self.spans[source, chunk]
            if before.worker != worker:
                hop = costs.seconds_per_hop + size / costs.link_bytes_per_second
                start = max(start, before.stop + hop)
        stop = start + self.graph.stages[number].cost.seconds
        self.spans[work] = Span(number, chunk, worker, start, stop)
        # Dask's own work for the task keeps the worker from the next one.
        self.free[worker] = stop + costs.seconds_per_task
        self._push(self.free[worker], None)
        for later in self.releases[work]:
            self.waits[later].discard(work)
            self.ready[later] = max(self.ready[later], stop)
            if not self.waits[later]:
                self._push(self.ready[later], later)
