"""Clusters are configured by the first prediction, once; measuring is left to a verb."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from builders import dense_model, layers_model
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.cluster import configuration
from dask_onnx.cluster.links import known_link
from dask_onnx.cluster.overhead import known_overhead
from dask_onnx.cluster.scheduler_plugin import is_configured
from dask_onnx.jobs.job_cluster import JobCluster

pytestmark = pytest.mark.cluster

X = np.ones((8, 8), np.float32)


@pytest.fixture
def bare_client():
    """A client of a cluster that nobody has configured."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def two_stages():
    model = dx.load(layers_model([100] * 2, 8))
    plan = model.plan("pipeline", n_stages=2).with_placement(dx.Placement((0, 1)))
    return model, plan


def test_the_first_prediction_configures_and_measures_nothing(bare_client):
    model, plan = two_stages()
    with dask.config.set({"onnx.plan.calibrate": True}):
        found = model.predict(X, plan=plan, batch_size=4)
    np.testing.assert_allclose(found, model(X), rtol=1e-5)
    assert bare_client.run_on_scheduler(is_configured)
    assert known_link(bare_client) is None and known_overhead(bare_client) is None


def test_a_lazy_prediction_configures_too(bare_client):
    model = dx.load(dense_model())
    lazy = model.predict(da.ones((8, 8), dtype=np.float32, chunks=(4, 8)))
    assert bare_client.run_on_scheduler(is_configured)
    np.testing.assert_allclose(lazy.compute(), model(X), rtol=1e-5)


def test_it_is_done_once(bare_client, monkeypatch):
    model, _ = two_stages()
    model.predict(X)
    monkeypatch.setattr(configuration, "_register", None)
    model.predict(X)


def test_without_it_a_plan_on_workers_of_its_own_is_refused(bare_client):
    model, plan = two_stages()
    with (
        dask.config.set({"onnx.auto-configure": False}),
        pytest.raises(dx.PlanError) as caught,
    ):
        model.predict(X, plan=plan)
    assert caught.value.option == "placement"


def test_a_scheduler_that_lacks_the_package_is_the_error(bare_client, monkeypatch):
    def register(client):
        raise ModuleNotFoundError("No module named 'dask_onnx'")

    monkeypatch.setattr(configuration, "_register", register)
    model, plan = two_stages()
    with pytest.raises(dx.PlanError) as caught:
        model.predict(X, plan=plan)
    assert "No module named 'dask_onnx'" in caught.value.reason
    with pytest.raises(dx.PlanError):
        dx.configure(bare_client)
    # Whole models need nothing of the scheduler.
    np.testing.assert_allclose(model.predict(X), model(X), rtol=1e-5)


def test_measuring_is_a_verb(bare_client):
    dx.calibrate(bare_client)
    assert known_link(bare_client).bytes_per_second > 0
    assert known_overhead(bare_client) is not None


def test_workers_in_this_process_leave_its_configuration():
    before = dask.config.get("distributed.comm.compression")
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        assert client.run_on_scheduler(is_configured)
    assert dask.config.get("distributed.comm.compression") == before


def ttl(client):
    return client.run_on_scheduler(configuration.worker_ttl_seconds)


def test_clusters_of_ours_give_up_workers_that_hang(store_directory, monkeypatch):
    with JobCluster(workers=1).connect() as client:
        assert ttl(client) == 30  # Dask looks as often: given up within a minute
        assert dask.config.get(configuration.LOST_WORKER_TIMEOUT) == "600s"
    assert dask.config.get(configuration.LOST_WORKER_TIMEOUT) == "15s"


def test_settings_of_the_caller_are_kept(monkeypatch):
    # Tests themselves turn the profiler off.
    others = {configuration.LOST_WORKER_TIMEOUT, configuration.TICK}
    all_settings = {configuration.WORKER_TTL, *others}
    assert set(configuration.own_cluster_settings()) == all_settings
    with dask.config.set({configuration.WORKER_TTL: "20s"}):
        assert set(configuration.own_cluster_settings()) == others
    monkeypatch.delenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED")
    with dask.config.set({configuration.PROFILER: True}):
        assert set(configuration.own_cluster_settings()) == {*all_settings, configuration.PROFILER}
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "5 minutes")
    assert set(configuration.own_cluster_settings()) == others


@pytest.mark.parametrize(("seconds", "is_told"), [("5 minutes", True), ("20s", False)])
def test_a_long_time_until_a_worker_is_given_up_is_told(
    store_directory, monkeypatch, seconds, is_told
):
    told = []
    monkeypatch.setattr(configuration.log, "info", lambda *arguments: told.append(arguments))
    with (
        dask.config.set({configuration.WORKER_TTL: seconds}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
    assert bool(told) == is_told
