"""One source of frames, read once, whose frames go to several consumers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.streams.frame_results import at_frame
from dask_onnx.streams.frame_sources import FrameSource, open_source

_POLL_SECONDS = 0.1
"""Seconds after which a thread that waits looks whether the source was closed."""
_END = object()
"""Item after the last frame."""


class FrameFanout:
    """A source that is read by one thread, which starts when the first consumer asks.

    Parameters
    ----------
    source
        As for `dask_onnx.stream`.
    divide : callable
        From a frame to the part of each consumer, by name.
    names : tuple of str
        Names of the consumers.
    lag : int
        Frames that wait for a consumer at most; the source waits for the slowest.
    """

    def __init__(
        self,
        source: Any,
        divide: Callable[[Any], Mapping[str, Any]],
        names: tuple[str, ...],
        lag: int,
    ) -> None:
        self._source: FrameSource = open_source(source)
        self._divide = divide
        self._queues: dict[str, queue.Queue[Any]] = {name: queue.Queue(lag) for name in names}
        self._closed, self._starting = threading.Event(), threading.Lock()
        self._reader: threading.Thread | None = None

    def frames_of(self, name: str) -> Iterator[Any]:
        """Yield the frames of one consumer; an error of the source comes after the last one."""
        self._start()
        waiting = self._queues[name]
        while not self._closed.is_set():
            try:
                item = waiting.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Read nothing more. A source that blocks is left to itself."""
        self._closed.set()
        self._source.stopped.set()

    def _start(self) -> None:
        with self._starting:
            if self._reader is None:
                self._reader = threading.Thread(
                    target=self._read, name="dask-onnx-frames", daemon=True
                )
                self._reader.start()

    def _read(self) -> None:
        end: Any = _END
        try:
            for index, frame in enumerate(self._frames()):
                if not self._hand_out(index, frame):
                    break
        except Exception as error:  # it is raised where the frames are used
            end = error
        finally:
            close = getattr(self._source.iterator, "close", None)
            if close is not None:
                close()
        for name in self._queues:
            self._put(name, end)

    def _hand_out(self, index: int, frame: Any) -> bool:
        try:
            parts = self._divide(frame)
        except InputError as error:
            raise at_frame(error, index, "composite") from None
        for name, part in parts.items():
            # One copy for each: a consumer may send it after the source has written the next one.
            if not self._put(name, _copied(part) if self._source.reuses_memory else part):
                return False
        return True

    def _put(self, name: str, item: Any) -> bool:
        """Return whether an item was handed over before the source was closed."""
        while not self._closed.is_set():
            try:
                self._queues[name].put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _frames(self) -> Iterator[Any]:
        iterator = self._source.iterator
        return _in_thread(iterator) if isinstance(iterator, AsyncIterator) else iterator


def _in_thread(iterator: AsyncIterator[Any]) -> Iterator[Any]:
    """Yield from an asynchronous iterator, in an event loop of this thread."""
    with asyncio.Runner() as loop:
        while True:
            try:
                frame = loop.run(_next(iterator))
            except StopAsyncIteration:
                return
            yield frame


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value
