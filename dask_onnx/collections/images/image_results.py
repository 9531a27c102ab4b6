"""Results for one picture, in its own coordinates, and their rows in a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.box_sets import sigmoid, softmax
from dask_onnx.collections.images.boxes import Boxes
from dask_onnx.collections.images.ctc_text import characters_of, read_text
from dask_onnx.collections.images.geometry import Geometry
from dask_onnx.collections.images.image_forms import Form
from dask_onnx.collections.images.model_metadata import Labels
from dask_onnx.collections.images.object_details import BoxMask, Placed, place_objects

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """Result of a model for one picture.

    Attributes
    ----------
    task : {"boxes", "labels", "mask", "text", "raw"}
        Name of the field below that is set.
    geometry : Geometry
        Where the picture lay in the model's input.
    file : str or None
        Path of the picture; None for one that was given as bytes, image or array.
    boxes : Boxes or None
        Objects, by falling score: corners in pixels of the picture, scores and class numbers.
    labels : numpy.ndarray or None
        int64: the best classes of the picture, by falling score.
    scores : numpy.ndarray or None
        float32: scores of `labels`, or of the characters of `text`.
    mask : numpy.ndarray or None
        Map of the picture's height and width: values, or class numbers.
    outputs : mapping of str to numpy.ndarray
        The model's outputs for the picture, without a batch axis, where they stay as they are.
    names : tuple of str
        Name of the class of each of `boxes` or `labels`; empty where names are unknown.
    masks : tuple of BoxMask or None
        Mask of each of `boxes`, from models with masks of objects.
    points : numpy.ndarray or None
        float32, shape (n, points, 2 or 3): key points of each of `boxes`, x and y in pixels of the
        picture and perhaps a score.
    corners : numpy.ndarray or None
        float32, shape (n, 4, 2): corners of turned boxes, x and y in pixels of the picture;
        `boxes` are the smallest upright boxes around them.
    text : str or None
        Text of the picture.
    """

    task: Literal["boxes", "labels", "mask", "text", "raw"]
    """Name of the field below that is set."""
    geometry: Geometry
    """Position and scale of the picture in the model's input."""
    file: str | None = None
    """Path of the picture, if it was given as one."""
    boxes: Boxes | None = None
    """Objects, in pixels of the picture, by falling score."""
    labels: npt.NDArray[np.int64] | None = None
    """int64: the best classes of the picture, by falling score."""
    scores: npt.NDArray[np.float32] | None = None
    """float32: scores of `labels`, or of the characters of `text`."""
    mask: Array | None = None
    """Map of the picture's height and width."""
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """The model's outputs without a batch axis, where they stay as they are."""
    names: tuple[str, ...] = ()
    """Name of the class of each of `boxes` or `labels`."""
    masks: tuple[BoxMask, ...] | None = None
    """Mask of each of `boxes`."""
    points: npt.NDArray[np.float32] | None = None
    """float32, shape (n, points, 2 or 3): key points of each of `boxes`."""
    corners: npt.NDArray[np.float32] | None = None
    """float32, shape (n, 4, 2): corners of each of `boxes`, which are turned."""
    text: str | None = None
    """Text of the picture."""

    def __repr__(self) -> str:
        where = "" if self.file is None else f" {self.file}:"
        height, width = self.geometry.picture
        return f"<ImageResult{where} {width} x {height}, {self._found()}>"

    def _found(self) -> str:
        if self.boxes is not None:
            details = {"masks": self.masks, "points": self.points, "corners": self.corners}
            held = "".join(f" with {name}" for name, own in details.items() if own is not None)
            return f"{len(self.boxes)} boxes{held}"
        if self.text is not None:
            return f"text {self.text!r}"
        if self.labels is not None and self.scores is not None:
            shown = self.names or tuple(map(str, self.labels.tolist()))
            return ", ".join(
                f"{name} {score:.3f}" for name, score in zip(shown, self.scores, strict=True)
            )
        if self.mask is not None:
            return f"a mask of {self.mask.dtype}"
        return ", ".join(f"{name} {value.shape}" for name, value in self.outputs.items())


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """Options of the reading of results; see `ImageModel`."""

    score_threshold: float
    """Score below which boxes are dropped."""
    iou_threshold: float
    """Intersection over union at which boxes of a class are duplicates."""
    class_agnostic: bool
    """True if boxes of different classes may be duplicates."""
    top: int
    """Classes of each picture, at most."""
    labels: Labels | None
    """Names of classes."""


def read_result(
    outputs: Mapping[str, Array],
    geometry: Geometry,
    form: Form,
    options: ResultOptions,
    file: str | None,
) -> ImageResult:
    """Return the result of one picture.

    Parameters
    ----------
    outputs : mapping of str to array
        The model's outputs for the picture, without a batch axis.
    geometry : Geometry
    form : Form
    options : ResultOptions
    file : str or None
        Path of the picture.

    Raises
    ------
    InputError
        The outputs are not of the form.
    """
    if form.task == "boxes":
        found = _objects(outputs, geometry, form, options)
        return ImageResult(
            "boxes",
            geometry,
            file,
            boxes=found.boxes,
            names=_names(found.boxes.labels, options.labels),
            masks=found.masks,
            points=found.points,
            corners=found.corners,
        )
    if form.task == "text":
        text, sure = _text(outputs[form.outputs[0]], form)
        return ImageResult("text", geometry, file, scores=sure, text=text)
    if form.task == "labels":
        labels, scores = _best(outputs[form.outputs[0]], form, options.top)
        names = _names(labels, options.labels)
        return ImageResult("labels", geometry, file, labels=labels, scores=scores, names=names)
    if form.task == "mask":
        mask = _mask(outputs[form.outputs[0]], geometry, form)
        return ImageResult("mask", geometry, file, mask=mask)
    kept = {name: outputs[name] for name in form.outputs}
    return ImageResult("raw", geometry, file, outputs=kept)


def _names(labels: Any, known: Labels | None) -> tuple[str, ...]:
    if known is None:
        return ()
    return tuple(known.get(int(label), str(int(label))) for label in labels)


def _objects(
    outputs: Mapping[str, Array], geometry: Geometry, form: Form, options: ResultOptions
) -> Placed:
    assert form.reader is not None
    reader = replace(form.reader, size=geometry.tensor)
    found = reader.objects_above(outputs, options.score_threshold)
    if form.is_normalized:
        found = replace(found, boxes=found.boxes * np.tile(geometry.tensor[::-1], 2))
    return place_objects(
        found,
        reader.detail,
        geometry,
        prototypes=reader.prototypes(outputs),
        keypoints=reader.keypoints,
        iou_threshold=options.iou_threshold if reader.has_duplicates else None,
        class_agnostic=options.class_agnostic,
    )


def _text(values: Array, form: Form) -> tuple[str, npt.NDArray[np.float32]]:
    scores = values.astype(np.float32)
    if form.activation == "softmax":
        scores = softmax(scores)
    return read_text(scores, characters_of(form.alphabet, scores.shape[-1]))


def _best(values: Array, form: Form, top: int) -> tuple[Array, Array]:
    """Return the best classes and their scores, by falling score; ties by class number."""
    scores = values.reshape(-1).astype(np.float32)
    if form.activation == "softmax":
        scores = softmax(scores)
    elif form.activation == "sigmoid":
        scores = sigmoid(scores)
    order = np.argsort(-scores, kind="stable")[:top]
    return order.astype(np.int64), scores[order]


def _mask(value: Array, geometry: Geometry, form: Form) -> Array:
    """Return the map of the picture.

    Of several channels the best one at each pixel counts, after each has been resized, as in
    Hugging Face's processors; one after the other, since a picture may be large.
    """
    if form.classes_axis is None:
        return geometry.mask_to_image(value)
    channels = value if form.classes_axis == "first" else np.moveaxis(value, -1, 0)
    if len(channels) == 1:
        return geometry.mask_to_image(channels[0])
    best = geometry.mask_to_image(channels[0])
    classes = np.zeros(best.shape, np.uint8 if len(channels) <= 256 else np.int32)
    for number, channel in enumerate(channels[1:], 1):
        own = geometry.mask_to_image(channel)
        is_better = own > best
        classes[is_better] = number
        best = np.maximum(best, own)
    return classes
