"""One source of frames, read once, whose frames go to several consumers."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.io.watched_folder import BadFrame
from dask_onnx.runtime.memory_faults import memory_limit
from dask_onnx.streams.frame_readers import copied, missing_frames
from dask_onnx.streams.frame_sources import FrameSource, open_source

_MEMORY_SHARE = 0.1
"""Share of the memory of this host, or of this worker, that waiting frames of a source may take."""


class Backlog:
    """Frames that wait for one consumer, bounded in number or in bytes.

    Parameters
    ----------
    most_frames : int or None
        Frames that may wait; None for any number.
    most_bytes : float
        Bytes of their arrays. One frame may wait whatever its size is.
    """

    def __init__(self, most_frames: int | None, most_bytes: float) -> None:
        self._most_frames, self._most_bytes = most_frames, most_bytes
        self._frames: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._has_ended, self._is_closed = False, False
        self._error: BaseException | None = None

    def put(self, frame: Any) -> bool:
        """Add a frame as soon as there is room; return False if the backlog was closed."""
        size = _bytes_of(frame)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_room(size))
            if not self._is_closed:
                self._frames.append((frame, size))
                self._bytes += size
                self._changed.notify_all()
            return not self._is_closed

    def end(self, error: BaseException | None) -> None:
        """Let the consumer's iteration end after the frames that wait, with an error if given."""
        with self._changed:
            self._has_ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Drop what waits, and end both sides."""
        with self._changed:
            self._is_closed = True
            self._frames.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._has_ended or self._is_closed)
                if not self._frames:
                    if self._error is not None and not self._is_closed:
                        raise self._error
                    return
                frame, size = self._frames.popleft()
                self._bytes -= size
                self._changed.notify_all()
            yield frame

    def _has_room(self, size: int) -> bool:
        if not self._frames:
            return True
        has_place = self._most_frames is None or len(self._frames) < self._most_frames
        return has_place and self._bytes + size <= self._most_bytes


class FrameFanout:
    """A source that is read by one thread, which starts when the first consumer asks.

    Parameters
    ----------
    source
        As for `dask_onnx.stream`.
    divide : callable
        From a frame to the part of each consumer, by name. An InputError that it raises is that of
        the frame, for every consumer.
    names : tuple of str
        Names of the consumers.
    lag : int or None
        Frames that wait for a consumer at most; the source waits for the slowest. None: as many as
        fit into a tenth of the memory, for all consumers together.
    """

    def __init__(
        self,
        source: Any,
        divide: Callable[[Any], Mapping[str, Any]],
        names: tuple[str, ...],
        lag: int | None,
    ) -> None:
        self._source: FrameSource = open_source(source)
        self._divide = divide
        most_bytes = np.inf if lag is not None else _MEMORY_SHARE * memory_limit() / len(names)
        self._backlogs = {name: Backlog(lag, most_bytes) for name in names}
        self._starting = threading.Lock()
        self._reader: threading.Thread | None = None

    def frames_of(self, name: str) -> Iterator[Any]:
        """Yield the frames of one consumer; an error of the source comes after the last one."""
        self._start()
        yield from self._backlogs[name]

    def close(self) -> None:
        """Read nothing more. A source that blocks is left to itself."""
        self._source.stopped.set()
        for backlog in self._backlogs.values():
            backlog.close()

    def _start(self) -> None:
        with self._starting:
            if self._reader is None:
                self._reader = threading.Thread(
                    target=self._read, name="dask-onnx-frames", daemon=True
                )
                self._reader.start()

    def _read(self) -> None:
        end: BaseException | None = None
        count = 0
        try:
            for frame in self._frames():
                if not self._hand_out(frame):
                    break
                count += 1
            else:
                end = missing_frames(count, self._source.frames)
            close = getattr(self._source.iterator, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # it is raised where the frames are used
            end = error
        for backlog in self._backlogs.values():
            backlog.end(end)

    def _hand_out(self, frame: Any) -> bool:
        """Return whether all consumers took a frame."""
        parts: Mapping[str, Any]
        try:
            is_bad = isinstance(frame, BadFrame)
            parts = dict.fromkeys(self._backlogs, frame) if is_bad else self._divide(frame)
        except InputError as error:
            parts = dict.fromkeys(self._backlogs, BadFrame(error))
        # One copy for each: a consumer may send it after the source has written the next one.
        copies = self._source.reuses_memory
        return all(
            self._backlogs[name].put(copied(part) if copies else part)
            for name, part in parts.items()
        )

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


def _bytes_of(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    return int(getattr(value, "nbytes", 0))
