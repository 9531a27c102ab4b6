"""``dask-onnx predict --tile``: one large raster."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tifffile
import zarr
from builders import make_model, node, run_onnx, value, weights

PICTURE = np.random.default_rng(0).integers(0, 255, (90, 70, 2), np.uint8)


@pytest.fixture
def smoothing(tmp_path):
    """x (1, 2, H, W) -> y (1, 3, H, W): two convolutions."""
    model = make_model(
        [
            node("Conv", "x k1", "h", "first", pads=[1, 1, 1, 1]),
            node("Relu", "h", "r"),
            node("Conv", "r k2", "y", "second", pads=[1, 1, 1, 1]),
        ],
        [value("x", [1, 2, "H", "W"])],
        [value("y", [1, 3, "H", "W"])],
        {"k1": weights(4, 2, 3, 3), "k2": weights(3, 4, 3, 3, seed=1)},
    )
    path = tmp_path / "smoothing.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.tif"
    tifffile.imwrite(path, PICTURE, tile=(32, 32), photometric="minisblack", planarconfig="contig")
    return path


def test_a_picture_goes_from_file_to_file_in_tiles(run, scheduler, smoothing, picture, tmp_path):
    target = tmp_path / "out.zarr"
    options = ("--tile", "32", "--pre", "steps:to_float", "--scheduler", scheduler, "--json")
    result = run("predict", smoothing, picture, target, *options)
    assert result.code == 0, result.err
    assert result.json()["shape"] == [3, 90, 70]
    x = np.moveaxis(PICTURE, -1, 0).astype(np.float32)[None]
    expected = run_onnx(onnx.load(smoothing), {"x": x})[0][0]
    np.testing.assert_allclose(zarr.open_array(target)[:], expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (("--tile", "many"), "tile"),
        (("--tile", "32", "--batch-size", "2"), "batch_size"),
        (("--tile", "32", "--append"), "append"),
    ],
)
def test_options_that_do_not_apply_are_refused_before_a_cluster_starts(
    run, smoothing, picture, tmp_path, options, option
):
    result = run("predict", smoothing, picture, tmp_path / "out.zarr", *options, "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == option
    assert not (tmp_path / "out.zarr").exists()


def test_a_raster_of_bytes_is_converted_by_value(run, scheduler, smoothing, picture, tmp_path):
    target = tmp_path / "out.zarr"
    options = ("--tile", "32", "--scheduler", scheduler)
    result = run("predict", smoothing, picture, target, *options)
    assert result.code == 0, result.err
    x = np.moveaxis(PICTURE, -1, 0).astype(np.float32)[None]
    expected = run_onnx(onnx.load(smoothing), {"x": x})[0][0]
    np.testing.assert_allclose(zarr.open_array(target)[:], expected, rtol=1e-4, atol=1e-2)


def test_a_raster_of_a_dtype_that_the_model_does_not_take_is_refused(run, smoothing, tmp_path):
    np.save(tmp_path / "complex.npy", PICTURE.astype(np.complex64) + 1j)
    result = run(
        *("predict", smoothing, tmp_path / "complex.npy", tmp_path / "out.zarr", "--tile", "32")
    )
    assert result.code == 2 and "complex64" in result.err
    assert not (tmp_path / "out.zarr").exists()
