"""Workers that retire, are lost, or join late, and clusters that are restarted in the middle."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from builders import dense_model
from distributed import Client, Event, LocalCluster, get_worker

import dask_onnx as dx

pytestmark = pytest.mark.cluster
ROWS, CHUNKS = 4, 16


def load_slowly(block_info=None):
    time.sleep(0.1)
    return np.full((ROWS, 8), block_info[None]["chunk-location"][0], np.float32)


STARTED = set()


def load_when_told(block_info=None):
    """Return a block; all but the first of each worker wait for the event "go on"."""
    worker = get_worker().address
    assert worker not in STARTED or Event("go on").wait(timeout=120)
    STARTED.add(worker)
    return load_slowly(block_info)


CALLS = itertools.count()


def load_few(block_info=None):
    """Return a block; hang after five."""
    if next(CALLS) >= 5:
        time.sleep(600)
    return load_slowly(block_info)


def lazy(load=load_slowly):
    return da.map_blocks(
        load,
        chunks=((ROWS,) * CHUNKS, (8,)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
        name="loaded",
    )


@pytest.fixture
def model():
    return dx.load(dense_model())


def expected(model):
    return np.concatenate(
        [model(np.full((ROWS, 8), n, np.float32), batch_size=None) for n in range(CHUNKS)]
    )


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def count_tasks(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def kept_files(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("chunks.*/00-*")}


@pytest.fixture
def light_client(store_directory):
    """Client of workers in this process, which come and go quickly."""
    options = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        dx.configure(client)
        yield client


def test_a_worker_that_retires_hands_its_work_over_to_one_that_joins(light_client, model):
    future = light_client.compute(model.predict(lazy(load_when_told), batch_size=None))
    wait_until(lambda: all(light_client.has_what().values()))
    first, second = light_client.scheduler_info(n_workers=-1)["workers"]
    Event("go on", client=light_client).set()
    light_client.retire_workers([first])
    light_client.cluster.scale(3)
    wait_until(lambda: len(light_client.scheduler_info(n_workers=-1)["workers"]) >= 2)
    light_client.retire_workers([second])
    np.testing.assert_array_equal(future.result(timeout=60), expected(model))


def test_a_cluster_that_adapts_starts_from_no_workers(light_client, model):
    light_client.cluster.scale(0)
    wait_until(lambda: not light_client.scheduler_info(n_workers=-1)["workers"])
    light_client.cluster.adapt(minimum=0, maximum=2, interval="100ms")
    lazily = model.predict(lazy(), batch_size=None)
    np.testing.assert_array_equal(lazily.compute(), expected(model))


def test_a_cluster_that_is_restarted_in_the_middle_is_an_error_of_ours(own_client, model, tmp_path):
    rows = np.random.default_rng(2).standard_normal((64, 8)).astype(np.float32)
    options = {"batch_size": ROWS, "checkpoint": tmp_path / "kept"}
    errors = []

    def run():
        try:
            dx.load(dense_model()).predict(rows, **options)
        except dx.DaskOnnxError as error:
            errors.append(error)

    # With both workers busy, the tasks of the prediction wait.
    busy = [own_client.submit(time.sleep, 600, pure=False, priority=10) for _ in range(2)]
    wait_until(lambda: sum(map(len, own_client.processing().values())) == 2)
    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: count_tasks(own_client) > len(busy))
    own_client.restart(timeout=60)
    thread.join(60)
    assert [(type(error), error.reason) for error in errors] == [(dx.ClusterError, "cancelled")]
    np.testing.assert_allclose(model.predict(rows, **options), model(rows), rtol=1e-4, atol=1e-5)


CLIENT = """
import time
import dask, dask.array as da, numpy as np
import dask_onnx as dx
from builders import dense_model
from test_workers_that_leave import lazy, load_few

dask.config.set(scheduler="threads", num_workers=2)
dx.load(dense_model()).predict(lazy(load_few), batch_size=None, checkpoint={folder!r}).compute()
"""


def test_what_a_killed_process_has_done_is_taken_up_again(model, tmp_path, store_directory):
    folder = str(tmp_path / "kept")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CLIENT).format(folder=folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(kept_files(folder)) >= 3 or process.poll() is not None)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    before = kept_files(folder)
    assert 3 <= len(before) < CHUNKS
    again = model.predict(lazy(), batch_size=None, checkpoint=folder)
    with dask.config.set(scheduler="threads"):
        np.testing.assert_array_equal(again.compute(), expected(model))
    after = kept_files(folder)
    assert len(after) == CHUNKS and {path: after[path] for path in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM", "lifetime"])
def test_workers_that_announce_their_end_lose_nothing(store_directory, model, end):
    """As on machines that are taken back after a notice."""
    limits = {"lifetime": "30s", "lifetime_restart": True} if end == "lifetime" else {}
    options = {"threads_per_worker": 1, "dashboard_address": ":0", **limits}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        dx.configure(client)
        first = set(client.scheduler_info(n_workers=-1)["workers"])
        until = time.monotonic() + 120
        while first & set(client.scheduler_info(n_workers=-1)["workers"]):
            assert time.monotonic() < until
            future = client.compute(model.predict(lazy(), batch_size=None))
            if end == "SIGTERM":
                wait_until(lambda: any(client.has_what().values()))
                pids = client.run(os.getpid)
                os.kill(next(pids[address] for address in pids if address in first), signal.SIGTERM)
            np.testing.assert_array_equal(future.result(timeout=120), expected(model))
            del future
