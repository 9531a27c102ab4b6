"""Checks of the options of `detect_sliced`, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np

from dask_onnx.api.model import Model
from dask_onnx.collections.images.box_readers import BOX_FORMATS
from dask_onnx.collections.images.boxes import Metric
from dask_onnx.collections.images.input_layout import InputLayout, Size, input_layout
from dask_onnx.core.errors import InputError, Suggestion

DEFAULT_METRICS: Mapping[str, Metric] = {
    "seams": "iou",
    "nms": "ios",
    "nmm": "ios",
    "weighted": "iou",
}
"""Way to merge boxes to its default measure of overlap."""


def check_share(name: str, value: Any, range_text: str, excluded: float | None = None) -> None:
    """Check that an option is a number from 0 to 1.

    Parameters
    ----------
    name : str
        Name of the option.
    value : Any
    range_text : str
        The range in words, for the error.
    excluded : float, optional
        End of the range that is not allowed.

    Raises
    ------
    InputError
        The option is something else.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1 or value == excluded:
        raise InputError(f"{name} is {value!r}", f"give a number {range_text}", option=name)


def check_choices(wanted: Any, merge: Any, metric: Any) -> None:
    """Check the options `format`, `merge` and `metric`.

    Raises
    ------
    InputError
        One of them is not among its choices, or `metric` is given for "seams".
    """
    for name, value, choices in (
        ("format", wanted, BOX_FORMATS),
        ("merge", merge, tuple(DEFAULT_METRICS)),
        ("metric", metric, (None, *get_args(Metric))),
    ):
        if value not in choices:
            raise InputError(
                f"{name} is {value!r}",
                f"choose one of {', '.join(map(repr, choices))}",
                option=name,
                suggestions=[Suggestion(name, choice) for choice in choices if choice is not None],
            )
    if merge == "seams" and metric is not None:
        raise InputError(
            f"metric is {metric!r}, but merge='seams' has a rule of its own",
            "leave metric out, or choose merge='nms', 'nmm' or 'weighted'",
            option="metric",
            suggestions=[Suggestion("metric")],
        )


def check_functions(**functions: Any) -> None:
    """Check that options are callable or None.

    Raises
    ------
    InputError
        One of them is not.
    """
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise InputError(
                f"{name} is of type {type(value).__name__}", "pass a function", option=name
            )


def check_switches(**switches: Any) -> None:
    """Check that options are booleans.

    Raises
    ------
    InputError
        One of them is not.
    """
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{name} is {value!r}", "pass True or False", option=name)


def image_input(model: Any, feeds: Any) -> InputLayout:
    """Return the layout of the input that takes images: the one that `feeds` does not name.

    Raises
    ------
    InputError
        `model` is no Model, `feeds` is no mapping of its inputs or does not leave exactly one, or
        the remaining input does not take images.
    """
    if not isinstance(model, Model):
        raise InputError(
            f"model is of type {type(model).__name__}",
            "pass what dask_onnx.load returns",
            option="model",
        )
    if not isinstance(feeds, Mapping):
        raise InputError(
            f"feeds is of type {type(feeds).__name__}",
            "pass a dict by input name",
            option="feeds",
        )
    specs = {spec.name: spec for spec in model.inputs}
    if unknown := [name for name in feeds if name not in specs]:
        raise InputError(
            f"feeds names {', '.join(map(repr, unknown))}, which the model does not take",
            f"its inputs are {', '.join(map(str, model.inputs))}",
            option="feeds",
            input=str(unknown[0]),
        )
    left = [spec for name, spec in specs.items() if name not in feeds]
    if len(left) != 1:
        raise InputError(
            f"{len(left)} inputs are left for the image: {', '.join(map(str, left)) or 'none'}",
            "pass all inputs but that of the image as feeds={name: value for one slice}",
            option="feeds",
            numbers={"inputs_left": len(left)},
        )
    return input_layout(left[0])


def slice_size_of(layout: InputLayout, wanted: Any, *, can_resize: bool) -> Size:
    """Return height and width of the slices in pixels.

    Parameters
    ----------
    layout : InputLayout
    wanted : int, (int, int) or None
        The caller's size; None for that of the model.
    can_resize : bool
        True if `preprocess` may resize slices to the model's size.

    Raises
    ------
    InputError
        The size is not one or two positive integers, differs from the model's, or is missing where
        the model does not declare one.
    """
    declared = (layout.height, layout.width)
    declared_text = " x ".join(str(side or "?") for side in declared)
    if wanted is None:
        if declared[0] is None or declared[1] is None:
            raise InputError(
                f"input {layout.name!r} takes {declared_text} pixels, which leaves the size of the "
                "slices open",
                "pass slice_size=, such as slice_size=(640, 640)",
                option="slice_size",
                input=layout.name,
                suggestions=[Suggestion("slice_size", (640, 640))],
            )
        return declared[0], declared[1]
    sides = tuple(wanted) if isinstance(wanted, Sequence) else (wanted, wanted)
    pixels = [side for side in sides if isinstance(side, Integral) and not isinstance(side, bool)]
    if len(sides) != 2 or len(pixels) != 2 or min(pixels) < 1:
        raise InputError(
            f"slice_size is {wanted!r}",
            "give pixels: a positive integer, or (height, width)",
            option="slice_size",
        )
    is_declared = all(dim in (None, side) for dim, side in zip(declared, pixels, strict=True))
    if not can_resize and not is_declared:
        raise InputError(
            f"slice_size is {wanted!r}; input {layout.name!r} takes {declared_text} pixels",
            "leave slice_size out, or pass a preprocess= that resizes slices",
            option="slice_size",
            input=layout.name,
            suggestions=[Suggestion("slice_size"), Suggestion("preprocess")],
        )
    return int(pixels[0]), int(pixels[1])
