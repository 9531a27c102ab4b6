"""Blending of overlapping tiles, and its difference from the untiled result."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from builders import node, run_onnx
from tiles.tiled_models import (
    CONSTANTS,
    conv,
    model_of,
    no_scheduler,
    random_image,
    u_net,
)

import dask_onnx as dx
from dask_onnx.tiles.predict import predict_tiled
from dask_onnx.tiles.tiling_drift import tiling_drift


def test_blended_tiles_of_a_local_model_equal_the_untiled_result_away_from_borders():
    proto = model_of([conv("x w", "y", pads=[1] * 4)], CONSTANTS)
    image = random_image(1, 3, 50, 61)
    found = predict_tiled(dx.load(proto), image, tile=24, exact=False, overlap=8)
    expected = run_onnx(proto, {"x": image})[0]
    assert found.shape == expected.shape
    assert np.median(np.abs(found - expected)) < 1e-5
    drift = tiling_drift(dx.load(proto), image, 24, 8)["y"]
    assert drift.largest == pytest.approx(np.abs(found - expected).max())
    assert 0 < drift.mean < drift.largest


def test_blended_tiles_of_a_pointwise_model_equal_the_untiled_result_everywhere():
    nodes = [
        node("Sigmoid", "x", "y"),
        node("MaxPool", "y", "z", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    proto = model_of(nodes, outputs=("y", "z"))
    image = random_image(1, 3, 50, 62)
    found = predict_tiled(dx.load(proto), image, tile=(16, 20), exact=False, overlap=(4, 6))
    for name, expected in zip("yz", run_onnx(proto, {"x": image}), strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)


def test_a_model_of_one_size_runs_on_blended_tiles_of_that_size():
    nodes = [
        node("Sigmoid", "x", "a"),
        node("AveragePool", "a", "y", kernel_shape=[4, 4], strides=[4, 4]),
    ]
    proto = model_of(nodes, inputs=(1, 3, 16, 16))
    image = random_image(1, 3, 37, 41)
    with dask.config.set(scheduler=no_scheduler):
        lazy = predict_tiled(
            dx.load(proto), da.from_array(image, 13), tile="auto", exact=False, overlap=4
        )
    assert lazy.shape == (1, 3, 10, 11)
    open_model = model_of(nodes)
    expected = run_onnx(open_model, {"x": image})[0]
    np.testing.assert_allclose(lazy[..., :9, :10], expected, rtol=0, atol=1e-6)


def test_blending_refuses_outputs_that_do_not_grow_with_the_image():
    proto = model_of([node("GlobalAveragePool", "x", "y")])
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(dx.load(proto), random_image(1, 3, 48, 48), tile=16, exact=False, overlap=4)
    assert (caught.value.option, caught.value.input, caught.value.axis) == ("outputs", "y", 2)


@pytest.mark.parametrize(
    ("options", "option"),
    [({"tile": 16, "overlap": 9}, "overlap"), ({"tile": "auto"}, "tile"), ({"tile": 0}, "tile")],
)
def test_blending_refuses_options_that_do_not_fit(options, option):
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(dx.load(u_net()), random_image(1, 3, 48, 48), exact=False, **options)
    assert caught.value.option == option
