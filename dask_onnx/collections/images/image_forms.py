"""Forms of outputs: boxes, scores of classes, masks, or whatever else, as the model gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dask_onnx.collections.images.box_readers import FORMATS, Reader
from dask_onnx.collections.images.ctc_text import characters_of
from dask_onnx.collections.images.detector_forms import recognised_reader, with_classes
from dask_onnx.collections.images.form_requests import TASKS, FormRequest
from dask_onnx.collections.images.formats import find_reader
from dask_onnx.collections.images.graph_hints import Activation, activation_of, looks_like_scores
from dask_onnx.collections.images.text_areas import TEXT_MAP
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec, is_floating
from dask_onnx.io.optional_packages import require_package


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a model's results."""

    task: Literal["boxes", "labels", "mask", "text", "raw"]
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
    alphabet: tuple[str, ...] = ()
    """Characters of a text, without the blank."""
    row_types: tuple[tuple[np.dtype[Any] | None, int | None], ...] = ()
    """Dtype and number of axes of each output for one picture, for "raw"; None where unknown."""

    def describe(self) -> str:
        """Return the form in words."""
        names = ", ".join(self.outputs)
        if self.task == "boxes" and self.reader is not None:
            detail = {"masks": " and masks", "points": " and key points", "angles": " with angles"}
            what = f"boxes{detail.get(self.reader.detail, '')}"
            return f"{what}, read as {self.reader.format} from {names}"
        if self.task == "text":
            return f"text in {len(self.alphabet):,} characters, from {names}"
        if self.task == "labels":
            how = f" after a {self.activation}" if self.activation else ""
            return f"classes, from {names}{how}"
        if self.task == "mask":
            return f"a map of {'classes' if self.is_classes else 'values'}, from {names}"
        return f"the outputs as they are: {names}"


def find_form(request: FormRequest) -> Form:
    """Return the form of a model's results.

    Without the caller's word, boxes are recognised by names, or by a table whose size is that of a
    YOLO; classes by the names of classes, an activation or the output's name; a mask by one channel
    at the resolution of the picture or less; text by an alphabet. Anything else stays as it is.

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
    if wanted == "text":
        return _text(request, is_asked=True) or _raw(request)
    return _recognised(request)


def _recognised(request: FormRequest) -> Form:
    reader = recognised_reader(request)
    if reader is None and request.is_text_map and _text_output(request) is not None:
        reader = _text_map(request)
    if reader is not None:
        return _boxes(request, reader)
    text = _text(request, is_asked=False)
    if text is not None:
        return text
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
    rows = int(request.layout.is_batch)
    types = tuple((s.dtype, None if s.rank is None else s.rank - rows) for s in request.outputs)
    return Form("raw", tuple(spec.name for spec in request.outputs), row_types=types)


def _boxes(request: FormRequest, reader: Reader) -> Form:
    normalized = request.normalized or reader.is_normalized
    return Form("boxes", reader.outputs, reader, normalized)


def _reader(request: FormRequest) -> Reader:
    """Return the reader that the caller asks for."""
    if request.format == TEXT_MAP or (request.is_text_map and request.format == "auto"):
        return _text_map(request)
    found = None if request.format != "auto" or request.decode else recognised_reader(request)
    if found is not None:
        return found
    try:
        reader = find_reader(
            request.outputs, request.format, request.decode, request.size, request.keypoints
        )
    except InputError as error:
        if request.format == "auto" and (hint := _details_hint(request)):
            raise InputError(error.cause, hint, **error.fields) from None
        raise
    return with_classes(request, reader)


def _text_map(request: FormRequest) -> Reader:
    """Return the reader of a map of text.

    Raises
    ------
    InputError
        OpenCV is not installed, or no output is a map of one channel.
    """
    spec = _text_output(request)
    if spec is None:
        raise _no_such_form(request, "boxes", "a map of text, of shape (batch, 1, height, width)")
    require_package("cv2", f"format {TEXT_MAP!r}", "task='mask' for the map of text as it is")
    return Reader(TEXT_MAP, (spec.name,), size=request.size)


def _text_output(request: FormRequest) -> TensorSpec | None:
    """Return the first output that is a map of probabilities of one channel."""
    for spec in request.outputs:
        is_number = spec.dtype is not None and is_floating(spec.dtype)
        if is_number and _map_channels(request, spec) in (0, 1):
            return spec
    return None


def _details_hint(request: FormRequest) -> str:
    """Return the formats of details to pass, where outputs look like those of one."""
    if any(spec.rank == 4 for spec in request.outputs):
        return "pass format='yolo8-seg', 'yolo5-seg' or 'xyxysc-seg', or a function: decode="
    return ""


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


def _text(request: FormRequest, *, is_asked: bool) -> Form | None:
    """Return the form of text; None if no output is one for certain."""
    rank = 3 if request.layout.is_batch else 2
    if request.alphabet is None:
        if not is_asked:
            return None
        raise InputError(
            "nothing tells the characters of the model's classes",
            "pass alphabet=, a text file with a character in each line, or a list of them",
            option="alphabet",
            suggestions=[Suggestion("alphabet")],
        )
    for spec in request.outputs:
        if spec.rank != rank or spec.dtype is None or not is_floating(spec.dtype):
            continue
        classes = spec.shape[-1] if spec.shape else None
        if isinstance(classes, int):
            characters_of(request.alphabet, classes)
        has_one = activation_of(request.facts, spec.name) is not None
        return Form(
            "text",
            (spec.name,),
            activation=None if has_one else "softmax",
            alphabet=request.alphabet,
        )
    if is_asked:
        raise _no_such_form(request, "text", "scores of steps, of shape (batch, steps, classes)")
    return None


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
