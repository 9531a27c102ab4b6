"""Tables of YOLO models: boxes, scores and labels, and the further columns of each object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.box_sets import corners
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.core.errors import InputError

Array = npt.NDArray[Any]
Detail = Literal["", "masks", "points", "angles"]
"""Meaning of the columns behind those of boxes and classes."""
Layout = Literal["yolo5", "yolo8", "yolox", "xyxysc"]
"""Order of the columns of boxes and classes."""

TABLES: Mapping[str, tuple[Layout, Detail]] = {
    "yolo5": ("yolo5", ""),
    "yolo5-seg": ("yolo5", "masks"),
    "yolo8": ("yolo8", ""),
    "yolo8-seg": ("yolo8", "masks"),
    "yolo8-pose": ("yolo8", "points"),
    "yolo8-obb": ("yolo8", "angles"),
    "yolox": ("yolox", ""),
    "xyxysc": ("xyxysc", ""),
    "xyxysc-seg": ("xyxysc", "masks"),
    "xyxysc-pose": ("xyxysc", "points"),
    "xyxysc-obb": ("xyxysc", "angles"),
}
"""Format to the order of its columns, and to what follows them."""
_BOX_COLUMNS: Mapping[Layout, int] = {"yolo5": 5, "yolo8": 4, "yolox": 5, "xyxysc": 6}
"""Columns before those of the classes; all but the details for "xyxysc"."""
_YOLOX_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
"""Pixels from one cell to the next on the grids of YOLOX, and of its variant for large pictures."""


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """Objects of one image as a model gives them, in pixels of its input."""

    boxes: Array
    """Shape (n, 4): x1, y1, x2, y2; for angles the box before it is turned."""
    scores: Array
    """Shape (n,)."""
    labels: Array
    """Shape (n,)."""
    details: Array
    """Shape (n, columns): the further columns, such as coefficients of masks."""

    def take(self, index: Any) -> Objects:
        """Return some of the objects, by positions or by a mask."""
        return Objects(
            self.boxes[index], self.scores[index], self.labels[index], self.details[index]
        )


def may_have(wanted: str, columns: int) -> bool:
    """Return whether a table of a format may have some number of columns.

    Parameters
    ----------
    wanted : str
        One of `TABLES`.
    columns : int
        Columns of an object: box, scores and details together.
    """
    layout, detail = TABLES[wanted]
    least = _BOX_COLUMNS[layout] + (layout != "xyxysc") + bool(detail)
    return columns == least if wanted in ("xyxysc", "xyxysc-obb") else columns >= least


def read_table(
    wanted: str, table: Array, *, classes: int | None, detail_columns: int, size: Size
) -> Objects:
    """Return the objects of a table.

    Parameters
    ----------
    wanted : str
        One of `TABLES`.
    table : array, shape (columns, n) for the layout "yolo8", or (n, columns)
    classes : int or None
        Number of classes, where it is known. Without details, further columns are passed over.
    detail_columns : int
        Number of columns of the details.
    size : (int, int)
        Height and width of the model's input, from which the cells of YOLOX follow.

    Raises
    ------
    InputError
        The number of columns, or of rows for YOLOX, is not that of the format.
    """
    layout, detail = TABLES[wanted]
    rows = table.T if layout == "yolo8" else table
    first = _BOX_COLUMNS[layout]
    if layout == "xyxysc":
        _check_columns(wanted, rows.shape[1], first, 0, detail_columns)
        boxes = corners(rows[:, :4]) if detail == "angles" else rows[:, :4]
        return Objects(boxes, rows[:, 4], rows[:, 5].astype(np.int64), rows[:, first:])
    found = rows.shape[1] - first - detail_columns
    if detail:
        _check_columns(wanted, rows.shape[1], first, classes or max(found, 1), detail_columns)
    elif classes is not None:
        found = min(found, classes)
    scores, details = rows[:, first : first + found], rows[:, first + found :]
    boxes = _from_cells(rows, size) if layout == "yolox" else rows[:, :4]
    objectness = np.ones((), rows.dtype) if layout == "yolo8" else rows[:, 4]
    best, labels = _best_class(scores, objectness)
    return Objects(corners(boxes), best, labels, details[:, :detail_columns])


def _check_columns(wanted: str, given: int, first: int, classes: int, details: int) -> None:
    expected = first + classes + details
    if given != expected:
        parts = f"{first} of boxes"
        parts += f", {classes} of classes" if classes else ""
        raise InputError(
            f"the table has {given} columns for each object; format {wanted!r} has {expected}: "
            f"{parts}, {details} of details",
            "pass another format=, or as many labels= as the model has classes",
            option="format",
            numbers={"columns": given, "expected_columns": expected},
        )


def _best_class(scores: Array, objectness: Array) -> tuple[Array, Array]:
    """Return the score of each box's best class times its objectness, and that class."""
    labels = scores.argmax(axis=1)
    best = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return best * objectness, labels.astype(np.int64)


def _from_cells(rows: Array, size: Size) -> Array:
    """Return cx, cy, w, h in pixels of boxes that are relative to the cells of YOLOX's grids."""
    for strides in _YOLOX_STRIDES:
        grids = [(size[0] // s, size[1] // s, s) for s in strides]
        if sum(height * width for height, width, _ in grids) == len(rows):
            break
    else:
        raise InputError(
            f"there are {len(rows)} boxes, which are not those of a YOLOX for an input of "
            f"{size[0]} x {size[1]}",
            "pass another format=, or read the outputs with a function: decode=",
            option="format",
            numbers={"boxes": len(rows)},
        )
    cells, steps = [], []
    for height, width, stride in grids:
        y, x = np.mgrid[:height, :width]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        steps.append(np.full((height * width, 1), stride))
    step, cell = np.concatenate(steps), np.concatenate(cells)
    given = rows[:, :4].astype(np.float32)
    return np.concatenate([(given[:, :2] + cell) * step, np.exp(given[:, 2:]) * step], axis=1)
