"""Location of slices, layout of images, and the pieces that tasks read."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.collections.images.input_layout import input_layout
from dask_onnx.core.specs import TensorSpec
from dask_onnx.tiles.slices import (
    ChunkedImage,
    RegionCutter,
    as_chunked_image,
    assemble,
    cut_strips,
    fit_to_input,
)


def layout(*shape, dtype="float32"):
    return input_layout(TensorSpec("image", np.dtype(dtype), shape))


FIRST = layout(1, 3, 64, 64)
LAST = layout(1, 64, 64, 3)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    side=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    overlap=st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.99]),
    at_most=st.integers(1, 9),
)
def test_slices_cover_the_image_and_stay_inside(height, width, side, overlap, at_most):
    side = (max(side[0], height // 20), max(side[1], width // 20))
    covered = np.zeros((height, width), bool)
    for strip in cut_strips((height, width), side, overlap, at_most):
        assert 1 <= len(strip.offsets) <= at_most
        assert strip.y >= 0 and strip.y + strip.height <= height
        assert strip.x >= 0 and strip.x + strip.width <= width
        assert strip.height == min(side[0], height)
        for offset in strip.offsets:
            assert min(side[1], width) <= strip.width - offset
            covered[strip.y : strip.y + side[0], strip.x + offset : strip.x + offset + side[1]] = (
                True
            )
        assert strip.offsets[-1] + min(side[1], width) == strip.width
    assert covered.all()


def test_slices_start_where_those_of_sahi_do():
    strips = cut_strips((500, 700), (64, 64), 0.2, 5)
    assert [s.x + offset for s in strips[:3] for offset in s.offsets] == [
        *range(0, 612, 51),
        612,
        636,
    ]
    assert sorted({s.y for s in strips}) == [*range(0, 436, 51), 436]
    assert [len(s.offsets) for s in strips[:3]] == [5, 5, 4]
    assert cut_strips((10, 20), (64, 64), 0.2, 5)[0].offsets == (0,)


@given(data=st.data())
def test_pieces_of_any_chunks_make_up_the_region(data):
    shape = (3, data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30)))
    chunks = tuple(
        tuple(data.draw(st.lists(st.integers(0, n), min_size=0, max_size=4))) for n in shape
    )
    chunks = tuple(_filled(sizes, n) for sizes, n in zip(chunks, shape, strict=True))
    array = np.arange(np.prod(shape)).reshape(shape)
    image = ChunkedImage(da.from_array(array, chunks=chunks), 1, 2)
    cutter = RegionCutter(image, "cut")
    side = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    strips = cut_strips(image.size, side, 0.2, 3)
    found = [cutter.cut(strip) for strip in strips]
    graph = {**dict(image.array.__dask_graph__()), **cutter.tasks}
    for strip, (references, counts) in zip(strips, found, strict=True):
        pieces = dask.get(graph, [reference.key for reference in references])
        rows, columns = (
            slice(strip.y, strip.y + strip.height),
            slice(strip.x, strip.x + strip.width),
        )
        np.testing.assert_array_equal(assemble(pieces, counts), array[:, rows, columns])


def _filled(sizes, length):
    """Return chunks of these sizes as far as they fit, and one of the rest; some may be empty."""
    kept = []
    for size in sizes:
        if sum(kept) + size <= length:
            kept.append(size)
    return (*kept, length - sum(kept))


def test_a_small_piece_does_not_keep_its_chunk_alive():
    image = ChunkedImage(da.from_array(np.ones((1, 90, 90)), chunks=-1), 1, 2)
    cutter = RegionCutter(image, "cut")
    ((reference,), _) = cutter.cut(cut_strips((90, 90), (10, 10), 0.0, 2)[0])
    (piece,) = dask.get({**dict(image.array.__dask_graph__()), **cutter.tasks}, [reference.key])
    assert piece.base is None and piece.shape == (1, 10, 20)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 3, 640, 480), (True, True, 3, 640, 480)),
        ((1, 640, 480, 3), (True, False, 3, 640, 480)),
        (("N", 3, "h", "w"), (True, True, 3, None, None)),
        (("N", "h", "w", 3), (True, False, 3, None, None)),
        ((3, "h", "w"), (False, True, 3, None, None)),
        ((12, 64, 64), (False, True, 12, 64, 64)),
        ((None, None, None, None), (True, True, None, None, None)),
    ],
)
def test_the_layout_of_an_input_follows_from_its_shape(shape, expected):
    found = layout(*shape)
    assert (
        found.is_batch,
        found.is_channels_first,
        found.channels,
        found.height,
        found.width,
    ) == expected


@pytest.mark.parametrize(
    ("shape", "model", "axes"),
    [
        ((3, 50, 70), FIRST, (1, 2)),
        ((50, 70, 3), FIRST, (0, 1)),
        ((1, 3, 50, 70), FIRST, (1, 2)),
        ((1, 50, 70, 3), FIRST, (0, 1)),
        ((3, 50, 3), FIRST, (1, 2)),  # both fit: the layout of the model
        ((3, 50, 3), LAST, (0, 1)),
        ((4, 50, 70), FIRST, (1, 2)),  # neither: the smaller one
        ((50, 70, 4), FIRST, (0, 1)),
        ((50, 70), FIRST, (0, 1)),
    ],
)
def test_the_axes_of_an_image_follow_from_its_channels(shape, model, axes):
    image = as_chunked_image(np.zeros(shape, np.uint8), model)
    assert (image.y, image.x) == axes
    assert image.size == tuple(image.array.shape[axis] for axis in axes)


@pytest.mark.parametrize("model", [FIRST, LAST])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_an_image_is_transposed_to_the_order_of_the_model(model, order):
    pixels = np.random.default_rng(0).random((50, 70, 3)).astype(np.float32)
    given = as_chunked_image(pixels.transpose(order), model)
    image = fit_to_input(given, model)
    expected = pixels.transpose(2, 0, 1) if model.is_channels_first else pixels
    np.testing.assert_array_equal(image.array.compute(), expected)
    assert image.size == (50, 70)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dims", ["y x band", "band y x", "x band y", "x y"])
def test_the_dimensions_of_a_dataarray_have_names(dims, channels_last):
    dims = dims.split()
    sizes = {"y": 5, "x": 7, "band": 3}
    pixels = np.random.default_rng(0).random([sizes[d] for d in dims]).astype(np.float32)
    image = xr.DataArray(pixels, dims=dims)
    channels = 3 if "band" in dims else 1
    model = layout(1, 64, 64, channels) if channels_last else layout(1, channels, 64, 64)
    chunked = fit_to_input(as_chunked_image(image, model), model)
    named = image if "band" in dims else image.expand_dims("band")
    expected = named.transpose(*("y x band" if channels_last else "band y x").split())
    np.testing.assert_array_equal(chunked.array.compute(), expected.to_numpy())


@pytest.mark.parametrize(
    ("image", "numbers"),
    [
        (np.zeros((3, 50, 70), np.uint8), {}),
        (np.zeros((4, 50, 70), np.float32), {"channels": 4, "expected_channels": 3}),
        (np.zeros((50, 70), np.float32), {"channels": 1, "expected_channels": 3}),
        (np.zeros((2, 3, 50, 70), np.float32), {"rank": 4}),
        (np.zeros(50, np.float32), {"rank": 1}),
        (np.zeros((3, 0, 70), np.float32), {"rank": 3}),
        ([[1.0]], {}),
        (da.zeros((3, 50, 70), dtype="f4")[:, da.zeros(50) == 0], {}),
        (xr.DataArray(np.zeros((3, 5, 7)), dims=["band", "lat", "lon"]), {}),
        (xr.DataArray(np.zeros((1, 3, 5, 7)), dims=["t", "band", "y", "x"]), {}),
    ],
)
def test_images_that_do_not_fit_are_refused(image, numbers):
    with pytest.raises(dx.InputError) as caught:
        fit_to_input(as_chunked_image(image, FIRST), FIRST)
    assert caught.value.option == "image"
    assert caught.value.numbers == numbers
    assert caught.value.next_step


@pytest.mark.parametrize("spec", [("image", "f4", None), ("image", "f4", (1, 64)), ("z", "f4", ())])
def test_inputs_that_take_no_images_are_refused(spec):
    name, dtype, shape = spec
    with pytest.raises(dx.InputError) as caught:
        input_layout(TensorSpec(name, np.dtype(dtype), shape))
    assert (caught.value.option, caught.value.input) == ("feeds", name)


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_a_shrunk_image_holds_means(dtype):
    pixels = (np.random.default_rng(0).random((3, 50, 70)) * 255).astype(dtype)
    image = ChunkedImage(da.from_array(pixels, chunks=(2, 17, 23)), 1, 2)
    small = image.shrunk(3)
    assert small.array.dtype == dtype and small.size == (17, 24)
    padded = np.pad(pixels.astype("f8"), [(0, 0), (0, 1), (0, 2)], mode="edge")
    means = padded.reshape(3, 17, 3, 24, 3).mean(axis=(2, 4))
    expected = np.rint(means) if dtype == "u1" else means
    np.testing.assert_allclose(small.array.compute(), expected, rtol=1e-5)
