"""No task waits for ever for workers that are gone or paused, even if all of them were."""

from __future__ import annotations

import os
import signal
import time

import dask
import dask.array as da
import numpy as np
import pytest
from builders import layers_model
from distributed import Client, LocalCluster
from distributed.core import Status

import dask_onnx as dx
from dask_onnx.core.dask_internals import unrunnable_preferences

pytestmark = pytest.mark.cluster
CHUNKS, ROWS = 40, 16


def slow_relu(x):
    time.sleep(0.02)
    return np.maximum(x, 0)


slow_relu.axes = "independent"


def load_block(block_info=None):
    return np.full((ROWS, 64), block_info[None]["chunk-location"][0], np.float32)


def unrunnable(client):
    return client.run_on_scheduler(
        lambda dask_scheduler: len(unrunnable_preferences(dask_scheduler))
    )


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_all(client):
    """Kill all workers that the scheduler knows, without asking any that is about to start."""
    pids = client.run_on_scheduler(
        lambda dask_scheduler: [worker.pid for worker in dask_scheduler.workers.values()]
    )
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("allow_other_workers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_plan_goes_on_after_all_workers_have_died_twice(store_directory, allow_other_workers):
    model = dx.load(layers_model([32, 32], width=64), replace={"Relu": slow_relu})
    plan = model.plan("pipeline", n_stages=2)
    placement = dx.Placement.one_each(len(plan.stages), 2, allow_other_workers=allow_other_workers)
    plan = plan.with_placement(placement).with_schedule("async", in_flight=4)
    x = da.map_blocks(
        load_block,
        chunks=((ROWS,) * CHUNKS, (64,)),
        dtype="f4",
        meta=np.empty((0, 0), np.float32),
    )
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 10}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        future = client.compute(model.predict(x, plan=plan, batch_size=None))
        for _ in range(2):
            wait_until(lambda: all(client.has_what().values()) and len(client.has_what()) == 2)
            kill_all(client)
            wait_until(lambda: any(client.has_what().values()))
        found = future.result(timeout=120)
    starts = np.repeat(np.arange(CHUNKS, dtype=np.float32), ROWS)
    expected = model(np.repeat(starts[:, None], 64, axis=1), batch_size=None)
    np.testing.assert_array_equal(found, expected)


def test_a_task_that_prefers_a_paused_worker_runs_on_another(store_directory):
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            memory_limit=0,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        preferred, other = cluster.workers.values()

        def set_status(worker, status):
            worker.loop.add_callback(setattr, worker, "status", status)

        for worker in (preferred, other):
            set_status(worker, Status.paused)
        wait_until(
            lambda: client.run_on_scheduler(lambda dask_scheduler: not dask_scheduler.running)
        )
        future = client.submit(
            os.getpid, workers=[preferred.address], allow_other_workers=True, pure=False
        )
        wait_until(lambda: unrunnable(client) == 1)
        set_status(other, Status.running)
        assert future.result(timeout=30) == os.getpid()
