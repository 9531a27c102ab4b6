"""Coordinates of a prepared picture: from the model's input to the picture, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.input_layout import Size
from dask_onnx.core.errors import InputError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Position and scale of a picture in the tensor that a model was given.

    A pixel with coordinates (x, y) of the picture, counted from its upper left corner, lies at
    ``(x * scale[1] + offset[1], y * scale[0] + offset[0])`` in the tensor.

    Attributes
    ----------
    picture : (int, int)
        Height and width of the picture in pixels, upright, as its EXIF orientation says.
    resized : (int, int)
        Height and width to which it was resized.
    offset : (int, int)
        Row and column of the tensor at which its upper left corner lies: positive behind padding,
        negative where it was cropped.
    tensor : (int, int)
        Height and width of the tensor.

    Examples
    --------
    >>> from dask_onnx.collections.images.geometry import Geometry
    >>> place = Geometry((480, 640), (240, 320), (40, 0), (320, 320))
    >>> place.to_image([[0.0, 40.0, 160.0, 160.0]]).tolist()
    [[0.0, 0.0, 320.0, 240.0]]
    """

    picture: Size
    """Height and width of the picture in pixels, upright, as its EXIF orientation says."""
    resized: Size
    """Height and width to which it was resized."""
    offset: Size
    """Row and column of the tensor at which the picture's upper left corner lies."""
    tensor: Size
    """Height and width of the tensor."""

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the tensor for one of the picture, along height and width."""
        return self.resized[0] / self.picture[0], self.resized[1] / self.picture[1]

    @property
    def pad(self) -> tuple[int, int, int, int]:
        """Padding around the picture in pixels of the tensor: top, left, bottom, right."""
        top, left = (max(side, 0) for side in self.offset)
        bottom, right = (
            max(whole - own - start, 0)
            for whole, own, start in zip(self.tensor, self.resized, self.offset, strict=True)
        )
        return top, left, bottom, right

    def to_image(self, boxes: Any, *, clip: bool = True) -> Array:
        """Return boxes in pixels of the picture.

        Parameters
        ----------
        boxes : array-like, shape (n, 4)
            x0, y0, x1, y1 in pixels of the tensor.
        clip : bool, default True
            True to cut boxes off at the borders of the picture.

        Returns
        -------
        float64 array, shape (n, 4)
        """
        given = np.asarray(boxes, np.float64).reshape(-1, 4)
        shift = np.tile(self.offset[::-1], 2)
        found: Array = (given - shift) / np.tile(self.scale[::-1], 2)
        return np.clip(found, 0, np.tile(self.picture[::-1], 2)) if clip else found

    def points_to_image(self, points: Any) -> Array:
        """Return points in pixels of the picture, at its borders where they lie outside.

        Parameters
        ----------
        points : array-like, shape (..., 2)
            x and y in pixels of the tensor.

        Returns
        -------
        float64 array, shape (..., 2)
        """
        given = np.asarray(points, np.float64)
        found: Array = (given - self.offset[::-1]) / self.scale[::-1]
        return np.clip(found, 0, self.picture[::-1])

    def to_input(self, boxes: Any) -> Array:
        """Return boxes of the picture in pixels of the tensor: the inverse of `to_image`.

        Parameters
        ----------
        boxes : array-like, shape (n, 4)
            x0, y0, x1, y1 in pixels of the picture.
        """
        given = np.asarray(boxes, np.float64).reshape(-1, 4)
        found: Array = given * np.tile(self.scale[::-1], 2) + np.tile(self.offset[::-1], 2)
        return found

    def mask_to_image(self, mask: Any) -> Array:
        """Return a map of the tensor as one of the picture.

        Padding is cut off. What a crop has removed is 0.

        Parameters
        ----------
        mask : array-like, shape (h, w)
            A value for each cell of a grid over the tensor, of any resolution. Floating-point
            values are interpolated linearly, averaged where the picture is smaller; integers and
            booleans, which may be classes, are taken from the nearest cell.

        Returns
        -------
        array, shape `picture`
            Of the mask's dtype.

        Raises
        ------
        InputError
            The mask does not have two axes, or is empty.
        """
        given = np.asarray(mask)
        if given.ndim != 2 or 0 in given.shape:
            raise InputError(
                f"a mask of shape {given.shape} has no height and width",
                "pass one map of shape (height, width) at a time",
                option="mask",
                numbers={"axes": given.ndim},
            )
        rows, columns = self._window(0), self._window(1)
        region = tuple(
            (start * cells / whole, stop * cells / whole)
            for (start, stop, _, _), cells, whole in zip(
                (rows, columns), given.shape, self.tensor, strict=True
            )
        )
        size = (rows[3] - rows[2], columns[3] - columns[2])
        inner = _resampled(given, region, size)
        if size == self.picture:
            return inner
        whole = np.zeros(self.picture, given.dtype)
        whole[rows[2] : rows[3], columns[2] : columns[3]] = inner
        return whole

    def part_to_image(self, mask: Any, rows: range, columns: range) -> Array:
        """Return a part of what `mask_to_image` returns for a map of floats.

        Parameters
        ----------
        mask : float array, shape (h, w)
            A value for each cell of a grid over the tensor.
        rows, columns : range
            Pixels of the picture; those that a crop has removed are 0.
        """
        found = np.zeros((len(rows), len(columns)), np.float32)
        region, places = [], []
        for axis, part in enumerate((rows, columns)):
            start, stop, first, last = self._window(axis)
            low, high = max(part.start, first), min(part.stop, last)
            if low >= high:
                return found
            cells, step = mask.shape[axis] / self.tensor[axis], (stop - start) / (last - first)
            region.append(tuple((start + (pixel - first) * step) * cells for pixel in (low, high)))
            places.append(slice(low - part.start, high - part.start))
            # The padding is no part of the map: cells of it are cut off.
            inside = slice(int(start * cells), math.ceil(stop * cells))
            region[-1] = tuple(edge - inside.start for edge in region[-1])
            mask = mask[inside] if axis == 0 else mask[:, inside]
        size = tuple(place.stop - place.start for place in places)
        found[places[0], places[1]] = _interpolated(mask, (region[0], region[1]), size)
        return found

    def _window(self, axis: int) -> tuple[float, float, int, int]:
        """Return the part of the tensor that shows the picture, and the pixels that it shows."""
        own, offset, whole = self.resized[axis], self.offset[axis], self.tensor[axis]
        start, stop = max(offset, 0), min(offset + own, whole)
        scale, most = own / self.picture[axis], self.picture[axis]
        first = min(max(round((start - offset) / scale), 0), most - 1)
        last = min(max(round((stop - offset) / scale), first + 1), most)
        return float(start), float(max(stop, start + 1)), first, last

    def __str__(self) -> str:
        height, width = self.picture
        return (
            f"{height} x {width} resized to {self.resized[0]} x {self.resized[1]} at row "
            f"{self.offset[0]}, column {self.offset[1]} of {self.tensor[0]} x {self.tensor[1]}"
        )


def _resampled(values: Array, region: Any, size: Size) -> Array:
    """Return a region of a map at another resolution.

    Parameters
    ----------
    values : array, shape (h, w)
    region : ((float, float), (float, float))
        First and last row, and first and last column, in cells.
    size : (int, int)
    """
    (top, bottom), (left, right) = region
    if values.dtype.kind != "f":
        rows = _nearest(top, bottom, size[0], values.shape[0])
        columns = _nearest(left, right, size[1], values.shape[1])
        return np.ascontiguousarray(values[np.ix_(rows, columns)])
    # Pillow also reads pixels beside the box: those of the padding are cut off first.
    first, start = int(top), int(left)
    cells = values[first : math.ceil(bottom), start : math.ceil(right)]
    inside = ((top - first, bottom - first), (left - start, right - start))
    return _interpolated(cells, inside, size).astype(values.dtype)


def _interpolated(cells: Array, region: Any, size: Any) -> Array:
    """Return a region of a map at another resolution, interpolated linearly, as float32."""
    from PIL import Image  # optional: only pictures need it

    (top, bottom), (left, right) = region
    image = Image.fromarray(np.ascontiguousarray(cells, np.float32))
    height, width = image.height, image.width
    box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


def _nearest(start: float, stop: float, count: int, most: int) -> Array:
    """Return the cells nearest to the centres of `count` pixels over a range of cells."""
    centres = start + (np.arange(count) + 0.5) * (stop - start) / count
    return np.clip(centres.astype(np.int64), 0, most - 1)
