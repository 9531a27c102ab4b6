"""Coordinates of pictures: to the tensor and back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.collections.images.resize import Resize

SIDES = st.integers(2, 900)


def letterboxed(height, width, side=320):
    placed = Resize("letterbox", side, side).place((height, width))
    return dx.Geometry((height, width), placed.size, (placed.top, placed.left), placed.canvas)


def test_boxes_of_a_letterboxed_picture_by_hand():
    place = letterboxed(480, 640)
    assert place.resized == (240, 320) and place.offset == (40, 0)
    assert place.scale == (0.5, 0.5) and place.pad == (40, 0, 40, 0)
    np.testing.assert_array_equal(place.to_image([[10, 50, 20, 60]]), [[20, 20, 40, 40]])
    np.testing.assert_array_equal(place.to_input([[20, 20, 40, 40]]), [[10, 50, 20, 60]])


def test_boxes_are_clipped_to_the_picture_unless_told_otherwise():
    place = letterboxed(480, 640)
    np.testing.assert_array_equal(place.to_image([[-5, 0, 400, 320]]), [[0, 0, 640, 480]])
    np.testing.assert_array_equal(
        place.to_image([[-5, 0, 400, 320]], clip=False), [[-10, -80, 800, 560]]
    )


@given(height=SIDES, width=SIDES, box=st.tuples(*[st.floats(0, 1)] * 4))
def test_to_image_is_the_inverse_of_to_input(height, width, box):
    place = letterboxed(height, width)
    given_box = np.array([box]) * [width, height, width, height]
    np.testing.assert_allclose(place.to_image(place.to_input(given_box)), given_box, atol=1e-9)


def test_a_mask_loses_its_padding_and_gets_the_size_of_the_picture():
    place = letterboxed(4, 8, 8)
    mask = np.zeros((8, 8), np.float32)
    mask[2:6] = np.arange(8, dtype=np.float32)
    mask[:2] = mask[6:] = 99
    assert place.offset == (2, 0)
    np.testing.assert_array_equal(place.mask_to_image(mask), np.tile(np.arange(8), (4, 1)))


def test_a_mask_at_a_quarter_of_the_resolution_is_interpolated():
    place = dx.Geometry((4, 8), (4, 8), (0, 0), (4, 8))
    found = place.mask_to_image(np.array([[0, 4]], np.float32))
    # Centres of cells are at 2 and 6 of 8 pixels; between them the values rise by 1 a pixel.
    np.testing.assert_allclose(found[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])
    assert found.shape == (4, 8) and found.dtype == np.float32


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_classes_are_never_mixed(dtype):
    place = letterboxed(30, 50, 64)
    mask = (np.indices((64, 64)).sum(axis=0) % 3).astype(dtype)
    found = place.mask_to_image(mask)
    assert found.shape == (30, 50) and found.dtype == mask.dtype
    assert set(np.unique(found)) <= set(np.unique(mask))


def test_what_a_crop_has_removed_is_zero():
    place = dx.Geometry((4, 8), (4, 8), (0, -2), (4, 4))
    found = place.mask_to_image(np.ones((4, 4), np.float32))
    np.testing.assert_array_equal(found[0], [0, 0, 1, 1, 1, 1, 0, 0])


def test_a_mask_without_height_and_width_is_refused():
    with pytest.raises(dx.InputError) as caught:
        letterboxed(4, 4).mask_to_image(np.zeros((1, 4, 4)))
    assert caught.value.numbers == {"axes": 3}


def test_geometries_survive_pickling():
    place = letterboxed(480, 640)
    assert pickle.loads(pickle.dumps(place)) == place
