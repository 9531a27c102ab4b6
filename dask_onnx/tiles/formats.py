"""What the outputs of a detector mean, and reading boxes from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim, TensorSpec

Format = Literal["auto", "boxes", "yolo5", "yolo8", "xyxysc"]
Array = npt.NDArray[Any]
Parts = tuple[Array, Array, Array]
"""Boxes (n, 4) as x1, y1, x2, y2, scores (n,) and labels (n,) of one slice."""
Decode = Callable[[dict[str, Any]], Any]

FORMATS = get_args(Format)
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Pixels from one cell to the next, on each grid of the usual YOLO heads."""
_MOST_SELECTED = 1000
"""More rows than this no model has selected: they are still one for each cell or anchor."""
_ROUNDING = 1e-3
"""By so much a score may exceed 1."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A format, and the outputs that it is read from."""

    format: str
    """One of `FORMATS`, or "decode"."""
    outputs: tuple[str, ...]
    """Names of the model's outputs that are needed, in the order that the format takes them."""
    decode: Decode | None = None
    """The caller's function, for "decode"."""

    @property
    def has_duplicates(self) -> bool:
        """Whether the model leaves non-maximum suppression to its caller."""
        return self.format in ("yolo5", "yolo8")

    def read(self, arrays: Mapping[str, Array]) -> Parts:
        """Return boxes, scores and labels of one slice.

        Parameters
        ----------
        arrays : outputs by name, without a batch axis where the model has one

        Raises
        ------
        InputError
            Shapes do not fit the format, or scores are above 1, which those of a class never are.
        """
        if self.decode is not None:
            given = self.decode(dict(arrays))
            if not isinstance(given, tuple | list) or len(given) != 3:
                raise InputError(
                    f"decode gave a {type(given).__name__}",
                    "return a tuple of boxes (n, 4), scores (n,) and labels (n,)",
                )
            boxes, *others = (np.asarray(part) for part in given)
            parts = (boxes.reshape(-1, 4) if boxes.size == 0 else boxes, *others)
        elif self.format == "boxes":
            parts = _read_boxes([_bare(arrays[name]) for name in self.outputs])
        else:
            (name,) = self.outputs
            table = _bare(arrays[name])
            columns = table.shape[0 if self.format == "yolo8" else -1] if table.ndim == 2 else 0
            if not _may_be(self.format, columns):
                raise InputError(
                    f"output {name!r} is {table.shape} for one slice, which {self.format} is not",
                    "name another format=, or read it yourself with decode=",
                )
            parts = _READ[self.format](table)
        self._check(parts)
        return parts[0], parts[1], parts[2]

    def _check(self, parts: Sequence[Array]) -> None:
        boxes, scores, labels = parts
        count = len(scores)
        if boxes.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
            raise InputError(
                f"{self.format} gave boxes {boxes.shape}, scores {scores.shape} and labels "
                f"{labels.shape} for one slice, not (n, 4), (n,) and (n,)",
                "name another format=, or read the outputs yourself with decode=",
            )
        highest = float(scores.max(initial=0))
        if not highest <= 1 + _ROUNDING:
            raise InputError(
                f"read as {self.format}, the outputs {', '.join(self.outputs)} have scores up to "
                f"{highest:g}, so that what is read is not, or not only, scores of classes",
                "name another format=, or read the outputs yourself with decode=",
            )


def _bare(array: Array) -> Array:
    """Without the batch axis of a single slice, where the graph does not tell that it is one."""
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _read_yolo5(table: Array) -> Parts:
    """(n, 5 + classes): cx, cy, w, h, objectness, a score for each class."""
    return corners(table[:, :4]), *_best_class(table[:, 5:], table[:, 4])


def _read_yolo8(table: Array) -> Parts:
    """(4 + classes, n): cx, cy, w, h, a score for each class."""
    return corners(table[:4].T), *_best_class(table[4:].T, np.ones((), table.dtype))


def _read_xyxysc(table: Array) -> Parts:
    """(n, 6): x1, y1, x2, y2, score, class."""
    return table[:, :4], table[:, 4], table[:, 5].astype(np.int64)


def _read_boxes(arrays: Sequence[Array]) -> Parts:
    """Boxes (n, 4), scores and labels (n,); or boxes (n, 5) with their scores, and labels."""
    boxes, *others = arrays
    if len(others) == 1:
        return boxes[:, :4], boxes[:, 4], others[0].reshape(-1).astype(np.int64)
    return boxes, others[0].reshape(-1), others[1].reshape(-1).astype(np.int64)


def _best_class(scores: Array, objectness: Array) -> tuple[Array, Array]:
    labels = scores.argmax(axis=1)
    best = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return best * objectness, labels.astype(np.int64)


def corners(boxes: Array) -> Array:
    """Return x1, y1, x2, y2 of boxes given as cx, cy, w, h."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


_READ: Mapping[str, Callable[[Array], Parts]] = {
    "yolo5": _read_yolo5,
    "yolo8": _read_yolo8,
    "xyxysc": _read_xyxysc,
}


def find_reader(
    outputs: Sequence[TensorSpec], wanted: Format, decode: Decode | None, size: tuple[int, int]
) -> Reader:
    """Return how the outputs of a model are read.

    Parameters
    ----------
    outputs : the model's
    wanted : one of `FORMATS`
    decode : the caller's function, or None
    size : height and width of the model's input in pixels, from which the rows of a YOLO follow

    Raises
    ------
    InputError
        The outputs do not fit the format, or none can be told; the outputs are named.
    """
    if decode is not None and wanted != "auto":
        raise InputError(f"both decode and format={wanted!r} are given", "leave one of them out")
    if decode is not None:
        return Reader("decode", tuple(spec.name for spec in outputs), decode)
    if wanted == "boxes":
        return Reader(wanted, _named_roles(outputs) or _roles_by_order(outputs))
    if wanted != "auto":
        return Reader(wanted, (_table_of(outputs, wanted).name,))
    if roles := _named_roles(outputs):
        if any(name.startswith("detection_") for name in roles):
            raise _unknown(outputs, "names of TensorFlow, whose boxes are y1, x1, y2, x2")
        return Reader("boxes", roles)
    if len(outputs) != 1:
        raise _unknown(outputs, "several outputs that are not called boxes, scores and labels")
    return Reader(_table_format(outputs, size), (outputs[0].name,))


def _unknown(outputs: Sequence[TensorSpec], why: str) -> InputError:
    return InputError(
        f"it cannot be told what the outputs mean: {'; '.join(map(str, outputs))} ({why})",
        "name format='boxes', 'yolo5', 'yolo8' or 'xyxysc', or read them yourself with decode=",
    )


def _table_of(outputs: Sequence[TensorSpec], wanted: str) -> TensorSpec:
    """The first output that may be such a table; one more axis is the batch."""
    axis = -2 if wanted == "yolo8" else -1
    for spec in outputs:
        is_table = spec.dtype is not None and spec.dtype.kind in "fV" and spec.rank in (None, 2, 3)
        if is_table and (spec.shape is None or _may_be(wanted, spec.shape[axis])):
            return spec
    raise InputError(
        f"no output is a table that can be read as {wanted}: {'; '.join(map(str, outputs))}",
        "name another format=, or read them yourself with decode=",
    )


def _may_be(wanted: str, columns: Dim) -> bool:
    """Whether a format may have so many columns, box and scores together."""
    if not isinstance(columns, int):
        return True
    return columns == 6 if wanted == "xyxysc" else columns >= {"yolo5": 6, "yolo8": 5}[wanted]


def _table_format(outputs: Sequence[TensorSpec], size: tuple[int, int]) -> str:
    """The format of a single output, from its shape."""
    (spec,) = outputs
    if spec.dtype is None or spec.dtype.kind not in "fV" or spec.shape is None or spec.rank != 3:
        raise _unknown(outputs, "not a table of numbers (batch, n, columns) or (batch, columns, n)")
    _, rows, columns = spec.shape
    cells = {sum((size[0] // s) * (size[1] // s) for s in strides) for strides in _STRIDES}
    if isinstance(rows, int) and isinstance(columns, int):
        if columns >= 5 and rows in cells and columns not in cells:
            raise _unknown(outputs, "a row for each cell, as YOLOX has, which may be undecoded")
        if columns == 6 and rows in {3 * count for count in cells}:
            return "yolo5"
        if columns == 6 and rows <= _MOST_SELECTED:
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


def _named_roles(outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Boxes, scores and labels by their names, or boxes with a score and labels; else nothing."""
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
    """Boxes are the first with 4 or 5 columns, labels the first of whole numbers or the last."""
    lasts = [spec.shape[-1] if spec.shape else None for spec in outputs]
    place = next((place for place, last in enumerate(lasts) if last in (4, 5)), 0)
    boxes, others = outputs[place], [spec for i, spec in enumerate(outputs) if i != place]
    if len(others) < 1 + (lasts[place] != 5):
        raise InputError(
            f"boxes, scores and labels are not among the outputs: {'; '.join(map(str, outputs))}",
            "name another format=, or read them yourself with decode=",
        )
    whole = [spec for spec in others if spec.dtype is not None and spec.dtype.kind in "iu"]
    labels = whole[0] if whole else others[-1]
    scores = [spec for spec in others if spec is not labels][:1]
    chosen = [boxes, labels] if lasts[place] == 5 else [boxes, *scores, labels]
    return tuple(spec.name for spec in chosen)
