"""Output formats of detectors: recognition by names and shapes, and reading of boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.box_sets import Parts, corners, named_outputs, read_set
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import Dim, TensorSpec

Format = Literal["auto", "boxes", "yolo5", "yolo8", "xyxysc", "tf", "paddle", "detr", "rtdetr"]
"""Format of a detector's outputs, as `detect_sliced` and `ImageModel` take it."""
Array = npt.NDArray[Any]
Decode = Callable[[dict[str, Any]], Any]
"""Caller's function from the outputs for one slice to boxes, scores and labels."""

FORMATS = get_args(Format)
"""Names of all formats."""
_SETS = ("boxes", "tf", "paddle", "detr", "rtdetr")
"""Formats of several outputs."""
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Pixels from one cell to the next, on each grid of common YOLO heads."""
MAX_SELECTED = 1000
"""Rows above which they are one for each cell or anchor, rather than selected by the model."""
_ROUNDING = 1e-3
"""Rounding error by which a score may exceed 1."""
_OTHER_FORMAT = "pass another format=, or read the outputs with a function: decode="
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

    @property
    def is_normalized(self) -> bool:
        """True if boxes go from 0 to 1 over the model's input by definition of the format."""
        return self.format in ("tf", "detr", "rtdetr")

    @property
    def has_duplicates(self) -> bool:
        """True if the model leaves non-maximum suppression to its caller."""
        return self.format in ("yolo5", "yolo8")

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
        if self.decode is not None:
            parts = self._decoded(self.decode(dict(arrays)))
        elif self.format in _SETS:
            parts = read_set(self.format, [_without_batch(arrays[name]) for name in self.outputs])
        else:
            parts = self._read_table(arrays)
        self._check(parts)
        return parts

    def read_above(self, arrays: Mapping[str, Array], threshold: float) -> Parts:
        """Return float64 boxes, scores and labels of one slice, of those with some score or more.

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
        boxes, scores, labels = self.read(arrays)
        kept = scores >= threshold
        found = boxes[kept].astype(np.float64)
        bad = int((~np.isfinite(found).all(axis=1)).sum())
        if bad:
            raise InputError(
                f"{bad} of {len(found)} boxes with a score of {threshold} or more have corners "
                "that are NaN or infinite",
                "run the model in float32, or read its outputs with a function: decode=",
                numbers={"invalid_boxes": bad, "boxes": len(found)},
                suggestions=[Suggestion("decode")],
            )
        return found, scores[kept], labels[kept]

    def _decoded(self, given: Any) -> Parts:
        """Return what `decode` has returned, as arrays."""
        if not isinstance(given, tuple | list) or len(given) != 3:
            raise InputError(
                f"decode returned a {type(given).__name__}",
                "return a tuple of boxes (n, 4), scores (n,) and labels (n,)",
                option="decode",
            )
        boxes, scores, labels = (np.asarray(part) for part in given)
        return boxes.reshape(-1, 4) if boxes.size == 0 else boxes, scores, labels

    def _read_table(self, arrays: Mapping[str, Array]) -> Parts:
        (name,) = self.outputs
        table = _without_batch(arrays[name])
        columns = table.shape[0 if self.format == "yolo8" else -1] if table.ndim == 2 else 0
        if not _may_be(self.format, columns):
            raise InputError(
                f"output {name!r} has shape {table.shape} for one slice, which is not "
                f"{self.format}",
                _OTHER_FORMAT,
                option="format",
                input=name,
            )
        if self.classes is not None and self.format in ("yolo5", "yolo8"):
            most = self.classes + (5 if self.format == "yolo5" else 4)
            table = table[:most] if self.format == "yolo8" else table[:, :most]
        return _READ[self.format](table)

    def _check(self, parts: Parts) -> None:
        boxes, scores, labels = parts
        count = len(scores)
        if boxes.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
            raise InputError(
                f"{self.format} gave boxes {boxes.shape}, scores {scores.shape} and labels "
                f"{labels.shape} for one slice, not (n, 4), (n,) and (n,)",
                _OTHER_FORMAT,
                option=self.option,
            )
        highest = float(scores.max(initial=0))
        if not highest <= 1 + _ROUNDING:  # also true for NaN
            raise InputError(
                f"read as {self.format}, the outputs {', '.join(self.outputs)} have scores up to "
                f"{highest:g}, which are not class scores from 0 to 1",
                _OTHER_FORMAT,
                option=self.option,
                numbers={"highest_score": highest},
            )


def _without_batch(array: Array) -> Array:
    """Return an output without a batch axis of size 1 that the graph does not prove to be one."""
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _read_yolo5(table: Array) -> Parts:
    """Read a table (n, 5 + classes): cx, cy, w, h, objectness, a score for each class."""
    return corners(table[:, :4]), *_best_class(table[:, 5:], table[:, 4])


def _read_yolo8(table: Array) -> Parts:
    """Read a table (4 + classes, n): cx, cy, w, h, a score for each class."""
    return corners(table[:4].T), *_best_class(table[4:].T, np.ones((), table.dtype))


def _read_xyxysc(table: Array) -> Parts:
    """Read a table (n, 6): x1, y1, x2, y2, score, class."""
    return table[:, :4], table[:, 4], table[:, 5].astype(np.int64)


def _best_class(scores: Array, objectness: Array) -> tuple[Array, Array]:
    """Return the score of each box's best class times its objectness, and that class."""
    labels = scores.argmax(axis=1)
    best = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return best * objectness, labels.astype(np.int64)


_READ: Mapping[str, Callable[[Array], Parts]] = {
    "yolo5": _read_yolo5,
    "yolo8": _read_yolo8,
    "xyxysc": _read_xyxysc,
}
"""Format to the function that reads its table."""


def find_reader(
    outputs: Sequence[TensorSpec], wanted: Format, decode: Decode | None, size: tuple[int, int]
) -> Reader:
    """Return a reader for the outputs of a model.

    Parameters
    ----------
    outputs : sequence of TensorSpec
        All outputs of the model.
    wanted : Format
    decode : callable or None
        Caller's function.
    size : (int, int)
        Height and width of the model's input in pixels, which determine the rows of a YOLO.

    Raises
    ------
    InputError
        The outputs do not fit the format, or "auto" cannot recognize one.
    """
    if decode is not None and wanted != "auto":
        raise InputError(
            f"both decode and format={wanted!r} are given",
            "leave one of them out",
            option="format",
            suggestions=[Suggestion("format", "auto")],
        )
    if decode is not None:
        return Reader("decode", tuple(spec.name for spec in outputs), decode)
    if wanted == "boxes":
        return Reader(wanted, _named_roles(outputs) or _roles_by_order(outputs))
    if wanted in _SETS:
        return Reader(wanted, _set_outputs(outputs, wanted))
    if wanted != "auto":
        return Reader(wanted, (_table_of(outputs, wanted).name,))
    if roles := named_outputs("tf", outputs):
        return Reader("tf", roles)
    if roles := _named_roles(outputs):
        if any(name.startswith("detection_") for name in roles):
            raise _unknown(outputs, "names of TensorFlow, whose boxes are y1, x1, y2, x2")
        return Reader("boxes", roles)
    if named_outputs("detr", outputs):
        raise _unknown(
            outputs, "those of DETR, whose scores are a softmax ('detr') or a sigmoid ('rtdetr')"
        )
    if len(outputs) != 1:
        raise _unknown(outputs, "several outputs that are not named boxes, scores and labels")
    return Reader(_table_format(outputs, size), (outputs[0].name,))


def _set_outputs(outputs: Sequence[TensorSpec], wanted: str) -> tuple[str, ...]:
    """Return the outputs of a format of several, by name."""
    roles = named_outputs(wanted, outputs)
    if not roles:
        raise InputError(
            f"the outputs are not those of format {wanted!r}: {'; '.join(map(str, outputs))}",
            _OTHER_FORMAT,
            option="format",
            suggestions=[Suggestion("format"), Suggestion("decode")],
        )
    return roles


def _unknown(outputs: Sequence[TensorSpec], why: str) -> InputError:
    formats = ", ".join(repr(name) for name in FORMATS[1:])
    return InputError(
        f"cannot recognize the format of the outputs {'; '.join(map(str, outputs))}: {why}",
        f"pass format= one of {formats}, or read the outputs with a function: decode=",
        option="format",
        suggestions=[Suggestion("format"), Suggestion("decode")],
    )


def _table_of(outputs: Sequence[TensorSpec], wanted: str) -> TensorSpec:
    """Return the first output that may be a table of a format; a third axis is the batch."""
    axis = -2 if wanted == "yolo8" else -1
    for spec in outputs:
        is_table = spec.dtype is not None and spec.dtype.kind in "fV" and spec.rank in (None, 2, 3)
        if is_table and (spec.shape is None or _may_be(wanted, spec.shape[axis])):
            return spec
    raise InputError(
        f"no output is a table that can be read as {wanted}: {'; '.join(map(str, outputs))}",
        _OTHER_FORMAT,
        option="format",
        suggestions=[Suggestion("format"), Suggestion("decode")],
    )


def _may_be(wanted: str, columns: Dim) -> bool:
    """Return whether a format may have some number of columns, box and scores together."""
    if not isinstance(columns, int):
        return True
    return columns == 6 if wanted == "xyxysc" else columns >= {"yolo5": 6, "yolo8": 5}[wanted]


def _table_format(outputs: Sequence[TensorSpec], size: tuple[int, int]) -> str:
    """Return the format of a single output, from its shape.

    A YOLO has one row for each cell of its grids, or three for three anchors. Shapes that fit two
    formats are refused.
    """
    (spec,) = outputs
    if spec.dtype is None or spec.dtype.kind not in "fV" or spec.shape is None or spec.rank != 3:
        raise _unknown(outputs, "not a table of numbers (batch, n, columns) or (batch, columns, n)")
    _, rows, columns = spec.shape
    cells = cell_counts(size, _STRIDES)
    if isinstance(rows, int) and isinstance(columns, int):
        if columns >= 5 and rows in cells and columns not in cells:
            raise _unknown(outputs, "one row for each cell, as in YOLOX, which may be undecoded")
        if columns == 6 and rows in {3 * count for count in cells}:
            return "yolo5"
        if columns == 6 and rows <= MAX_SELECTED:
            return "xyxysc"
        if columns > rows >= 5:
            return "yolo8"
        if rows > columns > 6:
            return "yolo5"
        raise _unknown(outputs, "neither axis is that of the boxes for certain")
    if isinstance(columns, int) and columns > 6:
        return "yolo5"
    if isinstance(rows, int) and rows >= 5 and not isinstance(columns, int):
        return "yolo8"
    if columns == 6:
        raise _unknown(outputs, "6 columns are xyxysc, or yolo5 with one class")
    raise _unknown(outputs, "neither axis is that of the boxes for certain")


def cell_counts(size: tuple[int, int], strides: Iterable[Sequence[int]]) -> set[int]:
    """Return the numbers of cells that a YOLO has, on all its grids together.

    Parameters
    ----------
    size : (int, int)
        Height and width of the model's input in pixels.
    strides : iterable of sequence of int
        For each kind of YOLO the pixels from one cell to the next on each grid.
    """
    return {sum((size[0] // s) * (size[1] // s) for s in each) for each in strides}


def _named_roles(outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the outputs for boxes, scores and labels, found by name; empty if some is missing.

    Boxes with five columns contain the scores.
    """
    found: dict[str, TensorSpec] = {}
    for spec in outputs:
        name, columns = spec.name.lower(), spec.shape[-1] if spec.shape else None
        if ("box" in name or "dets" in name) and columns in (4, 5):
            found.setdefault("boxes", spec)
        elif "score" in name or "conf" in name:
            found.setdefault("scores", spec)
        elif "label" in name or "class" in name:
            found.setdefault("labels", spec)
    boxes = found.get("boxes")
    has_scores = boxes is not None and boxes.shape is not None and boxes.shape[-1] == 5
    roles = ["boxes", "labels"] if has_scores else ["boxes", "scores", "labels"]
    return tuple(found[role].name for role in roles) if found.keys() >= set(roles) else ()


def _roles_by_order(outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the outputs for boxes, scores and labels, found by shape, dtype and order.

    Boxes are the first output with 4 or 5 columns, labels the first of integers or else the last.
    """
    lasts = [spec.shape[-1] if spec.shape else None for spec in outputs]
    place = next((place for place, last in enumerate(lasts) if last in (4, 5)), 0)
    boxes, others = outputs[place], [spec for i, spec in enumerate(outputs) if i != place]
    if len(others) < 1 + (lasts[place] != 5):
        raise InputError(
            f"boxes, scores and labels are not among the outputs: {'; '.join(map(str, outputs))}",
            _OTHER_FORMAT,
            option="format",
            suggestions=[Suggestion("format"), Suggestion("decode")],
        )
    integers = [spec for spec in others if spec.dtype is not None and spec.dtype.kind in "iu"]
    labels = integers[0] if integers else others[-1]
    scores = [spec for spec in others if spec is not labels][:1]
    chosen = [boxes, labels] if lasts[place] == 5 else [boxes, *scores, labels]
    return tuple(spec.name for spec in chosen)
