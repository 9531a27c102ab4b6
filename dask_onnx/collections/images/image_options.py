"""Options of `ImageModel` as a caller gives them, and the checks of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from dask_onnx.collections.images.box_readers import Decode, Format
from dask_onnx.collections.images.decoding import CHANNELS, Color
from dask_onnx.collections.images.form_requests import Task
from dask_onnx.core.errors import InputError, Suggestion

PILLOWS_PIXELS = 178_956_970
"""Pixels above which Pillow itself refuses a picture."""
USUAL_PIXELS = PILLOWS_PIXELS // 2
"""Pixels above which Pillow warns; the default of `max_pixels`."""
USUAL_THRESHOLD = 0.25
"""Score below which boxes are dropped, unless the caller or the format states another."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Options as a caller gives them; None leaves one to the model. See `ImageModel`."""

    preset: Any = None
    resize: Any = None
    crop: Any = None
    layout: str | None = None
    color: str | None = None
    scale: float | None = None
    mean: Any = None
    std: Any = None
    interpolation: str | None = None
    labels: Any = None
    alphabet: Any = None
    task: Task = "auto"
    format: Format = "auto"
    decode: Decode | None = None
    keypoints: Any = None
    normalized: bool = False
    top: int | None = None
    score_threshold: float | None = None
    iou_threshold: float = 0.5
    class_agnostic: bool = False
    outputs: Any = None
    input: str | None = None
    feeds: Mapping[str, Any] = field(default_factory=dict)
    max_pixels: int = USUAL_PIXELS


def color_of(given: Any, channels: int) -> Color:
    """Return the order of channels, by default the usual one for their number.

    Raises
    ------
    InputError
        There is no such order, or the model takes another number of channels.
    """
    name = given or {1: "gray", 3: "RGB", 4: "RGBA"}[channels]
    known = {each.lower(): each for each in CHANNELS} | {"grey": "gray", "l": "gray"}
    if str(name).lower() not in known:
        raise InputError(
            f"color is {name!r}",
            f"choose one of {', '.join(CHANNELS)}",
            option="color",
            suggestions=[Suggestion("color", each) for each in CHANNELS],
        )
    color = cast(Color, known[str(name).lower()])
    if CHANNELS[color] != channels:
        fitting = [each for each, count in CHANNELS.items() if count == channels]
        raise InputError(
            f"color {color} has {CHANNELS[color]} channels; the model takes {channels}",
            f"choose {' or '.join(fitting)}",
            option="color",
            numbers={"channels": CHANNELS[color], "model_channels": channels},
            suggestions=[Suggestion("color", each) for each in fitting],
        )
    return color


def scale_of(given: Any, preset: float | None) -> float:
    """Return the factor of pixel values: the caller's, or else the preset's, or else 1.

    Raises
    ------
    InputError
        It is no number, or 0.
    """
    if given is None:
        return 1.0 if preset is None else preset
    is_number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
    if not is_number or not np.isfinite(given) or given == 0:
        raise InputError(f"scale is {given!r}", "give a number, such as 1/255", option="scale")
    return float(given)


def values_per_channel(
    given: Any, preset: tuple[float, ...] | None, default: float, channels: int, option: str
) -> tuple[float, ...]:
    """Return a mean or deviation for each channel: the caller's, the preset's, or the default.

    Parameters
    ----------
    given : number, sequence of numbers, or None
    preset : tuple of float or None
    default : float
    channels : int
    option : str
        Name of the option, for errors.

    Raises
    ------
    InputError
        Not a finite number, nor one for each channel.
    """
    if given is None:
        return preset or (default,) * channels
    values = np.asarray(given, dtype=np.float64).reshape(-1) if _is_numeric(given) else None
    if values is None or len(values) not in (1, channels) or not np.isfinite(values).all():
        raise InputError(
            f"{option} is {given!r}",
            f"give a number, or {channels} of them: one for each channel",
            option=option,
            numbers={"channels": channels},
        )
    return tuple(np.broadcast_to(values, channels).tolist())


def _is_numeric(given: Any) -> bool:
    try:
        return np.asarray(given).dtype.kind in "iuf"
    except ValueError:  # ragged
        return False


def pixel_limit(given: Any) -> int:
    """Return the largest number of pixels of a picture.

    Raises
    ------
    InputError
        It is no number that Pillow allows.
    """
    is_whole = hasattr(given, "__index__") and not isinstance(given, bool)
    if not is_whole or not 1 <= int(given) <= PILLOWS_PIXELS:
        raise InputError(
            f"max_pixels is {given!r}",
            f"give a number of pixels up to {PILLOWS_PIXELS:,}, at which Pillow stops",
            option="max_pixels",
            numbers={"most_pixels": PILLOWS_PIXELS},
        )
    return int(given)


def share_of(given: Any, option: str) -> float:
    """Return a threshold.

    Raises
    ------
    InputError
        It is no number from 0 to 1.
    """
    is_number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
    if not is_number or not 0 <= given <= 1:
        raise InputError(f"{option} is {given!r}", "give a number from 0 to 1", option=option)
    return float(given)


def top_of(given: Any) -> int:
    """Return the number of classes of each picture, 1 by default.

    Raises
    ------
    InputError
        It is no number from 1 on.
    """
    if given is None:
        return 1
    if isinstance(given, bool) or not hasattr(given, "__index__") or int(given) < 1:
        raise InputError(f"top is {given!r}", "give a number of classes from 1 on", option="top")
    return int(given)


def keypoints_of(given: Any) -> tuple[int, int] | None:
    """Return the number of key points, and of numbers of each: 2, or 3 with a score.

    Raises
    ------
    InputError
        It is something else.
    """
    if given is None:
        return None
    parts = tuple(given) if isinstance(given, list | tuple) else ()
    is_whole = all(hasattr(p, "__index__") and not isinstance(p, bool) for p in parts)
    if len(parts) != 2 or not is_whole or int(parts[0]) < 1 or int(parts[1]) not in (2, 3):
        raise InputError(
            f"keypoints is {given!r}",
            "give the number of key points and of numbers of each, as (17, 3)",
            option="keypoints",
            suggestions=[Suggestion("keypoints", (17, 3)), Suggestion("keypoints", (17, 2))],
        )
    return int(parts[0]), int(parts[1])
