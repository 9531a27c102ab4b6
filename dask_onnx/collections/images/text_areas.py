"""Areas of text in the map of a detector with differentiable binarisation (DB), as in PaddleOCR.

Liao et al., "Real-time Scene Text Detection with Differentiable Binarization", AAAI 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.input_layout import Size
from dask_onnx.collections.images.yolo_tables import Objects
from dask_onnx.core.errors import InputError

Array = npt.NDArray[Any]
TEXT_MAP = "dbnet"
"""Name of the format."""
USUAL_SCORE = 0.6
"""Least mean probability of an area, unless the caller states another; PaddleOCR's."""
_IS_TEXT = 0.3
"""Probability above which a pixel belongs to an area."""
_GROWTH = 1.5
"""Ratio by which areas are grown: the model is trained on areas that are shrunk."""
_LEAST_SIDE, _LEAST_GROWN_SIDE = 3, 5
"""Sides in pixels of the map below which an area is noise, before and after it is grown."""
_ROUNDING = 1e-3
"""Rounding error by which a probability may leave 0 to 1."""


def read_text_map(value: Array, name: str, size: Size) -> Objects:
    """Return the areas of text of one picture, as turned boxes.

    An area is a connected set of pixels above 0.3, and its box the smallest turned rectangle around
    it. Its score is the mean of the map inside that rectangle, which then grows on all sides by 1.5
    times its area over its perimeter.

    Parameters
    ----------
    value : array, shape (h, w) or (1, h, w)
        Probability of text for each pixel of a grid over the model's input.
    name : str
        Name of the output, for errors.
    size : (int, int)
        Height and width of the model's input in pixels.

    Returns
    -------
    Objects
        All of class 0; their details are the angles in radians, from -pi/4 to pi/4.

    Raises
    ------
    InputError
        The output is no map of values from 0 to 1.
    """
    import cv2  # optional: only maps of text need it

    grid = _checked(value, name)
    contours, levels = cv2.findContours(
        (grid > _IS_TEXT).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    found: list[tuple[float, ...]] = []
    for place, contour in enumerate(contours):
        if levels[0][place][3] >= 0:  # the border of a hole in an area
            continue
        middle, sides, degrees = cv2.minAreaRect(contour)
        if min(sides) < _LEAST_SIDE:
            continue
        score = _mean_inside(grid, cv2.boxPoints((middle, sides, degrees)))
        growth = 2 * _GROWTH * sides[0] * sides[1] / (2 * (sides[0] + sides[1]))
        width, height = (side + growth for side in sides)
        if min(width, height) < _LEAST_GROWN_SIDE:
            continue
        # The range of angles differs between versions of OpenCV.
        quarters = round(degrees / 90)
        if quarters % 2:
            width, height = height, width
        found.append((*middle, width, height, np.deg2rad(degrees - 90 * quarters), score))
    return _objects(np.array(found, np.float64).reshape(-1, 6), grid, size)


def _checked(value: Array, name: str) -> Array:
    """Return the map with two axes."""
    grid = (
        value.reshape(value.shape[-2:]) if value.ndim > 2 and value[..., 0, 0].size == 1 else value
    )
    if grid.ndim != 2 or 0 in grid.shape:
        raise InputError(
            f"output {name!r} has shape {value.shape} for one picture, which is no map of text",
            "choose another output: outputs=, or another format=",
            option="format",
            input=name,
        )
    low, high = float(grid.min()), float(grid.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also true for NaN
        raise InputError(
            f"read as {TEXT_MAP}, output {name!r} has values from {low:g} to {high:g}, which are "
            "no probabilities from 0 to 1",
            "choose another output: outputs=, or read it with a function: decode=",
            option="format",
            input=name,
            numbers={"lowest": low, "highest": high},
        )
    return np.ascontiguousarray(grid, np.float32)


def _mean_inside(grid: Array, corners: Array) -> float:
    """Return the mean of the map inside a turned rectangle, its border included."""
    import cv2

    most = np.array(grid.shape[::-1]) - 1
    low = np.clip(np.floor(corners.min(axis=0)), 0, most).astype(np.int32)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, most).astype(np.int32)
    part = grid[low[1] : high[1] + 1, low[0] : high[0] + 1]
    inside = np.zeros(part.shape, np.uint8)
    cv2.fillPoly(inside, [(corners - low).astype(np.int32)], [1])
    return float(cv2.mean(part, inside)[0])


def _objects(found: Array, grid: Array, size: Size) -> Objects:
    """Return areas in pixels of the model's input."""
    scale = size[1] / grid.shape[1], size[0] / grid.shape[0]
    # OpenCV counts from the middle of the first pixel.
    middle = (found[:, :2] + 0.5) * scale
    half = found[:, 2:4] / 2 * scale
    return Objects(
        np.concatenate([middle - half, middle + half], axis=1),
        found[:, 5],
        np.zeros(len(found), np.int64),
        found[:, 4:5],
    )
