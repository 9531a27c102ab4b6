"""Coordinates of results whose grid is not that of the image: crops, strides, shifts."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
from builders import node
from tiles.tiled_models import CONSTANTS, conv, kernel, model_of, random_image

import dask_onnx as dx
from dask_onnx.tiles.predict import predict_tiled

SAME = [1] * 4
EVEN = np.arange(48.0)
POOL = node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2])


def image(height=40, width=48):
    return xarray.DataArray(
        random_image(3, height, width),
        dims=("band", "y", "x"),
        coords={
            "x": np.arange(float(width)),
            "zone": ("x", [f"zone {i}" for i in range(width)]),
            "day": ("x", np.datetime64("2020-01-01", "ns") + np.arange(width) * 86400 * 10**9),
            "latitude": (("y", "x"), np.arange(float(height * width)).reshape(height, width)),
            "spatial_ref": ((), 0, {"GeoTransform": "1000.0 10.0 0.0 500.0 0.0 -20.0"}),
        },
        attrs={"units": "m"},
    )


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([conv("x w", "y")], EVEN[1:-1]),  # unpadded
        ([conv("x w", "y", dilations=[3, 3])], EVEN[3:-3]),
        ([conv("x w", "a"), conv("a w", "b"), node("Relu", "b", "y")], EVEN[2:-2]),
        ([conv("x w", "a", pads=SAME), conv("a w", "y")], EVEN[1:-1]),
        ([conv("x w", "y", strides=[2, 2])], EVEN[1:-1:2]),  # centre of each window
        ([conv("x w", "y", pads=SAME, strides=[2, 2])], EVEN[::2] + 0.5),  # the image's area
        ([conv("x w", "a"), node("MaxPool", "a", "y", kernel_shape=[2, 2], strides=[2, 2])],
         EVEN[1:-1:2] + 0.5),
        ([conv("x w", "a"), POOL, node("Resize", "p - scale", "y", mode="nearest")], EVEN[1:-1]),
        ([conv("x w", "a"), POOL, node("Resize", "p - scale", "y", mode="linear")], EVEN[1:-1]),
        ([conv("x w", "a"), POOL, node("ConvTranspose", "p up", "y", strides=[2, 2])],
         EVEN[1:-1]),
        ([node("Pad", "x pads", "a"), conv("a w", "y")], EVEN),
        ([node("Pad", "x pads", "a", mode="reflect"), conv("a w", "b"), conv("b w", "y")],
         EVEN[1:-1]),
        ([conv("x w", "y", pads=[0, 0, 2, 2])], EVEN),  # all of the image's pixels
        ([conv("x w", "a"), node("Slice", "a start end sides", "y")], EVEN[6:-1]),
        ([node("Resize", "x - scale", "y", mode="nearest")], np.arange(96) / 2 - 0.25),
        ([conv("x w", "a"), node("Resize", "a - scale", "y", mode="nearest")],
         0.75 + np.arange(92) / 2),
    ],
)  # fmt: skip
def test_coordinates_are_those_of_the_centres_of_windows(nodes, expected):
    constants = {
        **CONSTANTS, "up": kernel(3, 3, 2, 2), "scale": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "start": np.array([5, 5]),
        "end": np.array([2**31] * 2), "sides": np.array([2, 3]),
    }  # fmt: skip
    given = image()
    found = predict_tiled(dx.load(model_of(nodes, constants)), given, tile=16)
    assert found.dims[1:] == ("y", "x")
    np.testing.assert_allclose(found.coords["x"], expected, rtol=0, atol=1e-9)
    numbers = [float(part) for part in found.spatial_ref.attrs["GeoTransform"].split()]
    step = expected[1] - expected[0]
    assert numbers[:3] == [1000 + 10 * (expected[0] + 0.5 - step / 2), 10 * step, 0]
    assert numbers[5] == -20 * step
    assert (found.attrs == given.attrs) == (len(expected) == 48)
    days = (found.coords["day"].values - given.coords["day"].values[0]) / np.timedelta64(1, "D")
    np.testing.assert_allclose(days, expected, rtol=0, atol=1e-9)


def test_a_crop_of_the_image_keeps_all_its_labels():
    given = image()
    found = predict_tiled(dx.load(model_of([conv("x w", "y")], CONSTANTS)), given, tile=16)
    part = given.isel(x=slice(1, -1), y=slice(1, -1))
    for name in ("x", "zone", "day", "latitude"):
        xarray.testing.assert_identical(found.coords[name].variable, part.coords[name].variable)


def test_a_padded_image_is_cut_back_to_windows_on_the_image():
    nodes = [
        conv("x w", "a", pads=SAME),
        node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", "p - scale", "u", mode="nearest"),
        node("Add", "a u", "s"),
        conv("s w", "y"),
    ]
    constants = {**CONSTANTS, "scale": np.array([1, 1, 2, 2], np.float32)}
    model = dx.load(model_of(nodes, constants))
    with pytest.warns(UserWarning, match="multiples of 2"):
        found = predict_tiled(model, image(41, 47), tile=16)
    assert found.shape == (3, 39, 45)
    np.testing.assert_array_equal(found.coords["x"], np.arange(1, 46))


def test_predict_drops_the_transform_of_a_grid_that_the_result_has_not():
    nodes = [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])]
    given = image().expand_dims("n")
    found = dx.load(model_of(nodes)).predict(given)
    assert "GeoTransform" not in found.spatial_ref.attrs
    same = dx.load(model_of([conv("x w", "y", pads=SAME)], CONSTANTS)).predict(given)
    assert same.spatial_ref.attrs == given.spatial_ref.attrs
