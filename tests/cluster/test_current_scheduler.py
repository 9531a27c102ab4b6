"""Predictions run on the scheduler that Dask chooses."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import dask.multiprocessing
import numpy as np
import pytest
from builders import dense_model, layers_model
from distributed import Client, LocalCluster, worker_client

import dask_onnx as dx
from dask_onnx.cluster.current_scheduler import chosen_scheduler, current_client
from dask_onnx.core.errors import Suggestion

X = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)


class CountingScheduler:
    """Scheduler whose `get` is a bound method, as of an object of the user's."""

    def __init__(self):
        self.calls = 0

    def get(self, dsk, keys, **options):
        self.calls += 1
        return dask.get(dsk, keys, **options)


@pytest.mark.parametrize("batch_size", ["auto", 2])
def test_a_scheduler_may_be_a_bound_method(batch_size):
    model, scheduler = dx.load(dense_model()), CountingScheduler()
    with dask.config.set(scheduler=scheduler.get):
        found = model.predict(X, batch_size=batch_size)
        assert current_client() is None
    assert scheduler.calls == 1
    np.testing.assert_allclose(found, model(X), rtol=1e-6)


def test_a_scheduler_may_be_an_executor():
    model = dx.load(dense_model())
    with ThreadPoolExecutor(1) as executor, dask.config.set(scheduler=executor):
        np.testing.assert_allclose(model.predict(X), model(X), rtol=1e-6)


@pytest.fixture
def small_client(store_directory):
    """Client of a cluster whose worker has room for no model."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=250_000_000
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.cluster
def test_another_scheduler_is_not_limited_by_the_memory_of_a_client(small_client, monkeypatch):
    monkeypatch.setattr("dask_onnx.cluster.capacity._WORTH_ASKING_BYTES", 0)
    monkeypatch.setattr("dask_onnx.cluster.placement.PROCESS_BYTES", 300e6)
    model = dx.load(layers_model([300], width=8))
    for scheduler in ("threads", "sync", "Threads"):
        with dask.config.set(scheduler=scheduler):
            expected = model.predict(X)
            lazy = model.predict(da.from_array(X, chunks=(4, 8)))
            np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-5)
            assert current_client() is None
    with pytest.raises(dx.PlanError) as caught:
        model.predict(X)
    assert caught.value.numbers["needed_bytes"] > caught.value.numbers["room_bytes"]


@pytest.mark.cluster
def test_a_client_is_found_by_each_of_its_names(client):
    assert current_client() is client
    for scheduler in ("distributed", "dask.distributed", client, client.get):
        with dask.config.set(scheduler=scheduler):
            assert current_client() is client
            assert chosen_scheduler(retries=0)[1] is client


@pytest.mark.cluster
def test_a_method_with_bound_arguments_stands_for_its_client(client):
    with dask.config.set(scheduler=functools.partial(client.get, priority=1)):
        assert current_client() is client
        assert chosen_scheduler(retries=0)[1] is client


@pytest.mark.cluster
def test_a_client_is_current_in_the_thread_that_says_so(client):
    found = {}

    def look():
        with dask.config.set(scheduler="threads"):
            found["before"] = current_client()
            with client.as_current():
                found["inside"] = current_client()
            found["after"] = current_client()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == {"before": None, "inside": client, "after": None}


@pytest.mark.cluster
def test_a_graph_that_was_built_for_a_cluster_runs_on_threads(client):
    model = dx.load(dense_model())
    lazy = model.predict(da.from_array(X, chunks=(4, 8)))
    np.testing.assert_allclose(lazy.compute(scheduler="threads"), model(X), rtol=1e-6)


def predict_in_task(model, *, uses_client):
    """Return whether a client was found, and a prediction, from inside a task."""
    if not uses_client:
        return current_client() is not None, model.predict(X)
    with worker_client() as own:
        return current_client() is own, model.predict(X)


@pytest.mark.cluster
@pytest.mark.parametrize("uses_client", [False, True])
def test_a_task_uses_the_cluster_only_if_it_asks_for_a_client(client, uses_client):
    model = dx.load(dense_model())
    future = client.submit(predict_in_task, model, uses_client=uses_client)
    has_client, found = future.result(timeout=60)
    assert has_client == uses_client
    np.testing.assert_allclose(found, model(X), rtol=1e-6)


def test_processes_run_a_prediction():
    model = dx.load(dense_model())
    with dask.config.set(scheduler="processes", num_workers=1):
        assert chosen_scheduler(retries=0)[0] is dask.multiprocessing.get
        np.testing.assert_allclose(model.predict(X), model(X), rtol=1e-6)


def test_an_unknown_scheduler_is_refused():
    model = dx.load(dense_model())
    with dask.config.set(scheduler="treads"), pytest.raises(dx.InputError) as caught:
        model.predict(X)
    assert caught.value.option == "scheduler"


def test_a_cluster_that_is_named_must_have_a_client():
    model = dx.load(dense_model())
    with dask.config.set(scheduler="distributed"), pytest.raises(dx.ClusterError) as caught:
        model.predict(X)
    assert caught.value.option == "scheduler"


@pytest.mark.cluster
def test_an_asynchronous_client_is_refused_or_replaced_by_its_fallback(client):
    model = dx.load(dense_model())
    found = {}

    async def ask():
        async with Client(client.scheduler.address, asynchronous=True):
            with pytest.raises(dx.ClusterError):
                model.predict(X)
            with (
                dask.config.set({"admin.async-client-fallback": "sync"}),
                pytest.warns(UserWarning, match="Falling back"),
            ):
                found["rows"] = model.predict(X)

    asyncio.run(ask())
    np.testing.assert_allclose(found["rows"], model(X), rtol=1e-6)


@pytest.mark.cluster
def test_work_of_a_lost_cluster_does_not_start_in_this_process(store_directory):
    model, lazy_x = dx.load(dense_model()), da.from_array(X, chunks=(4, 8))
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    with cluster, Client(cluster.scheduler_address, timeout=5) as client:
        expected = model.predict(X)
        cluster.close()
        until = time.monotonic() + 30
        while client.status != "closed":
            assert time.monotonic() < until
            time.sleep(0.02)
        for x in (X, lazy_x):
            with pytest.raises(dx.ClusterError) as caught:
                model.predict(x)
            assert caught.value.suggestions == (Suggestion("scheduler", "threads"),)
        with dask.config.set(scheduler="threads"):
            np.testing.assert_array_equal(model.predict(X), expected)
        np.testing.assert_array_equal(model(X), expected)


@pytest.mark.cluster
def test_work_goes_on_in_this_process_after_the_caller_has_closed_a_client(store_directory):
    model = dx.load(dense_model())
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        expected = model.predict(X)
    assert client.status == "closed"
    np.testing.assert_array_equal(model.predict(X), expected)


@pytest.mark.cluster
def test_plans_that_need_no_cluster_are_made_and_explained_without_one(store_directory):
    model = dx.load(layers_model([2861, 3517], width=8))  # stages that no other test has run
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        pass
    with dask.config.set(scheduler=client):
        for strategy in ("whole", "fused", "per_node"):
            assert model.plan(strategy).explain()
        assert model.plan("pipeline", n_stages=2).measured() is None
        for strategy in ("auto", "pipeline"):
            with pytest.raises(dx.ClusterError):
                model.plan(strategy)
    with pytest.raises(dx.ClusterError):
        model.plan("auto", client=client)
