"""Overhead of tasks on a cluster: measured once, and only while the cluster is idle."""

from __future__ import annotations

import math
import time

import dask
import dask.array as da
import numpy as np
import pytest
from builders import layers_model
from distributed import Event

import dask_onnx as dx
from dask_onnx.cluster import overhead
from dask_onnx.cluster.overhead import (
    known_overhead,
    measure_overhead,
    with_known_overhead,
)
from dask_onnx.cluster.placement import cluster_facts
from dask_onnx.planning.resources import Overhead
from dask_onnx.runtime.reference_workload import WorkloadTimes

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def own_store(tmp_path):
    """Store that no other test reads."""
    with dask.config.set({"onnx.store.directory": str(tmp_path)}):
        yield


@pytest.fixture
def uses_overhead():
    """Let plans use a measured overhead; after `own_client`, which would be measured otherwise."""
    with dask.config.set({"onnx.plan.calibrate": True}):
        yield


def test_a_cluster_is_measured_once_and_predictions_use_it(own_client, uses_overhead, monkeypatch):
    model = dx.load(layers_model([100] * 4, 64))
    plan = model.plan("per_node", shapes={"x": (64, 64)})
    found = measure_overhead(own_client)
    assert found.idle_slowdown == 1.0 and 1.0 <= found.loaded_slowdown <= 2.0
    assert 0 <= found.seconds_per_task < 60 and 0 < found.seconds_per_request < 60
    assert 0 < found.scheduler_seconds_per_task < 1
    monkeypatch.setattr(overhead, "_measure", None)
    verdict = plan.judge(batches=4)
    assert verdict.overhead is found
    assert verdict.best.seconds > found.seconds_per_request + 2 * found.seconds_per_task
    assert "besides its tasks" in plan.explain()
    assert model.plan("auto").verdict.overhead is found
    with dask.config.set({"onnx.plan.calibrate": False}):
        assert plan.judge(batches=4).overhead == Overhead()


def test_an_overhead_of_other_workers_is_not_known(own_client):
    before = measure_overhead(own_client)
    own_client.cluster.scale(1)
    while len(own_client.scheduler_info(n_workers=-1)["workers"]) > 1:
        time.sleep(0.05)
    assert known_overhead(own_client) is None
    alone = measure_overhead(own_client)
    assert alone is not before and alone.loaded_slowdown == 1.0


def wait_for_end():
    return Event("end").wait(timeout=120)


def test_a_busy_cluster_is_not_measured(own_client):
    future = own_client.submit(wait_for_end)
    while not any(own_client.processing().values()):
        time.sleep(0.01)
    assert measure_overhead(own_client) is None and known_overhead(own_client) is None
    Event("end", client=own_client).set()
    future.result()
    assert measure_overhead(own_client).seconds_per_task is not None


def test_workers_of_another_cpu_are_compared_with_this_one(own_client, monkeypatch):
    monkeypatch.setattr(overhead, "cpu_identity", lambda: "another")
    real, there = overhead._request, overhead.time_workload

    def requested(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(overhead, "time_workload", there)
            return real(*arguments)

    monkeypatch.setattr(overhead, "_request", requested)
    monkeypatch.setattr(
        overhead, "time_workload", lambda count: WorkloadTimes("another", (10.0,) * count)
    )
    found = measure_overhead(own_client)
    assert found.idle_slowdown < 0.5  # what takes ten seconds here
    assert found.idle_slowdown <= found.loaded_slowdown <= 2 * found.idle_slowdown


def test_plans_use_the_defaults_where_no_worker_can_answer(own_client, uses_overhead, monkeypatch):
    def failing(*_):
        raise ModuleNotFoundError("No module named 'onnxruntime'")

    monkeypatch.setattr(overhead, "_request", failing)
    assert measure_overhead(own_client) == Overhead()
    plan = dx.load(layers_model([100])).plan()
    assert plan.judge(batches=4).best.seconds < 1


def test_nothing_is_known_before_it_is_measured(own_client, uses_overhead, monkeypatch):
    cluster, measure = cluster_facts(own_client), overhead._measure
    monkeypatch.setattr(overhead, "_measure", None)
    assert known_overhead(own_client) is None
    assert with_known_overhead(cluster, own_client) is cluster
    monkeypatch.setattr(overhead, "_measure", measure)
    found = measure_overhead(own_client)
    assert known_overhead(own_client) is found
    assert with_known_overhead(cluster, own_client).overhead is found
    with dask.config.set({"onnx.plan.calibrate": False}):
        assert with_known_overhead(cluster, own_client) is cluster


def test_this_process_is_measured_for_its_host(uses_overhead, monkeypatch):
    local = cluster_facts(None)
    assert known_overhead(None) is None and with_known_overhead(local, None) is local
    found = measure_overhead(None)
    assert found.loaded_slowdown >= 1.0 and found.seconds_per_task is None
    monkeypatch.setattr(overhead, "_local_run_seconds", None)
    assert known_overhead(None) == with_known_overhead(local, None).overhead == found


def test_auto_groups_chunks_that_are_too_short_for_the_scheduler(own_client, uses_overhead):
    cluster = cluster_facts(own_client)
    known = Overhead(scheduler_seconds_per_task=0.01)
    overhead._known.put(own_client.id, (_threads(own_client), known))
    model = dx.load(layers_model([8]))
    plan = model.plan("auto", shapes={"x": (2, 8)})
    assert plan.chunk_groups.least_seconds == pytest.approx(cluster.slots * 0.01 / 0.5)
    assert "computed in groups" in plan.explain()
    x = da.ones((200, 8), chunks=(2, 8), dtype=np.float32)
    grouped = model.predict(x, plan=plan, batch_size=None)
    assert grouped.numblocks[0] == math.ceil(100 / (100 // (8 * cluster.slots)))
    np.testing.assert_array_equal(grouped, model.predict(x, batch_size=None))
    assert plan.predict(x.persist(), batch_size=None).compute().shape == (200, 8)
    assert model.plan("auto", shapes={"x": (10**7, 8)}).chunk_groups is None
    assert model.plan("whole").chunk_groups is None


def _threads(client):
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {address: worker["nthreads"] for address, worker in workers.items()}
