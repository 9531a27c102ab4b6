"""Drawings of results, and masks as PNG."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import dask_onnx as dx
from dask_onnx.collections.images.drawing import drawn, png_of_mask

PLACE = dx.Geometry((40, 60), (40, 60), (0, 0), (40, 60))
BLACK = Image.new("RGB", (60, 40))


def decoded(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def test_boxes_are_drawn_on_their_borders():
    boxes = dx.Boxes.of([[10, 30, 50, 39]], [0.9], [1])
    result = dx.ImageResult("boxes", PLACE, boxes=boxes, names=("cat",))
    found = np.asarray(drawn(BLACK, result))
    assert found.shape == (40, 60, 3)
    assert found[34, 10].any() and found[34, 50].any() and found[39, 30].any()
    assert not found[36, 30].any()


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_masks_tint_the_pixels_that_they_cover(dtype):
    mask = np.zeros((40, 60), dtype)
    mask[:, 30:] = 1
    found = np.asarray(drawn(BLACK, dx.ImageResult("mask", PLACE, mask=mask)))
    assert not found[:, :30].any() and found[:, 30:].any(axis=-1).all()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [[0, 128, 255]]),
        (np.array([[0, 7, 255]], np.int64), [[0, 7, 255]]),
        (np.array([[0, 300]], np.int32), [[0, 300]]),
    ],
)
def test_masks_keep_their_values_in_png(mask, expected):
    np.testing.assert_array_equal(decoded(png_of_mask(mask)), expected)


@pytest.mark.parametrize("values", [[0, 2.0], [-1.0, 0], [np.nan, 0]])
def test_values_that_png_cannot_hold_are_refused(values):
    with pytest.raises(dx.InputError) as caught:
        png_of_mask(np.array([values], np.float32))
    assert caught.value.option == "path"
    with pytest.raises(dx.InputError):
        png_of_mask(np.array([[-1, 70_000]]))
