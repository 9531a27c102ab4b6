"""Sources of frames: anything that a stream reads, as one iterator that can be stopped."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_onnx.core.errors import InputError
from dask_onnx.io.video_files import VIDEO_SUFFIXES, Video, video
from dask_onnx.io.watched_folder import BadFrame, WatchedFolder, watch

_POLL_SECONDS = 0.2
"""Seconds for which a queue is waited for between looks at whether the stream has been closed."""
_PUSHED_FRAMES = 1
"""Frames that a source which pushes may be ahead of the stream; then it is blocked."""

_OWN_MEMORY = (list, tuple, Video, WatchedFolder)
"""Sources each of whose frames has memory of its own."""


@dataclass(slots=True)
class FrameSource:
    """An opened source."""

    iterator: Iterator[Any] | AsyncIterator[Any]
    """Iterator over frames."""
    is_async: bool
    """True if it is an asynchronous iterator."""
    frames: int | None
    """Number of frames that it has at least; None if it does not say."""
    reuses_memory: bool
    """True if it may write the next frame into the array that it gave, as drivers of cameras do."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set once no more frames are wanted; sources of this package look at it while they wait."""


def open_source(source: Any) -> FrameSource:
    """Return a source as an iterator.

    Parameters
    ----------
    source : iterable, async iterable, path, URL, distributed.Queue or streamz.Stream
        A path of a folder is watched for new files; any other path, and a URL, is a video.

    Raises
    ------
    InputError
        It is none of these.
    """
    stopped = threading.Event()
    if isinstance(source, str | os.PathLike):
        source = _of_path(os.fspath(source))
    frames, reuses = _length(source), not isinstance(source, _OWN_MEMORY)
    if hasattr(source, "stopped_by"):
        source = source.stopped_by(stopped)
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if kind == "distributed.queues.Queue":
        return FrameSource(_of_queue(source, stopped), False, None, False, stopped)
    if kind.startswith("streamz.") and hasattr(source, "sink"):
        return FrameSource(_of_streamz(source, stopped), False, None, True, stopped)
    if hasattr(source, "__aiter__"):
        return FrameSource(aiter(source), True, frames, reuses, stopped)
    try:
        return FrameSource(iter(source), False, frames, reuses, stopped)
    except TypeError:
        raise InputError(
            f"source is a {type(source).__name__}, which gives no frames",
            "pass an iterable or async iterable of frames, a folder, a video, or a Queue",
            option="source",
        ) from None


def _of_path(source: str) -> Any:
    path = Path(source)
    if path.is_dir():
        return watch(path)
    if "://" in source or path.suffix.lower() in VIDEO_SUFFIXES:
        return video(source)
    raise InputError(
        f"source {source!r} is neither a folder nor a video",
        f"videos end in {', '.join(sorted(VIDEO_SUFFIXES))}; or pass dx.io.video(path)",
        option="source",
    )


def _length(source: Any) -> int | None:
    if isinstance(source, Video):
        return source.least_frames
    try:
        return len(source)
    except TypeError:
        return None


def _of_queue(source: Any, stopped: threading.Event) -> Iterator[Any]:
    """Yield the items of a Dask queue; None ends it. Of a future, its result."""
    while not stopped.is_set():
        try:
            item = source.get(timeout=_POLL_SECONDS)
        except TimeoutError:
            continue
        if item is None:
            return
        yield _result_of(item) if hasattr(item, "client") and hasattr(item, "result") else item


def _result_of(future: Any) -> Any:
    try:
        return future.result()
    except Exception as error:  # whatever its task raised: this frame is bad, others may not be
        return BadFrame(error)


def _of_streamz(source: Any, stopped: threading.Event) -> Iterator[Any]:
    """Yield what a streamz pipeline emits; the emitter waits while the stream is behind."""
    items: queue.Queue[Any] = queue.Queue(_PUSHED_FRAMES)

    def push(item: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=_POLL_SECONDS)
                break

    sink = source.sink(push)
    try:
        while not stopped.is_set():
            try:
                item = items.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item
    finally:
        sink.destroy()
