"""Predictions run on the scheduler that Dask chooses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import pytest
from builders import dense_model, layers_model
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.cluster.delivery import current_client
from dask_onnx.collections.schedulers import chosen_scheduler

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


@pytest.fixture(scope="module")
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
@pytest.mark.parametrize("scheduler", ["threads", "sync", "Threads"])
def test_another_scheduler_is_not_limited_by_the_memory_of_a_client(
    small_client, monkeypatch, scheduler
):
    monkeypatch.setattr("dask_onnx.cluster.capacity._WORTH_ASKING_BYTES", 0)
    monkeypatch.setattr("dask_onnx.cluster.placement.PROCESS_BYTES", 300e6)
    model = dx.load(layers_model([300], width=8))
    with dask.config.set(scheduler=scheduler):
        expected = model.predict(X)
        lazy = model.predict(da.from_array(X, chunks=(4, 8)))
        np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-5)
        assert current_client() is None
    with pytest.raises(dx.PlanError) as caught:
        model.predict(X)
    assert caught.value.numbers["needed_bytes"] > caught.value.numbers["room_bytes"]


@pytest.mark.cluster
def test_a_client_is_found_by_each_of_its_names(small_client):
    assert current_client() is small_client
    for scheduler in ("distributed", "dask.distributed", small_client, small_client.get):
        with dask.config.set(scheduler=scheduler):
            assert current_client() is small_client
            assert chosen_scheduler(retries=0)[1] is small_client
