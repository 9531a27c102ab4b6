"""Predictions for DataArrays keep the labels that still fit."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from builders import dense_model, make_model, node, run_onnx, value, weights

import dask_onnx as dx

ROWS = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
EXPECTED = run_onnx(dense_model(), {"x": ROWS})[0]


def labelled(data):
    coords = {
        "time": np.arange(6) * 10,
        "station": ("time", list("abcdef")),
        "band": list("ABCDEFGH"),
        "quality": (("time", "band"), np.arange(48).reshape(6, 8)),
        "run": 7,
    }
    return xr.DataArray(data, dims=["time", "band"], coords=coords, name="signal")


@pytest.mark.parametrize("lazy", [False, True])
def test_rows_keep_their_labels(lazy):
    x = labelled(da.from_array(ROWS, chunks=(2, 8)) if lazy else ROWS)
    with dask.config.set(scheduler="sync"):
        found = dx.load(dense_model()).predict(x)
        assert isinstance(found, xr.DataArray) and (found.chunks is not None) is lazy
        np.testing.assert_allclose(found.to_numpy(), EXPECTED, rtol=1e-6)
    assert found.dims == ("time", "y_1") and found.name == "y"
    assert set(found.coords) == {"time", "station", "run"}
    assert found.sel(time=30).station == "d"


def test_several_outputs_are_a_dict():
    found = dx.load(dense_model()).predict(labelled(ROWS), outputs=["y", "h3"])
    assert {name: array.dims for name, array in found.items()} == {
        "y": ("time", "y_1"),
        "h3": ("time", "h3_1"),
    }


def image_model(nodes):
    """x (N, 3, H, W) -> y (N, 5, H, W) or other sizes."""
    return make_model(
        nodes,
        [value("x", ["N", 3, "H", "W"])],
        [value("y", ["N", "C", "Y", "X"])],
        {"K": weights(5, 3, 3, 3)},
    )


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("nodes", "dims", "coords"),
    [
        (
            [node("Conv", "x K", "y", pads=[1, 1, 1, 1])],
            ("image", "y_1", "lat", "lon"),
            {"image", "lat", "lon", "land", "sensor"},
        ),
        (
            [node("Conv", "x K", "y", pads=[1, 1, 1, 1], strides=[2, 1])],
            ("image", "y_1", "y_2", "lon"),
            {"image", "lon", "sensor"},
        ),
        (
            [node("Transpose", "x", "y", perm=[0, 3, 1, 2])],
            ("image", "lon", "channel", "lat"),
            {"image", "lat", "lon", "channel", "land", "sensor"},
        ),
    ],
)
def test_dimensions_that_the_model_leaves_in_place_keep_their_coordinates(
    nodes, dims, coords, lazy
):
    pixels = np.random.default_rng(1).standard_normal((2, 3, 6, 8)).astype(np.float32)
    data = da.from_array(pixels, chunks=(1, -1, -1, -1)) if lazy else pixels
    x = xr.DataArray(
        data,
        dims=["image", "channel", "lat", "lon"],
        coords={
            "image": ["p", "q"],
            "channel": list("rgb"),
            "lat": np.arange(6.0),
            "lon": np.arange(8.0),
            "land": (("lat", "lon"), np.ones((6, 8), bool)),
            "sensor": "s2",
        },
    )
    with dask.config.set(scheduler="sync"):
        found = dx.load(image_model(nodes)).predict(x).compute()
    assert found.dims == dims
    assert set(found.coords) == coords
    assert all(found.coords[name].equals(x.coords[name]) for name in coords)


def squeezed_model(last, name="y"):
    """x (N, 3, H, W) scaled by its mean over the image, as squeeze-and-excitation does; then
    another node."""
    return make_model(
        [
            node("GlobalAveragePool", "x", "means"),
            node("Sigmoid", "means", "gates"),
            node("Mul", "x gates", "scaled"),
            *last,
        ],
        [value("x", ["N", 3, "H", "W"])],
        [value(name, ["N", 3, "H", "W"])],
        {
            "first": np.array([-1]),
            "stop": np.array([np.iinfo(np.int64).min]),
            "rows": np.array([2]),
            "back": np.array([-1]),
            "low": np.zeros(1, np.float32),
        },
    )


@pytest.mark.parametrize("norm", [False, True])
def test_a_statistic_over_the_image_leaves_pixels_where_they_are(norm):
    last = [node("Relu", "scaled", "sigmoid_0.tmp_0")]
    if norm:
        last = [node("Softmax", "scaled", "sigmoid_0.tmp_0", axis=3)]
    x = xr.DataArray(
        np.ones((2, 3, 6, 8), np.float32),
        dims=["time", "band", "y", "x"],
        coords={"y": np.arange(6.0), "x": np.arange(8.0), "time": [3, 4]},
    )
    found = dx.load(squeezed_model(last, "sigmoid_0.tmp_0")).predict(x)
    assert found.dims[0] == "time" and found.dims[2:] == ("y", "x")
    assert set(found.coords) == {"time", "y", "x"}


def test_rows_in_another_order_behind_a_statistic_lose_their_coordinates():
    last = [node("Slice", "scaled first stop rows back", "y")]
    x = xr.DataArray(
        np.arange(2 * 3 * 6 * 8, dtype=np.float32).reshape(2, 3, 6, 8),
        dims=["time", "band", "lat", "lon"],
        coords={"lat": np.arange(6.0), "lon": np.arange(8.0)},
    )
    found = dx.load(squeezed_model(last)).predict(x)
    assert found.dims[2:] == ("y_2", "lon")
    assert set(found.coords) == {"lon"}


@pytest.mark.parametrize(("name", "dim"), [("y", "y_1"), ("model/head:0", "dim_1")])
def test_new_dimensions_have_the_name_of_the_output_if_it_is_a_word(name, dim):
    model = make_model(
        [node("MatMul", "x W", name)],
        [value("x", ["N", 8])],
        [value(name, ["N", 5])],
        {"W": weights(8, 5)},
    )
    assert dx.load(model).predict(labelled(ROWS)).dims == ("time", dim)


def test_a_shifted_dimension_loses_its_coordinates():
    nodes = [node("Pad", "x pads", "p"), node("Slice", "p from to axis", "y")]
    constants = {"pads": [0, 2, 0, 0], "from": [0], "to": [8], "axis": [1]}
    model = dx.load(
        make_model(
            nodes,
            [value("x", ["N", 8])],
            [value("y", ["N", 8])],
            {name: np.array(numbers) for name, numbers in constants.items()},
        )
    )
    found = model.predict(labelled(ROWS))
    np.testing.assert_array_equal(found[:, 2:], ROWS[:, :6])
    assert found.dims == ("time", "y_1")


def test_a_model_without_rows_is_refused():
    model = dx.load(
        make_model([node("Transpose", "x", "y")], [value("x", [6, 8])], [value("y", [8, 6])])
    )
    with pytest.raises(dx.InputError) as caught:
        model.predict(labelled(ROWS))
    assert caught.value.input == "x" and "no batch axis" in caught.value.cause
