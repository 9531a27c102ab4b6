"""Collections, sizes, refusals and properties of tiled predictions."""

from __future__ import annotations

from unittest import mock

import dask
import dask.array as da
import numpy as np
import onnx
import pytest
import xarray
from builders import make_model, node, run_onnx, value
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiles.tiled_models import (
    CONSTANTS,
    assert_equals_whole,
    conv,
    kernel,
    model_of,
    no_scheduler,
    picture,
    two_passes,
    u_net,
    vision_transformer,
)

import dask_onnx as dx
from dask_onnx.tiles import predict
from dask_onnx.tiles.passes import split
from dask_onnx.tiles.predict import predict_tiled


def test_a_size_that_the_model_refuses_is_padded_with_its_last_pixels():
    image = picture(1, 3, 45, 62)
    proto = u_net()
    padded = np.pad(image, ((0, 0), (0, 0), (0, 3), (0, 2)), mode="edge")
    expected = run_onnx(proto, {"x": padded})[0][:, :, :45, :62]
    with pytest.warns(UserWarning, match="multiples of 4"):
        found = predict_tiled(dx.load(proto), image, tile=16)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


# Collections.


def test_dask_stays_lazy_and_has_a_chunk_for_each_tile():
    proto, image = u_net(), picture(1, 3, 48, 64)
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


def test_a_part_of_the_result_takes_only_the_tiles_that_it_needs():
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


def test_a_picture_without_the_batch_axis_has_a_result_without_it():
    proto, image = u_net(2), picture(3, 20, 24)
    found = predict_tiled(dx.load(proto), image, tile=8)
    expected = run_onnx(proto, {"x": image[None]})[0][0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_labels_and_attributes_of_a_dataarray_are_kept():
    image = xarray.DataArray(
        picture(3, 20, 24),
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


def test_an_automatic_tile_fits_the_memory_that_a_task_may_take():
    image = da.ones((1, 3, 256, 256), dtype="f4", chunks=64)
    small = predict_tiled(dx.load(u_net()), image, tile="auto", memory_limit="64KiB")
    large = predict_tiled(dx.load(u_net()), image, tile="auto", memory_limit="1MiB")
    assert small.npartitions > large.npartitions


def test_a_tiled_prediction_runs_inside_a_task():
    proto, image = two_passes(), picture(1, 3, 40, 48)
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
def test_workers_cut_what_neighbours_need_before_it_travels(workers):
    proto, image = two_passes(), picture(1, 3, 64, 96)
    lazy = predict_tiled(dx.load(proto), da.from_array(image, 32), tile=32)
    names = {key[0].partition("_")[0] for key in lazy.__dask_graph__() if isinstance(key, tuple)}
    assert {"tile0", "tile1", "cut"} <= names
    expected = run_onnx(proto, {"x": image})[0]
    np.testing.assert_allclose(lazy.compute(), expected, rtol=0, atol=2e-5)


@pytest.mark.cluster
def test_numpy_is_computed_on_the_workers(workers):
    proto, image = vision_transformer(), picture(1, 3, 36, 44)
    assert_equals_whole(proto, image, 12)
    assert_equals_whole(proto, image, 12, memory_limit=60_000)


def test_an_output_of_sizes_alone_is_that_of_the_whole():
    proto = model_of([conv("x w", "a"), node("Shape", "a", "y")], CONSTANTS)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    found = predict_tiled(dx.load(proto), picture(1, 3, 33, 44), tile=16)
    np.testing.assert_array_equal(found, [1, 3, 31, 42])


def test_an_output_of_tokens_has_a_chunk_for_each_row_of_tiles():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Reshape", "a flat", "b"),
        node("Transpose", "b", "y", perm=[0, 2, 1]),
    ]
    proto = model_of(nodes, {**CONSTANTS, "flat": np.array([0, 3, -1])})
    image = picture(1, 3, 32, 40)
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
def test_what_has_no_exact_tiles_is_refused_with_node_and_kind(nodes, constants, kind):
    model = dx.load(model_of(nodes, constants))
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(model, picture(1, 3, 32, 40), tile=8, axes=(2, 3))
    assert kind in caught.value.cause
    assert model.facts.nodes[-1].name in caught.value.cause
    assert "exact=False" in caught.value.next_step


def test_random_numbers_are_refused():
    nodes = [node("RandomNormalLike", "x", "a"), node("Add", "x a", "y")]
    with pytest.raises(dx.InputError, match="random"):
        predict_tiled(dx.load(model_of(nodes)), picture(1, 3, 32, 40), tile=8)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": 0},
        {"tile": "large"},
        {"tile": (8, 8, 8)},
        {"axes": (7,)},
        {"axes": (2, 2)},
        {"overlap": 8},
        {"memory_limit": "much"},
        {"tile": "auto", "memory_limit": 100},
        {"outputs": "nothing"},
    ],
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(dx.InputError):
        predict_tiled(dx.load(u_net()), picture(1, 3, 48, 64), **options)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 3, 32, 32)),
        np.zeros((1, 4, 32, 32), np.float32),
        np.zeros((32, 32), np.float32),
        np.zeros((1, 3, 0, 32), np.float32),
    ],
)
def test_pictures_that_do_not_fit_the_model_are_refused(image):
    with pytest.raises(dx.InputError):
        predict_tiled(dx.load(u_net()), image)


def test_a_model_of_two_inputs_is_refused():
    proto = make_model(
        [node("Add", "x z", "y")],
        [value("x", ["N", 3, "H", "W"]), value("z", ["N", 3, "H", "W"])],
        [value("y", None)],
    )
    with pytest.raises(dx.InputError, match="2 inputs"):
        predict_tiled(dx.load(proto), picture(1, 3, 32, 32))


# Properties.


@st.composite
def small_graphs(draw):
    """A random DAG of convolutions, pools, resizes, pads and joins, of up to nine nodes."""
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
                ["conv", "strided", "pool", "up", "transposed", "pad", "norm", "barrier_key", "add"]
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
        elif kind == "barrier_key":
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


def assert_any_tiles_equal_the_whole(made, height, width):
    proto, size = made
    if size[0] * size[1] > 40 * height * width:  # not thousands of tiles
        height, width = height + 16, width + 16
    assert_equals_whole(proto, picture(1, 2, *size), (height, width), tolerance=1e-4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(1, 40), st.integers(1, 40))
def test_any_small_graph_equals_the_whole_on_any_tiles(made, height, width):
    assert_any_tiles_equal_the_whole(made, height, width)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8]))
def test_any_small_graph_equals_the_whole_with_small_maps_in_passes_of_their_own(
    made, height, width, stride
):
    with mock.patch.object(predict, "with_passes", lambda plan, costs: split(plan, stride)):
        assert_any_tiles_equal_the_whole(made, height, width)
