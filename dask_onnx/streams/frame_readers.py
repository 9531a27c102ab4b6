"""Readers of sources: in a thread, in an event loop, or in the consumer's own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.streams.frame_sources import FrameSource

End = BaseException | None


class Gate:
    """Window between the source and the consumer, which lets so many frames in.

    Parameters
    ----------
    slots : int or None
        Frames between the source and the consumer; None lets all of them in.
    """

    def __init__(self, slots: int | None) -> None:
        self._slots = slots
        self._changed = threading.Condition()
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """True once no frame is wanted any more."""
        return self._is_stopped

    def enter(self) -> bool:
        """Wait until another frame may be read; return False if none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._slots is None or self._slots)
            return self._take()

    def try_enter(self) -> bool:
        """Return whether another frame may be read now."""
        with self._changed:
            return bool(self._slots is None or self._slots) and self._take()

    def leave(self) -> None:
        """Let another frame in: one has been taken by the consumer."""
        with self._changed:
            if self._slots is not None:
                self._slots += 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Let no frame in any more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _take(self) -> bool:
        if self._is_stopped:
            return False
        if self._slots is not None:
            self._slots -= 1
        return True


class SourceReader:
    """Reads a source through a gate, and tells of frames and of the end.

    Parameters
    ----------
    source : FrameSource
    gate : Gate
    arrived : callable
        Called with each frame.
    ended : callable
        Called once, with the error of the source or None.
    frames : int, optional
        Number of frames to read; fewer are an error.
    """

    def __init__(
        self,
        source: FrameSource,
        gate: Gate,
        arrived: Callable[[Any], None],
        ended: Callable[[End], None],
        frames: int | None = None,
    ) -> None:
        self._source, self._gate = source, gate
        self._arrived, self._ended = arrived, ended
        self._most = frames
        self._expected = frames if frames is not None else source.frames
        self._count = 0
        self._has_ended = False

    def start_thread(self, name: str) -> None:
        """Read in a thread of its own."""
        target = self._read_async_in_thread if self._source.is_async else self._read
        threading.Thread(target=target, name=f"dask_onnx-source-{name}", daemon=True).start()

    async def read_async(self) -> None:
        """Read an asynchronous source in the running event loop."""
        iterator: Any = self._source.iterator
        loop = asyncio.get_running_loop()
        error: End = None
        try:
            while not self._has_all() and await loop.run_in_executor(None, self._gate.enter):
                self._accept(await anext(iterator))
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:  # by the end of the stream
            raise
        except BaseException as raised:  # it is raised in the consumer's code
            error = raised
        finally:
            try:
                if hasattr(iterator, "aclose"):
                    await iterator.aclose()
            except Exception as raised:  # so is what a generator raises at its end
                error = error or raised
            self._end(error)

    def read_until(self, is_ready: Callable[[], bool]) -> None:
        """Read in this thread: a frame, and more until a result is ready or the window is full."""
        while not self._has_ended and (self._has_all() or self._gate.try_enter()):
            if self._has_all() or not self._read_one():
                self._close()
            if is_ready():
                return

    async def read_until_async(self, is_ready: Callable[[], bool]) -> None:
        """Do as `read_until` with an asynchronous source."""
        iterator: Any = self._source.iterator
        while not self._has_ended and (self._has_all() or self._gate.try_enter()):
            try:
                if self._has_all():
                    raise StopAsyncIteration
                self._accept(await anext(iterator))
            except StopAsyncIteration:
                self._end(None)
            except Exception as error:
                self._end(error)
            if is_ready():
                return

    @property
    def is_async(self) -> bool:
        """True if the source is asynchronous."""
        return self._source.is_async

    def stop(self) -> None:
        """Read no more frames."""
        self._gate.stop()
        self._source.stopped.set()

    def _read(self) -> None:
        try:
            while not self._has_all() and self._gate.enter():
                if not self._read_one():
                    break
            self._close()
        except BaseException as error:  # it is raised in the consumer's thread
            self._end(error)

    def _read_one(self) -> bool:
        """Read a frame; return False at the end of the source."""
        iterator: Any = self._source.iterator
        try:
            frame = next(iterator)
        except StopIteration:
            return False
        except Exception as error:
            self._end(error)
            return False
        self._accept(frame)
        return True

    def _read_async_in_thread(self) -> None:
        asyncio.run(self.read_async())

    def _accept(self, frame: Any) -> None:
        self._count += 1
        self._arrived(copied(frame) if self._source.reuses_memory else frame)

    def _has_all(self) -> bool:
        return self._most is not None and self._count >= self._most

    def _close(self) -> None:
        # A generator must be closed by the thread that runs it.
        if hasattr(self._source.iterator, "close"):
            self._source.iterator.close()
        self._end(None)

    def _end(self, error: End) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        if error is None and not self._gate.is_stopped:
            error = missing_frames(self._count, self._expected)
        elif error is not None:
            error.add_note(f"raised by the source of the stream after {self._count:,} frames")
        self._ended(error)


def missing_frames(count: int, expected: int | None) -> InputError | None:
    """Return the error of a source that ended early; None if it did not.

    Parameters
    ----------
    count : int
        Frames that it gave.
    expected : int or None
        Frames that it should give; None if that is open.
    """
    if expected is None or count >= expected:
        return None
    return InputError(
        f"the source ended after {count:,} of {expected:,} frames",
        "results of these frames have been given; look for what ended the source",
        option="source",
        numbers={"frames": count, "expected_frames": expected},
    )


def copied(frame: Any) -> Any:
    """Return a frame whose arrays have memory of their own: it is sent after this call."""
    if isinstance(frame, Mapping):
        return {name: copied(value) for name, value in frame.items()}
    return frame.copy() if isinstance(frame, np.ndarray) else frame
