"""Where slices lie, how pictures are told apart, and the pieces that tasks read."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.core.specs import TensorSpec
from dask_onnx.tiles.slices import (
    Cutter,
    Picture,
    as_picture,
    cut_strips,
    fit_picture,
    input_layout,
    put_together,
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
def test_slices_cover_the_picture_and_stay_inside(height, width, side, overlap, at_most):
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


def test_slices_lie_as_sahi_lays_them():
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
def test_pieces_of_any_chunks_are_the_region(data):
    shape = (3, data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30)))
    chunks = tuple(
        tuple(data.draw(st.lists(st.integers(0, n), min_size=0, max_size=4))) for n in shape
    )
    chunks = tuple(_filled(sizes, n) for sizes, n in zip(chunks, shape, strict=True))
    array = np.arange(np.prod(shape)).reshape(shape)
    picture = Picture(da.from_array(array, chunks=chunks), 1, 2)
    cutter = Cutter(picture, "cut")
    side = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    strips = cut_strips(picture.size, side, 0.2, 3)
    found = [cutter.cut(strip) for strip in strips]
    graph = {**dict(picture.array.__dask_graph__()), **cutter.tasks}
    for strip, (references, counts) in zip(strips, found, strict=True):
        pieces = dask.get(graph, [reference.key for reference in references])
        rows, columns = (
            slice(strip.y, strip.y + strip.height),
            slice(strip.x, strip.x + strip.width),
        )
        np.testing.assert_array_equal(put_together(pieces, counts), array[:, rows, columns])


def _filled(sizes, length):
    """Chunks of these sizes as far as they fit, and one of the rest; some may be empty."""
    kept = []
    for size in sizes:
        if sum(kept) + size <= length:
            kept.append(size)
    return (*kept, length - sum(kept))


def test_a_small_piece_does_not_keep_its_chunk_alive():
    picture = Picture(da.from_array(np.ones((1, 90, 90)), chunks=-1), 1, 2)
    cutter = Cutter(picture, "cut")
    ((reference,), _) = cutter.cut(cut_strips((90, 90), (10, 10), 0.0, 2)[0])
    (piece,) = dask.get({**dict(picture.array.__dask_graph__()), **cutter.tasks}, [reference.key])
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
def test_the_input_says_how_pictures_go_in(shape, expected):
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
        ((3, 50, 3), FIRST, (1, 2)),  # both fit: as the model has it
        ((3, 50, 3), LAST, (0, 1)),
        ((4, 50, 70), FIRST, (1, 2)),  # neither: the smaller one
        ((50, 70, 4), FIRST, (0, 1)),
        ((50, 70), FIRST, (0, 1)),
    ],
)
def test_the_axes_of_a_picture_are_told_by_its_channels(shape, model, axes):
    picture = as_picture(np.zeros(shape, np.uint8), model)
    assert (picture.y, picture.x) == axes
    assert picture.size == tuple(picture.array.shape[axis] for axis in axes)


@pytest.mark.parametrize("model", [FIRST, LAST])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_picture_is_turned_as_the_model_takes_it(model, order):
    pixels = np.random.default_rng(0).random((50, 70, 3)).astype(np.float32)
    given = as_picture(pixels.transpose(order), model)
    picture = fit_picture(given, model)
    expected = pixels.transpose(2, 0, 1) if model.is_channels_first else pixels
    np.testing.assert_array_equal(picture.array.compute(), expected)
    assert picture.size == (50, 70)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dims", ["y x band", "band y x", "x band y", "x y"])
def test_the_dimensions_of_a_dataarray_have_names(dims, channels_last):
    dims = dims.split()
    sizes = {"y": 5, "x": 7, "band": 3}
    pixels = np.random.default_rng(0).random([sizes[d] for d in dims]).astype(np.float32)
    image = xr.DataArray(pixels, dims=dims)
    channels = 3 if "band" in dims else 1
    model = layout(1, 64, 64, channels) if channels_last else layout(1, channels, 64, 64)
    picture = fit_picture(as_picture(image, model), model)
    named = image if "band" in dims else image.expand_dims("band")
    expected = named.transpose(*("y x band" if channels_last else "band y x").split())
    np.testing.assert_array_equal(picture.array.compute(), expected.to_numpy())


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((3, 50, 70), np.uint8), "uint8.*takes float32"),
        (np.zeros((4, 50, 70), np.float32), "4 channels.*takes 3"),
        (np.zeros((50, 70), np.float32), "1 channels.*takes 3"),
        (np.zeros((2, 3, 50, 70), np.float32), "not one picture"),
        (np.zeros(50, np.float32), "not one picture"),
        (np.zeros((3, 0, 70), np.float32), "not one picture"),
        ([[1.0]], "list"),
        (da.zeros((3, 50, 70), dtype="f4")[:, da.zeros(50) == 0], "NaN"),
        (xr.DataArray(np.zeros((3, 5, 7)), dims=["band", "lat", "lon"]), "'band', 'lat', 'lon'"),
        (xr.DataArray(np.zeros((1, 3, 5, 7)), dims=["t", "band", "y", "x"]), "dimensions"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(image, match):
    with pytest.raises(dx.InputError, match=match) as caught:
        fit_picture(as_picture(image, FIRST), FIRST)
    assert caught.value.next_step


@pytest.mark.parametrize("spec", [("image", "f4", None), ("image", "f4", (1, 64)), ("z", "f4", ())])
def test_inputs_that_take_no_pictures_are_refused(spec):
    name, dtype, shape = spec
    with pytest.raises(dx.InputError, match="does not take pictures"):
        input_layout(TensorSpec(name, np.dtype(dtype), shape))


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_a_shrunk_picture_holds_means(dtype):
    pixels = (np.random.default_rng(0).random((3, 50, 70)) * 255).astype(dtype)
    picture = Picture(da.from_array(pixels, chunks=(2, 17, 23)), 1, 2)
    small = picture.shrunk(3)
    assert small.array.dtype == dtype and small.size == (17, 24)
    padded = np.pad(pixels.astype("f8"), [(0, 0), (0, 1), (0, 2)], mode="edge")
    means = padded.reshape(3, 17, 3, 24, 3).mean(axis=(2, 4))
    expected = np.rint(means) if dtype == "u1" else means
    np.testing.assert_allclose(small.array.compute(), expected, rtol=1e-5)
