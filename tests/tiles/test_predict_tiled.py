"""Collections, sizes, refusals and properties of tiled predictions."""

from __future__ import annotations

from unittest import mock

import dask
import dask.array as da
import numpy as np
import onnx
import pytest
import xarray
from builders import node, run_onnx
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiles.tiled_models import (
    CONSTANTS,
    assert_equals_untiled,
    conv,
    kernel,
    model_of,
    no_scheduler,
    random_image,
    two_passes,
    u_net,
    vision_transformer,
)

import dask_onnx as dx
from dask_onnx.tiles import predict
from dask_onnx.tiles.passes import split
from dask_onnx.tiles.predict import predict_tiled


def test_an_image_size_that_the_model_refuses_is_padded_with_the_last_pixels():
    image = random_image(1, 3, 45, 62)
    proto = u_net()
    padded = np.pad(image, ((0, 0), (0, 0), (0, 3), (0, 2)), mode="edge")
    expected = run_onnx(proto, {"x": padded})[0][:, :, :45, :62]
    with pytest.warns(UserWarning, match="multiples of 4"):
        found = predict_tiled(dx.load(proto), image, tile=16)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


# Collections.


def test_a_dask_array_stays_lazy_and_has_a_chunk_for_each_tile():
    proto, image = u_net(), random_image(1, 3, 48, 64)
    with dask.config.set(scheduler=no_scheduler):
        lazy = predict_tiled(dx.load(proto), da.from_array(image, (1, 2, 17, 23)), tile=(16, 32))
    assert lazy.chunks == ((1,), (1,), (16, 16, 16), (32, 32))
    assert lazy.dtype == np.float32
    np.testing.assert_allclose(lazy.compute(), run_onnx(proto, {"x": image})[0], rtol=0, atol=2e-5)


def test_the_same_request_has_the_same_keys():
    model, image = dx.load(u_net()), da.ones((1, 3, 48, 64), dtype="f4", chunks=16)
    first, second = (predict_tiled(model, image, tile=16) for _ in range(2))
    assert first.name == second.name
    assert predict_tiled(model, image, tile=32).name != first.name


def test_a_part_of_the_result_computes_only_the_tiles_that_it_needs():
    read = []

    def load(block, block_info=None):
        read.append(block_info[0]["chunk-location"][2:])
        return block

    image = da.ones((1, 3, 96, 96), dtype="f4", chunks=(1, 3, 16, 16))
    image = image.map_blocks(load, dtype="f4", meta=np.empty((0,) * 4, "f4"))
    lazy = predict_tiled(dx.load(u_net(2)), image, tile=16)
    lazy[:, :, :16, :16].compute(scheduler="sync")
    assert set(read) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_each_pass_has_a_task_for_each_tile():
    nodes = [conv("x w", "a", pads=[1] * 4), node("InstanceNormalization", "a s b", "y")]
    constants = {"w": CONSTANTS["w"], "s": kernel(3), "b": kernel(3)}
    image = da.ones((1, 3, 64, 96), dtype="f4", chunks=32)
    lazy = predict_tiled(dx.load(model_of(nodes, constants)), image, tile=32)
    names = [key[0] for key in lazy.__dask_graph__() if isinstance(key, tuple)]
    for start in ("tile0_", "tile1_"):
        assert sum(name.startswith(start) for name in names) == 6


def test_an_image_without_the_batch_axis_has_a_result_without_it():
    proto, image = u_net(2), random_image(3, 20, 24)
    found = predict_tiled(dx.load(proto), image, tile=8)
    expected = run_onnx(proto, {"x": image[None]})[0][0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_a_dataarray_keeps_labels_and_attributes_of_the_same_grid():
    image = xarray.DataArray(
        random_image(3, 20, 24),
        dims=("band", "y", "x"),
        coords={"y": np.arange(20) * -10.0 + 5, "x": np.arange(24) * 10.0, "time": 7},
        attrs={"crs": "EPSG:32633"},
    )
    nodes = [conv("x w", "y", pads=[1] * 4), conv("y w", "z", pads=[1] * 4, strides=[2, 2])]
    model = dx.load(model_of(nodes, CONSTANTS, outputs=("y", "z")))
    found = predict_tiled(model, image, tile=8)
    assert found["y"].dims[1:] == ("y", "x")
    np.testing.assert_array_equal(found["y"].coords["x"], image.coords["x"])
    assert found["y"].attrs == image.attrs
    assert found["z"].attrs == {}
    np.testing.assert_array_equal(found["z"].coords["y"], np.arange(10) * -20.0)
    assert int(found["z"].coords["time"]) == 7


def labelled_image(*, batch=2):
    """Return an image with coordinates of zero, one and two dimensions on every axis."""
    return xarray.DataArray(
        random_image(batch, 3, 20, 24),
        dims=("sample", "band", "y", "x"),
        coords={
            "sample": ["a", "b"],
            "scene": ("sample", [10, 20]),
            "band": ["red", "green", "blue"],
            "y": np.arange(20.0),
            "x": np.arange(24) * 10.0,
            "zone": ("x", list("abcdefghijklmnopqrstuvwx")),
            "latitude": (("y", "x"), np.arange(480.0).reshape(20, 24)),
            "angle": (("sample", "y"), np.zeros((2, 20))),
            "gain": (("band", "x"), np.ones((3, 24))),
            "time": 7,
        },
        attrs={"crs": "EPSG:32633"},
    )


def test_a_dataarray_keeps_all_coordinates_of_axes_that_survive():
    image = labelled_image()
    model = dx.load(model_of([conv("x w", "y", pads=[1] * 4)], CONSTANTS))
    found = predict_tiled(model, image, tile=8)
    assert found.dims == ("sample", "y_1", "y", "x")
    assert set(found.coords) == set(image.coords) - {"band", "gain"}
    for name, coord in found.coords.items():
        xarray.testing.assert_identical(coord.variable, image.coords[name].variable)
    assert found.attrs == image.attrs
    assert found.sel(sample="b", x=30.0).shape == (3, 20)  # indexes are kept


@pytest.mark.parametrize("options", [{}, {"axes": (2,)}, {"exact": False, "overlap": 2}])
def test_a_dataarray_keeps_the_labels_of_untiled_axes_that_the_model_keeps_apart(options):
    image = labelled_image()
    model = dx.load(model_of([node("MaxPool", "x", "y", kernel_shape=[3, 3], pads=[1] * 4)]))
    found = predict_tiled(model, image.chunk(), tile=8, **options)
    assert isinstance(found.data, da.Array)
    assert found.dims == image.dims
    assert set(found.coords) == set(image.coords)
    assert found.attrs == image.attrs


def test_a_dataarray_loses_the_coordinates_of_axes_of_another_size():
    nodes = [node("MaxPool", "x", "y", kernel_shape=[2, 1], strides=[2, 1])]
    found = predict_tiled(dx.load(model_of(nodes)), labelled_image(), tile=8)
    assert found.dims == ("sample", "band", "y", "x")
    assert set(found.coords) == {"sample", "scene", "band", "x", "zone", "gain", "time", "y"}
    np.testing.assert_array_equal(found.coords["y"], np.arange(10) * 2 + 0.5)  # interpolated
    assert found.attrs == {}


def test_an_automatic_tile_fits_the_memory_limit():
    image = da.ones((1, 3, 256, 256), dtype="f4", chunks=64)
    small = predict_tiled(dx.load(u_net()), image, tile="auto", memory_limit="64KiB")
    large = predict_tiled(dx.load(u_net()), image, tile="auto", memory_limit="1MiB")
    assert small.npartitions > large.npartitions


def test_a_tiled_prediction_runs_inside_a_task():
    proto, image = two_passes(), random_image(1, 3, 40, 48)
    inner = dask.delayed(predict_tiled)(dx.load(proto), image, tile=16)
    expected = run_onnx(proto, {"x": image})[0]
    np.testing.assert_allclose(inner.compute(), expected, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def workers(store_directory):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


@pytest.mark.cluster
def test_workers_cut_what_neighbours_need_before_transferring_it(workers):
    proto, image = two_passes(), random_image(1, 3, 64, 96)
    lazy = predict_tiled(dx.load(proto), da.from_array(image, 32), tile=32)
    names = {key[0].partition("_")[0] for key in lazy.__dask_graph__() if isinstance(key, tuple)}
    assert {"tile0", "tile1", "cut"} <= names
    expected = run_onnx(proto, {"x": image})[0]
    np.testing.assert_allclose(lazy.compute(), expected, rtol=0, atol=2e-5)


@pytest.mark.cluster
def test_numpy_is_computed_on_the_workers(workers):
    proto, image = vision_transformer(), random_image(1, 3, 36, 44)
    assert_equals_untiled(proto, image, 12)
    assert_equals_untiled(proto, image, 12, memory_limit=60_000)


def test_an_output_of_sizes_alone_is_that_of_the_untiled_image():
    proto = model_of([conv("x w", "a"), node("Shape", "a", "y")], CONSTANTS)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    found = predict_tiled(dx.load(proto), random_image(1, 3, 33, 44), tile=16)
    np.testing.assert_array_equal(found, [1, 3, 31, 42])


def test_an_output_of_tokens_has_a_chunk_for_each_row_of_tiles():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Reshape", "a flat", "b"),
        node("Transpose", "b", "y", perm=[0, 2, 1]),
    ]
    proto = model_of(nodes, {**CONSTANTS, "flat": np.array([0, 3, -1])})
    image = random_image(1, 3, 32, 40)
    lazy = predict_tiled(dx.load(proto), da.from_array(image, 16), tile=16)
    assert lazy.chunks == ((1,), (640, 640), (3,))
    expected = run_onnx(proto, {"x": image})[0]
    np.testing.assert_allclose(lazy.compute(), expected, rtol=0, atol=2e-5)


# Refusals.

SIDE = {"axis": np.array(2)}


@pytest.mark.parametrize(
    ("nodes", "constants", "kind"),
    [
        ([node("CumSum", "x axis", "y")], SIDE, "scanned"),
        ([node("Transpose", "x", "a", perm=[3, 0, 2, 1]),
          node("Reshape", "a three", "b"), node("RNN", "b w r", "y", hidden_size=2)],
         {"three": np.array([0, -1, 3]), "w": kernel(1, 2, 3), "r": kernel(1, 2, 2)}, "scanned"),
        ([node("TopK", "x k", "y i", axis=3)], {"k": np.array([2])}, "gathered"),
        ([node("Slice", "x start end side step", "y")],
         {"start": np.array([-1]), "end": np.array([-(2**31)]), "side": np.array([3]),
          "step": np.array([-1])}, "gathered"),
        ([node("Resize", "x - - size", "y", mode="linear",
               coordinate_transformation_mode="align_corners")],
         {"size": np.array([1, 3, 90, 100])}, "length"),
    ],
)  # fmt: skip
def test_an_axis_without_exact_tiles_is_refused_if_the_node_is_too_large(nodes, constants, kind):
    model = dx.load(model_of(nodes, constants))
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(model, random_image(1, 3, 32, 40), tile=8, axes=(2, 3), memory_limit=8_000)
    assert kind in caught.value.cause
    assert caught.value.numbers["needed_bytes"] > caught.value.numbers["limit_bytes"] == 8_000
    assert caught.value.node == model.facts.nodes[-1].name
    assert (caught.value.input, caught.value.axis) in [("x", 2), ("x", 3)]
    assert dx.Suggestion("exact", False) in caught.value.suggestions


def test_random_numbers_are_refused():
    nodes = [node("RandomNormalLike", "x", "a"), node("Add", "x a", "y")]
    model = dx.load(model_of(nodes))
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(model, random_image(1, 3, 32, 40), tile=8)
    assert caught.value.node == model.facts.nodes[0].name


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"tile": 0}, "tile"),
        ({"tile": "large"}, "tile"),
        ({"tile": (8, 8, 8)}, "tile"),
        ({"tile": 48, "memory_limit": 100}, "tile"),
        ({"axes": (7,)}, "axes"),
        ({"axes": (2, 2)}, "axes"),
        ({"overlap": 8}, "overlap"),
        ({"memory_limit": "much"}, "memory_limit"),
        ({"tile": "auto", "memory_limit": 100}, "memory_limit"),
        ({"outputs": "x"}, "outputs"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, option):
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(dx.load(u_net()), random_image(1, 3, 48, 64), **options)
    assert caught.value.option == option


def test_unknown_outputs_are_refused():
    with pytest.raises(dx.InputError):
        predict_tiled(dx.load(u_net()), random_image(1, 3, 48, 64), outputs="nothing")


@pytest.mark.parametrize(
    ("image", "numbers"),
    [
        (np.zeros((1, 3, 32, 32), np.complex64), {}),
        (np.zeros((1, 4, 32, 32), np.float32), {"size": 4, "expected_size": 3}),
        (np.zeros((32, 32), np.float32), {"rank": 2, "expected_rank": 4}),
        (np.zeros((1, 3, 0, 32), np.float32), {}),
    ],
)
def test_images_that_do_not_fit_the_model_are_refused(image, numbers):
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(dx.load(u_net()), image)
    assert (caught.value.option, caught.value.input) == ("image", "x")
    assert caught.value.numbers == numbers


# Properties.


@st.composite
def small_graphs(draw):
    """Draw a DAG of one to nine convolutions, pools, resizes, pads, norms and sums."""
    constants = {
        "two": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 2, 0, 0, 2, 0]),
    }
    values = {"x": (2, 0)}  # value: channels, how many times it was halved
    nodes = []
    for i in range(draw(st.integers(1, 9))):
        name, (source, (channels, depth)) = f"v{i}", draw(st.sampled_from(sorted(values.items())))
        kind = draw(
            st.sampled_from(
                ["conv", "strided", "pool", "up", "transposed", "pad", "norm", "gate", "add"]
            )
        )
        if kind in ("conv", "strided"):
            size = draw(st.sampled_from([1, 3, 5]))
            constants[f"w{i}"] = kernel(2, channels, size, size)
            stride = 2 if kind == "strided" else 1
            if size == 1 and stride == 2:
                continue
            dilation = draw(st.sampled_from([1, 2]))
            pad = dilation * (size - 1) // 2
            nodes.append(
                conv(f"{source} w{i}", name, pads=[pad] * 4, strides=[stride] * 2,
                     dilations=[dilation] * 2)
            )  # fmt: skip
            values[name] = (2, depth + (stride == 2))
        elif kind == "pool":
            op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            nodes.append(node(op, source, name, kernel_shape=[2, 2], strides=[2, 2]))
            values[name] = (channels, depth + 1)
        elif kind == "up" and depth:
            mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
            nodes.append(node("Resize", f"{source} - two", name, mode=mode))
            values[name] = (channels, depth - 1)
        elif kind == "transposed" and depth:
            constants[f"w{i}"] = kernel(channels, 2, 2, 2)
            nodes.append(node("ConvTranspose", f"{source} w{i}", name, strides=[2, 2]))
            values[name] = (2, depth - 1)
        elif kind == "pad":
            mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
            constants[f"w{i}"] = kernel(2, channels, 3, 4)
            constants["even"] = np.array([0, 0, 1, 2, 0, 0, 1, 1])
            nodes.append(node("Pad", f"{source} even", f"{name}p", mode=mode))
            nodes.append(conv(f"{name}p w{i}", name))
            values[name] = (2, depth)
        elif kind == "norm":
            constants |= {f"s{i}": kernel(channels), f"b{i}": kernel(channels)}
            nodes.append(node("InstanceNormalization", f"{source} s{i} b{i}", name))
            values[name] = (channels, depth)
        elif kind == "gate":
            nodes.append(node("GlobalAveragePool", source, f"{name}g"))
            nodes.append(node("Sigmoid", f"{name}g", f"{name}s"))
            nodes.append(node("Mul", f"{source} {name}s", name))
            values[name] = (channels, depth)
        elif kind == "add":
            alike = sorted(v for v, shape in values.items() if shape == (channels, depth))
            nodes.append(node("Add", f"{source} {draw(st.sampled_from(alike))}", name))
            values[name] = (channels, depth)
    made = [name for name in values if name != "x"]
    if not made:
        nodes.append(node("Relu", "x", "v"))
        made = ["v"]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    most = max(depth for _, depth in values.values())
    size = [draw(st.integers(4, 14)) * 2**most for _ in range(2)]
    return model_of(nodes, constants, inputs=("N", 2, "H", "W"), outputs=outputs), size


def assert_any_tiles_equal_untiled(made, height, width):
    proto, size = made
    if size[0] * size[1] > 40 * height * width:  # avoid thousands of tiles
        height, width = height + 16, width + 16
    assert_equals_untiled(proto, random_image(1, 2, *size), (height, width), tolerance=1e-4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(1, 40), st.integers(1, 40))
def test_any_small_graph_equals_the_untiled_result_on_any_tiles(made, height, width):
    assert_any_tiles_equal_untiled(made, height, width)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8]))
def test_any_small_graph_equals_the_untiled_result_with_small_maps_in_passes_of_their_own(
    made, height, width, stride
):
    with mock.patch.object(predict, "with_passes", lambda plan, costs: split(plan, stride)):
        assert_any_tiles_equal_untiled(made, height, width)


def test_an_image_of_float64_gives_what_float32_gives():
    model = dx.load(u_net())
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    found = dx.predict_tiled(model, image.astype(np.float64), tile=32)
    np.testing.assert_array_equal(found, dx.predict_tiled(model, image, tile=32))


@pytest.mark.parametrize("lazily", [False, True])
def test_images_are_converted_as_predict_converts_them(lazily):
    model = dx.load(u_net())
    pixels = np.random.default_rng(0).integers(0, 255, (1, 3, 48, 64))
    expected = model.predict(pixels.astype("f4"))
    for array in (pixels.astype("u1"), pixels.astype("f8"), pixels):
        image = da.from_array(array, chunks=32) if lazily else array
        np.testing.assert_allclose(predict_tiled(model, image), expected, rtol=1e-3, atol=1e-3)
    masked = np.ma.array(pixels.astype("f4"), mask=False)
    masked[0, 0, 5, 5] = np.ma.masked
    image = da.from_array(masked, chunks=32, asarray=False) if lazily else masked
    assert np.isnan(np.asarray(predict_tiled(model, image))).any()
