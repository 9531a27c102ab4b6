"""Output formats of detectors: recognition by names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dask_onnx.collections.images.box_readers import (
    BOX_FORMATS,
    OTHER_FORMAT,
    SETS,
    Decode,
    Format,
    Reader,
)
from dask_onnx.collections.images.box_sets import named_outputs
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.collections.images.yolo_tables import TABLES, may_have
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import Dim, TensorSpec

_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Pixels from one cell to the next, on each grid of common YOLO heads."""
MAX_SELECTED = 1000
"""Rows above which they are one for each cell or anchor, rather than selected by the model."""


def find_reader(
    outputs: Sequence[TensorSpec],
    wanted: Format,
    decode: Decode | None,
    size: Size,
    keypoints: tuple[int, int] | None = None,
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
    keypoints : (int, int), optional
        Key points of each object, and numbers of each.

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
    if wanted in SETS:
        return Reader(wanted, _set_outputs(outputs, wanted))
    if wanted != "auto":
        return _table_reader(outputs, wanted, size, keypoints)
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
    return Reader(_table_format(outputs, size), (outputs[0].name,), size=size)


def _table_reader(
    outputs: Sequence[TensorSpec], wanted: Format, size: Size, keypoints: tuple[int, int] | None
) -> Reader:
    """Return a reader of a table, in a format that the caller names."""
    table = _table_of(outputs, wanted)
    detail = TABLES[wanted][1]
    if detail == "points" and keypoints is None:
        raise InputError(
            f"format {wanted!r} has key points, and nothing tells how many",
            "pass keypoints=(17, 3): their number, and 3 numbers of each with a score, 2 without",
            option="keypoints",
            suggestions=[Suggestion("keypoints", (17, 3)), Suggestion("keypoints", (17, 2))],
        )
    names: tuple[str, ...] = (table.name,)
    if detail == "masks":
        maps = [spec.name for spec in outputs if spec.rank == 4]
        if len(maps) != 1:
            raise InputError(
                f"format {wanted!r} reads masks from one output of rank 4, (batch, maps, height, "
                f"width); the model has {len(maps)}: {'; '.join(map(str, outputs))}",
                "name the table and the maps: outputs=[...], or pass another format=",
                option="format",
                numbers={"maps": len(maps)},
                suggestions=[Suggestion("outputs"), Suggestion("format")],
            )
        names = (table.name, maps[0])
    classes = None if detail else _classes_before_masks(outputs, table, wanted, size)
    return Reader(wanted, names, classes=classes, keypoints=keypoints, size=size)


def _classes_before_masks(
    outputs: Sequence[TensorSpec], table: TensorSpec, wanted: Format, size: Size
) -> int | None:
    """Return the classes of a YOLO with masks whose boxes alone are read; None for other models."""
    found = with_prototypes(outputs, size)
    if found is None or found.format != f"{wanted}-seg" or table.shape is None:
        return None
    maps = next(spec.shape for spec in outputs if spec.name == found.outputs[1])
    axis, boxes = (-2, 4) if wanted == "yolo8" else (-1, 5)
    assert maps is not None
    columns, count = table.shape[axis], maps[1]
    if not isinstance(columns, int) or not isinstance(count, int):
        return None
    return columns - boxes - count


def with_prototypes(outputs: Sequence[TensorSpec], size: Size) -> Reader | None:
    """Return a reader of a YOLO with masks, if two outputs are its table and maps for certain.

    The table has one row for each cell of the grids, or three, and the maps a quarter of the
    input's height and width.

    Parameters
    ----------
    outputs : sequence of TensorSpec
    size : (int, int)
        Height and width of the model's input in pixels.
    """
    tables = [spec for spec in outputs if spec.rank == 3]
    maps = [spec for spec in outputs if spec.rank == 4]
    if len(tables) != 1 or len(maps) != 1 or len(outputs) != 2:
        return None
    (table,), (proto,) = tables, maps
    assert table.shape is not None
    assert proto.shape is not None
    _, count, *sides = proto.shape
    if tuple(sides) != (size[0] // 4, size[1] // 4) or not isinstance(count, int):
        return None
    cells = cell_counts(size, _STRIDES)
    _, first, second = table.shape
    found = ""
    if second in cells and isinstance(first, int) and first > 4 + count:
        found = "yolo8-seg"
    elif first in {3 * cell for cell in cells} and isinstance(second, int) and second > 5 + count:
        found = "yolo5-seg"
    return Reader(found, (table.name, proto.name), size=size) if found else None


def _set_outputs(outputs: Sequence[TensorSpec], wanted: str) -> tuple[str, ...]:
    """Return the outputs of a format of several, by name."""
    roles = named_outputs(wanted, outputs)
    if not roles:
        raise InputError(
            f"the outputs are not those of format {wanted!r}: {'; '.join(map(str, outputs))}",
            OTHER_FORMAT,
            option="format",
            suggestions=[Suggestion("format"), Suggestion("decode")],
        )
    return roles


def _unknown(outputs: Sequence[TensorSpec], why: str) -> InputError:
    formats = ", ".join(repr(name) for name in BOX_FORMATS[1:])
    return InputError(
        f"cannot recognize the format of the outputs {'; '.join(map(str, outputs))}: {why}",
        f"pass format= one of {formats}, or read the outputs with a function: decode=",
        option="format",
        suggestions=[Suggestion("format"), Suggestion("decode")],
    )


def _table_of(outputs: Sequence[TensorSpec], wanted: str) -> TensorSpec:
    """Return the first output that may be a table of a format; a third axis is the batch."""
    axis = -2 if TABLES[wanted][0] == "yolo8" else -1
    for spec in outputs:
        is_table = spec.dtype is not None and spec.dtype.kind in "fV" and spec.rank in (None, 2, 3)
        if is_table and (spec.shape is None or _may_be(wanted, spec.shape[axis])):
            return spec
    raise InputError(
        f"no output is a table that can be read as {wanted}: {'; '.join(map(str, outputs))}",
        OTHER_FORMAT,
        option="format",
        suggestions=[Suggestion("format"), Suggestion("decode")],
    )


def _may_be(wanted: str, columns: Dim) -> bool:
    """Return whether a format may have some number of columns, box and scores together."""
    return not isinstance(columns, int) or may_have(wanted, columns)


def _table_format(outputs: Sequence[TensorSpec], size: Size) -> str:
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
            raise _unknown(
                outputs,
                "one row for each cell, as in YOLOX, whose boxes may be relative to the cells "
                "('yolox') or in pixels ('yolo5')",
            )
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


def cell_counts(size: Size, strides: Iterable[Sequence[int]]) -> set[int]:
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
            OTHER_FORMAT,
            option="format",
            suggestions=[Suggestion("format"), Suggestion("decode")],
        )
    integers = [spec for spec in others if spec.dtype is not None and spec.dtype.kind in "iu"]
    labels = integers[0] if integers else others[-1]
    scores = [spec for spec in others if spec is not labels][:1]
    chosen = [boxes, labels] if lasts[place] == 5 else [boxes, *scores, labels]
    return tuple(spec.name for spec in chosen)
