"""Videos as frames, and frames as videos, by PyAV."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError, OutputError
from dask_onnx.io.optional_packages import require_package

VIDEO_SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm".split())
"""Endings of files that are taken for videos."""

_SLACK_SECONDS, _SLACK_FRAMES, _SLACK_SHARE = 0.5, 2, 0.02
"""Difference between the declared and the real end of a video that is taken for imprecision: the
larger one of some seconds, or frames, and a share of the whole."""


@dataclass(frozen=True, slots=True)
class Video:
    """Iterable over the frames of a video file, a camera, or an address."""

    source: str
    """Path, device or URL."""
    format: str | None = None
    """Input format of FFmpeg, such as "v4l2" for a camera; None if the file tells it."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of FFmpeg's input format."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set to end the iteration."""

    def stopped_by(self, event: threading.Event) -> Video:
        """Return the video, read until an event is set."""
        return replace(self, stopped=event)

    @property
    def frames(self) -> int | None:
        """Number of frames that the container declares; None if it declares none."""
        with _opened(self) as container:
            return int(container.streams.video[0].frames) or None

    @property
    def least_frames(self) -> int | None:
        """Number of frames below which the file was cut off; None if that cannot be told.

        Containers count packets, of which a decoder may leave some out. Cameras and addresses are
        not opened for it.
        """
        if self.format is not None or "://" in self.source or not Path(self.source).is_file():
            return None
        declared = self.frames
        if declared is None:
            return None
        return max(1, declared - max(_SLACK_FRAMES, math.ceil(_SLACK_SHARE * declared)))

    @property
    def rate(self) -> float:
        """Frames a second; 25 where the container does not tell."""
        with _opened(self) as container:
            return float(container.streams.video[0].average_rate or 25)

    def __iter__(self) -> Iterator[np.ndarray]:
        import av

        with _opened(self) as container:
            number, last = 0, None
            try:
                for frame in container.decode(video=0):
                    if self.stopped.is_set():
                        return
                    yield _upright(frame.to_ndarray(format="rgb24"), frame.rotation)
                    number, last = number + 1, frame.time
            except av.error.FFmpegError as error:
                raise InputError(
                    f"video {self.source!r} cannot be decoded after {number:,} frames: {error}",
                    "mend it: ffmpeg -i IN OUT",
                    option="source",
                    reason=str(error),
                    numbers={"frames": number},
                ) from error
            _check_end(self.source, container, number, last)


def video(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002 - FFmpeg's name for it
    options: dict[str, str] | None = None,
) -> Video:
    """Return the frames of a video, as an iterable for `dask_onnx.stream`. Reads nothing yet.

    Parameters
    ----------
    source : path-like or str
        A file, a URL, or a device such as ``/dev/video0``.
    format : str, optional
        Input format of FFmpeg, such as "v4l2" for a camera on Linux.
    options : dict of str to str, optional
        Options of that format, such as ``{"framerate": "30"}``.

    Returns
    -------
    Video
        Frames are uint8, shape (height, width, 3), RGB, upright as players show them.

    Raises
    ------
    InputError
        PyAV is not installed.

    Examples
    --------
    >>> for index, found in dx.stream(detector, dx.io.video("in.mp4")):
    ...     print(index, found.boxes)
    """
    require_package("av", "video")
    return Video(os.fspath(source), format, dict(options or {}))


class VideoWriter:
    """Video file that takes frames one by one; a context manager.

    Parameters
    ----------
    path : str
        File to write; its ending is the container.
    rate : float
        Frames a second.
    codec : str
        FFmpeg's name of the codec.
    """

    def __init__(self, path: str, rate: float = 25.0, codec: str = "libx264") -> None:
        require_package("av", "video")
        self._path, self._rate, self._codec = path, Fraction(rate).limit_denominator(1001), codec
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
            return
        # The file is incomplete anyway, and another error would hide the first one.
        with contextlib.suppress(OutputError):
            self.close()

    def write(self, frame: np.ndarray) -> None:
        """Add a frame.

        Parameters
        ----------
        frame : ndarray, uint8, shape (height, width, 3)
            RGB. Odd sizes lose a row or column, which most codecs demand.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        import av

        frame = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
        try:
            if self._container is None:
                self._container = av.open(self._path, "w")
                self._stream = self._container.add_stream(self._codec, rate=self._rate)
                self._stream.height, self._stream.width = frame.shape[:2]
                self._stream.pix_fmt = "yuv420p"
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Write what is left, and close the file.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        import av

        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            with container:
                for packet in self._stream.encode() if self._stream is not None else ():
                    container.mux(packet)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise _unwritable(self._path, error) from error


def _upright(picture: np.ndarray, degrees: int) -> np.ndarray:
    """Return a frame as players show it.

    Parameters
    ----------
    picture : ndarray, shape (height, width, 3)
    degrees : int
        Counterclockwise rotation that the container asks for, as phones do that were held upright;
        other than multiples of 90 are left to the viewer.
    """
    turns, rest = divmod(degrees, 90)
    return picture if rest or not turns % 4 else np.ascontiguousarray(np.rot90(picture, turns))


def _check_end(source: str, container: Any, frames: int, last: float | None) -> None:
    """Refuse a video that ends well before the time that its header declares.

    Raises
    ------
    InputError
        The file was cut off.
    """
    # With sound beside the pictures, the header tells only which of them ends last.
    if container.duration is None or len(container.streams) > 1:
        return
    declared = container.duration / 1e6
    end = 0.0 if last is None else last
    if declared - end > max(_SLACK_SECONDS, _SLACK_SHARE * declared):
        raise InputError(
            f"video {source!r} ends after {frames:,} frames, at {end:.2f} s; its header declares "
            f"{declared:.2f} s",
            "the file was cut off: copy it again",
            option="source",
            numbers={"frames": frames, "seconds": end, "expected_seconds": declared},
        )


def _unwritable(path: str, error: Exception) -> OutputError:
    return OutputError(
        f"video {path!r} cannot be written: {error}",
        "choose another ending, such as .mp4, or another folder",
        reason=str(error),
    )


def _opened(source: Video) -> Any:
    """Return the opened container.

    Raises
    ------
    InputError
        It cannot be opened, or has no pictures.
    """
    import av

    try:
        container = av.open(source.source, format=source.format, options=source.options)
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(
            f"video {source.source!r} cannot be opened: {error}",
            "give a file that FFmpeg reads, or format= for a camera",
            option="source",
            reason=str(error),
        ) from error
    if not container.streams.video:
        container.close()
        raise InputError(
            f"{source.source!r} has no pictures", "give a video with pictures", option="source"
        )
    return container
