"""The tasks of a detector on slices: cut, detect, merge."""

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

from dask_onnx.core.stage_tasks import Key, digest
from dask_onnx.tiles.boxes import Metric
from dask_onnx.tiles.detector import BoxMerger, Merge, SliceDetector, Work
from dask_onnx.tiles.slices import Cutter, Picture, Size, Strip, cut_strips


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A pass over the picture, or over the shrunk one."""

    scale: int
    """Pixels of the picture along a side of a pixel of this one."""
    picture: Picture
    strips: Sequence[Strip]

    def windows(self, slice_size: Size, size: Size) -> list[tuple[int, ...]]:
        """Return what each slice has seen: x1, y1, x2, y2 in pixels of the picture."""
        height, width = (side * self.scale for side in slice_size)
        lefts = [
            ((s.x + offset) * self.scale, s.y * self.scale)
            for s in self.strips
            for offset in s.offsets
        ]
        return [(x, y, min(x + width, size[1]), min(y + height, size[0])) for x, y in lefts]


def sliced_graph(
    picture: Picture,
    detector: SliceDetector,
    supplies: Sequence[Delayed],
    *,
    overlap: float,
    at_most: int,
    full_picture: bool,
    merge: tuple[Merge, Metric],
    retries: int,
) -> Delayed:
    """Return the Boxes of a picture as a Delayed.

    Parameters
    ----------
    picture : Picture
    detector : SliceDetector
    supplies : what brings the model to workers that cannot get it themselves
    overlap : share of a slice that the next one repeats
    at_most : slices of a task
    full_picture : the shrunk picture is one more slice
    merge : how boxes of all slices are merged, and by which overlap
    retries : how often a task of slices is repeated that raised
    """
    scans = [Scan(1, picture, cut_strips(picture.size, detector.slice_size, overlap, at_most))]
    if full_picture:
        scans += _shrunk(picture, detector.slice_size)
    name = digest(
        [scan.picture.array.name for scan in scans], tokenize(detector), overlap, at_most, merge
    )
    label, last = f"{detector.graph.label}-{name}", f"merge_boxes-{name}"
    pieces, tasks = _slice_tasks(scans, detector, label, [TaskRef(s.key) for s in supplies])
    windows = [w for scan in scans for w in scan.windows(detector.slice_size, picture.size)]
    scales = [scan.scale for scan in scans for strip in scan.strips for _ in strip.offsets]
    merger = BoxMerger(
        *merge,
        detector.iou_threshold,
        detector.class_agnostic,
        np.array(windows, np.float64),
        np.array(scales),
        picture.size,
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
    """The tasks that cut pieces of strips, and those that run the detector on a strip each."""
    pieces: dict[Key, Task] = {}
    tasks: dict[Key, Task] = {}
    number = itertools.count()
    for scan in scans:
        cutter = Cutter(scan.picture, f"cut_slices-{digest(label, scan.scale)}")
        for strip in scan.strips:
            references, counts = cutter.cut(strip)
            views = tuple(itertools.islice(number, len(strip.offsets)))
            key = (label, len(tasks))
            work = Work(strip, counts, views, scan.scale)
            tasks[key] = Task(key, detector, work, *references, *supplies)
        pieces |= cutter.tasks
    return pieces, tasks


def _shrunk(picture: Picture, slice_size: Size) -> list[Scan]:
    """A pass over the picture, shrunk until one slice holds it; none where one holds it anyway."""
    sides = zip(picture.size, slice_size, strict=True)
    factor = max(math.ceil(side / own) for side, own in sides)
    if factor == 1:
        return []
    shrunk = picture.shrunk(factor)
    return [Scan(factor, shrunk, [Strip(0, 0, *shrunk.size, (0,))])]


def _chunks(scans: Sequence[Scan]) -> dict[Key, Any]:
    """The tasks of the pictures' chunks, fused as Dask does it; those of all pictures at once."""
    optimized = optimize(*(scan.picture.array for scan in scans))
    return {key: task for array in optimized for key, task in dict(array.__dask_graph__()).items()}


def _delayed(
    layers: Mapping[str, MaterializedLayer], last: str, supplies: Sequence[Delayed]
) -> Delayed:
    """The key of the last of some layers, each of which reads the one before it."""
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
