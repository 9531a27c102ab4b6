"""Simulation of a schedule: when each stage works on each micro-batch, by predicted times."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.cost import CostTable
from dask_onnx.planning.schedule import MicroBatch, Schedule, barriers
from dask_onnx.planning.stages import StageGraph

_MOST_SPANS = 1000
"""Spans beyond which `predicted_seconds` extrapolates: a simulation is linear in their number."""
_Work = tuple[int, int]
"""A stage and a micro-batch, by their positions."""
_ROUNDING_SECONDS = 1e-12
"""Tolerance in seconds below which a remaining time counts as zero (floating-point error)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Work of one stage on one micro-batch."""

    stage: int
    """Position of the stage."""
    chunk: int
    """Position of the micro-batch."""
    worker: int
    """Number of the worker that runs it."""
    start: float
    """Seconds from the start of the first work to the start of this one."""
    stop: float
    """Seconds from the start of the first work to the end of this one."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Simulated course of a request."""

    spans: tuple[Span, ...]
    """Work of all stages on all micro-batches."""
    workers: int
    """Number of workers."""
    around: float = 0.0
    """Seconds of the request before its first and after its last work."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole request."""
        return self.around + self.busy_seconds

    @property
    def busy_seconds(self) -> float:
        """Seconds from the start of the first work to the end of the last."""
        return max((span.stop for span in self.spans), default=0.0)

    @property
    def bubble(self) -> float:
        """Share of the workers' time in which they run no stage, from 0 to 1."""
        busy = sum(span.stop - span.start for span in self.spans)
        return 1 - busy / (self.workers * self.busy_seconds) if self.spans else 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Conditions under which a stage graph is simulated."""

    chunks: int
    """Number of micro-batches."""
    workers: int
    """Number of stages that run at a time."""
    costs: CostTable
    """Overhead of tasks and requests, and cost of hops."""
    worker_groups: tuple[int, ...] | None = None
    """Worker of each stage, modulo `workers`; None lets each stage run anywhere."""
    schedule: Schedule | None = None
    """Schedule of the micro-batches; None delays none of them."""
    slowdowns: tuple[float, ...] = (1.0,)
    """Factor on a stage's time while 1, 2, ... workers are busy; the last one holds for more."""

    def slowdown(self, busy: int) -> float:
        """Return the factor on a stage's time while `busy` workers run one."""
        return self.slowdowns[min(busy, len(self.slowdowns)) - 1]


def timeline(graph: StageGraph, scenario: Scenario) -> Timeline:
    """Simulate a stage graph.

    A free worker takes, of the work that is ready and allowed there, the oldest micro-batch, and of
    that the stage with the longest path still to go. A value from another worker arrives a hop
    later. Stages that run at the same time slow each other down.
    """
    return _Simulation(graph, scenario).run()


def predicted_seconds(graph: StageGraph, scenario: Scenario) -> float:
    """Return the predicted seconds of a request.

    Only the first micro-batches of very many are simulated; the rest are extrapolated at the rate
    of the second half of these.
    """
    some = max(_MOST_SPANS // max(len(graph.stages), 1), 2 * scenario.workers, 2)
    if scenario.chunks <= some:
        return timeline(graph, scenario).seconds
    half, all_simulated = (
        timeline(graph, replace(scenario, chunks=chunks)).seconds for chunks in (some // 2, some)
    )
    seconds_per_chunk = (all_simulated - half) / (some - some // 2)
    return all_simulated + seconds_per_chunk * (scenario.chunks - some)


@dataclass(slots=True)
class _Running:
    work: _Work
    start: float
    left: float
    """Seconds that the work would still take if nothing else ran."""


@dataclass
class _Simulation:
    graph: StageGraph
    scenario: Scenario
    now: float = 0.0
    events: list[tuple[float, int, _Work | None]] = field(default_factory=list)
    """Heap of (time, serial number, work) of changes that do not depend on how busy workers are.

    The work is what becomes ready then; None where a worker is free or has received its inputs.
    """
    running: dict[int, _Running] = field(default_factory=dict)
    """Work that each busy worker runs, by the worker's number."""
    arriving: dict[int, tuple[float, _Work]] = field(default_factory=dict)
    """Times at which each worker will have received the inputs of its next work, and that work."""
    spans: dict[_Work, Span] = field(default_factory=dict)
    """Finished work."""

    def __post_init__(self) -> None:
        count = len(self.graph.stages)
        self.sources: list[dict[int, int]] = [{} for _ in range(count)]
        """Bytes that each stage receives, by the position of the producer."""
        for edge in self.graph.edges:
            sources = self.sources[edge.consumer]
            sources[edge.producer] = sources.get(edge.producer, 0) + edge.bytes
        self.waits: defaultdict[_Work, set[_Work]] = defaultdict(set)
        self.releases: defaultdict[_Work, list[_Work]] = defaultdict(list)
        self.free = [0.0] * self.scenario.workers
        """Time at which each worker is free; infinite while it works."""
        self.serial = itertools.count()

    def run(self) -> Timeline:
        """Simulate all micro-batches."""
        micro_batches = []
        for chunk in range(self.scenario.chunks):
            dependencies = {
                (number, chunk): [(source, chunk) for source in sources]
                for number, sources in enumerate(self.sources)
            }
            for work, before in dependencies.items():
                self._wait(work, before)
            micro_batches.append(MicroBatch.from_dependencies(dependencies))
        if self.scenario.schedule is not None:
            stages = len(self.graph.stages)
            for barrier in barriers(self.scenario.schedule, stages, micro_batches):
                for work in barrier.before:
                    self._wait(work, barrier.after)
        for micro_batch in micro_batches:
            for work in micro_batch.levels:
                if not self.waits[work]:
                    self._push(0.0, work)
        self._advance_to_end()
        # The last task's own overhead falls after its work, as that of every other task does.
        costs = self.scenario.costs
        around = costs.seconds_per_request + (costs.seconds_per_task if self.spans else 0.0)
        return Timeline(tuple(self.spans.values()), self.scenario.workers, around)

    def _wait(self, work: _Work, before: Sequence[_Work]) -> None:
        for each in before:
            if each not in self.waits[work]:
                self.waits[work].add(each)
                self.releases[each].append(work)

    def _push(self, time: float, work: _Work | None = None) -> None:
        heapq.heappush(self.events, (time, next(self.serial), work))

    def _advance_to_end(self) -> None:
        ready: list[tuple[int, float, _Work]] = []
        while self.events or self.running:
            self._advance()
            while self.events and self.events[0][0] <= self.now:
                work = heapq.heappop(self.events)[2]
                if work is not None:
                    heapq.heappush(ready, (work[1], -self.graph.seconds_left[work[0]], work))
            self._assign(ready)
            for worker, (time, work) in list(self.arriving.items()):
                if time <= self.now:
                    del self.arriving[worker]
                    seconds = self.graph.stages[work[0]].cost.seconds
                    self.running[worker] = _Running(work, self.now, seconds)

    def _assign(self, ready: list[tuple[int, float, _Work]]) -> None:
        """Give ready work to free workers; what none may take yet stays in the heap `ready`."""
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

    def _advance(self) -> None:
        """Move to the next change; running work progresses more slowly the more of it there is."""
        until = self.events[0][0] if self.events else math.inf
        if self.running:
            slowdown = self.scenario.slowdown(len(self.running))
            first = min(each.left for each in self.running.values())
            done = self.now + first * slowdown
            until, progress = min((until, (until - self.now) / slowdown), (done, first))
            for worker, each in list(self.running.items()):
                each.left -= progress
                if each.left <= _ROUNDING_SECONDS:
                    self._finish(worker, each, until)
        self.now = until

    def _finish(self, worker: int, done: _Running, now: float) -> None:
        del self.running[worker]
        self.spans[done.work] = Span(*done.work, worker, done.start, now)
        # The worker is busy with Dask's own work for the task before it can take the next one.
        self.free[worker] = now + self.scenario.costs.seconds_per_task
        self._push(self.free[worker])
        for later in self.releases[done.work]:
            self.waits[later].discard(done.work)
            if not self.waits[later]:
                self._push(now, later)

    def _worker(self, work: _Work) -> int | None:
        """Return a free worker that may run `work`: the one that holds most of its input."""
        if self.scenario.worker_groups is not None:
            own = self.scenario.worker_groups[work[0]] % self.scenario.workers
            return own if self.free[own] <= self.now else None
        idle = [worker for worker, free in enumerate(self.free) if free <= self.now]
        held: Counter[int] = Counter()
        for source, size in self.sources[work[0]].items():
            held[self.spans[source, work[1]].worker] += size + 1
        return max(idle, key=lambda worker: (held[worker], -worker), default=None)

    def _take(self, work: _Work, worker: int) -> None:
        """Reserve a worker, adding the transfer time of inputs that are on another worker."""
        number, chunk = work
        costs, time = self.scenario.costs, self.now
        for source, size in self.sources[number].items():
            before = self.spans[source, chunk]
            if before.worker != worker:
                hop = costs.seconds_per_hop + size / costs.link_bytes_per_second
                time = max(time, before.stop + hop)
        self.free[worker] = math.inf
        self.arriving[worker] = time, work
        self._push(time)
