"""Streams of several models over one source, whose results come from each as they are there."""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.composites.composite_plan import CompositePlan
from dask_onnx.composites.frame_fanout import FrameFanout
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.streams.frame_results import Swap
from dask_onnx.streams.reserved_threads import StreamGroup
from dask_onnx.streams.running_stream import Stream
from dask_onnx.streams.stream import own_client, stream
from dask_onnx.streams.stream_statistics import StreamStatistics

Wait = Literal["all", "each"]
"""Models that the result of a frame waits for: all, or only the one that gives it."""
Refit = Callable[[Mapping[str, Model]], Mapping[str, Model]]
"""Function that gives new models the names of a composite."""
_ALONE = ("state", "initial", "checkpoint_every")
"""Options of a stream that are for one model."""
_BY_MODEL = ("window", "weight", "priority")
"""Options of a stream that may be a mapping by model."""
_WAITING_RESULTS = 64
"""Results that wait for the consumer, beside those in the windows of the streams."""
_POLL_SECONDS = 0.1
"""Seconds after which a thread that waits looks whether the stream was closed."""


@dataclass(frozen=True, slots=True)
class _End:
    """End of the results of one model."""

    error: BaseException | None


class EachStream:
    """Results of several models on one stream of frames. Made by ``Composite.stream``.

    An iterator and asynchronous iterator of triples: number of the frame, name of the model, and
    its result (a dict by output, a `Dropped` or a `DeadLetter`). Results of one model come in the
    order of the frames, unless ``ordered=False``; those of models are not ordered among each other.

    A slow model does not hold up the others: a thread of the cluster is kept free for each of them,
    as far as there are as many threads as models, and frames of faster models start first. Frames
    that a model has not taken wait in memory, up to a tenth of it (`lag` says how many otherwise).
    Only when they fill it is the source held up, so that no frame is lost; with ``late="latest"``
    a slow model leaves frames out (`Dropped`) instead.

    Leaving the loop, an error, or `close` cancels what is still on the cluster. `window`, `weight`
    and `priority` may be mappings by model.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        fanout: FrameFanout,
        refit: Refit,
        own_client: Any = None,
    ) -> None:
        self._streams, self._refit = dict(streams), refit
        self._results: queue.Queue[Any] = queue.Queue(_WAITING_RESULTS)
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._left = len(self._streams)
        owned = () if own_client is None else (own_client,)
        closes = (fanout, *self._streams.values(), *owned)
        self._finalizer = weakref.finalize(self, _close_all, self._closed, closes)

    @property
    def statistics(self) -> Mapping[str, StreamStatistics]:
        """Rates, latencies and drops of each model by its name, up to now."""
        return {name: each.statistics for name, each in self._streams.items()}

    def swap(self, **models: Model) -> dict[str, Swap]:
        """Run the frames that have not started with other models; none is lost.

        Parameters
        ----------
        **models : Model
            New models by the names of those that they replace.

        Returns
        -------
        dict of str to Swap
            For each, the first frame of the new model, and the tokens of both.

        Raises
        ------
        InputError
            There is no model of a name, or a new one has other inputs or outputs.

        Examples
        --------
        >>> results.swap(face=retrained)["face"].frame
        """
        for name in models:
            if name not in self._streams:
                raise InputError(
                    f"the stream has no model {name!r}",
                    f"its models are {', '.join(map(repr, self._streams))}",
                    option=name,
                    suggestions=[Suggestion(each) for each in self._streams],
                )
        fitting = self._refit(models)
        return {name: self._streams[name].swap(model) for name, model in fitting.items()}

    def close(self) -> None:
        """End the streams: nothing more is read, and what is on the cluster is cancelled.

        Examples
        --------
        >>> results.close()
        """
        self._finalizer()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._threads = []

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        try:
            while (taken := self._next()) is not None:
                yield taken
        finally:
            self.close()

    def __next__(self) -> tuple[int, str, Any]:
        try:
            taken = self._next()
        except BaseException:
            self.close()
            raise
        if taken is None:
            self.close()
            raise StopIteration
        return taken

    async def __aiter__(self) -> AsyncIterator[tuple[int, str, Any]]:
        try:
            while (taken := await asyncio.to_thread(self._next)) is not None:
                yield taken
        finally:
            await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dask_onnx.EachStream of {', '.join(self._streams)}>"

    def _next(self) -> tuple[int, str, Any] | None:
        """Wait for the next result, and return it; None after the last one."""
        self._start()
        while self._left and not self._closed.is_set():
            try:
                item = self._results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                taken: tuple[int, str, Any] = item
                return taken
            self._left -= 1
            if item.error is not None:
                raise item.error
        return None

    def _start(self) -> None:
        if self._threads or self._closed.is_set():
            return
        self._threads = [
            threading.Thread(
                target=_collect,
                args=(name, each, self._results, self._closed),
                name=f"dask-onnx-{name}",
                daemon=True,
            )
            for name, each in self._streams.items()
        ]
        for thread in self._threads:
            thread.start()


def _close_all(closed: threading.Event, closes: Sequence[Any]) -> None:
    """End a source, the streams of its frames and, if it is theirs, their client."""
    closed.set()
    for each in closes:
        each.close()


def _collect(name: str, stream: Stream, results: queue.Queue[Any], closed: threading.Event) -> None:
    """Hand over the results of one model, in a thread of its own, which keeps no `EachStream`."""
    error: BaseException | None = None
    try:
        for index, result in stream:
            if not _put(results, (index, name, result), closed):
                return
    except BaseException as raised:  # it is raised in the thread of the consumer
        error = raised
    _put(results, _End(error), closed)


def _put(results: queue.Queue[Any], item: Any, closed: threading.Event) -> bool:
    """Return whether an item was handed over before the stream was closed."""
    while not closed.is_set():
        try:
            results.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def stream_each(
    parts: Mapping[str, Model],
    inputs: tuple[TensorSpec, ...],
    outputs: Mapping[str, tuple[str, ...]],
    source: Any,
    client: Any,
    options: Mapping[str, Any],
    refit: Refit,
) -> EachStream:
    """Return the results of several models on one source; see `Composite.stream`.

    Parameters
    ----------
    parts : mapping of str to Model
        Models with inputs and outputs named as those of the composite.
    inputs : tuple of TensorSpec
        Inputs of the composite.
    outputs : mapping of str to tuple of str
        Wanted outputs of each model.
    source, client
        As for `dask_onnx.stream`.
    options : mapping of str to object
        Other options of it, and `lag`: frames by which a model may lag behind the source.
    refit : callable
        From models as callers give them to models with the inputs and outputs of `parts`.

    Raises
    ------
    InputError, PlanError
        Options do not fit.
    """
    given = dict(options)
    lag, plan = given.pop("lag", None), given.pop("plan", None)
    feeds = given.pop("feeds", None) or {}
    _check_options(given, lag, plan, parts)
    for name in feeds:
        if name not in {spec.name for spec in inputs}:
            raise InputError(
                f"feeds names {name!r}, which is no input of the models",
                f"name one of {', '.join(repr(spec.name) for spec in inputs)}",
                option="feeds",
                input=str(name),
            )
    fanout = FrameFanout(source, _Divide(parts, inputs, frozenset(feeds)), tuple(parts), lag)
    alone = _own_options(given, parts)
    shared = current_client() if client is None else client
    # One cluster of threads for all models, where there is none yet.
    owned = own_client() if shared is None else None
    streams: dict[str, Stream] = {}
    group = StreamGroup(len(parts))
    try:
        for name, part in parts.items():
            own = {spec.name for spec in part.inputs}
            streams[name] = stream(
                part,
                fanout.frames_of(name),
                shared or owned,
                outputs=list(outputs[name]),
                plan=None if plan is None else plan.plans[name],
                feeds={key: value for key, value in feeds.items() if key in own},
                **{"name": name, **given, **alone[name]},
            )
            streams[name].join_group(group)
    except BaseException:
        if owned is not None:
            owned.close()
        raise
    return EachStream(streams, fanout, refit, owned)


def _own_options(options: dict[str, Any], parts: Mapping[str, Model]) -> dict[str, dict[str, Any]]:
    """Take the options that are mappings by model out of `options`, and return them by model.

    Raises
    ------
    InputError
        One names a model that is not there.
    """
    own: dict[str, dict[str, Any]] = {name: {} for name in parts}
    if "priority" not in options:
        seconds = {name: part.analysis.predicted_seconds for name, part in parts.items()}
        for place, name in enumerate(sorted(parts, key=lambda name: seconds[name])):
            own[name]["priority"] = -place
    for option in _BY_MODEL:
        if not isinstance(options.get(option), Mapping):
            continue
        for name, value in options.pop(option).items():
            if name not in parts:
                raise InputError(
                    f"{option} names model {name!r}",
                    f"the models are {', '.join(map(repr, parts))}",
                    option=option,
                    suggestions=[Suggestion(option, {each: value}) for each in parts],
                )
            own[name][option] = value
    return own


@dataclass(frozen=True, slots=True)
class _Divide:
    """From a frame to the inputs of each model."""

    parts: Mapping[str, Model]
    inputs: tuple[TensorSpec, ...]
    constants: frozenset[str]

    def __call__(self, frame: Any) -> dict[str, dict[str, Any]]:
        own = {
            name: [s.name for s in part.inputs if s.name not in self.constants]
            for name, part in self.parts.items()
        }
        needed = {name for names in own.values() for name in names}
        feeds = resolve_feeds(frame, self.inputs, needed)
        return {part: {name: feeds[name] for name in names} for part, names in own.items()}


def _check_options(
    options: Mapping[str, Any], lag: Any, plan: Any, parts: Mapping[str, Model]
) -> None:
    for name in _ALONE:
        if name in options:
            raise InputError(
                f"{name} is for a stream of one model, or with wait='all'",
                "leave it out",
                option=name,
                suggestions=[Suggestion("wait", "all")],
            )
    if lag is not None and (isinstance(lag, bool) or not isinstance(lag, int) or lag < 1):
        raise InputError(f"lag is {lag!r}", "give 1 or more frames", option="lag")
    if plan is not None and not (
        isinstance(plan, CompositePlan) and parts.keys() <= plan.plans.keys()
    ):
        raise InputError(
            f"plan is {plan!r}; with wait='each' the models run apart",
            "compose with merge=False, and pass what Composite.plan returns",
            option="plan",
            suggestions=[Suggestion("merge", False)],
        )
