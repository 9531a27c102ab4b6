"""Rasters by blocks: every layout returns the pixels that were written, and reads few others."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.raster_axes import to_channels_first
from dask_onnx.io.rasters import (
    open_raster,
    open_raster_source,
    open_raster_xarray,
    raster_attributes,
    read_unchanged,
)

HEIGHT, WIDTH = 100, 150
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
GREY = RANDOM.integers(0, 60000, (HEIGHT, WIDTH), np.uint16)
BANDS = RANDOM.random((5, HEIGHT, WIDTH), np.float32)
TILED = {"tile": (32, 48), "compression": "zlib"}
PLANAR = {"planarconfig": "separate", "photometric": "minisblack", "metadata": None}

LAYOUTS = {
    "tiled": (RGB, TILED | {"photometric": "rgb"}, ("y", "x", "band")),
    "tiled, not compressed": (RGB, {"photometric": "rgb", "tile": (64, 64)}, ("y", "x", "band")),
    "strips": (RGB, {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 7}, None),
    "one strip": (RGB, {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 500}, None),
    "not compressed": (RGB, {"photometric": "rgb"}, None),
    "predictor": (GREY, TILED | {"predictor": True}, ("y", "x")),
    "strips of another codec": (GREY, {"compression": "lzma", "rowsperstrip": 9}, ("y", "x")),
    "big endian": (GREY, {"byteorder": ">"}, ("y", "x")),
    "big endian tiles": (GREY, TILED | {"byteorder": ">"}, ("y", "x")),
    "BigTIFF": (GREY, TILED | {"bigtiff": True}, ("y", "x")),
    "planar tiles": (BANDS, TILED | PLANAR, ("band", "y", "x")),
    "planar strips": (BANDS, {"compression": "zlib", "rowsperstrip": 9} | PLANAR, None),
    "planar, not compressed": (BANDS, PLANAR, ("band", "y", "x")),
    "bilevel": (GREY > 30000, {"compression": "zlib", "photometric": "minisblack"}, ("y", "x")),
    "stack": (BANDS, TILED | {"photometric": "minisblack"}, ("page", "y", "x")),
    "stack of stacks": (
        np.stack([BANDS, 1 - BANDS]),
        TILED | {"photometric": "minisblack"},
        ("page", "page_1", "y", "x"),
    ),
    "stack, not compressed": (BANDS, {"photometric": "minisblack"}, ("page", "y", "x")),
    "ImageJ": (BANDS, {"imagej": True, "metadata": {"axes": "ZYX"}}, ("z", "y", "x")),
    "RGBA": (
        np.dstack([RGB, RGB[..., :1]]),
        TILED | {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        ("y", "x", "band"),
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    for number, (pixels, options, _) in enumerate(LAYOUTS.values()):
        tifffile.imwrite(folder / f"{number}.tif", pixels, **options)
    return {name: folder / f"{number}.tif" for number, name in enumerate(LAYOUTS)}


def bytes_read(function):
    """Return the bytes that system calls of this process read while a function runs."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    overhead = -(count() - count())
    before = count()
    function()
    return count() - before - overhead


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_of_odd_sizes_equal_the_written_pixels(name, files):
    pixels, _, dims = LAYOUTS[name]
    source = open_raster_source(files[name])
    assert source.dims == (dims or source.dims)
    lazy = open_raster(files[name], chunks=tuple(max(1, size * 2 // 5) for size in pixels.shape))
    assert (lazy.shape, lazy.dtype) == (pixels.shape, pixels.dtype)
    found = lazy.compute(scheduler="threads")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(open_raster(files[name]).compute(scheduler="sync"), pixels)


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_region_equals_that_part_of_the_raster(name, files, data):
    pixels, _, _ = LAYOUTS[name]
    starts = [data.draw(st.integers(0, size - 1)) for size in pixels.shape]
    ends = [
        data.draw(st.integers(start + 1, size))
        for start, size in zip(starts, pixels.shape, strict=True)
    ]
    region = tuple(map(slice, starts, ends))
    found = open_raster_source(files[name]).read_block(region)
    np.testing.assert_array_equal(found, pixels[region])


def test_auto_chunks_consist_of_whole_tiles(files):
    with dask.config.set({"array.chunk-size": "12kiB"}):
        assert open_raster(files["planar tiles"]).chunks[1][0] % 32 == 0
        assert open_raster(files["tiled"]).chunks[1][0] % 48 == 0


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (TILED | {"tile": (256, 256), "bigtiff": True}, 4 * 256 * 256),
        ({"compression": "zlib", "rowsperstrip": 16}, 10 * 16 * 2000),
    ],
)
def test_a_block_reads_only_its_tiles_or_strips(options, most, tmp_path):
    noise = RANDOM.integers(0, 255, (2000, 2000), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", noise, **options)
    source = open_raster_source(tmp_path / "x.tif")
    region = (slice(1000, 1100), slice(1000, 1100))
    assert bytes_read(lambda: source.read_block(region)) < most + 50_000
    np.testing.assert_array_equal(source.read_block(region), noise[region])


def test_opening_reads_no_pixels(tmp_path):
    noise = RANDOM.integers(0, 255, (2000, 2000), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", noise, **TILED)
    np.save(tmp_path / "x.npy", noise)
    zarr.create_array(str(tmp_path / "x.zarr"), data=noise, chunks=(100, 100))
    Image.fromarray(noise).save(tmp_path / "x.png")
    for name in ("x.tif", "x.npy", "x.zarr", "x.png"):
        open_raster(tmp_path / name)  # what is imported for the first time is read too
        assert bytes_read(lambda name=name: open_raster(tmp_path / name)) < 200_000


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_a_block_of_a_file_larger_than_memory_is_read(suffix, tmp_path):
    path, shape = tmp_path / f"x{suffix}", (150_000, 150_000)  # 21 GiB of holes
    if suffix == ".npy":
        stored = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    else:
        stored = tifffile.memmap(path, shape=shape, dtype=np.uint8, bigtiff=True)
    stored[149_000, 7] = 5
    stored.flush()
    del stored
    lazy = open_raster(path, chunks=(1000, 1000))
    block = lazy.blocks[149, 0].compute(scheduler="sync")
    assert (block.shape, block.sum(), block[0, 7]) == ((1000, 1000), 5, 5)
    assert type(block) is np.ndarray


def test_overviews_are_ignored(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for step in (1, 2, 4):
            writer.write(RGB[::step, ::step], subfiletype=int(step > 1), metadata=None, **TILED)
    with tifffile.TiffWriter(tmp_path / "sub.tif") as writer:
        writer.write(RGB, subifds=1, **TILED)
        writer.write(RGB[::2, ::2], subfiletype=1, **TILED)
    for name in ("pages.tif", "sub.tif"):
        np.testing.assert_array_equal(open_raster(tmp_path / name).compute(), RGB)


def test_omitted_tiles_have_the_nodata_value(tmp_path):
    nodata = [(42113, "s", 0, "-9", True)]
    tifffile.imwrite(tmp_path / "x.tif", BANDS[0], tile=(32, 48), extratags=nodata)
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+") as file:
        tags = file.pages[0].tags
        for name in ("TileOffsets", "TileByteCounts"):
            tags[name].overwrite([0, *tags[name].value[1:]])
    expected = BANDS[0].copy()
    expected[:32, :48] = -9
    np.testing.assert_array_equal(open_raster(tmp_path / "x.tif").compute(), expected)


def test_npy_and_zarr_are_read_by_blocks(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(BANDS))
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("depth", data=GREY, chunks=(30, 40))
    zarr.create_array(str(tmp_path / "v2.zarr"), data=RGB, chunks=(9, 9, 3), zarr_format=2)
    noise = RANDOM.integers(0, 255, (4, 1000, 1000), np.uint8)
    names = ("time", "y", "x")
    zarr.create_array(
        str(tmp_path / "n.zarr"), data=noise, chunks=(1, 100, 100), dimension_names=names
    )
    for name, pixels in [("x.npy", BANDS), ("g.zarr", GREY), ("g.zarr/depth", GREY)]:
        lazy = open_raster(tmp_path / name, chunks=(*(2,) * (pixels.ndim - 2), 33, 77))
        np.testing.assert_array_equal(lazy.compute(), pixels)
    v2 = open_raster(tmp_path / "v2.zarr", dims=("y", "x", "band"))
    np.testing.assert_array_equal(v2.compute(), RGB)
    source = open_raster_source(tmp_path / "n.zarr")
    assert (source.dims, source.storage_chunks) == (names, (1, 100, 100))
    region = (slice(1, 2), slice(0, 100), slice(100, 200))
    assert bytes_read(lambda: source.read_block(region)) < 50_000


def test_images_are_read_whole_and_cut_into_blocks(tmp_path):
    pictures = {"rgb": RGB, "rgba": np.dstack([RGB, RGB[..., 0]]), "grey": GREY}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        lazy = open_raster(tmp_path / f"{name}.png", chunks=(33, 77, -1)[: pixels.ndim])
        assert lazy.dtype == pixels.dtype
        np.testing.assert_array_equal(lazy.compute(), pixels)


def test_the_graph_carries_paths_and_not_pixels(files):
    lazy = open_raster(files["stack"], chunks=(1, 50, 50))
    assert max(len(pickle.dumps(task)) for task in dict(lazy.__dask_graph__()).values()) < 3000


def test_names_of_blocks_differ_with_the_chunks_and_the_file(files):
    names = [open_raster(files["tiled"], chunks=size).name for size in (50, 60, 50)]
    assert names[0] == names[2] != names[1]
    assert open_raster(files["strips"], chunks=50).name != names[0]


def test_bands_are_moved_to_the_front(files):
    assert to_channels_first(RGB, ("y", "x", "band")).shape == (3, HEIGHT, WIDTH)
    assert to_channels_first(GREY, ("y", "x")).shape == (1, HEIGHT, WIDTH)
    deep = np.zeros((4, 5, 6, 3))
    assert to_channels_first(deep, ("y", "z", "x", "band")).shape == (5, 3, 4, 6)
    with pytest.raises(InputError):
        to_channels_first(RGB, ("y", "x"))
    array = open_raster_xarray(files["tiled"])
    assert array.dims == ("band", "y", "x")
    np.testing.assert_array_equal(array.sel(band=2), RGB[..., 1])
    assert open_raster_xarray(files["stack"]).dims == ("page", "band", "y", "x")


def test_a_file_that_changed_is_not_read(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY)
    lazy = open_raster(tmp_path / "x.tif")
    tifffile.imwrite(tmp_path / "x.tif", GREY[:50])
    with pytest.raises(InputError, match=r"x\.tif") as caught:
        lazy.compute(scheduler="sync")
    assert caught.value.option == "path" and "expected_bytes" in caught.value.numbers


def test_a_damaged_tile_is_reported(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY, **TILED)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        offset = file.pages[0].dataoffsets[1]
    with (tmp_path / "x.tif").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 50)
    source = open_raster_source(tmp_path / "x.tif")
    assert read_unchanged(source, (slice(0, 10), slice(0, 10))).shape == (10, 10)
    with pytest.raises(InputError, match=r"0:10, 50:60.*x\.tif") as caught:
        read_unchanged(source, (slice(0, 10), slice(50, 60)))
    assert caught.value.numbers == {"page": 0} and caught.value.reason


@pytest.mark.parametrize("has_codecs", [False, True])
def test_an_unsupported_compression_is_named(has_codecs, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", GREY, tile=(32, 48))
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(34676)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (has_codecs or None) if name == "imagecodecs" else find(name),
    )
    with pytest.raises(InputError) as caught:
        open_raster(tmp_path / "x.tif")
    assert "SGILOG" in caught.value.cause
    assert ("imagecodecs" in caught.value.next_step) == (not has_codecs)


def test_a_missing_tifffile_is_named_with_its_extra(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError) as caught:
        open_raster(files["tiled"])
    assert "dask-onnx[tiff]" in caught.value.next_step


def test_palette_indices_are_accepted_only_on_request(tmp_path):
    classes = RGB[..., 0] % 5
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", classes, photometric="palette", colormap=colours)
    Image.fromarray(classes).convert("P").save(tmp_path / "p.png")
    for name in ("p.tif", "p.png"):
        with pytest.raises(InputError) as caught:
            open_raster(tmp_path / name)
        assert caught.value.suggestions == (Suggestion("palette_indices", True),)
        found = open_raster(tmp_path / name, palette_indices=True).compute()
        np.testing.assert_array_equal(found, classes)


def test_unreadable_files_are_refused_with_the_reason(tmp_path):
    (tmp_path / "text.tif").write_text("not an image")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder").mkdir()
    volume = np.zeros((16, 32, 32), np.uint8)
    tifffile.imwrite(tmp_path / "volume.tif", volume, tile=(16, 16, 16), compression="zlib")
    tifffile.imwrite(tmp_path / "short.tif", GREY)
    with (tmp_path / "short.tif").open("r+b") as file:
        file.truncate(HEIGHT * WIDTH)
    np.save(tmp_path / "deep.npy", np.zeros((2, 3, 4, 5)))
    group = zarr.open_group(str(tmp_path / "two.zarr"), mode="w")
    for name in ("a", "b"):
        group.create_array(name, data=GREY)
    reasons = {
        "missing.tif": "does not exist",
        "text.tif": "not a TIFF file",
        "text.png": "not an image",
        "folder": "it is empty",
        "volume.tif": "cannot be read by blocks",
        "short.tif": "its pixels end at",
        "deep.npy": r"\(2, 3, 4, 5\)",
        "two.zarr": "2 arrays: a, b",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            open_raster(tmp_path / name)
    for name in ("missing.tif", "text.tif"):
        with pytest.raises(InputError):
            raster_attributes(tmp_path / name)
