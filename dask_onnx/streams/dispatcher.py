"""Dispatcher: one thread for each client, which starts and collects the frames of its streams."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dask_onnx.cluster.links import workers_of
from dask_onnx.collections.request_steps import Step, start_in_background
from dask_onnx.core.dask_internals import run_on_scheduler_async
from dask_onnx.core.stream_records import StreamRecord
from dask_onnx.streams.fair_share import FairShare
from dask_onnx.streams.frame_costs import report_and_ask, shared_costs
from dask_onnx.streams.micro_batches import BatchPlan, Head, plan_batch
from dask_onnx.streams.reserved_threads import may_start
from dask_onnx.streams.shared_runs import start_shared
from dask_onnx.streams.stream_run import StreamRun, Work

log = logging.getLogger(__name__)

_FRAMES_PER_THREAD = 4
"""Frames on the cluster for each of its threads, at most, while several streams share it."""
_LOOK_SECONDS = 5.0
"""Seconds after which the number of the cluster's threads is looked up again."""
_EXCHANGE_SECONDS = 1.0
"""Seconds after which the scheduler is told of the streams, and asked what their frames cost."""
_IDLE_SECONDS = 5.0
"""Seconds without a stream after which the thread ends."""


class Dispatcher:
    """Thread that owns the streams of one client; others send it events as functions."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._runs: dict[int, StreamRun] = {}
        self._share = FairShare()
        self._works: set[Work] = set()
        self._threads, self._next_look = 1, 0.0
        self._ended: list[StreamRecord] = []
        """Streams of whose end the scheduler has not been told."""
        self._next_exchange, self._is_exchanging = 0.0, False
        self._thread = threading.Thread(
            target=self._loop, name=f"dask_onnx-streams-{client.id}", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, event: Callable[[], None]) -> None:
        """Have a function called in the dispatcher's thread."""
        self._events.put(event)

    def add(self, run: StreamRun) -> None:
        """Add a stream. Called in the dispatcher's thread."""
        options = run.parts.options
        self._runs[id(run)] = run
        if run.group is not None:
            run.group.joined += 1
        self._share.add(id(run), options.weight, options.priority)

    @property
    def is_this_thread(self) -> bool:
        """True in the dispatcher's own thread."""
        return threading.current_thread() is self._thread

    @property
    def is_idle(self) -> bool:
        """True if there are no streams, nor news of them, nor events that may add one."""
        return not self._runs and not self._ended and self._events.empty()

    def _loop(self) -> None:
        while True:
            try:
                event = self._next_event()
                if event is None and not self._runs and _retire(self):
                    return
                self._handle(event)
            except Exception as error:
                log.exception("the dispatcher of streams failed")
                # Waiting consumers would never learn of it.
                for run in self._runs.values():
                    run.abort(error)
            self._forget_runs()

    def _next_event(self) -> Callable[[], None] | None:
        """Wait for an event, and return it; None once it is time to do something without one."""
        try:
            return self._events.get(timeout=self._seconds_to_wait())
        except queue.Empty:
            return None

    def _handle(self, event: Callable[[], None] | None) -> None:
        """Handle an event and those behind it, and what follows from them and from the time."""
        if event is not None:
            event()
        while not self._events.empty():
            self._events.get()()
        now = time.monotonic()
        for run in list(self._runs.values()):
            run.expire(now)
        if now >= self._next_exchange:
            self._exchange(now)
        self._start_frames()

    def _seconds_to_wait(self) -> float | None:
        if not self._runs:
            return 0.0 if self._ended and not self._is_exchanging else _IDLE_SECONDS
        times: list[float | None] = [self._next_exchange]
        times += [run.flow.next_deadline() for run in self._runs.values()]
        due = plan_batch(self._heads(), time.monotonic())
        times.append(due if isinstance(due, float) else None)
        soonest = min((each for each in times if each is not None), default=None)
        return None if soonest is None else max(soonest - time.monotonic(), 0.0)

    def _heads(self) -> list[Head]:
        """Return the frame that may start next of each stream."""
        heads = []
        for key, run in self._runs.items():
            index = run.startable()
            if index is not None and self._has_thread(run):
                options = run.parts.options
                count = len(run.flow.waiting)
                due = run.flow.arrivals[index] + options.max_delay
                heads.append(Head(key, run.batch_key, options.micro_batch, count, due))
        return heads

    def _has_thread(self, run: StreamRun) -> bool:
        """Return whether the other streams of a run's group keep their threads if it starts."""
        if run.group is None:
            return True
        others = [
            each.thread_use
            for each in self._runs.values()
            if each.group is run.group and each is not run and not each.is_over
        ]
        others += run.group.missing
        return may_start(run.thread_use, others, self._cluster_threads())

    def _start_frames(self) -> None:
        """Start what can be started, in the order of the fair share."""
        while len(self._runs) <= 1 or len(self._works) < self._most_works():
            plan = plan_batch(self._heads(), time.monotonic())
            if not isinstance(plan, BatchPlan):
                return
            chosen = self._share.choose(plan.streams)
            assert chosen is not None
            run = self._runs[chosen]
            if plan.size[chosen] == 1:
                self._start_one(run)
            else:
                self._start_batch(self._batch_of(run))

    def _start_one(self, run: StreamRun) -> None:
        index = run.startable()
        work = None if index is None else run.start(index)
        if work is not None:
            self._collect(work)

    def _batch_of(self, first: StreamRun) -> list[tuple[StreamRun, int]]:
        """Return the frames that share the next run, of one or of several streams."""
        size, key = first.parts.options.micro_batch, first.batch_key
        head = first.startable()
        assert head is not None
        signature = first.signature(head)
        frames = [(first, head)]
        taken = {id(first): 1}
        while len(frames) < size:
            more = {
                each: run.flow.waiting[taken.get(each, 0)]
                for each, run in self._runs.items()
                if run.batch_key == key
                and run.startable() is not None
                and len(run.flow.waiting) > taken.get(each, 0)
                and run.signature(run.flow.waiting[taken.get(each, 0)]) == signature
            }
            chosen = self._share.choose(list(more))
            if chosen is None:
                break
            frames.append((self._runs[chosen], more[chosen]))
            taken[chosen] = taken.get(chosen, 0) + 1
        return frames

    def _start_batch(self, frames: Sequence[tuple[StreamRun, int]]) -> None:
        first, head = frames[0]
        try:
            inputs = [run.frame(index) for run, index in frames]
            step = start_shared(first.prepared_at(head), inputs, first.parts.options.priority)
        except Exception:  # each frame by itself finds the one at fault
            self._start_apart(frames)
            return
        work = Work(tuple(frames), step)
        for run, index in frames:
            run.note_start(index, work)
        self._collect(work)

    def _start_apart(self, frames: Sequence[tuple[StreamRun, int]]) -> None:
        for run, index in frames:
            if index in run.flow.waiting and not run.is_over:
                work = run.start(index)
                if work is not None:
                    self._collect(work)

    def _collect(self, work: Work) -> None:
        """Have the values of a step gathered, and posted back as an event."""
        self._works.add(work)
        futures = list(work.step.futures)

        async def gather() -> None:
            try:
                values = await self.client.gather(futures, asynchronous=True)
            except BaseException as error:  # cancellation too is an answer
                failure = error
                self.post(lambda: self._failed(work, failure))
            else:
                self.post(lambda: self._gathered(work, values))

        try:
            start_in_background(self.client, gather())
        except RuntimeError as error:  # the loop of the client has ended
            self._failed(work, error)

    def _gathered(self, work: Work, values: Sequence[Any]) -> None:
        self._works.discard(work)
        if work.is_abandoned:
            return
        try:
            value = work.step.then(values)
        except Exception as error:
            self._failed(work, error)
            return
        if isinstance(value, Step):
            work.step = value
            self._collect(work)
            return
        results = value if len(work.frames) > 1 else [value]
        for (run, index), result in zip(work.frames, results, strict=True):
            run.finish(index, result)

    def _failed(self, work: Work, error: BaseException) -> None:
        self._works.discard(work)
        if work.is_abandoned:
            return
        # The traceback of the error keeps the futures, and whoever keeps the error keeps them.
        work.step.release()
        if len(work.frames) == 1:
            run, index = work.frames[0]
            run.fail(index, error)
            return
        # Only some of the frames are bad: each gets a run of its own.
        again = [(r, i) for r, i in work.frames if r.works.pop(i, None) is work]
        for run, index in sorted(again, key=lambda each: -each[1]):
            run.flow.restart([index])
        self._start_apart(again)

    def _most_works(self) -> int:
        return _FRAMES_PER_THREAD * self._cluster_threads()

    def _cluster_threads(self) -> int:
        now = time.monotonic()
        if now >= self._next_look and self.client.status == "running":
            self._next_look = now + _LOOK_SECONDS
            self._threads = max(1, threads_of(self.client))
        return self._threads

    def _exchange(self, now: float) -> None:
        """Tell the scheduler of all streams, and ask it what frames of competing ones cost."""
        self._next_exchange = now + _EXCHANGE_SECONDS
        if self._is_exchanging:
            return
        runs = list(self._runs.values())
        reports = [record.as_dict() for record in [*(run.record for run in runs), *self._ended]]
        requests = [run.requests for run in runs] if len(runs) > 1 else []
        finished = [run.finished for run in runs]
        self._ended.clear()

        async def ask() -> None:
            seconds = None
            tokens = sorted(frozenset().union(*requests))
            try:
                seconds = await run_on_scheduler_async(self.client, report_and_ask, reports, tokens)
            except Exception as error:  # frames go on without it; a lost cluster fails them
                log.debug("the scheduler was not told of streams: %s", error)
            self.post(lambda: self._take_costs(runs, requests, finished, seconds))

        self._is_exchanging = True
        try:
            start_in_background(self.client, ask())
        except RuntimeError:  # the loop of the client has ended, which fails the frames
            self._is_exchanging = False

    def _take_costs(
        self,
        runs: Sequence[StreamRun],
        requests: Sequence[frozenset[str]],
        finished: Sequence[int],
        seconds: Mapping[str, float] | None,
    ) -> None:
        self._is_exchanging = False
        if not requests or seconds is None:
            return
        for run, own, count in zip(runs, requests, finished, strict=True):
            run.cost.update(own, sum(seconds[token] for token in own), count)
        kinds = {key: run.kind for key, run in self._runs.items()}
        costs = {key: run.cost.seconds for key, run in self._runs.items()}
        self._share.set_costs(shared_costs(kinds, costs))

    def _forget_runs(self) -> None:
        for key, run in list(self._runs.items()):
            if run.is_over:
                del self._runs[key]
                self._share.remove(key)
                self._ended.append(run.record)
                self._next_exchange = 0.0


def threads_of(client: Any) -> int:
    """Return the number of threads of a client's cluster, as the client last heard of it."""
    return sum(worker["nthreads"] for worker in workers_of(client).values())


_dispatchers: weakref.WeakKeyDictionary[Any, Dispatcher] = weakref.WeakKeyDictionary()
"""Dispatcher of each client that has streams."""
_lock = threading.Lock()


def dispatch(client: Any, run: StreamRun) -> Dispatcher:
    """Hand a stream to the dispatcher of its client, and return the dispatcher."""
    with _lock:
        found = _dispatchers.get(client)
        if found is None:
            found = _dispatchers[client] = Dispatcher(client)
            found.start()
        found.post(lambda: found.add(run))
        return found


def _retire(dispatcher: Dispatcher) -> bool:
    """Return whether a dispatcher without streams may end, and forget it then."""
    with _lock:
        if not dispatcher.is_idle:
            return False
        if _dispatchers.get(dispatcher.client) is dispatcher:
            del _dispatchers[dispatcher.client]
        return True
