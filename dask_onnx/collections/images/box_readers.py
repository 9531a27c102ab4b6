"""Readers of detectors' outputs: a format, the outputs that it takes, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.box_sets import Parts, read_set
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.collections.images.text_areas import TEXT_MAP, read_text_map
from dask_onnx.collections.images.yolo_tables import TABLES, Detail, Objects, may_have, read_table
from dask_onnx.core.errors import InputError, Suggestion

BoxFormat = Literal[
    "auto", "boxes", "yolo5", "yolo8", "yolox", "xyxysc", "tf", "paddle", "detr", "rtdetr"
]
"""Format of a detector's outputs, as `detect_sliced` takes it."""
DetailFormat = Literal[
    "yolo5-seg",
    "yolo8-seg",
    "yolo8-pose",
    "yolo8-obb",
    "xyxysc-seg",
    "xyxysc-pose",
    "xyxysc-obb",
    "dbnet",
]
"""Format of a detector with masks, key points or angles, as `ImageModel` takes it."""
Format = BoxFormat | DetailFormat
"""Format of a detector's outputs, as `ImageModel` takes it."""
Array = npt.NDArray[Any]
Decode = Callable[[dict[str, Any]], Any]
"""Caller's function from the outputs for one slice to boxes, scores and labels."""

BOX_FORMATS: tuple[str, ...] = get_args(BoxFormat)
"""Names of the formats of boxes without details."""
FORMATS: tuple[str, ...] = (*BOX_FORMATS, *get_args(DetailFormat))
"""Names of all formats."""
SETS = ("boxes", "tf", "paddle", "detr", "rtdetr")
"""Formats of several outputs."""
_ROUNDING = 1e-3
"""Rounding error by which a score may exceed 1."""
OTHER_FORMAT = "pass another format=, or read the outputs with a function: decode="
"""Next step of errors about a format."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A format, and the outputs that it is read from."""

    format: str
    """One of `FORMATS`, or "decode"."""
    outputs: tuple[str, ...]
    """Names of the model's outputs that are read, in the order of the format."""
    decode: Decode | None = None
    """Caller's function, for "decode"."""
    classes: int | None = None
    """Number of classes of a YOLO, whose table may have further columns, such as the coefficients
    of masks; None takes all columns."""
    keypoints: tuple[int, int] | None = None
    """Key points of each object, and numbers of each: x, y and perhaps its score."""
    size: Size = (640, 640)
    """Height and width of the model's input, from which the cells of YOLOX and the scale of maps
    follow."""

    @property
    def is_normalized(self) -> bool:
        """True if boxes go from 0 to 1 over the model's input by definition of the format."""
        return self.format in ("tf", "detr", "rtdetr")

    @property
    def has_duplicates(self) -> bool:
        """True if the model leaves non-maximum suppression to its caller."""
        return self.format.startswith("yolo")

    @property
    def detail(self) -> Detail:
        """Kind of the details of each object; empty for boxes alone."""
        if self.format == TEXT_MAP:
            return "angles"
        return TABLES[self.format][1] if self.format in TABLES else ""

    @property
    def option(self) -> str:
        """Option of `detect_sliced` that has chosen the reader, for errors."""
        return "format" if self.decode is None else "decode"

    def read(self, arrays: Mapping[str, Array]) -> Parts:
        """Return boxes, scores and labels of one slice.

        Parameters
        ----------
        arrays : mapping of str to array
            Outputs by name, without a batch axis where the model is known to have one.

        Raises
        ------
        InputError
            Shapes do not fit the format, or scores are above 1 or NaN, as they never are if the
            format is right.
        """
        found = self._objects(arrays)
        return found.boxes, found.scores, found.labels

    def read_above(self, arrays: Mapping[str, Array], threshold: float) -> Parts:
        """Return float64 boxes, scores and labels of one slice, of those with some score or more.

        Parameters and errors are those of `objects_above`.
        """
        found = self.objects_above(arrays, threshold)
        return found.boxes, found.scores, found.labels

    def objects_above(self, arrays: Mapping[str, Array], threshold: float) -> Objects:
        """Return the objects with some score or more, their boxes in float64.

        Parameters
        ----------
        arrays : mapping of str to array
            As for `read`.
        threshold : float
            Least score.

        Raises
        ------
        InputError
            As for `read`; or corners of these boxes are NaN or infinite.
        """
        objects = self._objects(arrays)
        objects = objects.take(objects.scores >= threshold)
        found = objects.boxes.astype(np.float64)
        bad = int((~np.isfinite(found).all(axis=1)).sum())
        if bad:
            raise InputError(
                f"{bad} of {len(found)} boxes with a score of {threshold} or more have corners "
                "that are NaN or infinite",
                "run the model in float32, or read its outputs with a function: decode=",
                numbers={"invalid_boxes": bad, "boxes": len(found)},
                suggestions=[Suggestion("decode")],
            )
        return replace(objects, boxes=found)

    def _objects(self, arrays: Mapping[str, Array]) -> Objects:
        if self.decode is None and self.format == TEXT_MAP:
            found = read_text_map(arrays[self.outputs[0]], self.outputs[0], self.size)
        elif self.decode is None and self.format not in SETS:
            found = self._read_table(arrays)
        else:
            parts = (
                read_set(self.format, [_without_batch(arrays[name]) for name in self.outputs])
                if self.decode is None
                else self._decoded(self.decode(dict(arrays)))
            )
            found = Objects(*parts, np.empty((len(parts[1]), 0), np.float32))
        self._check((found.boxes, found.scores, found.labels))
        return found

    def _decoded(self, given: Any) -> Parts:
        """Return the result of the caller's `decode` as arrays.

        Raises
        ------
        InputError
            It is no tuple of three.
        """
        if not isinstance(given, tuple | list) or len(given) != 3:
            raise InputError(
                f"decode returned a {type(given).__name__}",
                "return a tuple of boxes (n, 4), scores (n,) and labels (n,)",
                option="decode",
            )
        boxes, scores, labels = (np.asarray(part) for part in given)
        return boxes.reshape(-1, 4) if boxes.size == 0 else boxes, scores, labels

    def _read_table(self, arrays: Mapping[str, Array]) -> Objects:
        name = self.outputs[0]
        table = _without_batch(arrays[name])
        axis = 0 if TABLES[self.format][0] == "yolo8" else -1
        if table.ndim != 2 or not may_have(self.format, table.shape[axis]):
            raise InputError(
                f"output {name!r} has shape {table.shape} for one slice, which is not "
                f"{self.format}",
                OTHER_FORMAT,
                option="format",
                input=name,
            )
        return read_table(
            self.format,
            table,
            classes=self.classes,
            detail_columns=self._detail_columns(arrays),
            size=self.size,
        )

    def _detail_columns(self, arrays: Mapping[str, Array]) -> int:
        """Return the number of columns of the details."""
        if self.detail == "masks":
            return int(_without_batch_of_maps(arrays[self.outputs[1]]).shape[0])
        if self.detail == "points":
            assert self.keypoints is not None
            return self.keypoints[0] * self.keypoints[1]
        return int(self.detail == "angles")

    def prototypes(self, arrays: Mapping[str, Array]) -> Array | None:
        """Return the maps whose weighted sums are masks, shape (maps, h, w); None without masks.

        Parameters
        ----------
        arrays : mapping of str to array
            As for `read`.
        """
        if self.detail != "masks":
            return None
        return _without_batch_of_maps(arrays[self.outputs[1]])

    def _check(self, parts: Parts) -> None:
        boxes, scores, labels = parts
        count = len(scores)
        if boxes.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
            raise InputError(
                f"{self.format} gave boxes {boxes.shape}, scores {scores.shape} and labels "
                f"{labels.shape} for one slice, not (n, 4), (n,) and (n,)",
                OTHER_FORMAT,
                option=self.option,
            )
        highest = float(scores.max(initial=0))
        if not highest <= 1 + _ROUNDING:  # also true for NaN
            raise InputError(
                f"read as {self.format}, the outputs {', '.join(self.outputs)} have scores up to "
                f"{highest:g}, which are not class scores from 0 to 1",
                OTHER_FORMAT,
                option=self.option,
                numbers={"highest_score": highest},
            )


def _without_batch(array: Array) -> Array:
    """Return an output without a batch axis of size 1 that the graph does not prove to be one."""
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _without_batch_of_maps(array: Array) -> Array:
    return array[0] if array.ndim == 4 and len(array) == 1 else array
