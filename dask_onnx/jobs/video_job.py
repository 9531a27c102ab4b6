"""A video through a detector, frame by frame, with its results drawn into a new video."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.api.image_model import ImageModel
from dask_onnx.collections.images.drawing import drawn
from dask_onnx.collections.images.image_results import ImageResult
from dask_onnx.core.errors import InputError
from dask_onnx.io.optional_packages import require_package
from dask_onnx.io.video_files import VIDEO_SUFFIXES, Video, VideoWriter, video
from dask_onnx.streams.frame_results import DeadLetter, Dropped
from dask_onnx.streams.stream import stream
from dask_onnx.streams.stream_statistics import StreamStatistics


@dataclass(frozen=True, slots=True)
class VideoResult:
    """Outcome of a video through a model."""

    output: str
    """Path of the video that was written."""
    frames: int
    """Frames that were written."""
    boxes: int | None
    """Boxes over all frames; None if the model finds none."""
    statistics: StreamStatistics
    """Latencies, rate and drops at the end."""


def annotate_video(
    model: ImageModel,
    input_path: Any,
    output_path: Any,
    client: Any,
    *,
    overwrite: bool = False,
    **options: Any,
) -> VideoResult:
    """Run a model on the frames of a video, and write them with their results drawn over them.

    Parameters
    ----------
    model : ImageModel
        Detector, classifier or segmenter.
    input_path, output_path : path-like
        Videos.
    client : distributed.Client
        Client of the cluster.
    overwrite : bool
        True to replace a file at `output_path`.
    options
        Options of `dask_onnx.stream`. Frames that are dropped or fail are written without results.

    Returns
    -------
    VideoResult

    Raises
    ------
    InputError
        The output exists, or its ending is not that of a video; a frame cannot be decoded.
    OutputError
        The output cannot be written; nothing is left at its place.
    """
    target = Path(os.fspath(output_path))
    _check_target(target, overwrite=overwrite)
    source = video(input_path)
    frames: dict[int, np.ndarray] = {}
    boxes: list[int] = []
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    running = stream(model, _kept(source, frames), client, **{**options, "ordered": True})
    try:
        with running, VideoWriter(str(part), source.rate) as writer:
            for index, result in running:
                writer.write(overlay(frames.pop(index), [result]))
                if isinstance(result, ImageResult) and result.boxes is not None:
                    boxes.append(len(result.boxes.boxes))
        part.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    statistics = running.statistics
    return VideoResult(str(target), statistics.read, sum(boxes) if boxes else None, statistics)


def overlay(frame: np.ndarray, results: Sequence[Any]) -> np.ndarray:
    """Return a frame with results drawn over it.

    Parameters
    ----------
    frame : ndarray, uint8, shape (height, width, 3)
    results : sequence of ImageResult, Dropped or DeadLetter
        The latter two draw nothing.

    Returns
    -------
    ndarray, uint8, shape (height, width, 3)
    """
    require_package("PIL", "drawing results")
    from PIL import Image  # optional: only pictures need it

    canvas = Image.fromarray(frame)
    for result in results:
        if not isinstance(result, Dropped | DeadLetter):
            canvas = drawn(canvas, result)
    return np.asarray(canvas)


def _kept(source: Video, frames: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the frames of a video, and keep each until its result is drawn."""
    for index, frame in enumerate(source):
        frames[index] = frame
        yield frame


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(
            f"output {str(target)!r} is not called as a video is",
            f"choose an ending of {', '.join(sorted(VIDEO_SUFFIXES))}",
            option="output",
        )
    if target.exists() and not overwrite:
        raise InputError(
            f"output {str(target)!r} exists", "choose another, or overwrite=True", option="output"
        )
