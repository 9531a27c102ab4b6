"""`predict_files`: arrays, tables and rasters from file to file, without the command line."""

from __future__ import annotations

import numpy as np
import onnx
import pandas as pd
import pytest
import tifffile
from builders import dense_model, make_model, node, run_onnx, value, weights
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.jobs.job_progress import JobProgress

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((25, 8)).astype(np.float32)
RASTER = RNG.integers(0, 255, (60, 50, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
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


@pytest.mark.parametrize(
    ("options", "option"),
    [
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


def test_a_failure_leaves_no_output(client, rows, tmp_path):
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
