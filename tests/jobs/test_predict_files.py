"""`predict_files`: arrays, tables and rasters from file to file, without the command line."""

from __future__ import annotations

import errno
import json
import os
from functools import partial

import fsspec
import numpy as np
import onnx
import pandas as pd
import pytest
import tifffile
import zarr
from builders import dense_model, make_model, node, run_onnx, value, weights
from distributed import Client, LocalCluster
from numpy.lib import format as npy_format

import dask_onnx as dx
from dask_onnx.api import planner
from dask_onnx.io.output_lock import locked_outputs
from dask_onnx.jobs import table_job
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.planning.chunk_groups import ChunkGroups

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((25, 8)).astype(np.float32)
RASTER = RNG.integers(0, 255, (60, 50, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    return tmp_path / "x.npy"


class Reports(JobProgress):
    """Progress that keeps the reports."""

    def __init__(self):
        self.clients, self.steps, self.warnings, self.stopped = [], [], [], False

    def connected(self, client):
        self.clients.append(client)

    def warn(self, message):
        self.warnings.append(message)

    def advanced(self, done, total, unit):
        self.steps.append((done, total, unit))

    def stopping(self):
        self.stopped = True


def test_an_array_goes_from_file_to_file(client, rows, tmp_path):
    model, progress = dx.load(dense_model()), Reports()
    found = dx.predict_files(
        model, rows, tmp_path / "y.npy", scheduler=client, batch_size=5, progress=progress
    )
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(ROWS), rtol=1e-5)
    assert found.rows == 25 and found.batch_size == 5 and found.block_rows % 5 == 0
    assert found.files == (str(tmp_path / "y.npy"),) and found.seconds > 0
    assert found.bad_rows is None and found.shape is None and found.pixels is None
    assert progress.clients == [client] and progress.warnings == []
    assert progress.steps[0] == (0, 25, "rows") and progress.steps[-1] == (25, 25, "rows")


def test_an_automatic_plan_writes_block_by_block(client, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "groups_for", lambda _: ChunkGroups(chunks=5))
    model = dx.load(dense_model())
    assert model.plan("auto").chunk_groups == ChunkGroups(chunks=5)
    target = tmp_path / "y.npy"
    dx.predict_files(model, rows, target, scheduler=client, strategy="auto", block_rows=2)
    np.testing.assert_allclose(np.load(target), model(ROWS), rtol=1e-5)


def test_a_model_may_be_a_path_and_functions_may_be_local(client, rows, tmp_path):
    onnx.save(dense_model(), tmp_path / "m.onnx")
    dx.predict_files(
        tmp_path / "m.onnx",
        rows,
        tmp_path / "y.npy",
        scheduler=client,
        pre=lambda block: block * 2,
        post=lambda block: block.argmax(axis=1),
    )
    expected = dx.load(dense_model())(ROWS * 2).argmax(axis=1)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_the_current_client_is_used_by_default(client, rows, tmp_path):
    progress = Reports()
    dx.predict_files(dense_model(), rows, tmp_path / "y.npy", progress=progress)
    assert progress.clients == [client]


def test_a_table_goes_from_file_to_file_with_bad_rows_apart(client, tmp_path):
    columns = [f"c{i}" for i in range(8)]
    table = pd.DataFrame(ROWS, columns=columns).assign(id=range(25))
    table.loc[[3, 17], "c1"] = np.inf
    table.to_parquet(tmp_path / "x.parquet")
    found = dx.predict_files(
        dense_model(),
        tmp_path / "x.parquet",
        tmp_path / "y.parquet",
        scheduler=client,
        columns=columns,
        append=["id"],
        require_finite=True,
        quarantine=tmp_path / "bad.parquet",
    )
    assert (found.rows, found.bad_rows, len(found.files)) == (23, 2, 2)
    result = pd.read_parquet(tmp_path / "y.parquet")
    good = np.setdiff1d(np.arange(25), [3, 17])
    assert result["id"].to_list() == list(good)
    expected = dx.load(dense_model())(ROWS)[good]
    np.testing.assert_allclose(result.drop(columns="id").to_numpy(), expected, rtol=1e-5)
    assert pd.read_parquet(tmp_path / "bad.parquet")["id"].to_list() == [3, 17]


def test_a_raster_goes_from_file_to_file_in_tiles(client, tmp_path):
    proto = make_model(
        [
            node("Conv", "x k1", "h", "first", pads=[1, 1, 1, 1]),
            node("Relu", "h", "r"),
            node("Conv", "r k2", "y", "second", pads=[1, 1, 1, 1]),
        ],
        [value("x", [1, 2, "H", "W"])],
        [value("y", [1, 3, "H", "W"])],
        {"k1": weights(4, 2, 3, 3), "k2": weights(3, 4, 3, 3, seed=1)},
    )
    source, target = tmp_path / "x.tif", tmp_path / "y.npy"
    tifffile.imwrite(source, RASTER, tile=(32, 32), photometric="minisblack", planarconfig="contig")
    found = dx.predict_files(proto, source, target, tile=32, scheduler=client)
    assert found.shape == (3, 60, 50) and found.pixels == 3000 and found.rows is None
    expected = run_onnx(proto, {"x": np.moveaxis(RASTER, -1, 0)[None]})[0][0]
    np.testing.assert_allclose(np.load(target), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_the_pixels_of_a_raster_are_scaled_as_a_preset_says(client, tmp_path, color):
    proto = make_model(
        [node("Conv", "x k", "y", pads=[1, 1, 1, 1])],
        [value("x", [1, 3, "H", "W"])],
        [value("y", [1, 2, "H", "W"])],
        {"k": weights(2, 3, 3, 3)},
    )
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    source, target = tmp_path / "x.tif", tmp_path / "y.npy"
    tifffile.imwrite(source, pixels, tile=(32, 32), photometric="rgb")
    image = {"preset": "imagenet", "color": color}
    dx.predict_files(proto, source, target, tile=32, image=image, scheduler=client)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    given = pixels[..., ::-1] if color == "BGR" else pixels
    scaled = ((given.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]
    expected = run_onnx(proto, {"x": scaled})[0][0]
    np.testing.assert_allclose(np.load(target), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pixels", "options", "option"),
    [
        (np.zeros((40, 40, 3), np.uint16), {"image": {"preset": "unit"}}, "preset"),
        (np.zeros((40, 40, 4), np.uint8), {"image": {"preset": "unit"}}, "preset"),
        (np.zeros((40, 40, 3), np.uint8), {"image": {"preset": "unit", "top": 3}}, "top"),
        (np.zeros((40, 40, 3), np.uint8), {"image": {"resize": 20}}, "resize"),
        (np.zeros((40, 40, 3), np.uint8), {"image": {"preset": "unit"}, "pre": "a:b"}, "pre"),
    ],
)
def test_rasters_that_no_preset_fits_are_refused(tmp_path, pixels, options, option):
    proto = make_model(
        [node("Relu", "x", "y")],
        [value("x", [1, 3, "H", "W"])],
        [value("y", [1, 3, "H", "W"])],
        {},
    )
    np.save(tmp_path / "x.npy", pixels)
    with pytest.raises(dx.InputError) as caught:
        dx.predict_files(proto, tmp_path / "x.npy", tmp_path / "y.npy", tile=32, **options)
    assert caught.value.option == option


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"normalize": True}, "normalize"),
        ({"tile": 32, "post": len}, "post"),
        ({"tile": 32, "append": True}, "append"),
        ({"columns": ["a"], "strategy": "per_node"}, "strategy"),
        ({"columns": ["a"], "pre": len}, "pre"),
        ({"on_error": "null", "quarantine": "bad.parquet"}, "quarantine"),
        ({"text": "review"}, "tokenizer"),
        ({"text": "review", "tokenizer": "t.json", "require_finite": True}, "require_finite"),
        ({"pre": "nothing"}, "pre"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:9"}, "scheduler"),
        ({"worker_memory_limit": "much"}, "worker_memory_limit"),
        ({"dtype": {"a": "string"}}, "dtype"),
        ({"delimiter": ";"}, "delimiter"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_cluster_starts(
    rows, tmp_path, options, option
):
    progress = Reports()
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(dense_model(), rows, tmp_path / "y.npy", progress=progress, **options)
    assert raised.value.option == option
    assert progress.clients == [] and not (tmp_path / "y.npy").exists()


def test_a_failure_of_every_block_leaves_no_output(client, rows, tmp_path):
    def fail(block):
        if len(block) > 1:
            raise RuntimeError("not a row that was expected")
        return block

    progress = Reports()
    with pytest.raises(RuntimeError, match="not a row"):
        dx.predict_files(
            *(dense_model(), rows, tmp_path / "y.npy"),
            scheduler=client,
            pre=fail,
            block_rows=5,
            retries=0,
            progress=progress,
        )
    assert progress.stopped and [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_rows_that_are_not_independent_are_one_block_with_a_warning(client, rows, tmp_path):
    model = make_model(
        [node("Softmax", "x", "y", "across", axis=0)],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )
    with pytest.warns(UserWarning, match="one block"):
        found = dx.predict_files(model, rows, tmp_path / "y.npy", scheduler=client)
    assert found.blocks == 1
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), dx.load(model)(ROWS), rtol=1e-5)


def test_blocks_that_cut_cells_are_read_again_as_a_stream(client, tmp_path, monkeypatch):
    monkeypatch.setattr(
        table_job, "OpenOptions", partial(table_job.OpenOptions, block_bytes=40_000)
    )
    breaks = "x\n" * 50
    lines = [f'{i},{i},"{breaks if i > 30_000 else ""}"' for i in range(30_500)]
    (tmp_path / "x.csv").write_text("\n".join(["a,b,t", *lines, ""]))
    model = make_model(
        [node("Identity", "x", "y", "same")], [value("x", ["N", 2])], [value("y", ["N", 2])]
    )
    progress = Reports()
    found = dx.predict_files(
        *(model, tmp_path / "x.csv", tmp_path / "y.parquet"),
        columns=["a", "b"],
        scheduler=client,
        progress=progress,
        retries=0,
    )
    assert found.rows == 30_500 and found.blocks == 1 and len(progress.warnings) == 1
    result = pd.read_parquet(tmp_path / "y.parquet")
    assert result["y_0"].to_list() == list(range(30_500))


def test_a_preparation_that_fails_leaves_nothing(client, rows, tmp_path, monkeypatch):
    def fail(*_, **__):
        (tmp_path / ".y.npy.partial-of-this-test").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(npy_format, "write_array_header_2_0", fail)
    with pytest.raises(dx.OutputError) as raised:
        dx.predict_files(dense_model(), rows, tmp_path / "y.npy", scheduler=client)
    assert raised.value.reason == "No space left on device"
    (tmp_path / ".y.npy.partial-of-this-test").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_failing_run_leaves_the_output_that_it_was_to_replace(client, rows, tmp_path):
    def fail(block):
        if len(block) > 1:
            raise KeyError("label")
        return block

    dx.predict_files(dense_model(), rows, tmp_path / "y.parquet", scheduler=client)
    before = pd.read_parquet(tmp_path / "y.parquet")
    with pytest.raises(dx.StageError) as raised:
        dx.predict_files(
            *(dense_model(), rows, tmp_path / "y.parquet"),
            overwrite=True,
            scheduler=client,
            pre=fail,
            retries=0,
            batch_size=5,
        )
    assert raised.value.option == "pre" and raised.value.reason == "KeyError: 'label'"
    assert raised.value.numbers["last_row"] > raised.value.numbers["first_row"]
    assert str(rows) in raised.value.cause
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "y.parquet"), before)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "y.parquet"}


def test_an_output_that_another_run_writes_is_refused_before_a_cluster_starts(rows, tmp_path):
    progress = Reports()
    with locked_outputs([str(tmp_path / "y.npy")]), pytest.raises(dx.InputError) as raised:
        dx.predict_files(dense_model(), rows, tmp_path / "y.npy", progress=progress)
    assert raised.value.numbers == {"pid": os.getpid()} and progress.clients == []


def test_arrays_are_written_as_json_lines(client, rows, tmp_path):
    dx.predict_files(dense_model(), rows, tmp_path / "y.jsonl", scheduler=client)
    parts = sorted((tmp_path / "y.jsonl").glob("*.jsonl"))
    lines = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    (name,) = lines[0]
    found = np.array([line[name] for line in lines], np.float32)
    np.testing.assert_allclose(found, dx.load(dense_model())(ROWS), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [
        ((26, 8), {"declared_bytes": 832, "found_bytes": 800}),
        ((2**62, 8), {"declared_bytes": 2**67, "found_bytes": 800}),
        ((-1, 8), {"declared_bytes": 0, "found_bytes": 800}),
    ],
)
def test_a_npy_file_whose_header_declares_another_size_is_refused(tmp_path, shape, numbers):
    with (tmp_path / "x.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        npy_format.write_array_header_1_0(file, header)
        file.write(ROWS.tobytes())
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(dense_model(), tmp_path / "x.npy", tmp_path / "y.npy")
    assert raised.value.numbers == numbers and raised.value.option == "path"


def test_arrays_for_csv_are_refused_before_a_cluster_starts(rows, tmp_path):
    progress = Reports()
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(dense_model(), rows, tmp_path / "y.csv", progress=progress)
    assert raised.value.option == "path" and progress.clients == []


def test_arrays_are_read_by_url(client, rows, tmp_path):
    model = dx.load(dense_model())
    system = fsspec.filesystem("memory")
    system.pipe_file("/arrays/x.npy", rows.read_bytes())
    dx.predict_files(model, "memory://arrays/x.npy", "memory://arrays/y.zarr", scheduler=client)
    found = zarr.open_array("memory://arrays/y.zarr", mode="r")[:]
    np.testing.assert_allclose(found, model(ROWS), rtol=1e-5)
    system.rm("/arrays", recursive=True)
