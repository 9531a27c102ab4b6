"""Requests whose workers are all lost wait for a stated time, say so, and end with an error."""

from __future__ import annotations

import threading
import time

import dask
import dask.array as da
import numpy as np
import pytest
from builders import dense_model
from distributed import Client, Event, LocalCluster

import dask_onnx as dx
from dask_onnx.cluster.no_workers import OPTION, no_workers_seconds

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore:all workers of")]
ROWS, CHUNKS = 4, 6


def load_when_told(block_info=None):
    """Return a block; all but the first that is asked for wait for the event "go"."""
    place = block_info[None]["chunk-location"][0]
    if Event("one").is_set():
        Event("go").wait(timeout=60)
    Event("one").set()
    return np.full((ROWS, 8), place, np.float32)


@pytest.fixture
def lazy():
    return da.map_blocks(
        load_when_told,
        chunks=((ROWS,) * CHUNKS, (8,)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
        name="loaded",
    )


@pytest.fixture
def client(store_directory):
    options = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with (
        dask.config.set({OPTION: "700 ms", "distributed.deploy.lost-worker-timeout": "60s"}),
        LocalCluster(n_workers=1, **options) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


def lose_all(client):
    """Remove all workers, as if they had died."""
    workers = list(client.scheduler_info(n_workers=-1)["workers"])

    async def remove(dask_scheduler):
        for address in workers:
            await dask_scheduler.remove_worker(address, stimulus_id="test", close=False)

    client.run_on_scheduler(remove)


def expected(model):
    blocks = np.repeat(np.arange(CHUNKS, dtype=np.float32), ROWS)
    return model(np.repeat(blocks[:, None], 8, axis=1), batch_size=None)


def wait_for_one(folder):
    until = time.monotonic() + 30
    while not list(folder.glob("kept/chunks.*/00-*")):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_request_without_workers_ends_and_keeps_what_is_done(client, lazy, tmp_path):
    model = dx.load(dense_model())
    kept = model.predict(lazy, batch_size=None, checkpoint=tmp_path / "kept")
    future = client.compute(kept)
    wait_for_one(tmp_path)
    began = time.monotonic()
    lose_all(client)
    with pytest.raises(dx.ClusterError) as caught:
        future.result(timeout=30)
    assert time.monotonic() - began >= 0.7
    assert caught.value.option == OPTION
    assert caught.value.numbers == pytest.approx({"waited_seconds": 0.7, "workers": 0})
    Event("go", client=client).set()
    # Other workers go on from there.
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("kept/chunks.*/00-*")}
    again = model.predict(lazy, batch_size=None, checkpoint=tmp_path / "kept")
    client.cluster.scale(2)
    np.testing.assert_array_equal(again.compute(), expected(model))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_request_goes_on_if_a_worker_comes_in_time(client, lazy):
    model = dx.load(dense_model())
    with dask.config.set({OPTION: 300}):
        future = client.compute(model.predict(lazy, batch_size=None))
    Event("go", client=client).set()
    lose_all(client)
    threading.Timer(0.1, client.cluster.scale, [2]).start()
    np.testing.assert_array_equal(future.result(timeout=60), expected(model))


def test_a_graph_that_arrives_without_workers_waits(client, lazy):
    """A cluster may get its first worker hours later."""
    model = dx.load(dense_model())
    lose_all(client)
    Event("go", client=client).set()
    future = client.compute(model.predict(lazy, batch_size=None))
    time.sleep(1.0)  # longer than tasks wait that have lost their workers
    assert future.status == "pending"
    client.cluster.scale(2)
    np.testing.assert_array_equal(future.result(timeout=60), expected(model))


@pytest.mark.parametrize("value", [0, -1, "soon", True, float("inf"), "nan"])
def test_nonsense_is_refused(value):
    with dask.config.set({OPTION: value}), pytest.raises(dx.InputError) as caught:
        no_workers_seconds()
    assert caught.value.option == OPTION


@pytest.mark.parametrize(("value", "seconds"), [(None, None), (5, 5.0), ("2 minutes", 120.0)])
def test_times_are_seconds_or_texts(value, seconds):
    with dask.config.set({OPTION: value}):
        assert no_workers_seconds() == seconds
