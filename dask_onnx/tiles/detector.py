"""Functions that the tasks of sliced detection run: the model on slices, and merging of boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from dask_onnx.collections.images.box_readers import Reader
from dask_onnx.collections.images.boxes import (
    Boxes,
    Floats,
    Ints,
    Metric,
    areas,
    clipped,
    join_boxes,
)
from dask_onnx.collections.images.input_layout import InputLayout, Size
from dask_onnx.collections.images.merging import greedy_nmm, nms, weighted_boxes_fusion
from dask_onnx.collections.inline import InlineGraph
from dask_onnx.core.array_values import without_mask
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import format_shape
from dask_onnx.core.stage_tasks import Hints, digest
from dask_onnx.tiles.seams import Views, merge_seams
from dask_onnx.tiles.slices import Strip, assemble

Array = npt.NDArray[Any]
Merge = Literal["seams", "nms", "nmm", "weighted"]
"""Way to merge boxes of the same object, as `detect_sliced` takes it."""
Preprocess = Callable[[Any], Any]
"""Caller's function from a slice to the model's input, without the batch axis."""
ViewBoxes = tuple[Boxes, Ints]
"""Boxes in pixels of the image, and the number of the view in which each was found."""


@dataclass(frozen=True, slots=True)
class StripJob:
    """Work of one task: the slices of a strip."""

    strip: Strip
    counts: tuple[int, ...]
    """Number of pieces of the strip along each axis."""
    views: tuple[int, ...]
    """Number of each slice among all views of the image."""
    scale: int = 1
    """Image pixels for one pixel of the strip; above 1 for the shrunk image."""


@dataclass(frozen=True, slots=True, eq=False)
class SliceDetector:
    """Detector that runs on the slices of a strip; tasks call it."""

    graph: InlineGraph
    """The model."""
    layout: InputLayout
    """Layout of the input that takes the slices."""
    reader: Reader
    """Reader of boxes from the model's outputs."""
    output_axes: Mapping[str, int | None]
    """Output to its batch axis; None for an output without."""
    feeds: Mapping[str, tuple[Array, int | None]]
    """Other inputs to their value for one slice, and their batch axis."""
    preprocess: Preprocess | None
    axes: tuple[int, int]
    """Axes of the rows and columns of a strip."""
    slice_size: Size
    """Size of a slice, in pixels of the strip."""
    image_size: Size
    """Size of the image, in pixels."""
    score_threshold: float
    """Score below which boxes are dropped."""
    iou_threshold: float
    """Intersection over union at which boxes inside a slice are duplicates."""
    class_agnostic: bool
    """True if boxes of different classes may be duplicates."""
    is_normalized: bool
    """True if boxes go from 0 to 1 over the model's input."""

    @property
    def hints(self) -> Hints:
        """Hints for Dask's scheduler."""
        return self.graph.hints

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        others = [getattr(self, field.name) for field in fields(self) if field.name != "graph"]
        return digest(sorted(map(str, self.graph.tasks))), tokenize(others)

    def __call__(self, job: StripJob, *values: Any) -> ViewBoxes:
        """Return the boxes of the slices of a strip.

        Parameters
        ----------
        job : StripJob
        *values
            Pieces of the strip in C order, followed by what brings the model to the worker.

        Raises
        ------
        InputError
            `preprocess`, `decode` or the model returned something that does not fit.
        """
        pieces = int(np.prod(job.counts))
        strip = assemble(values[:pieces], job.counts)
        slices = [self._slice(strip, offset) for offset in job.strip.offsets]
        shapes = {piece.shape for piece in slices}
        if len(shapes) > 1:
            raise InputError(
                f"preprocess returned shapes {' and '.join(map(str, sorted(shapes)))} for slices "
                "of one size",
                "return the same shape for every slice",
                option="preprocess",
            )
        batch = np.stack(slices) if self.layout.is_batch else np.ascontiguousarray(slices[0])
        arrays = {self.layout.name: batch}
        for name, (value, axis) in self.feeds.items():
            repeated = np.repeat(np.expand_dims(value, axis or 0), len(slices), axis=axis)
            arrays[name] = value if axis is None else repeated
        outputs = self.graph.run(arrays, values[pieces:])
        input_size = tuple(slices[0].shape[axis] for axis in self.layout.row_axes)
        parts, views = [], []
        for place, view in enumerate(job.views):
            boxes = self._boxes(self._outputs_of(outputs, place), job, place, input_size)
            parts.append(boxes)
            views.append(np.full(len(boxes), view))
        return join_boxes(parts), np.concatenate(views)

    def _slice(self, strip: Array, offset: int) -> Array:
        """Return one slice as the model takes it, without the batch axis."""
        y, x = self.axes
        cut: list[Any] = [slice(None)] * strip.ndim
        cut[x] = slice(offset, offset + self.slice_size[1])
        piece = strip[tuple(cut)]
        missing = {y: self.slice_size[0] - piece.shape[y], x: self.slice_size[1] - piece.shape[x]}
        if any(missing.values()):
            piece = np.pad(piece, [(0, missing.get(axis, 0)) for axis in range(piece.ndim)])
        if self.preprocess is None:
            return np.asarray(piece)
        prepared = without_mask(
            self.preprocess(piece), "what preprocess returned", option="preprocess"
        )
        if prepared.ndim == 4 and len(prepared) == 1:
            prepared = prepared[0]
        if not self.layout.takes(prepared.shape):
            raise InputError(
                f"preprocess returned shape {prepared.shape} for a slice of shape {piece.shape}; "
                f"input {self.layout.name!r} takes {format_shape(self.layout.shape)} for each",
                "return the slice as the model takes it, without the batch axis",
                option="preprocess",
                input=self.layout.name,
            )
        return prepared

    def _outputs_of(self, outputs: Mapping[str, Array], place: int) -> dict[str, Array]:
        """Return the outputs for one of the slices."""
        return {
            name: value if (axis := self.output_axes[name]) is None else np.take(value, place, axis)
            for name, value in outputs.items()
        }

    def _boxes(
        self, outputs: Mapping[str, Array], job: StripJob, place: int, input_size: Sequence[int]
    ) -> Boxes:
        """Return the boxes of one slice, in pixels of the image.

        Parameters
        ----------
        outputs : mapping of str to array
            Outputs for the slice.
        job : StripJob
        place : int
            Position of the slice in the strip.
        input_size : (int, int)
            Height and width of the model's input in pixels, which `preprocess` may have changed.
        """
        corners, scores, labels = self.reader.read_above(outputs, self.score_threshold)
        height, width = self.slice_size
        unit = (1, 1) if self.is_normalized else input_size
        corners *= np.tile([width / unit[1], height / unit[0]], 2)
        corners += np.tile([job.strip.x + job.strip.offsets[place], job.strip.y], 2)
        corners *= job.scale
        inside = clipped(corners, np.array([0, 0, self.image_size[1], self.image_size[0]]))
        found = Boxes.of(inside, scores, labels).take(areas(inside) > 0)
        if not self.reader.has_duplicates:
            return found
        return nms(found, self.iou_threshold, class_agnostic=self.class_agnostic)


@dataclass(frozen=True, slots=True, eq=False)
class BoxMerger:
    """Merger of the boxes of all slices; the last task calls it."""

    merge: Merge
    metric: Metric
    """Measure of overlap; not used by "seams"."""
    threshold: float
    """Overlap at and above which boxes are the same object."""
    class_agnostic: bool
    """True if boxes of different classes may be the same object."""
    windows: Floats
    """float64, shape (m, 4): x1, y1, x2, y2 of each view, in pixels of the image."""
    scales: Ints
    """int64, shape (m,): image pixels for one pixel of each view."""
    image_size: Size
    """Size of the image, in pixels."""

    def __call__(self, *found: ViewBoxes) -> Boxes:
        """Return the boxes of the image, by falling score."""
        boxes = join_boxes([part for part, _ in found])
        if self.merge == "seams":
            views = Views(self.windows, self.scales, self.image_size[::-1])
            view_ids = np.concatenate([numbers for _, numbers in found])
            return merge_seams(
                boxes, view_ids, views, self.threshold, class_agnostic=self.class_agnostic
            )
        function = {"nms": nms, "nmm": greedy_nmm, "weighted": weighted_boxes_fusion}[self.merge]
        return function(
            boxes, self.threshold, metric=self.metric, class_agnostic=self.class_agnostic
        )
