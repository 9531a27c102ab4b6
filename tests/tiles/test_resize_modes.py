"""Resizing on tiles, in coordinate modes that depend on the size that is resized."""

from __future__ import annotations

import numpy as np
import pytest
from builders import node
from tiles.tiled_models import CONSTANTS, assert_equals_untiled, conv, model_of, random_image

import dask_onnx as dx

MODE = "coordinate_transformation_mode"


def resizing(scales, mode, **attributes):
    """A convolution, and a Resize by scales of height and width."""
    nodes = [
        conv("x w", "c", pads=[1, 1, 1, 1]),
        node("Resize", "c - s", "y", "resize", mode=mode, **attributes),
    ]
    constants = {"w": CONSTANTS["w"], "s": np.array([1, 1, *scales], np.float32)}
    return model_of(nodes, constants, opset=19)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", [(1 / 3, 2), (0.5, 0.5)], ids=["third and double", "half"])
@pytest.mark.parametrize("tile", [1, 5])
def test_a_tile_of_one_pixel_is_resized_as_part_of_the_image(mode, scales, tile):
    proto = resizing(scales, mode, **{MODE: "pytorch_half_pixel"})
    assert_equals_untiled(proto, random_image(1, 3, 21, 19), tile)


def test_an_image_of_one_pixel_after_resizing_equals_the_untiled_one():
    proto = resizing((0.2, 2), "linear", **{MODE: "pytorch_half_pixel"})
    assert_equals_untiled(proto, random_image(1, 3, 5, 18), 2)


@pytest.mark.parametrize("size", [(22, 18), (23, 19)], ids=["even", "odd"])
def test_symmetric_half_pixels_of_tiles_are_those_of_the_image(size):
    proto = resizing((0.5, 0.5), "linear", **{MODE: "half_pixel_symmetric"})
    assert_equals_untiled(proto, random_image(1, 3, *size), 5)


def test_features_resized_to_the_size_of_a_skip_connection_equal_the_untiled_ones():
    nodes = [
        node("MaxPool", "x", "p", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", "x", "s"),
        node("Resize", "p - - s", "u", "up", mode="linear", **{MODE: "pytorch_half_pixel"}),
        node("Add", "u x", "y"),
    ]
    assert_equals_untiled(model_of(nodes, opset=19), random_image(1, 3, 22, 18), 2)


def test_the_mode_stays_what_it_was_in_the_model():
    model = dx.load(resizing((2, 2), "linear", **{MODE: "pytorch_half_pixel"}))
    image = random_image(1, 3, 8, 8)
    before = model.token
    dx.predict_tiled(model, image, tile=4)
    assert model.token == before
