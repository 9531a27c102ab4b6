"""Forms of outputs: boxes, scores of classes, masks, or whatever else, as the model gives it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.collections.images.box_sets import named_outputs
from dask_onnx.collections.images.formats import (
    FORMATS,
    MAX_SELECTED,
    Decode,
    Format,
    Reader,
    cell_counts,
    find_reader,
)
from dask_onnx.collections.images.graph_hints import Activation, activation_of, looks_like_scores
from dask_onnx.collections.images.input_layout import InputLayout, Size
from dask_onnx.collections.images.model_metadata import ModelNotes
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import Dim, TensorSpec, is_floating

Task = Literal["auto", "boxes", "labels", "mask", "raw"]
"""Form of the results, as `ImageModel` takes it."""
TASKS: tuple[str, ...] = get_args(Task)
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
"""Pixels from one cell to the next, on each grid of common YOLO heads."""
_DETR_KINDS = ("detr", "yolos", "table-transformer")
"""Architectures of Hugging Face whose scores are a softmax with a class for "no object"."""
_SIGMOID_KINDS = ("rt_detr", "d_fine", "deformable_detr", "conditional_detr", "deta", "dab")
"""Beginnings of names of architectures whose scores are sigmoids."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a model's results."""

    task: Literal["boxes", "labels", "mask", "raw"]
    """Form of the results."""
    outputs: tuple[str, ...]
    """Outputs that are read."""
    reader: Reader | None = None
    """Reader of boxes."""
    is_normalized: bool = False
    """True if boxes go from 0 to 1 over the model's input."""
    activation: Activation | None = None
    """Function that turns the output into scores; None where it holds scores."""
    is_classes: bool = False
    """True if a mask is a map of class numbers, or becomes one by its channels; otherwise it is a
    map of values."""
    classes_axis: Literal["first", "last", None] = None
    """Axis of a mask's channels, without the batch axis; None for a mask without."""

    def describe(self) -> str:
        """Return the form in words."""
        names = ", ".join(self.outputs)
        if self.task == "boxes" and self.reader is not None:
            return f"boxes, read as {self.reader.format} from {names}"
        if self.task == "labels":
            how = f" after a {self.activation}" if self.activation else ""
            return f"classes, from {names}{how}"
        if self.task == "mask":
            return f"a map of {'classes' if self.is_classes else 'values'}, from {names}"
        return f"the outputs as they are: {names}"


@dataclass(frozen=True, slots=True)
class FormRequest:
    """Statements of the caller and of the model about the form of results."""

    facts: GraphFacts
    inputs: tuple[TensorSpec, ...]
    """Inputs of the model."""
    outputs: tuple[TensorSpec, ...]
    """Outputs to read."""
    layout: InputLayout
    """Layout of the input for images."""
    notes: ModelNotes
    """Metadata of the model."""
    is_yolo: bool
    """True if the preparation is that of YOLO."""
    class_count: int | None
    """Number of classes whose names are known."""
    task: Task = "auto"
    format: Format = "auto"
    decode: Decode | None = None
    normalized: bool = False
    top: bool = False
    """True if the caller asks for the best classes."""

    @property
    def size(self) -> Size:
        """Height and width of the model's input; 640 where they are open."""
        return self.layout.height or 640, self.layout.width or 640


def find_form(request: FormRequest) -> Form:
    """Return the form of a model's results.

    Without the caller's word, boxes are recognised by names, or by a table whose size is that of a
    YOLO; classes by the names of classes, an activation or the output's name; a mask by one channel
    at the resolution of the picture or less. Anything else stays as it is.

    Raises
    ------
    InputError
        The caller asks for a form that the outputs do not have.
    """
    _check_choices(request)
    wanted = request.task
    if wanted == "auto" and (request.format != "auto" or request.decode is not None):
        wanted = "boxes"
    if wanted == "auto" and request.top:
        wanted = "labels"
    if wanted == "raw":
        return _raw(request)
    if wanted == "boxes":
        return _boxes(request, _reader(request))
    if wanted == "labels":
        return _labels(request, _score_output(request, is_asked=True))
    if wanted == "mask":
        return _mask(request, _mask_output(request, is_asked=True))
    return _recognised(request)


def _recognised(request: FormRequest) -> Form:
    reader = _recognised_reader(request)
    if reader is not None:
        return _boxes(request, reader)
    scores = _score_output(request, is_asked=False)
    if scores is not None:
        return _labels(request, scores)
    mask = _mask_output(request, is_asked=False)
    if mask is not None:
        return _mask(request, mask)
    return _raw(request)


def _check_choices(request: FormRequest) -> None:
    for option, value, choices in (
        ("task", request.task, TASKS),
        ("format", request.format, FORMATS),
    ):
        if value not in choices:
            raise InputError(
                f"{option} is {value!r}",
                f"choose one of {', '.join(choices)}",
                option=option,
                suggestions=[Suggestion(option, each) for each in choices],
            )


def _raw(request: FormRequest) -> Form:
    return Form("raw", tuple(spec.name for spec in request.outputs))


def _boxes(request: FormRequest, reader: Reader) -> Form:
    normalized = request.normalized or reader.is_normalized
    return Form("boxes", reader.outputs, reader, normalized)


def _reader(request: FormRequest) -> Reader:
    """Return the reader that the caller asks for."""
    found = None if request.format != "auto" or request.decode else _recognised_reader(request)
    if found is not None:
        return found
    reader = find_reader(request.outputs, request.format, request.decode, request.size)
    return _with_classes(request, reader)


def _with_classes(request: FormRequest, reader: Reader) -> Reader:
    """Return a reader of a YOLO that leaves out columns behind those of the classes."""
    is_yolo = request.is_yolo and request.notes.labels is not None
    return replace(reader, classes=request.class_count) if is_yolo else reader


def _recognised_reader(request: FormRequest) -> Reader | None:
    """Return a reader for outputs that are boxes for certain; None for others."""
    if request.notes.task in ("classify", "obb"):
        return None
    for kind in ("tf", "paddle"):
        names = named_outputs(kind, request.outputs)
        if names and (kind == "tf" or _has_paddle_inputs(request)):
            return Reader(kind, names)
    if names := named_outputs("detr", request.outputs):
        family = _detr_kind(request, names[0])
        return None if family is None else Reader(family, names)
    first = request.outputs[:1]
    if request.is_yolo and first:
        # Further outputs of a YOLO are prototypes of masks, or its feature maps.
        return _yolo_reader(request, first)
    try:
        reader = find_reader(request.outputs, "auto", None, request.size)
    except InputError:
        return None
    is_sure = reader.format == "boxes" or _has_yolo_rows(request.outputs[0], request.size)
    return reader if is_sure else None


def _yolo_reader(request: FormRequest, first: tuple[TensorSpec, ...]) -> Reader | None:
    shape = first[0].shape
    classes = request.class_count
    if shape is not None and len(shape) == 3 and classes is not None:
        coefficients = 32 if request.notes.task == "segment" else 0
        if shape[2] == 6 and _is_few(shape[1]):
            return Reader("xyxysc", (first[0].name,))
        if shape[2] == 5 + classes + coefficients:
            return Reader("yolo5", (first[0].name,), classes=classes)
        if isinstance(shape[1], int) and shape[1] >= 4 + classes:
            return Reader("yolo8", (first[0].name,), classes=classes)
    try:
        return _with_classes(request, find_reader(first, "auto", None, request.size))
    except InputError:
        return None


def _is_few(rows: Dim) -> bool:
    """Return whether rows are selected ones, rather than one for each cell."""
    return not isinstance(rows, int) or rows <= MAX_SELECTED


def _has_yolo_rows(spec: TensorSpec, size: Size) -> bool:
    """Return whether a table has a row for each cell or anchor of a YOLO of this size."""
    if spec.shape is None or len(spec.shape) != 3:
        return False
    cells = cell_counts(size, _STRIDES)
    counts = cells | {3 * count for count in cells}
    return any(dim in counts for dim in spec.shape[1:])


def _has_paddle_inputs(request: FormRequest) -> bool:
    return any(spec.name in ("im_shape", "scale_factor") for spec in request.inputs)


def _detr_kind(request: FormRequest, logits: str) -> Literal["detr", "rtdetr"] | None:
    """Return how the scores of a DETR are made; None if nothing tells it."""
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


def _score_output(request: FormRequest, *, is_asked: bool) -> Any:
    """Return the output of shape (N, classes) with scores; None if none is one for certain."""
    rank = 2 if request.layout.is_batch else 1
    for spec in request.outputs:
        is_vector = spec.dtype is not None and is_floating(spec.dtype) and spec.rank == rank
        if not is_vector or spec.shape is None:
            continue
        width = spec.shape[-1]
        is_named = request.class_count is not None and width == request.class_count
        if is_asked or is_named or looks_like_scores(request.facts, spec):
            return spec
    if is_asked:
        raise _no_such_form(request, "labels", "scores of classes, of shape (batch, classes)")
    return None


def _labels(request: FormRequest, spec: TensorSpec) -> Form:
    has_one = activation_of(request.facts, spec.name) is not None
    width = spec.shape[-1] if spec.shape else None
    if request.class_count is not None and isinstance(width, int) and width < request.class_count:
        raise InputError(
            f"there are {request.class_count} names of classes; output {spec} has {width} scores",
            "give a name for each score",
            option="labels",
            numbers={"labels": request.class_count, "scores": width},
        )
    activation: Activation = "sigmoid" if width == 1 else "softmax"
    return Form("labels", (spec.name,), activation=None if has_one else activation)


def _mask_output(request: FormRequest, *, is_asked: bool) -> Any:
    """Return the output that is a map of the picture; None if none is one for certain."""
    for spec in request.outputs:
        if is_asked and _map_channels(request, spec) is not None:
            return spec
        if is_asked or len(request.outputs) > 1 or not _is_at_most(request, spec):
            continue
        channels = _map_channels(request, spec)
        is_segmenter = request.class_count is not None and channels == request.class_count
        if channels in (0, 1) or is_segmenter:
            return spec
    if is_asked:
        raise _no_such_form(request, "mask", "a map, of shape (batch, [channels,] height, width)")
    return None


def _map_channels(request: FormRequest, spec: TensorSpec) -> int | None:
    """Return the channels of a map, 0 for a map without an axis of them; None for another value."""
    if spec.dtype is None or spec.shape is None:
        return None
    row = spec.shape[1:] if request.layout.is_batch else spec.shape
    is_number = is_floating(spec.dtype) or spec.dtype.kind in "iub"
    if not is_number:
        return None
    if len(row) == 2 and request.layout.is_batch and not is_floating(spec.dtype):
        return 0
    if len(row) != 3:
        return None
    dim = row[0] if request.layout.is_channels_first else row[-1]
    return dim if isinstance(dim, int) else None


def _is_at_most(request: FormRequest, spec: TensorSpec) -> bool:
    """Return whether a map has no more pixels than the input, as far as both are declared."""
    row = (spec.shape or ())[1:] if request.layout.is_batch else spec.shape or ()
    if len(row) == 3:
        row = row[1:] if request.layout.is_channels_first else row[:2]
    sides = (request.layout.height, request.layout.width)
    return all(
        not isinstance(own, int) or not isinstance(most, int) or own <= most
        for own, most in zip(row, sides, strict=False)
    )


def _mask(request: FormRequest, spec: TensorSpec) -> Form:
    channels = _map_channels(request, spec)
    is_float = spec.dtype is not None and is_floating(spec.dtype)
    if channels == 0:
        return Form("mask", (spec.name,), is_classes=True)
    axis: Literal["first", "last"] = "first" if request.layout.is_channels_first else "last"
    is_classes = channels != 1 or not is_float
    return Form("mask", (spec.name,), is_classes=is_classes, classes_axis=axis)


def _no_such_form(request: FormRequest, task: str, what: str) -> InputError:
    return InputError(
        f"no output is {what}: {'; '.join(map(str, request.outputs))}",
        "leave task out, or choose task='raw' for the outputs as they are",
        option="task",
        reason=task,
        suggestions=[Suggestion("task", "raw")],
    )
