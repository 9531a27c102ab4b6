"""Resampling of 8-bit pictures: Pillow's filters, and OpenCV's linear interpolation."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from dask_onnx.collections.images.decoding import Pixels
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.core.errors import InputError

Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "opencv_linear"]
"""Way to interpolate. "opencv_linear" is ``cv2.INTER_LINEAR``, which reads the four nearest pixels
even where a picture shrinks; all others are Pillow's, which average then (antialiasing), as
torchvision does on Pillow's images."""
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
_BAND_ROWS = 256
"""Rows of a picture that are interpolated at a time, about."""
_BITS = 11
"""Bits of OpenCV's fixed-point weights."""


def resample(image: Any, size: Size, interpolation: Interpolation) -> Pixels:
    """Return a picture at another size.

    Parameters
    ----------
    image : PIL.Image
        Of mode L, RGB or RGBA.
    size : (int, int)
        Height and width.
    interpolation : Interpolation

    Returns
    -------
    uint8 array, shape (height, width, channels)
    """
    width, height = image.size
    if (height, width) != size:
        if interpolation == "opencv_linear":
            return opencv_linear(_with_channels(np.asarray(image)), size)
        from PIL import Image  # optional: only pictures need it

        method = Image.Resampling[interpolation.upper()]
        image = image.resize((size[1], size[0]), method)
    return _with_channels(np.asarray(image))


def _with_channels(pixels: Pixels) -> Pixels:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def opencv_linear(pixels: Pixels, size: Size) -> Pixels:
    """Return pixels resized as ``cv2.resize`` does with ``INTER_LINEAR``, in its integers.

    Parameters
    ----------
    pixels : uint8 array, shape (h, w, channels)
    size : (int, int)
        Height and width of the result.
    """
    if (pixels.shape[0], pixels.shape[1]) == (2 * size[0], 2 * size[1]):
        # OpenCV averages squares where both sides are halved exactly.
        squares = pixels.reshape(size[0], 2, size[1], 2, -1).astype(np.uint16)
        return np.asarray((squares.sum(axis=(1, 3)) + 2) >> 2, np.uint8)
    columns, rows = _taps(pixels.shape[1], size[1]), _taps(pixels.shape[0], size[0])
    found = np.empty((*size, pixels.shape[2]), np.uint8)
    # In bands, since the integers in between take many times the memory of the picture.
    step = max(1, _BAND_ROWS * size[0] // pixels.shape[0])
    for start in range(0, size[0], step):
        band = slice(start, start + step)
        found[band] = _linear_band(pixels, columns, _Taps(*(part[band] for part in rows)))
    return found


def _linear_band(pixels: Pixels, columns: _Taps, rows: _Taps) -> Pixels:
    """Return some rows of a resized picture."""
    first, last = int(rows.low[0]), int(rows.high[-1]) + 1
    wide = pixels[first:last]
    across = wide[:, columns.low] * columns.low_weight[:, None]
    across += wide[:, columns.high] * columns.high_weight[:, None]
    across >>= 4
    upper = (rows.low_weight[:, None, None] * across[rows.low - first]) >> 16
    lower = (rows.high_weight[:, None, None] * across[rows.high - first]) >> 16
    return np.asarray(np.clip((upper + lower + 2) >> 2, 0, 255), np.uint8)


class _Taps(NamedTuple):
    """The two source positions of each target position, and their fixed-point weights."""

    low: Any
    """int64, shape (new,)."""
    high: Any
    """int64, shape (new,)."""
    low_weight: Any
    """int32, shape (new,)."""
    high_weight: Any
    """int32, shape (new,)."""


def _taps(old: int, new: int) -> _Taps:
    """Return the taps of a side that is resized."""
    centres = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(centres).astype(np.int64)
    share = centres - first.astype(np.float32)
    share[first < 0] = 0
    first[first < 0] = 0
    share[first >= old - 1] = 0
    first[first >= old - 1] = old - 1
    one = np.float32(1 << _BITS)
    low, high = (np.rint(part * one).astype(np.int32) for part in (1 - share, share))
    return _Taps(first, np.minimum(first + 1, old - 1), low, high)


def check_interpolation(given: Any) -> Interpolation:
    """Return the caller's choice.

    Raises
    ------
    InputError
        There is no such interpolation.
    """
    if given not in INTERPOLATIONS:
        raise InputError(
            f"interpolation is {given!r}",
            f"choose one of {', '.join(INTERPOLATIONS)}",
            option="interpolation",
        )
    found: Interpolation = given
    return found
