"""Preprocessing for PP-OCR's text detector, as functions that a task imports by name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def prepare(windows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return images as the input of the detector.

    Parameters
    ----------
    windows : uint8, shape (rows, height, width, 3)
        Height and width are multiples of 32.

    Returns
    -------
    float32, shape (rows, 3, height, width), from -1 to 1
    """
    scaled = (windows.astype(np.float32) / 255 - 0.5) / 0.5
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
