"""Recognition of detectors by their metadata, names and shapes, where these leave no doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

from dask_onnx.collections.images.box_readers import Format, Reader
from dask_onnx.collections.images.box_sets import named_outputs
from dask_onnx.collections.images.form_requests import FormRequest
from dask_onnx.collections.images.formats import (
    MAX_SELECTED,
    cell_counts,
    find_reader,
    with_prototypes,
)
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import Dim, TensorSpec

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
"""Pixels from one cell to the next, on each grid of common YOLO heads."""
_DETAILS = {"segment": "seg", "pose": "pose", "obb": "obb"}
"""Task in ultralytics' words to the ending of its format."""
_DETR_KINDS = ("detr", "yolos", "table-transformer")
"""Architectures of Hugging Face whose scores are a softmax with a class for "no object"."""
_SIGMOID_KINDS = ("rt_detr", "d_fine", "deformable_detr", "conditional_detr", "deta", "dab")
"""Beginnings of names of architectures whose scores are sigmoids."""


def with_classes(request: FormRequest, reader: Reader) -> Reader:
    """Return a reader of a YOLO that leaves out columns behind those of the classes."""
    is_yolo = request.is_yolo and request.notes.labels is not None
    return replace(reader, classes=request.class_count) if is_yolo else reader


def recognised_reader(request: FormRequest) -> Reader | None:
    """Return a reader for outputs that are boxes for certain; None for others."""
    if request.notes.task == "classify":
        return None
    for kind in ("tf", "paddle"):
        names = named_outputs(kind, request.outputs)
        if names and (kind == "tf" or _has_paddle_inputs(request)):
            return Reader(kind, names)
    if names := named_outputs("detr", request.outputs):
        family = _detr_kind(request, names[0])
        return None if family is None else Reader(family, names)
    first = request.outputs[:1]
    if request.is_yolo and request.notes.task in _DETAILS:
        return _detail_reader(request)
    if (found := with_prototypes(request.outputs, request.size)) is not None:
        return with_classes(request, found)
    if request.is_yolo and first:
        # Further outputs of a YOLO are its feature maps.
        return _yolo_reader(request, first)
    try:
        reader = find_reader(request.outputs, "auto", None, request.size)
    except InputError:
        return None
    is_sure = reader.format == "boxes" or _has_yolo_rows(request.outputs[0], request.size)
    return reader if is_sure else None


def _detail_reader(request: FormRequest) -> Reader | None:
    """Return the reader of a YOLO whose metadata say that objects have details.

    Raises
    ------
    InputError
        The outputs are not those of the task.
    """
    suffix = _DETAILS[request.notes.task or ""]
    tables = [spec for spec in request.outputs if spec.rank == 3]
    if suffix == "seg" and not any(spec.rank == 4 for spec in request.outputs):
        return _yolo_reader(request, request.outputs[:1])  # the caller left the maps out
    shape = tables[0].shape if tables else None
    layout = "yolo8" if shape is None else _detail_layout(request, suffix, shape)
    if layout is None:
        raise InputError(
            f"the model's metadata say {request.notes.task!r}, and its outputs are not those of "
            f"such a YOLO: {'; '.join(map(str, request.outputs))}",
            f"pass format='yolo8-{suffix}' or 'xyxysc-{suffix}', task='raw' for the outputs as "
            "they are, or a function: decode=",
            option="format",
            suggestions=[Suggestion("format", f"yolo8-{suffix}"), Suggestion("task", "raw")],
        )
    wanted = cast(Format, f"{layout}-{suffix}")
    return with_classes(
        request, find_reader(request.outputs, wanted, None, request.size, request.keypoints)
    )


def _detail_layout(
    request: FormRequest, suffix: str, shape: Sequence[Dim]
) -> Literal["yolo5", "yolo8", "xyxysc"] | None:
    """Return the order of the columns of a table with details; None if it has none of them."""
    _, first, second = shape
    maps = next((spec.shape for spec in request.outputs if spec.rank == 4), None)
    points = request.keypoints
    count: Dim = {
        "seg": None if maps is None else maps[1],
        "pose": None if points is None else points[0] * points[1],
        "obb": 1,
    }[suffix]
    if not isinstance(count, int) or request.class_count is None:
        return "yolo8"  # the reading of the table checks its columns
    behind = request.class_count + count
    if first == 4 + behind and (second != 6 + count or second in _rows_of_yolo(request.size)):
        return "yolo8"
    if second == 6 + count and _is_few(first):
        return "xyxysc"
    if second == 5 + behind and suffix == "seg":
        return "yolo5"
    return None if isinstance(first, int) else "yolo8"


def _yolo_reader(request: FormRequest, first: tuple[TensorSpec, ...]) -> Reader | None:
    shape = first[0].shape
    classes = request.class_count
    if shape is not None and len(shape) == 3 and classes is not None:
        coefficients = 32 if request.notes.task == "segment" else 0  # whose maps are left out
        if shape[2] == 6 and _is_few(shape[1]):
            return Reader("xyxysc", (first[0].name,))
        if shape[2] == 5 + classes + coefficients:
            return Reader("yolo5", (first[0].name,), classes=classes)
        if isinstance(shape[1], int) and shape[1] >= 4 + classes:
            return Reader("yolo8", (first[0].name,), classes=classes)
    try:
        return with_classes(request, find_reader(first, "auto", None, request.size))
    except InputError:
        return None


def _is_few(rows: Dim) -> bool:
    """Return whether rows are selected ones, rather than one for each cell."""
    return not isinstance(rows, int) or rows <= MAX_SELECTED


def _has_yolo_rows(spec: TensorSpec, size: Size) -> bool:
    """Return whether a table has a row for each cell or anchor of a YOLO of this size."""
    if spec.shape is None or len(spec.shape) != 3:
        return False
    counts = _rows_of_yolo(size)
    return any(dim in counts for dim in spec.shape[1:])


def _rows_of_yolo(size: Size) -> set[int]:
    cells = cell_counts(size, _STRIDES)
    return cells | {3 * count for count in cells}


def _has_paddle_inputs(request: FormRequest) -> bool:
    return any(spec.name in ("im_shape", "scale_factor") for spec in request.inputs)


def _detr_kind(request: FormRequest, logits: str) -> Literal["detr", "rtdetr"] | None:
    """Return the format of a DETR, softmax or sigmoid; None if nothing tells it."""
    kind = request.notes.architecture or ""
    if kind in _DETR_KINDS:
        return "detr"
    if kind.startswith(_SIGMOID_KINDS):
        return "rtdetr"
    spec = next(spec for spec in request.outputs if spec.name == logits)
    width = spec.shape[-1] if spec.shape else None
    if request.class_count is None or not isinstance(width, int):
        return None
    if width == request.class_count:
        return "rtdetr"
    return "detr" if width == request.class_count + 1 else None
