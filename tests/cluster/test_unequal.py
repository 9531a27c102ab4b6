"""Workers of unequal speed and memory, and clusters that scale."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager

import dask.array as da
import numpy as np
import pytest
from builders import layers_model
from distributed import (
    Client,
    Event,
    LocalCluster,
    Nanny,
    Scheduler,
    SpecCluster,
    futures_of,
    get_worker,
)

import dask_onnx as dx
from dask_onnx.cluster.scheduler_plugin import PLUGIN_NAME

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((960, 64), dtype=np.float32)


@contextmanager
def workers(*options):
    spec = {
        number: {"cls": Nanny, "options": {"nthreads": 1, "host": "127.0.0.1", **own}}
        for number, own in enumerate(options)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": ":0"}}
    with SpecCluster(spec, scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(len(options))
        dx.configure(client)
        yield client


def held_relu(x):
    """Relu that worker 1 finishes no sooner than it is told."""
    assert get_worker().name == 0 or Event("go on").wait(timeout=120)
    return np.maximum(x, 0)


held_relu.axes = "independent"


def test_a_slow_worker_gets_less_to_do():
    model = dx.load(layers_model([32], width=64), replace={"Relu": held_relu})
    with workers({}, {}) as client:
        lazy = model.predict(da.from_array(ROWS, chunks=(16, -1)), batch_size=None)
        found = lazy.persist()
        until = time.monotonic() + 60
        while sum(future.done() for future in futures_of(found)) < 45:
            assert time.monotonic() < until
            time.sleep(0.02)
        Event("go on", client=client).set()
        np.testing.assert_array_equal(found.compute(), model_result(model))
        names = {a: w["name"] for a, w in client.scheduler_info()["workers"].items()}
        done = Counter(names[who[0]] for who in client.who_has(found).values())
        assert done[0] + done[1] == 60
        assert done[0] >= 45


def model_result(model):
    plain = dx.load(layers_model([32], width=64))
    return plain(ROWS, batch_size=None)


def test_worker_groups_are_assigned_by_memory():
    model = dx.load(layers_model([3000] * 6, width=64))
    plan = model.plan("pipeline", n_stages=3).with_placement(dx.Placement((0, 1, 2)))
    with workers({"memory_limit": 1_100_000_000}, {"memory_limit": 500_000_000}) as client:
        found = model.predict(da.from_array(ROWS, chunks=(64, -1)), plan=plan).compute()
        np.testing.assert_allclose(found, model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
        places = client.run_on_scheduler(
            lambda dask_scheduler: dict(dask_scheduler.plugins[PLUGIN_NAME].places)
        )
        names = {a: w["name"] for a, w in client.scheduler_info()["workers"].items()}
        assert Counter(names[place] for place in places.values()) == {0: 2, 1: 1}


def test_auto_cuts_in_proportion_to_unequal_memory(monkeypatch):
    monkeypatch.setattr("dask_onnx.cluster.capacity._WORTH_ASKING_BYTES", 0)
    monkeypatch.setattr("dask_onnx.cluster.placement.PROCESS_BYTES", 196e6)
    model = dx.load(layers_model([3000] * 16, width=64))  # 24.6 MB
    with workers({"memory_limit": 270_000_000}, {"memory_limit": 258_000_000}):
        # Rooms of 20.0 and 10.4 MB.
        plan = model.plan("auto", shapes={"x": (8, 64)})
        held = Counter()
        for stage, worker_group in zip(plan.stages, plan.placement.worker_groups, strict=True):
            held[worker_group] += stage.cost.parameter_bytes
        assert held[0] <= 20e6 and held[1] <= 10.4e6
        model.predict(da.from_array(ROWS, chunks=(64, -1)), plan=plan)  # not refused
        together = plan.with_placement(dx.Placement((0,) * len(plan.stages)))
        with pytest.raises(dx.PlanError) as caught:
            model.predict(da.from_array(ROWS, chunks=(64, -1)), plan=together)
        assert caught.value.numbers["weight_bytes"] > caught.value.numbers["room_bytes"]
        loosely = dx.Placement((0,) * len(plan.stages), allow_other_workers=True)
        model.predict(da.from_array(ROWS, chunks=(64, -1)), plan=plan.with_placement(loosely))


def test_worker_groups_spread_over_a_cluster_that_scales():
    model = dx.load(layers_model([3000] * 6, width=64))
    plan = model.plan("pipeline", n_stages=2).with_placement(dx.Placement((0, 1)))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        cluster.adapt(minimum=1, maximum=2, interval="100ms", wait_count=2)
        lazy = model.predict(da.from_array(ROWS, chunks=(8, -1)), plan=plan, batch_size=1)
        found = client.compute(lazy).result(timeout=120)
        np.testing.assert_allclose(found, model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
        # The idle cluster shrinks; the next request runs all the same, and may make it grow.
        until = time.monotonic() + 60
        while len(client.scheduler_info(n_workers=-1)["workers"]) > 1:
            assert time.monotonic() < until
            time.sleep(0.1)
        again = client.compute(lazy + 1).result(timeout=120)
        np.testing.assert_allclose(again, found + 1, rtol=1e-5, atol=1e-4)
