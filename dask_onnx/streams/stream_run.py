"""One stream inside the dispatcher: its frames, from their arrival until they are handed over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from distributed import KilledWorker

from dask_onnx.cluster.current_scheduler import ensure_connected
from dask_onnx.cluster.worker_deaths import killed_worker_error
from dask_onnx.collections.linked_requests import start_linked
from dask_onnx.collections.prepared_request import PreparedRequest
from dask_onnx.collections.request_steps import Prepared, Step
from dask_onnx.core.errors import DaskOnnxError, InputError, StageError
from dask_onnx.core.stream_records import StreamRecord
from dask_onnx.io.watched_folder import BadFrame
from dask_onnx.streams.flow_control import Cancel, Drop, FlowControl, FlowOptions, Instruction
from dask_onnx.streams.frame_checks import FrameChecks, signature_of
from dask_onnx.streams.frame_costs import FrameCost
from dask_onnx.streams.frame_results import DeadLetter, Dropped, Swap, at_frame
from dask_onnx.streams.outbox import Outbox
from dask_onnx.streams.reserved_threads import StreamGroup, ThreadUse
from dask_onnx.streams.shared_runs import check_sharing, sharing_key_of, sharing_signature
from dask_onnx.streams.state_keeper import StateKeeper
from dask_onnx.streams.stream_options import StreamOptions
from dask_onnx.streams.stream_statistics import StatisticsCounter

_LAST_TIMES = 8
"""Number of last tasks whose shortest time on the cluster counts as the time of one."""


@dataclass(frozen=True, slots=True)
class StreamParts:
    """Parts of a stream besides its frames."""

    name: str
    options: StreamOptions
    flow: FlowOptions
    outbox: Outbox
    counter: StatisticsCounter
    constants: Mapping[str, Any]
    """Inputs that are the same for every frame."""
    frame_input: str | None
    """Input that a frame which is no mapping feeds, where there are constants or a state."""
    keeper: StateKeeper | None = None


@dataclass(slots=True, eq=False)
class Work:
    """Tasks on the cluster for one frame, or for several that share a run."""

    frames: tuple[tuple[StreamRun, int], ...]
    """Streams and numbers of the frames."""
    step: Step
    started: float = field(default_factory=time.monotonic)
    """Monotonic time in seconds."""
    is_abandoned: bool = False
    """True if no result is wanted any more."""

    def abandon(self) -> None:
        """Cancel the tasks, and ignore what becomes of them."""
        if not self.is_abandoned:
            self.is_abandoned = True
            self.step.release()


@dataclass(frozen=True, slots=True)
class _Failure:
    """Outcome of a frame that ends the stream when it is handed over."""

    error: Exception


class StreamRun:
    """Frames of one stream. All methods are called in the dispatcher's thread."""

    def __init__(self, prepared: Prepared, parts: StreamParts) -> None:
        self.parts = parts
        self._models: list[tuple[int, Prepared]] = [(0, prepared)]
        """First frame of each model that still has frames to run, and its request."""
        self.flow = FlowControl(parts.flow)
        self.keeper = parts.keeper
        self.works: dict[int, Work] = {}
        """Work of each frame that runs."""
        self.is_over = False
        """True once nothing more will be handed over."""
        self.group: StreamGroup | None = None
        """Group of streams for each of which a thread is kept free; None if it is in none."""
        self.cost = FrameCost()
        self.record = StreamRecord(parts.name, parts.counter.as_plain)
        self.finished = 0
        """Frames that have finished on the cluster."""
        self._shapes: Any = None
        """Signature of the last frame that has started."""
        self._times: deque[float] = deque(maxlen=_LAST_TIMES)
        self._checks = FrameChecks(parts.options.uniform, parts.options.require_finite)
        self._frames: dict[int, Any] = {}
        self._outcomes: dict[int, Any] = {}
        self._failed: dict[int, Exception] = {}
        """Errors of frames with a state, until it is known which of them came first."""
        self._sharing: Prepared | None = None
        """Request whose frames are known to be able to share a run."""
        self._end: list[BaseException | None] = []
        """The end of the source: its error, or None; empty until then."""

    # Events of the source and of the consumer.

    def arrive(self, frame: Any) -> None:
        """Take a frame from the source."""
        if self.is_over:
            return
        self.parts.counter.count("read")
        index, instructions = self.flow.arrive(time.monotonic())
        self._frames[index] = frame
        self._follow(instructions)

    def end(self, error: BaseException | None) -> None:
        """Note that the source has ended, with an error or without."""
        self._end.append(error)
        self._follow([])

    def taken(self) -> None:
        """Note that the consumer has taken a result."""
        self.flow.take()

    def swap(self, prepared: Prepared) -> Swap:
        """Run the frames that have not started with another model."""
        index = self.flow.waiting[0] if self.flow.waiting else self.flow.count
        swap = Swap(index, self.prepared.token, prepared.token)
        # Frames that have started may have to start again, with the model that they had.
        oldest = min(self.flow.running, default=index)
        self._models = [
            model
            for model, (end, _) in zip(
                self._models, [*self._models[1:], (index, None)], strict=True
            )
            if end > oldest
        ]
        self._models.append((index, prepared))
        self.parts.counter.count("swaps")
        return swap

    def close(self) -> None:
        """Cancel everything, and end the stream for its consumer."""
        self._stop(None, clears=True)

    def abort(self, error: Exception) -> None:
        """Cancel everything, and raise an error in the consumer."""
        self._stop(error)

    # Events of time and of the cluster.

    def expire(self, now: float) -> None:
        """Drop the frames that are late."""
        self._follow(self.flow.expire(now))

    def startable(self) -> int | None:
        """Return the frame that may start next; None if there is none."""
        if self.is_over or (self.keeper is not None and self.keeper.is_waiting):
            return None
        return self.flow.startable()

    @property
    def prepared(self) -> Prepared:
        """Request of the frames that arrive now."""
        return self._models[-1][1]

    def prepared_at(self, index: int) -> Prepared:
        """Return the request of a frame: that of the model that was there when it first started."""
        return next(request for first, request in reversed(self._models) if first <= index)

    @property
    def requests(self) -> frozenset[str]:
        """Tokens of the requests with which the names of the frames' tasks end."""
        return frozenset().union(*(request.requests for _, request in self._models))

    @property
    def kind(self) -> tuple[Any, ...]:
        """Key of the model and the shapes of its frames: equal ones tell of equal costs."""
        return sharing_key_of(self.prepared) or self.prepared.token, self._shapes

    @property
    def thread_use(self) -> ThreadUse:
        """Tasks on the cluster, and the seconds of one, without what it waits for others."""
        return ThreadUse(len(set(self.works.values())), min(self._times, default=None))

    @property
    def batch_key(self) -> Any:
        """Key that streams share whose frames may share a run; None if this one's do not."""
        size = self.parts.options.micro_batch
        if size == 1 or self.keeper is not None:
            return None
        return sharing_key_of(self.prepared), self.parts.options.priority, size

    def signature(self, index: int) -> Any:
        """Return a key that a waiting frame shares with those that may be in its task."""
        prepared = self.prepared_at(index)
        return sharing_key_of(prepared), sharing_signature(prepared, self._frames[index])

    def start(self, index: int) -> Work | None:
        """Start a frame by itself, and return its work; None if it is bad."""
        self.flow.start(index)
        try:
            step = self._start(index)
        except Exception as error:  # whatever it is, it is this frame's
            self.fail(index, error)
            return None
        self._note_good(index)
        work = Work(((self, index),), step)
        self.works[index] = work
        return work

    def frame(self, index: int) -> Any:
        """Return the inputs of a frame after checking it.

        Raises
        ------
        InputError
            The frame is bad.
        """
        frame = self._frames[index]
        if isinstance(frame, BadFrame):
            raise frame.error
        self._checks.check(frame)
        if self.parts.frame_input is not None:
            named = frame if isinstance(frame, Mapping) else {self.parts.frame_input: frame}
            frame = {**self.parts.constants, **named}
        prepared = self.prepared_at(index)
        shares = self.parts.options.micro_batch > 1 and self._sharing is not prepared
        if shares:
            check_sharing(prepared, frame)
            self._sharing = prepared
        return frame

    def note_start(self, index: int, work: Work) -> None:
        """Note that a frame has started together with others."""
        self._note_good(index)
        self.flow.start(index)
        self.works[index] = work

    def finish(self, index: int, value: Any) -> None:
        """Take the result of a frame from the cluster."""
        if self.is_over:
            return
        self.finished += 1
        work = self.works.pop(index, None)
        if work is not None:
            self._times.append(time.monotonic() - work.started)
        if self.keeper is not None:
            value, state = value
            self.keeper.finished(index, state)
        self._outcome(index, value)
        self._look_for_failure()

    def fail(self, index: int, error: BaseException) -> None:
        """Take the error of a frame."""
        if self.is_over:
            return
        self.works.pop(index, None)
        located = at_frame(self._translated(error), index, self.parts.name)
        if self.keeper is None or index not in self.flow.running:
            self._fail(index, located)
            return
        self._failed[index] = located
        self._look_for_failure()

    def _start(self, index: int) -> Step:
        frame, prepared = self.frame(index), self.prepared_at(index)
        priority = self.parts.options.priority
        if self.keeper is None or not isinstance(prepared, PreparedRequest):
            return prepared.start(frame, priority=priority)
        for name in self.keeper.current.keys() & frame.keys():
            raise InputError(
                f"the frame has a value for {name!r}, which is the state of the frame before",
                "leave it out of frames; initial= gives the first value",
                option="state",
                input=name,
            )
        linked = start_linked(
            prepared,
            {**frame, **self.keeper.current},
            fetches=self.keeper.is_due,
            separates=not self.keeper.is_small,
            priority=priority,
        )
        self.keeper.started(index, linked)
        return linked.step

    def _note_good(self, index: int) -> None:
        frame = self._frames[index]
        self._checks.note_good(frame)
        self._shapes = signature_of(frame)

    def _look_for_failure(self) -> None:
        """Handle the first of the frames with a state that failed: later ones failed through it."""
        first = min(self.flow.running, default=None)
        if self.keeper is None or first is None or first not in self._failed:
            return
        error = self._failed.pop(first)
        self._failed.clear()
        self.keeper.rewind(first)
        later = sorted(index for index in self.flow.running if index > first)
        for index in later:
            if (work := self.works.pop(index, None)) is not None:
                work.abandon()
        self.flow.restart(later)
        self._fail(first, error)

    def _fail(self, index: int, error: Exception) -> None:
        self.parts.counter.add_failure(index, error)
        is_kept = self.parts.options.on_error == "dead_letter"
        self._outcome(index, DeadLetter(index, error) if is_kept else _Failure(error))

    def _outcome(self, index: int, outcome: Any) -> None:
        age, instructions = self.flow.finish(index, time.monotonic())
        if age is not None:
            self._outcomes[index] = self._counted(index, outcome, age)
        self._follow(instructions)

    def _counted(self, index: int, outcome: Any, age: float) -> Any:
        """Return an outcome after counting it; of a late frame with a state, that it is dropped."""
        if isinstance(outcome, DeadLetter | _Failure):
            return outcome
        is_late = self.flow.is_late(age)
        if is_late and self.parts.options.late == "drop":
            self.parts.counter.count("dropped_late")
            return Dropped(index, "deadline", age)
        self.parts.counter.add_result(age, is_late=is_late)
        return outcome

    def _follow(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            index = instruction.index
            if isinstance(instruction, Drop):
                kind = "dropped_late" if instruction.reason == "deadline" else "dropped_for_newer"
                self.parts.counter.count(kind)
                self._outcomes[index] = Dropped(index, instruction.reason, instruction.seconds)
            elif isinstance(instruction, Cancel):
                self._cancel(index)
            elif not self.is_over:
                self._hand_over(index)
        has_ended = bool(self._end) and self.flow.is_idle and not self._outcomes
        if has_ended and not self.is_over:
            self._stop(self._end[0])
        levels = len(self.flow.waiting), len(self.flow.running), self.flow.untaken
        self.parts.counter.set_levels(*levels)

    def _cancel(self, index: int) -> None:
        """Cancel the work of a dropped frame, unless later frames or others of its run need it."""
        work = self.works.get(index)
        if work is None or self.keeper is not None:
            return
        del self.works[index]
        if not any(run.works.get(each) is work for run, each in work.frames):
            work.abandon()

    def _hand_over(self, index: int) -> None:
        self._frames.pop(index, None)
        outcome = self._outcomes.pop(index)
        if isinstance(outcome, _Failure):
            self._stop(outcome.error)
        else:
            self.parts.outbox.put(index, outcome)

    def _stop(self, error: BaseException | None, *, clears: bool = False) -> None:
        self.is_over = True
        self.record.end()
        for work in self.works.values():
            others = [run for run, index in work.frames if run is not self and not run.is_over]
            if not others:
                work.abandon()
        self.works.clear()
        self._frames.clear()
        self._outcomes.clear()
        if self.keeper is not None:
            self.keeper.release()
        self.parts.outbox.end(error, clears=clears)

    def _translated(self, error: BaseException) -> Exception:
        if isinstance(error, DaskOnnxError):
            return error
        if isinstance(error, KilledWorker):
            return killed_worker_error(error)
        is_cancelled = not isinstance(error, Exception) or isinstance(error, CancelledError)
        # A client that is being closed raises whatever its connections raise.
        if is_cancelled or self.prepared.client.status != "running":
            try:
                ensure_connected(self.prepared.client)
            except DaskOnnxError as lost:
                return lost
        if is_cancelled or not isinstance(error, Exception):
            return StageError(
                f"the tasks of the frame were cancelled: {error}",
                "leave the tasks of a stream to the stream",
                reason=str(error),
            )
        return error
