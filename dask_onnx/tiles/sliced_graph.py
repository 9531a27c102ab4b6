"""Dask tasks of sliced detection: cut strips, run the detector on each, merge the boxes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.base import optimize, tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Task, TaskRef

from dask_onnx.collections.images.boxes import Metric
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.core.stage_tasks import Key, digest
from dask_onnx.tiles.detector import BoxMerger, Merge, SliceDetector, StripJob
from dask_onnx.tiles.slices import ChunkedImage, RegionCutter, Strip, cut_strips


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """Pass over the image, or over the shrunk one."""

    scale: int
    """Pixels of the original image for one pixel of `image`."""
    image: ChunkedImage
    strips: Sequence[Strip]

    def windows(self, slice_size: Size, size: Size) -> list[tuple[int, ...]]:
        """Return the window of each slice: x1, y1, x2, y2 in pixels of the original image.

        Parameters
        ----------
        slice_size : (int, int)
            Height and width of a slice in pixels of `image`.
        size : (int, int)
            Height and width of the original image in pixels.
        """
        height, width = (side * self.scale for side in slice_size)
        lefts = [
            ((s.x + offset) * self.scale, s.y * self.scale)
            for s in self.strips
            for offset in s.offsets
        ]
        return [(x, y, min(x + width, size[1]), min(y + height, size[0])) for x, y in lefts]


def sliced_graph(
    image: ChunkedImage,
    detector: SliceDetector,
    supplies: Sequence[Delayed],
    *,
    overlap: float,
    at_most: int,
    full_picture: bool,
    merge: tuple[Merge, Metric],
    retries: int,
) -> Delayed:
    """Return the Boxes of an image as a Delayed.

    Parameters
    ----------
    image : ChunkedImage
    detector : SliceDetector
    supplies : sequence of Delayed
        Tasks that bring the model to workers that cannot read it themselves.
    overlap : float
        Share of a slice that the next one repeats.
    at_most : int
        Slices of a task.
    full_picture : bool
        True if the shrunk image is one more slice.
    merge : (str, str)
        Way to merge the boxes of all slices, and the measure of their overlap.
    retries : int
        Number of times that a task of slices is repeated if it raises.
    """
    scans = [Scan(1, image, cut_strips(image.size, detector.slice_size, overlap, at_most))]
    if full_picture:
        scans += _shrunk(image, detector.slice_size)
    name = digest(
        [scan.image.array.name for scan in scans], tokenize(detector), overlap, at_most, merge
    )
    label, last = f"{detector.graph.label}-{name}", f"merge_boxes-{name}"
    pieces, tasks = _slice_tasks(scans, detector, label, [TaskRef(s.key) for s in supplies])
    windows = [w for scan in scans for w in scan.windows(detector.slice_size, image.size)]
    scales = [scan.scale for scan in scans for strip in scan.strips for _ in strip.offsets]
    merger = BoxMerger(
        *merge,
        detector.iou_threshold,
        detector.class_agnostic,
        np.array(windows, np.float64),
        np.array(scales),
        image.size,
    )
    layers = {
        f"chunks-{name}": MaterializedLayer(_chunks(scans)),
        f"cut_slices-{name}": MaterializedLayer(pieces),
        label: MaterializedLayer(tasks, annotations={"retries": retries}),
        last: MaterializedLayer({last: Task(last, merger, *map(TaskRef, tasks))}),
    }
    return _delayed(layers, last, supplies)


def _slice_tasks(
    scans: Sequence[Scan], detector: SliceDetector, label: str, supplies: Sequence[TaskRef]
) -> tuple[dict[Key, Task], dict[Key, Task]]:
    """Return the tasks that cut pieces of strips, and those that run the detector on a strip."""
    pieces: dict[Key, Task] = {}
    tasks: dict[Key, Task] = {}
    number = itertools.count()
    for scan in scans:
        cutter = RegionCutter(scan.image, f"cut_slices-{digest(label, scan.scale)}")
        for strip in scan.strips:
            references, counts = cutter.cut(strip)
            views = tuple(itertools.islice(number, len(strip.offsets)))
            key = (label, len(tasks))
            job = StripJob(strip, counts, views, scan.scale)
            tasks[key] = Task(key, detector, job, *references, *supplies)
        pieces |= cutter.tasks
    return pieces, tasks


def _shrunk(image: ChunkedImage, slice_size: Size) -> list[Scan]:
    """Return a pass over the image shrunk to one slice; none if one slice holds the image."""
    sides = zip(image.size, slice_size, strict=True)
    factor = max(math.ceil(side / available) for side, available in sides)
    if factor == 1:
        return []
    shrunk = image.shrunk(factor)
    return [Scan(factor, shrunk, [Strip(0, 0, *shrunk.size, (0,))])]


def _chunks(scans: Sequence[Scan]) -> dict[Key, Any]:
    """Return the tasks of the images' chunks, optimized by Dask together."""
    optimized = optimize(*(scan.image.array for scan in scans))
    return {key: task for array in optimized for key, task in dict(array.__dask_graph__()).items()}


def _delayed(
    layers: Mapping[str, MaterializedLayer], last: str, supplies: Sequence[Delayed]
) -> Delayed:
    """Return a Delayed of the last of some layers, each of which reads those before it."""
    graphs: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    for supply in supplies:
        graph: Any = supply.__dask_graph__()
        graphs |= graph.layers
        dependencies |= graph.dependencies
    before: set[str] = set(graphs)
    for name, layer in layers.items():
        graphs[name], dependencies[name] = layer, set(before)
        before |= {name}
    return Delayed(last, HighLevelGraph(graphs, dependencies), layer=last)
