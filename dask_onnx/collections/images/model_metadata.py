"""Preparation and class names that a model brings along: its metadata, and files beside it."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dask_onnx.collections.images.ctc_text import lines_of
from dask_onnx.collections.images.presets import PRESETS, Preset
from dask_onnx.collections.images.resampling import Interpolation
from dask_onnx.collections.images.resize import MOST_SIDE, Resize, is_side
from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url

Labels = Mapping[int, str]
"""Class number to name."""
_PREPROCESSOR, _CONFIG = "preprocessor_config.json", "config.json"
_BESIDE = f"{_PREPROCESSOR} beside the model"
"""Name of the preset that the file gives."""
_RESAMPLE: Mapping[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
}
"""Pillow's number of a filter, as Hugging Face's processors store it, to its name."""


@dataclass(frozen=True, slots=True)
class ModelNotes:
    """Metadata of a model about its pictures and outputs."""

    preset: Preset | None = None
    """Preparation; None if nothing tells it."""
    labels: Labels | None = None
    """Names of classes; None if nothing tells them."""
    task: str | None = None
    """Task in the words of the source: "detect", "classify", "segment", "pose", "obb"."""
    architecture: str | None = None
    """Kind of network as Hugging Face's ``config.json`` names it, such as "detr"."""
    keypoints: tuple[int, int] | None = None
    """Key points of each object and numbers of each, as ultralytics' ``kpt_shape`` has them."""
    alphabet: tuple[str, ...] | None = None
    """Characters of a recognition model, as PaddleOCR's ``character`` has them."""


def notes_of(metadata: Mapping[str, str], path: str | None) -> ModelNotes:
    """Return the preparation, names and kind of a model, from its metadata and files beside it.

    Parameters
    ----------
    metadata : mapping of str to str
        The model's ``metadata_props``. Those of ultralytics (``task``, ``imgsz``, ``stride``,
        ``names``) and YOLOv5 (``stride``, ``names``), and ``names`` or ``labels`` of others.
    path : str or None
        Path of the model. ``preprocessor_config.json`` and ``config.json`` in its folder or the
        one above are read, as Hugging Face's and timm's exports have them.
    """
    if "names" in metadata and "stride" in metadata:
        return _of_ultralytics(metadata)
    if "character" in metadata:  # PaddleOCR's recognition models carry their alphabet
        source = "the model's metadata (alphabet of PaddleOCR)"
        alphabet = lines_of(metadata["character"])
        return ModelNotes(replace(PRESETS["paddleocr-rec"], name=source), alphabet=alphabet)
    labels = next((metadata[key] for key in ("names", "labels", "classes") if key in metadata), "")
    found = _of_folder(path)
    names = found.labels or _as_labels(_literal(labels))
    return ModelNotes(found.preset, names, found.task, found.architecture)


def _of_ultralytics(metadata: Mapping[str, str]) -> ModelNotes:
    labels = _as_labels(_literal(metadata["names"]))
    task = metadata.get("task", "detect")
    size = _literal(metadata.get("imgsz", ""))
    given = size if isinstance(size, list | tuple) else ()
    sides = [int(each) for each in given if is_side(each)]
    if len(sides) < len(given):
        sides = []
    stride = _literal(metadata["stride"])
    step = int(stride) if isinstance(stride, int | float) and 1 <= stride <= MOST_SIDE else None
    source = "the model's metadata (ultralytics)"
    if task == "classify":
        side = sides[0] if sides else 224
        preset = Preset(
            source,
            1 / 255,
            color="RGB",
            interpolation="bilinear",
            shape="shorter",
            side=side,
            is_yolo=True,
        )
        return ModelNotes(preset, labels, task)
    yolo = PRESETS["yolo"]
    height, width = sides if len(sides) == 2 else (yolo.side, yolo.side)
    preset = Preset(
        source,
        yolo.scale,
        color=yolo.color,
        interpolation=yolo.interpolation,
        resize=Resize("letterbox", height, width),
        shape="letterbox" if height == width else "",
        side=height,
        stride=step,
        is_yolo=True,
    )
    return ModelNotes(preset, labels, task, keypoints=_keypoints(metadata.get("kpt_shape", "")))


def _keypoints(text: str) -> tuple[int, int] | None:
    given = _literal(text)
    if not isinstance(given, list | tuple) or len(given) != 2:
        return None
    count, numbers = (int(each) if isinstance(each, int) else 0 for each in given)
    return (count, numbers) if count > 0 and numbers in (2, 3) else None


def _of_folder(path: str | None) -> ModelNotes:
    if path is None or is_url(path):
        return ModelNotes()
    folder = Path(path).parent
    for place in (folder, folder.parent) if folder.name in ("onnx", "model") else (folder,):
        config, processor = _json(place / _CONFIG), _json(place / _PREPROCESSOR)
        if config is None and processor is None:
            continue
        config = config or {}
        labels = _as_labels(config.get("id2label") or config.get("label_names"))
        kind = config.get("model_type")
        kind = kind if isinstance(kind, str) else None
        if processor is not None:
            preset = _well_formed(lambda given: _of_processor(given, _BESIDE), processor)
            return ModelNotes(preset, labels, None, kind)
        timm = config.get("pretrained_cfg")
        if isinstance(timm, Mapping):
            return ModelNotes(_well_formed(_of_timm, timm), labels, "classify", kind)
        if labels is not None or kind is not None:
            return ModelNotes(None, labels, None, kind)
    return ModelNotes()


def _well_formed(
    read: Callable[[Mapping[str, Any]], Preset | None], given: Mapping[str, Any]
) -> Preset | None:
    """Return the preparation in a file; None if its entries are not what its library writes."""
    try:
        return read(given)
    except (TypeError, ValueError, OverflowError):  # other types, or numbers out of range
        return None


def _of_processor(given: Mapping[str, Any], source: str) -> Preset | None:
    """Return the preparation of an image processor of Hugging Face."""
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    scale = float(given.get("rescale_factor") or 1 / 255) if given.get("do_rescale", True) else 1.0
    mean, std = given.get("image_mean"), given.get("image_std")
    if not given.get("do_normalize", True):
        mean = std = None
    method = _RESAMPLE.get(given.get("resample", 2))
    if method is None:
        return None
    resize = _processor_size(given, kind) if given.get("do_resize", True) else Resize("none")
    crop = _sides(given.get("crop_size")) if given.get("do_center_crop", False) else None
    share = given.get("crop_pct")
    if share and "ConvNext" in kind and resize.how == "shorter" and resize.height:
        side = resize.height
        resize, crop = Resize("shorter", int(side / share)), (side, side)
    return Preset(
        source,
        scale,
        _floats(mean),
        _floats(std),
        "RGB",
        method,
        resize=resize,
        crop=crop,
        floors_crop=True,
    )


def _processor_size(given: Mapping[str, Any], kind: str) -> Resize:
    """Return the rule for the size.

    Raises
    ------
    ValueError
        It is of another rule, or no number of pixels.
    """
    size = given.get("size")
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            longest = size.get("longest_edge")
            return Resize(
                "shorter",
                _side(size["shortest_edge"]),
                longest=None if longest is None else _side(longest),
            )
        if "height" in size and "width" in size:
            return Resize("stretch", _side(size["height"]), _side(size["width"]))
        raise ValueError(f"a size of {', '.join(map(str, size))} is of no rule that is known")
    if size is not None:
        size = _side(size)
        # Old files: a number is the shorter side where a crop follows, and both sides otherwise.
        is_shorter = bool(given.get("do_center_crop")) or "CLIP" in kind or "ConvNext" in kind
        longest = given.get("max_size")
        if is_shorter or longest:
            return Resize("shorter", size, longest=_side(longest) if longest else None)
        return Resize("stretch", size, size)
    return Resize("none")


def _of_timm(given: Mapping[str, Any]) -> Preset | None:
    size = given.get("input_size")
    method = str(given.get("interpolation", "bicubic"))
    if not isinstance(size, Sequence) or len(size) != 3 or method not in _RESAMPLE.values():
        return None
    height, width = _side(size[1]), _side(size[2])
    share = float(given.get("crop_pct") or 0.875)
    if given.get("crop_mode", "center") != "center" or height != width:
        return None
    return Preset(
        "config.json beside the model (timm)",
        1 / 255,
        _floats(given.get("mean")),
        _floats(given.get("std")),
        "RGB",
        cast(Interpolation, method),
        resize=Resize("shorter", math.floor(height / share)),
        crop=(height, width),
    )


def read_labels(given: Any) -> Labels | None:
    """Return class names from what a caller gives.

    Parameters
    ----------
    given : path, sequence of str, mapping of int to str, or None
        A file is JSON (a list, or a mapping of numbers to names) or text with a name in each line,
        numbered from 0.

    Raises
    ------
    InputError
        The file cannot be read, or holds no names.
    """
    if given is None:
        return None
    if isinstance(given, Mapping) or (
        isinstance(given, Sequence) and not isinstance(given, str | bytes)
    ):
        found = _as_labels(given)
    elif not isinstance(given, str | os.PathLike):
        found = None
    else:
        path = Path(given).expanduser()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the labels {path} cannot be read: {error}",
                "give a text file with a name in each line, or JSON",
                option="labels",
                reason=str(error),
            ) from None
        found = _as_labels(_parsed(text, path))
    if not found:
        raise InputError(
            "labels holds no names of classes",
            "give a name for each class: a list, or a mapping of numbers to names",
            option="labels",
        )
    return found


def _parsed(text: str, path: Path) -> Any:
    if path.suffix.lower() == ".json":
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return None
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _as_labels(given: Any) -> Labels | None:
    """Return names by class number; None if something else was given."""
    if isinstance(given, Mapping) and given:
        try:
            return {int(number): str(name) for number, name in given.items()}
        except (TypeError, ValueError):
            return None
    if isinstance(given, list | tuple) and given:
        return {number: str(name) for number, name in enumerate(given)}
    return None


def _literal(text: str) -> Any:
    """Return the value of a Python or JSON literal; None if the text is something else."""
    for read in (ast.literal_eval, json.loads):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return read(text)
    return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _floats(values: Any) -> tuple[float, ...] | None:
    if isinstance(values, list | tuple) and values:
        return tuple(float(value) for value in values)
    return (float(values),) * 3 if isinstance(values, int | float) else None


def _sides(given: Any) -> tuple[int, int] | None:
    if isinstance(given, Mapping) and "height" in given and "width" in given:
        return _side(given["height"]), _side(given["width"])
    return (_side(given), _side(given)) if isinstance(given, int) else None


def _side(given: Any) -> int:
    """Return a side in pixels.

    Raises
    ------
    ValueError
        It is no whole number of pixels that a picture may have.
    """
    if not is_side(given):
        raise ValueError(f"{given!r} is no number of pixels")
    return int(given)
