"""`Stream`: the object that gives the results of a model on a stream of frames."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future as LocalFuture
from typing import Any, Self

from dask_onnx.core.errors import InputError
from dask_onnx.core.stream_records import add_stream
from dask_onnx.streams.dispatcher import Dispatcher, dispatch, threads_of
from dask_onnx.streams.frame_readers import Gate, SourceReader
from dask_onnx.streams.frame_results import Dropped, Swap
from dask_onnx.streams.frame_sources import open_source
from dask_onnx.streams.model_requests import ModelRequests
from dask_onnx.streams.outbox import Outbox
from dask_onnx.streams.reserved_threads import StreamGroup
from dask_onnx.streams.stream_options import StreamOptions
from dask_onnx.streams.stream_run import StreamParts, StreamRun
from dask_onnx.streams.stream_statistics import StatisticsCounter, StreamStatistics

_CLOSE_SECONDS = 10.0
"""Longest wait for the dispatcher to end a stream that is closed."""
_SWAP_SECONDS = 60.0
"""Longest wait for the dispatcher to take a new model."""


class Stream:
    """Results of a model on a stream of frames. Made by `dask_onnx.stream`.

    It is an iterator and an asynchronous iterator of pairs of index and result. Nothing is read
    before the first result is asked for. Leaving the loop, an error, or `close` cancels what is
    still on the cluster; so does the end of a ``with`` block.

    Examples
    --------
    >>> with dx.stream(model, frames, window=16) as stream:
    ...     for index, result in stream:
    ...         print(index, stream.statistics)
    """

    def __init__(
        self,
        requests: ModelRequests,
        source: Any,
        options: StreamOptions,
        name: str,
        own_client: Any = None,
    ) -> None:
        self.name = name
        self._requests, self._options = requests, options
        self._outbox, self._counter = Outbox(), StatisticsCounter(name)
        self._swaps: list[Swap] = []
        has_state = requests.keeper is not None
        flow = options.flow(threads_of(requests.client), has_state=has_state)
        parts = StreamParts(
            name,
            options,
            flow,
            self._outbox,
            self._counter,
            requests.constants,
            requests.frame_input,
            requests.keeper,
        )
        self._run = StreamRun(requests.prepared, parts)
        self._gate = Gate(None if options.late == "latest" else flow.window)
        self._inlet = inlet = _Inlet(self._run)
        self._reader = SourceReader(
            open_source(source), self._gate, inlet.arrive, inlet.end, options.frames
        )
        self._reading: Any = None
        self._loops: asyncio.Runner | None = None
        self._own_client = own_client
        self._finalizer = weakref.finalize(self, _abandon, self._reader, inlet, own_client)

    @property
    def statistics(self) -> StreamStatistics:
        """Counts, latencies and rate of this moment."""
        return self._counter.snapshot()

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """Replacements of the model so far."""
        return tuple(self._swaps)

    @property
    def window(self) -> int:
        """Largest number of frames between the source and the consumer."""
        return self._run.flow.options.window

    def join_group(self, group: StreamGroup) -> None:
        """Keep a thread of the cluster free for each stream of a group, before it starts.

        Parameters
        ----------
        group : StreamGroup
            The same object for all streams of the group, which are started soon.
        """
        self._run.group = group

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            while (taken := self._next()) is not None:
                yield taken
        finally:
            self.close()

    def __next__(self) -> tuple[int, Any]:
        try:
            taken = self._next()
        except BaseException:
            self.close()
            raise
        if taken is None:
            self.close()
            raise StopIteration
        return taken

    async def __aiter__(self) -> AsyncIterator[tuple[int, Any]]:
        try:
            while (taken := await self._next_async()) is not None:
                yield taken
        finally:
            self.close()

    async def __anext__(self) -> tuple[int, Any]:
        try:
            taken = await self._next_async()
        except BaseException:
            self.close()
            raise
        if taken is None:
            self.close()
            raise StopAsyncIteration
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def swap(self, model: Any, *, plan: Any = None) -> Swap:
        """Run the frames that have not started with another model.

        Frames that have started are finished by the old one; none is lost. A state goes on.

        Parameters
        ----------
        model : Model or other model-like object
            Model with the same inputs and outputs.
        plan : Plan, optional
            Plan of that model; by default it is one stage.

        Returns
        -------
        Swap
            The first frame of the new model, and the tokens of both.

        Raises
        ------
        InputError
            The model has other inputs or outputs, or the stream has ended.

        Examples
        --------
        >>> stream.swap(dx.load("retrained.onnx")).new_token
        """
        prepared = self._requests.prepare_next(model, plan)
        if self._outbox.has_ended:
            raise InputError("the stream has ended", "start another one", option="model")
        if self._inlet.dispatcher is None:
            swap = self._run.swap(prepared)
        else:
            answer: LocalFuture[Swap] = LocalFuture()
            self._inlet.post(lambda: answer.set_result(self._run.swap(prepared)))
            swap = answer.result(timeout=_SWAP_SECONDS)
        self._swaps.append(swap)
        return swap

    def close(self) -> None:
        """End the stream: nothing more is read, and what is on the cluster is cancelled.

        Examples
        --------
        >>> stream.close()
        """
        self._outbox.end(clears=True)
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
        if self._loops is not None:
            loops, self._loops = self._loops, None
            loops.close()
        self._own_client = None
        # A start in progress would restore the configuration of a client that is closed next.
        self._inlet.settle()
        self._finalizer()

    def __repr__(self) -> str:
        return f"<dask_onnx.Stream {self.statistics}>"

    def _start(self) -> bool:
        """Start the dispatcher, and return whether that had not been done before."""
        if self._inlet.dispatcher is not None or self._outbox.has_ended:
            return False
        add_stream(self._run.record)
        self._inlet.dispatcher = dispatch(self._requests.client, self._run)
        return True

    def _next(self) -> tuple[int, Any] | None:
        is_first = self._start()
        if self._options.mode == "async":
            if is_first:
                self._reader.start_thread(self.name)
        elif self._reader.is_async:
            if self._loops is None:
                self._loops = asyncio.Runner()
            self._loops.run(self._reader.read_until_async(self._outbox.is_ready))
        else:
            self._reader.read_until(self._outbox.is_ready)
        return self._taken(self._outbox.take())

    async def _next_async(self) -> tuple[int, Any] | None:
        is_first = self._start()
        if self._options.mode == "async":
            if is_first and self._reader.is_async:
                self._reading = asyncio.ensure_future(self._reader.read_async())
            elif is_first:
                self._reader.start_thread(self.name)
        elif self._reader.is_async:
            await self._reader.read_until_async(self._outbox.is_ready)
        else:
            self._reader.read_until(self._outbox.is_ready)
        return self._taken(await self._outbox.take_async())

    def _taken(self, taken: tuple[int, Any] | None) -> tuple[int, Any] | None:
        if taken is not None:
            self._gate.leave()
            if not isinstance(taken[1], Dropped):
                self._inlet.post(self._run.taken)
        return taken


class _Inlet:
    """Way of a source's frames into the dispatcher, which does not keep the stream alive."""

    def __init__(self, run: StreamRun) -> None:
        self.dispatcher: Dispatcher | None = None
        self._run = run

    def arrive(self, frame: Any) -> None:
        run = self._run
        self.post(lambda: run.arrive(frame))

    def end(self, error: BaseException | None) -> None:
        run = self._run
        self.post(lambda: run.end(error))

    def close(self) -> None:
        self.post(self._run.close)

    def settle(self) -> None:
        """End a stream that runs, and wait until the dispatcher has done with it."""
        if self.dispatcher is None or self._run.is_over or self.dispatcher.is_this_thread:
            return
        is_done = threading.Event()
        self.close()
        self.post(is_done.set)
        is_done.wait(_CLOSE_SECONDS)

    def post(self, event: Callable[[], None]) -> None:
        if self.dispatcher is not None:
            self.dispatcher.post(event)


def _abandon(reader: SourceReader, inlet: _Inlet, client: Any) -> None:
    """Stop reading, and cancel what is on the cluster."""
    reader.stop()
    inlet.close()
    if client is not None:
        client.close()
