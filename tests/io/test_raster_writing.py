"""Rasters written by blocks: the same pixels and georeference, complete or not at all."""

from __future__ import annotations

import errno

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import tifffile
import zarr

from dask_onnx.core.errors import InputError, OutputError, Suggestion
from dask_onnx.io import raster_sinks
from dask_onnx.io.georeference import attributes_for_grid, cropped_attributes
from dask_onnx.io.raster_formats import open_raster_sink
from dask_onnx.io.raster_writing import save_raster, write_blocks, write_raster
from dask_onnx.io.rasters import open_raster, open_raster_xarray, raster_attributes
from dask_onnx.io.targets import MARKER

SUFFIXES = (".npy", ".zarr", ".tif")
RANDOM = np.random.default_rng(0)
RASTER = RANDOM.random((3, 700, 600), np.float32)
CHUNKS = (2, 300, 250)
KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
GEOREFERENCE = [
    (33550, "d", 3, (10.0, 20.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
    (34735, "H", len(KEYS), KEYS, True),
    (34737, "s", 0, "WGS 84 / UTM zone 33N|", True),
    (42113, "s", 0, "7", True),
]


def lazy(pixels=RASTER, chunks=CHUNKS):
    return da.from_array(pixels, chunks=chunks)


def write_georeferenced(path, shape, tags=GEOREFERENCE):
    tifffile.imwrite(path, np.zeros(shape, np.uint8), extratags=tags, metadata=None)
    return raster_attributes(path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("shape", "dims", "chunks"),
    [
        ((130, 700), None, (50, 300)),
        ((3, 530, 90), None, (2, 300, 40)),
        ((130, 700, 4), ("y", "x", "band"), (50, 333, 4)),
        ((1, 60, 60), None, (1, 17, 60)),
        ((60, 60, 1), ("y", "x", "band"), (17, 9, 1)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "bool"])
def test_written_pixels_are_read_back(shape, dims, chunks, dtype, suffix, tmp_path):
    pixels = (RANDOM.random(shape) * 250).astype(dtype)
    path = save_raster(lazy(pixels, chunks), tmp_path / f"y{suffix}", dims=dims)
    assert names(tmp_path) == [f"y{suffix}"]
    back = open_raster(path, dims=None if suffix == ".tif" else dims)
    assert back.dtype == (np.uint8 if (suffix, dtype) == (".tif", "bool") else pixels.dtype)
    np.testing.assert_array_equal(back.compute().reshape(shape), pixels)


def test_processes_write_one_file(tmp_path):
    pixels = RANDOM.integers(0, 99, (60, 60, 1), np.uint8)
    writes = [
        write_raster(lazy(pixels, (10, 10, 1)), tmp_path / f"y{s}", dims=("y", "x", "band"))
        for s in SUFFIXES
    ]
    paths = dask.compute(*writes, scheduler="processes", num_workers=2)
    assert [str(tmp_path / f"y{suffix}") for suffix in SUFFIXES] == list(paths)
    blocks = [open_raster(path, dims=("y", "x", "band"), chunks=25) for path in paths[:2]]
    blocks.append(open_raster(paths[2], chunks=25)[..., None])
    for found in dask.compute(*blocks, scheduler="processes", num_workers=2):
        np.testing.assert_array_equal(found, pixels)


def test_concurrent_tasks_write_only_their_own_bytes(tmp_path):
    columns = RANDOM.integers(1, 99, (400, 64), np.uint8)
    with dask.config.set(scheduler="threads", num_workers=8):
        path = save_raster(lazy(columns, (400, 1)), tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(path), columns)


def test_npy_and_zarr_store_further_axes(tmp_path):
    stack = RANDOM.random((4, 2, 50, 60))
    options = {"dims": ("time", "band", "y", "x")}
    for suffix in (".npy", ".zarr"):
        path = save_raster(lazy(stack, (3, 1, 20, 50)), tmp_path / f"y{suffix}", **options)
        np.testing.assert_array_equal(open_raster(path, **options).compute(), stack)
    with pytest.raises(InputError):
        write_raster(lazy(stack, -1), tmp_path / "y.tif", **options)


def test_building_neither_computes_nor_creates_files(tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        for suffix in SUFFIXES:
            write_raster(lazy(), tmp_path / f"y{suffix}")
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_leaves_no_output(error, suffix, tmp_path):
    def fail(block, block_id=(0,)):
        if block_id == (1, 1, 1):
            raise error
        return block

    failing = lazy().map_blocks(fail, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    with pytest.raises(error), dask.config.set(scheduler="sync"):
        save_raster(failing, tmp_path / f"y{suffix}")
    assert names(tmp_path) == []
    with pytest.raises(error):
        write_raster(failing, tmp_path / f"y{suffix}").compute(scheduler="sync")
    assert not (tmp_path / f"y{suffix}").exists()
    save_raster(lazy(), tmp_path / f"y{suffix}")
    assert names(tmp_path) == [f"y{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_repeated_steps_keep_written_blocks(suffix, tmp_path):
    array = lazy()
    sink = open_raster_sink(tmp_path / f"y{suffix}", array.chunks, array.dtype)
    sink.prepare()
    write_blocks(array, sink).blocks[0].compute()
    sink.prepare()
    write_blocks(array, sink).blocks[1].compute()
    assert not (tmp_path / f"y{suffix}").exists()
    sink.finish()
    sink.finish()
    np.testing.assert_array_equal(open_raster(tmp_path / f"y{suffix}").compute(), RASTER)
    assert names(tmp_path) == [f"y{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_incomplete_file_of_another_run_is_replaced(suffix, tmp_path):
    other = lazy(RASTER[:, :50].astype(np.float64))
    sink = open_raster_sink(tmp_path / f"y{suffix}", other.chunks, other.dtype)
    sink.prepare()
    write_blocks(other, sink).compute()
    save_raster(lazy(), tmp_path / f"y{suffix}")
    np.testing.assert_array_equal(open_raster(tmp_path / f"y{suffix}").compute(), RASTER)
    assert names(tmp_path) == [f"y{suffix}"]


def test_a_block_that_differs_from_the_declared_dtype_is_an_error(tmp_path):
    undeclared = lazy().map_blocks(lambda b: b.astype(np.float64), dtype=np.float32)
    for suffix in SUFFIXES:
        with pytest.raises(InputError, match="float64"):
            save_raster(undeclared, tmp_path / f"y{suffix}")


def test_zarr_has_a_chunk_for_each_block_and_names_and_the_marker(tmp_path):
    uneven = lazy(RASTER, ((1, 2), (100, 600), (600,)))
    path = save_raster(uneven, tmp_path / "y.zarr")
    array = zarr.open_array(path, mode="r")
    assert (array.chunks, array.metadata.dimension_names) == ((2, 600, 600), ("band", "y", "x"))
    assert (tmp_path / "y.zarr" / MARKER).exists()
    np.testing.assert_array_equal(array[:], RASTER)


def test_zarr_can_be_written_to_a_url():
    url = "memory://pictures/y.zarr"
    system, root = fsspec.url_to_fs(url)
    for pixels in (RASTER, RASTER + 1):
        assert save_raster(lazy(pixels), url, overwrite=True) == url
        np.testing.assert_array_equal(open_raster(url).compute(), pixels)
        assert system.exists(f"{root}/{MARKER}")
    system.rm(root, recursive=True)


def test_tiff_is_tiled_and_compressed_as_requested(tmp_path):
    for compression, name in [("deflate", "ADOBE_DEFLATE"), (None, "NONE")]:
        path = save_raster(lazy(), tmp_path / f"{name}.tif", compression=compression)
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff and file.pages[0].is_tiled and len(file.pages) == 1
            assert file.pages[0].compression.name == name


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path):
    for suffix in SUFFIXES:
        path = save_raster(lazy(RASTER[0], (200, 200)), tmp_path / f"y{suffix}")
        with pytest.raises(InputError) as caught:
            write_raster(lazy(), path)
        assert caught.value.suggestions == (Suggestion("overwrite", True),)
        save_raster(lazy(), path, overwrite=True)
        np.testing.assert_array_equal(open_raster(path).compute(), RASTER)


def test_rasters_that_cannot_be_written_are_refused_first(tmp_path):
    raster = lazy()
    cases = [
        ("y.png", raster, {}, "path"),
        ("no/y.zarr", raster, {}, "path"),
        ("y.zarr", raster, {"attributes": {"transform": (1, 0, 0, 0, -1, 0)}}, "attributes"),
        ("y.tif", raster.astype(complex), {}, "path"),
        ("y.npy", raster.astype(object), {}, None),
        ("y.npy", raster[:0], {}, None),
        ("y.tif", raster, {"compression": "lzw"}, "compression"),
        ("y.tif", raster, {"dims": ("a", "b", "c")}, "dims"),
        ("y.zarr", raster[raster[:, 0, 0] > 0.5], {}, "chunks"),
    ]
    for name, array, options, option in cases:
        with pytest.raises(InputError) as caught:
            write_raster(array, tmp_path / name, **options)
        assert caught.value.option == option
    with pytest.raises(InputError):
        write_raster(raster, "memory://pictures/y.tif")
    assert names(tmp_path) == []


def test_coordinates_are_the_centres_of_pixels(tmp_path):
    attributes = write_georeferenced(tmp_path / "x.tif", (40, 30))
    assert attributes["transform"] == (10, 0, 4e5, 0, -20, 5e6)
    assert (attributes["crs"], attributes["nodata"]) == ("EPSG:32633", 7)
    array = open_raster_xarray(tmp_path / "x.tif")
    assert array.dims == ("band", "y", "x")
    np.testing.assert_array_equal(array.x, 4e5 + 5 + 10 * np.arange(30))
    np.testing.assert_array_equal(array.y, 5e6 - 10 - 20 * np.arange(40))
    assert array.attrs == attributes


def test_tags_of_point_rasters_refer_to_pixel_centres(tmp_path):
    keys = (*KEYS[:11], 2, *KEYS[12:])
    attributes = write_georeferenced(
        tmp_path / "x.tif", (40, 30), [*GEOREFERENCE[:2], (34735, "H", len(keys), keys, True)]
    )
    assert attributes["transform"] == (10, 0, 4e5 - 5, 0, -20, 5e6 + 10)
    path = save_raster(lazy(RASTER[0, :20, :15], 9), tmp_path / "y.tif", attributes=attributes)
    written = raster_attributes(path)
    assert written["transform"] == (20, 0, 4e5 - 5, 0, -40, 5e6 + 10)
    assert written["ModelTiepoint"] == (0, 0, 0, 4e5 + 5, 5e6 - 10, 0)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 0.5])
@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_the_georeference_is_written_for_the_pixels_of_the_result(
    suffix, factor, rotated, tmp_path
):
    matrix = (10.0, 2.0, 0, 4e5, 1.0, -20.0, 0, 5e6, 0, 0, 0, 0, 0, 0, 0, 1.0)
    tags = [(34264, "d", 16, matrix, True), *GEOREFERENCE[2:]] if rotated else GEOREFERENCE
    attributes = write_georeferenced(tmp_path / "x.tif", (40, 30), tags)
    height, width = int(40 * factor), int(30 * factor)
    result = lazy(RASTER[:, :height, :width], (1, 7, 30))
    path = save_raster(result, tmp_path / f"y{suffix}", attributes=attributes)
    written = raster_attributes(path)
    a, b, c, d, e, f = attributes["transform"]
    expected = (a / factor, b / factor, c, d / factor, e / factor, f)
    np.testing.assert_allclose(written["transform"], expected)
    assert (written["height"], written["width"], written["crs"]) == (height, width, "EPSG:32633")
    assert tuple(written["GeoKeyDirectory"]) == KEYS
    assert "nodata" not in written and "GDAL_NODATA" not in written
    assert set(open_raster_xarray(path).coords) == ({"band"} if rotated else {"band", "y", "x"})
    again = save_raster(result, tmp_path / "again.tif", attributes=written)
    np.testing.assert_allclose(raster_attributes(again)["transform"], expected)


def test_a_result_that_does_not_cover_the_raster_is_refused(tmp_path):
    attributes = write_georeferenced(tmp_path / "x.tif", (40, 30))
    with pytest.raises(InputError) as caught:
        write_raster(lazy(RASTER[:, :31, :30]), tmp_path / "y.tif", attributes=attributes)
    assert caught.value.numbers["height_pixels"] == 31
    assert caught.value.numbers["raster_height_pixels"] == 40
    window = cropped_attributes(attributes, 4, 5, 31, 20)
    assert window["transform"] == (10, 0, 4e5 + 50, 0, -20, 5e6 - 80)
    path = save_raster(lazy(RASTER[:, :31, :20]), tmp_path / "y.tif", attributes=window)
    assert raster_attributes(path)["transform"] == window["transform"]


def test_ground_control_points_are_kept_for_the_same_size_only(tmp_path):
    points = tuple(float(value) for value in range(18))
    attributes = write_georeferenced(tmp_path / "x.tif", (40, 30), [(33922, "d", 18, points, True)])
    assert "transform" not in attributes
    path = save_raster(lazy(RASTER[0, :40, :30], 20), tmp_path / "y.tif", attributes=attributes)
    assert raster_attributes(path)["ModelTiepoint"] == points
    for change in (
        lambda: attributes_for_grid(attributes, 20, 15),
        lambda: cropped_attributes(attributes, 0, 0, 10, 10),
    ):
        with pytest.raises(InputError) as caught:
            change()
        assert caught.value.numbers == {"ground_control_points": 3}


def test_a_file_without_a_georeference_has_only_its_size(tmp_path):
    np.save(tmp_path / "x.npy", RASTER)
    tifffile.imwrite(tmp_path / "x.tif", RASTER[0])
    assert raster_attributes(tmp_path / "x.npy") == {}
    assert raster_attributes(tmp_path / "x.tif") == {"height": 700, "width": 600}
    assert set(open_raster_xarray(tmp_path / "x.tif").coords) == {"band"}


@pytest.mark.parametrize("name", ["y.npy", "y.tif", "y.zarr"])
def test_a_raster_on_a_full_disk_is_an_error_with_the_path(tmp_path, name, monkeypatch):
    pixels = np.ones((4, 6), np.uint8)
    sink = open_raster_sink(str(tmp_path / name), ((4,), (6,)), pixels.dtype, run="here-1-00000000")
    sink.prepare()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(raster_sinks.os, "pwrite", full)
    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OutputError) as raised:
        sink.write((slice(0, 4), slice(0, 6)), pixels)
    assert raised.value.option == "path" and raised.value.numbers["free_bytes"] > 0
    sink.discard()
    assert list(tmp_path.iterdir()) == []
