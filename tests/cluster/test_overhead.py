"""What tasks cost on a cluster besides their work: asked once, and only of one that has time."""

from __future__ import annotations

import time

import dask
import pytest
from builders import layers_model

import dask_onnx as dx
from dask_onnx.cluster import overhead as overhead
from dask_onnx.cluster.overhead import with_overhead
from dask_onnx.cluster.placement import cluster_facts
from dask_onnx.planning.resources import Overhead
from dask_onnx.runtime.reference_workload import Laps

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def measures(tmp_path):
    """What is found out here is not for other tests."""
    with dask.config.set({"onnx.plan.calibrate": True, "onnx.store.directory": str(tmp_path)}):
        yield


def paced(client):
    return with_overhead(cluster_facts(client), client).overhead


def test_a_cluster_is_measured_once_and_predictions_go_by_it(own_client, monkeypatch):
    plan = dx.load(layers_model([100] * 4, 64)).plan("per_node", shapes={"x": (64, 64)})
    verdict = plan.judge(batches=4)
    found = verdict.overhead
    assert found.alone == 1.0 and 1.0 <= found.crowded <= 2.0
    assert 0 <= found.seconds_per_task < 1 and 0 < found.seconds_per_request < 1
    assert verdict.best.seconds > found.seconds_per_request + 2 * found.seconds_per_task
    monkeypatch.setattr(overhead, "_measure", None)
    assert paced(own_client) is found
    assert "besides its tasks" in plan.explain()
    assert plan.model.plan("auto").verdict.overhead is found
    with dask.config.set({"onnx.plan.calibrate": False}):
        assert paced(own_client) == Overhead()


def test_other_workers_are_measured_anew(own_client, monkeypatch):
    before = paced(own_client)
    own_client.cluster.scale(1)
    while len(own_client.scheduler_info(n_workers=-1)["workers"]) > 1:
        time.sleep(0.05)
    alone = paced(own_client)
    assert alone is not before and alone.crowded == 1.0


def test_a_busy_cluster_is_not_asked(own_client):
    future = own_client.submit(time.sleep, 2)
    while not any(own_client.processing().values()):
        time.sleep(0.01)
    assert paced(own_client) == Overhead()
    future.result()
    assert paced(own_client).seconds_per_task is not None


def test_workers_of_another_cpu_are_compared_with_this_one(own_client, monkeypatch):
    monkeypatch.setattr(overhead, "cpu_identity", lambda: "another")
    real, there = overhead._request, overhead.run_laps

    def requested(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(overhead, "run_laps", there)
            return real(*arguments)

    monkeypatch.setattr(overhead, "_request", requested)
    monkeypatch.setattr(overhead, "run_laps", lambda count: Laps("another", (10.0,) * count))
    found = paced(own_client)
    assert found.alone < 0.5  # what takes ten seconds here
    assert found.alone <= found.crowded <= 2 * found.alone


def test_where_nobody_can_answer_plans_go_by_what_is_usual(own_client, monkeypatch):
    def failing(*_):
        raise ModuleNotFoundError("No module named 'onnxruntime'")

    monkeypatch.setattr(overhead, "_request", failing)
    assert paced(own_client) == Overhead()
    plan = dx.load(layers_model([100])).plan()
    assert plan.judge(batches=4).best.seconds < 1


def test_this_process_is_measured_once_for_its_host(monkeypatch):
    found = with_overhead(cluster_facts(None), None).overhead
    assert found.crowded >= 1.0 and found.seconds_per_task is None
    monkeypatch.setattr(overhead, "_laps_here", None)
    assert with_overhead(cluster_facts(None), None).overhead == found
