"""Options of ``dask-onnx predict`` for pictures, and the parsers of their values."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import click

from dask_onnx.collections.images.box_readers import FORMATS
from dask_onnx.collections.images.form_requests import TASKS
from dask_onnx.collections.images.presets import PRESET_NAMES
from dask_onnx.collections.images.resampling import INTERPOLATIONS
from dask_onnx.core.errors import InputError

_NUMBERS = ("scale", "mean", "std")
_OPTIONS = (
    click.option(
        "--preset",
        type=click.Choice(PRESET_NAMES),
        help="Preparation of pictures; the model's metadata by default.",
    ),
    click.option(
        "--resize",
        metavar="RULE",
        help="none, 640, 640x480, shorter=256, letterbox=640, multiple=32, height=48.",
    ),
    click.option("--crop", metavar="N|WxH", help="Part in the middle, after resizing."),
    click.option(
        "--layout",
        type=click.Choice(["NCHW", "NHWC"], case_sensitive=False),
        help="Order of the input's axes; found from the model by default.",
    ),
    click.option(
        "--color",
        type=click.Choice(["RGB", "BGR", "gray", "RGBA"], case_sensitive=False),
        help="Order of the channels.",
    ),
    click.option("--scale", metavar="X", help="Factor of pixel values, such as 1/255."),
    click.option("--mean", metavar="X,...", help="Subtracted after scaling, from each channel."),
    click.option("--std", metavar="X,...", help="Divisor of each channel."),
    click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="Way of resizing."),
    click.option("--labels", metavar="FILE", help="Names of classes: a line each, or JSON."),
    click.option("--alphabet", metavar="FILE", help="Characters of texts: a line each."),
    click.option("--keypoints", metavar="N,2|3", help="Key points, and numbers of each."),
    click.option("--task", type=click.Choice(TASKS), help="Form of results; auto by default."),
    click.option("--format", "format", type=click.Choice(FORMATS), help="Format of boxes."),
    click.option("--top", type=click.IntRange(min=1), help="Classes of each picture."),
    click.option(
        "--score-threshold", type=click.FloatRange(0, 1), help="Least score; 0.25, of text 0.6."
    ),
    click.option(
        "--iou-threshold", type=click.FloatRange(0, 1), help="Overlap of duplicates; 0.5."
    ),
    click.option("--max-pixels", type=click.IntRange(min=1), help="Of a picture that is decoded."),
)
NAMES = tuple(
    "preset resize crop layout color scale mean std interpolation labels alphabet keypoints task "
    "format top score_threshold iou_threshold max_pixels".split()
)
"""Names of the options, which are those of `ImageModel`."""


def image_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `ImageModel` to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def picture_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for files of pictures to a command."""
    draw = click.option("--draw", metavar="FOLDER", help="Draw the results over the pictures.")
    return image_options(draw(function))


def take_picture_options(given: dict[str, Any]) -> dict[str, Any] | None:
    """Take the options for pictures out of those of a command; None if there are none.

    Parameters
    ----------
    given : dict of str to value
        Options by name, from which those for pictures are removed.

    Raises
    ------
    InputError
        A value is no number.
    """
    found = {name: given.pop(name) for name in NAMES}
    found = {name: value for name, value in found.items() if value is not None}
    for name in _NUMBERS:
        if name in found:
            numbers = [_number(part, name) for part in str(found[name]).split(",")]
            found[name] = numbers[0] if len(numbers) == 1 else numbers
    if "keypoints" in found:
        found["keypoints"] = _integers(str(found["keypoints"]), "keypoints")
    if isinstance(found.get("scale"), list):
        raise InputError("scale has several numbers", "give one: 1/255", option="scale")
    return found or None


def _integers(text: str, option: str) -> list[int]:
    """Return whole numbers that are separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} is {text!r}",
            "give whole numbers, separated by commas, such as 17,3",
            option=option,
        ) from None


def _number(text: str, option: str) -> float:
    """Return a number that is written as a decimal or a fraction."""
    try:
        return float(Fraction(text.strip())) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"{option} has {text!r}, which is no number",
            "give numbers such as 0.5 or 1/255, separated by commas",
            option=option,
        ) from None
