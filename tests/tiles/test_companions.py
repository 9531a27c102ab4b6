"""Models of several inputs by tiles: a second image, and inputs that are given once."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray
from builders import make_model, node, run_onnx, value
from onnx import TensorProto
from tiles.tiled_models import CONSTANTS, conv, kernel, no_scheduler, random_image

import dask_onnx as dx
from dask_onnx.tiles.predict import predict_tiled


def fusion():
    """Return a model of an image, a mask, an image of a quarter of its size, and a time."""
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Mul", "a mask", "b"),
        node("Resize", "small - scales", "up", mode="nearest"),
        node("Add", "b up", "c"),
        node("Mul", "c time", "d"),
        conv("d w", "y"),
    ]
    constants = {"w": kernel(3, 3, 3, 3), "scales": np.array([1, 1, 4, 4], np.float32)}
    inputs = [
        value("mask", ["N", 1, "H", "W"]),
        value("small", ["N", 3, "h", "w"]),
        value("x", ["N", 3, "H", "W"]),
        value("time", [1]),
    ]
    return make_model(nodes, inputs, [value("y", None)], constants)


def feeds():
    return {
        "time": np.array([0.5], np.float32),
        "small": random_image(1, 3, 10, 12),
        "mask": random_image(1, 1, 40, 48),
        "x": random_image(1, 3, 40, 48),
    }


@pytest.mark.parametrize("lazy", [(), ("x",), ("x", "small", "mask"), ("mask",)])
def test_images_that_belong_together_are_cut_together(lazy):
    proto, given = fusion(), feeds()
    expected = run_onnx(proto, given)[0]
    arrays = {k: da.from_array(v, chunks=7) if k in lazy else v for k, v in given.items()}
    found = predict_tiled(dx.load(proto), arrays, tile=16)
    assert isinstance(found, da.Array) == ("x" in lazy)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=2e-5)


def test_images_without_the_batch_axis_are_cut_together():
    proto, given = fusion(), feeds()
    single = {name: array[0] if array.ndim > 1 else array for name, array in given.items()}
    found = predict_tiled(dx.load(proto), single, tile=16)
    np.testing.assert_allclose(found, run_onnx(proto, given)[0][0], rtol=0, atol=2e-5)


def test_a_labelled_image_among_several_inputs_keeps_its_coordinates():
    given = feeds()
    image = xarray.DataArray(given["x"], dims=("n", "band", "y", "x"), coords={"y": np.arange(40)})
    found = predict_tiled(dx.load(fusion()), {**given, "x": image}, tile=16)
    np.testing.assert_array_equal(found.coords["y"], np.arange(1, 39))


def test_sizes_that_are_given_as_values_are_known():
    nodes = [conv("x w", "a", pads=[1] * 4), node("Resize", "a - - size", "y", mode="linear")]
    proto = make_model(
        nodes,
        [value("x", ["N", 3, "H", "W"]), value("size", [4], TensorProto.INT64)],
        [value("y", None)],
        {"w": CONSTANTS["w"]},
    )
    given = {"x": random_image(1, 3, 40, 48), "size": np.array([1, 3, 80, 96])}
    found = predict_tiled(dx.load(proto), given, tile=16)
    np.testing.assert_allclose(found, run_onnx(proto, given)[0], rtol=0, atol=2e-5)


def test_an_input_that_no_wanted_output_needs_may_be_left_out():
    proto = make_model(
        [conv("x w", "y", pads=[1] * 4), node("Add", "y t", "z")],
        [value("x", ["N", 3, "H", "W"]), value("t", [1])],
        [value("y", None), value("z", None)],
        {"w": CONSTANTS["w"]},
    )
    image = random_image(1, 3, 32, 40)
    found = predict_tiled(dx.load(proto), image, tile=16, outputs="y")
    given = {"x": image, "t": np.zeros(1, np.float32)}
    np.testing.assert_allclose(found, run_onnx(proto, given)[0], rtol=0, atol=2e-5)


def test_the_time_is_a_constant_of_blended_tiles():
    proto = make_model(
        [node("Mul", "x t", "y")],
        [value("x", ["N", 3, "H", "W"]), value("t", [1])],
        [value("y", None)],
    )
    given = {"x": random_image(1, 3, 32, 40), "t": np.array([2.0], np.float32)}
    found = predict_tiled(dx.load(proto), given, tile=16, exact=False, overlap=4)
    np.testing.assert_allclose(found, given["x"] * 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"time": da.ones(1, dtype=np.float32)}, "input", "time"),
        ({"time": np.ones(2, np.float32)}, "input", "time"),
        ({"time": np.ones((1, 1), np.float32)}, "input", "time"),
        ({"mask": np.ones((1, 2, 40, 48), np.float32)}, "input", "mask"),
        ({"small": np.ones((1, 3, 9, 12), np.float32)}, "input", "x"),
        ({"other": np.ones(2)}, "input", "other"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_any_work(change, field, expected):
    with dask.config.set(scheduler=no_scheduler), pytest.raises(dx.InputError) as caught:
        predict_tiled(dx.load(fusion()), {**feeds(), **change}, tile=16)
    assert getattr(caught.value, field) == expected


def test_one_array_for_several_inputs_is_refused():
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(dx.load(fusion()), random_image(1, 3, 40, 48))
    assert caught.value.numbers == {"inputs": 4}


def test_two_images_cannot_be_blended():
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(dx.load(fusion()), feeds(), tile=16, exact=False)
    assert caught.value.option == "exact"
