"""What a worker does with slices of a picture: run the model, read its boxes, merge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from dask_onnx.collections.inline import InlineGraph
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import format_shape
from dask_onnx.core.stage_tasks import Hints, digest
from dask_onnx.tiles.boxes import Boxes, Floats, Ints, Metric, areas, clipped, join_boxes
from dask_onnx.tiles.formats import Reader
from dask_onnx.tiles.merging import greedy_nmm, nms, weighted_boxes_fusion
from dask_onnx.tiles.seams import Views, merge_seams
from dask_onnx.tiles.slices import InputLayout, Size, Strip, put_together

Array = npt.NDArray[Any]
Merge = Literal["seams", "nms", "nmm", "weighted"]
Preprocess = Callable[[Any], Any]
Found = tuple[Boxes, Ints]
"""Boxes in pixels of the picture, and the number of the view that each was found in."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one task does: the slices of a strip."""

    strip: Strip
    counts: tuple[int, ...]
    """Pieces of the strip along each axis."""
    views: tuple[int, ...]
    """The number of each slice among all views of the picture."""
    scale: int = 1
    """Pixels of the picture along a side of a pixel of the strip."""


@dataclass(frozen=True, slots=True, eq=False)
class SliceDetector:
    """A detector on the slices of a strip; what each task calls."""

    graph: InlineGraph
    layout: InputLayout
    reader: Reader
    output_axes: Mapping[str, int | None]
    """Output to its batch axis."""
    feeds: Mapping[str, tuple[Array, int | None]]
    """Other inputs to the value for one slice and the batch axis."""
    preprocess: Preprocess | None
    axes: tuple[int, int]
    """Of the rows and columns of the strip."""
    slice_size: Size
    """Pixels of the strip."""
    picture_size: Size
    score_threshold: float
    iou_threshold: float
    class_agnostic: bool
    is_normalized: bool

    @property
    def hints(self) -> Hints:
        return self.graph.hints

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        others = [getattr(self, field.name) for field in fields(self) if field.name != "graph"]
        return digest(sorted(map(str, self.graph.tasks))), tokenize(others)

    def __call__(self, work: Work, *values: Any) -> Found:
        """Return the boxes of the slices.

        Parameters
        ----------
        work : Work
        values : the pieces of the strip, then what brings the model to the worker
        """
        pieces = int(np.prod(work.counts))
        strip = put_together(values[:pieces], work.counts)
        slices = [self._slice(strip, offset) for offset in work.strip.offsets]
        if len({made.shape for made in slices}) > 1:
            raise InputError(
                f"preprocess made {' and '.join(str(made.shape) for made in slices)} of slices of "
                "one size",
                "return the same shape for each",
            )
        batch = np.stack(slices) if self.layout.is_batch else np.ascontiguousarray(slices[0])
        arrays = {self.layout.name: batch}
        for name, (value, axis) in self.feeds.items():
            repeated = np.repeat(np.expand_dims(value, axis or 0), len(slices), axis=axis)
            arrays[name] = value if axis is None else repeated
        outputs = self.graph.run(arrays, values[pieces:])
        input_size = tuple(slices[0].shape[axis] for axis in self.layout.row_axes)
        parts, views = [], []
        for place, view in enumerate(work.views):
            boxes = self._boxes(self._outputs_of(outputs, place), work, place, input_size)
            parts.append(boxes)
            views.append(np.full(len(boxes), view))
        return join_boxes(parts), np.concatenate(views)

    def _slice(self, strip: Array, offset: int) -> Array:
        """A slice as the model takes it, without the batch axis."""
        y, x = self.axes
        cut: list[Any] = [slice(None)] * strip.ndim
        cut[x] = slice(offset, offset + self.slice_size[1])
        piece = strip[tuple(cut)]
        lacking = {y: self.slice_size[0] - piece.shape[y], x: self.slice_size[1] - piece.shape[x]}
        if any(lacking.values()):
            piece = np.pad(piece, [(0, lacking.get(axis, 0)) for axis in range(piece.ndim)])
        if self.preprocess is None:
            return np.asarray(piece)
        made = np.asarray(self.preprocess(piece))
        if made.ndim == 4 and len(made) == 1:
            made = made[0]
        if not self.layout.takes(made.shape):
            raise InputError(
                f"preprocess made {made.shape} of a slice {piece.shape}; for each, input "
                f"{self.layout.name!r} takes {format_shape(self.layout.shape)}",
                "return the slice as the model takes it, without the batch axis",
            )
        return made

    def _outputs_of(self, outputs: Mapping[str, Array], place: int) -> dict[str, Array]:
        """The outputs for one of the slices."""
        return {
            name: value if (axis := self.output_axes[name]) is None else np.take(value, place, axis)
            for name, value in outputs.items()
        }

    def _boxes(
        self, outputs: Mapping[str, Array], work: Work, place: int, input_size: Sequence[int]
    ) -> Boxes:
        """The boxes of one slice, in pixels of the picture."""
        boxes, scores, labels = self.reader.read(outputs)
        kept = scores >= self.score_threshold
        corners = boxes[kept].astype(np.float64)
        if not np.isfinite(corners).all():
            raise InputError(
                f"{np.sum(~np.isfinite(corners).all(axis=1))} of {len(corners)} boxes with a score "
                f"of {self.score_threshold} or more have corners that are NaN or infinite",
                "run the model in float32, or read its outputs yourself with decode=",
            )
        height, width = self.slice_size
        unit = (1, 1) if self.is_normalized else input_size
        corners *= np.tile([width / unit[1], height / unit[0]], 2)
        corners += np.tile([work.strip.x + work.strip.offsets[place], work.strip.y], 2)
        corners *= work.scale
        inside = clipped(corners, np.array([0, 0, self.picture_size[1], self.picture_size[0]]))
        found = Boxes.of(inside, scores[kept], labels[kept]).take(areas(inside) > 0)
        if not self.reader.has_duplicates:
            return found
        return nms(found, self.iou_threshold, class_agnostic=self.class_agnostic)


@dataclass(frozen=True, slots=True, eq=False)
class BoxMerger:
    """Makes one result of the boxes of all slices; what the last task calls."""

    merge: Merge
    metric: Metric
    threshold: float
    class_agnostic: bool
    windows: Floats
    """float64, shape (m, 4): x1, y1, x2, y2 of each view in pixels of the picture."""
    scales: Ints
    """int64, shape (m,): pixels of the picture along a side of a pixel of each view."""
    picture_size: Size

    def __call__(self, *found: Found) -> Boxes:
        """Return the boxes of the picture, best first."""
        boxes = join_boxes([part for part, _ in found])
        if self.merge == "seams":
            views = Views(self.windows, self.scales, self.picture_size[::-1])
            owners = np.concatenate([numbers for _, numbers in found])
            return merge_seams(
                boxes, owners, views, self.threshold, class_agnostic=self.class_agnostic
            )
        function = {"nms": nms, "nmm": greedy_nmm, "weighted": weighted_boxes_fusion}[self.merge]
        return function(
            boxes, self.threshold, metric=self.metric, class_agnostic=self.class_agnostic
        )
