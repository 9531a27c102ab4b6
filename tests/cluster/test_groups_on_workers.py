"""Stages that must not be everywhere: each on a worker of its own, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
from builders import layers_model
from dask.utils import key_split
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster
from distributed.diagnostics.plugin import SchedulerPlugin

import dask_onnx as dx
from dask_onnx.cluster.measurements import report
from dask_onnx.cluster.scheduler_plugin import StagePlugin, placed_hint
from dask_onnx.core.stage_tasks import Hints
from dask_onnx.lowering.lower import stage_ref

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((4096, 64), dtype=np.float32)


@pytest.fixture
def cluster(own_client):
    return own_client


@pytest.fixture
def model():
    return dx.load(layers_model([3000] * 6, width=64))


def where(client, plan):
    """Workers that ran each stage."""
    story = client.run_on_scheduler(
        lambda dask_scheduler: {
            key: {w.address for w in state.who_has}
            for key, state in dask_scheduler.tasks.items()
            if state.who_has
        }
    )
    found = {stage.label: set() for stage in plan.stages}
    for key, workers in story.items():
        label = str(key[0] if isinstance(key, tuple) else key).partition("-")[0]
        if label in found:
            found[label] |= workers
    return list(found.values())


def sessions():
    from dask_onnx.runtime.session import CACHE

    return CACHE.built


def test_each_stage_stays_on_its_worker_and_the_other_never_loads_it(cluster, model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    assert len(plan.stages) == 2 and plan.placement.worker_groups == (0, 1)
    x = da.from_array(ROWS, chunks=(256, -1))
    found = model.predict(x, plan=plan).compute()
    np.testing.assert_array_equal(found, model(ROWS, batch_size=None))
    assert sorted(cluster.run(sessions).values()) == [1, 1]


def test_without_a_limit_stages_run_anywhere(model):
    plan = model.plan("pipeline", n_stages=2)
    assert plan.placement is None
    assert not any(map(placed_hint, plan.graph(ROWS[:4]).values()))


def test_a_worker_that_dies_is_replaced(cluster, model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    x = da.from_array(ROWS, chunks=(16, -1))
    lazy = model.predict(x, plan=plan, batch_size=1)
    pids = cluster.run(os.getpid)
    future = cluster.compute(lazy)
    time.sleep(0.5)
    first = next(iter(pids.values()))
    os.kill(first, signal.SIGKILL)
    found = future.result(timeout=120)
    np.testing.assert_allclose(found, model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
    assert first not in cluster.run(os.getpid).values()


def test_worker_groups_without_a_new_worker_are_taken_over(monkeypatch, model):
    monkeypatch.setattr("dask_onnx.cluster.worker_groups.TAKEOVER_SECONDS", 0.5)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        plan = model.plan("pipeline", memory_limit=5_000_000)
        x = da.from_array(ROWS, chunks=(64, -1))
        future = client.compute(model.predict(x, plan=plan, batch_size=1))
        time.sleep(0.3)
        client.retire_workers(next(iter(client.scheduler_info()["workers"])))
        found = future.result(timeout=120)
        np.testing.assert_allclose(found, model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
        # A worker that joins late gets one of the two worker groups.
        cluster.scale(2)
        client.wait_for_workers(2)
        worker_groups = client.run_on_scheduler(
            lambda dask_scheduler: dict(dask_scheduler.plugins["dask_onnx-stages"].places)
        )
        assert len(worker_groups) == 2 and len(set(worker_groups.values())) == 2


def test_worker_groups_of_plans_that_are_gone_are_forgotten(cluster, model):
    x = da.from_array(ROWS[:64], chunks=(16, -1))
    for limit in (5_000_000, 3_500_000):
        model.predict(x, plan=model.plan("pipeline", memory_limit=limit)).compute()
        time.sleep(0.2)
    worker_groups = cluster.run_on_scheduler(
        lambda dask_scheduler: dict(dask_scheduler.plugins["dask_onnx-stages"].places)
    )
    assert len({plan for plan, _ in worker_groups}) == 1


def test_tasks_wait_where_there_is_no_worker():
    state = SimpleNamespace(
        key="k",
        worker_restrictions=None,
        host_restrictions=None,
        resource_restrictions=None,
        loose_restrictions=True,
    )
    StagePlugin()._restrict(None, state, Hints(worker_group=("plan", 0)))
    assert state.worker_restrictions == {"waiting for a worker"} and not state.loose_restrictions


def test_what_ran_where_and_how_long_is_known_afterwards(cluster, model):
    plan = model.plan("pipeline", n_stages=2, shapes={"x": (256, 64)})
    plan = plan.with_placement(dx.Placement((0, 1)))
    x = da.from_array(ROWS, chunks=(256, -1))
    model.predict(x, plan=plan, batch_size=None).compute()
    found = plan.measured()
    assert [times.runs for times in found.stages] == [16, 16] and found.rows == 256
    (one,), (other,) = (times.workers for times in found.stages)
    assert {one, other} == set(cluster.scheduler_info()["workers"])
    text = plan.explain()
    assert "measured on 2 workers, 32 runs of 256 rows" in text
    assert text.count("at its peak") == 2


@pytest.mark.parametrize("mode", ["async", "sync", "hybrid"])
def test_no_more_are_in_flight_than_the_schedule_allows(cluster, model, mode):
    plan = model.plan("pipeline", n_stages=3).with_placement(dx.Placement((0, 1, 0)))
    plan = plan.with_schedule(mode, in_flight=2)
    x = da.from_array(ROWS, chunks=(256, -1))
    found = model.predict(x, plan=plan, batch_size=None).compute()
    np.testing.assert_array_equal(found, model(ROWS, batch_size=None))
    tokens = [stage_ref(model._onnx.ref, stage).token for stage in plan.stages]
    runs = [run for own, _ in cluster.run(report, tokens).values() for run in own]
    spans = [
        sorted((run.started, run.started + run.seconds) for run in runs if run.token == token)
        for token in tokens
    ]
    assert [len(each) for each in spans] == [16, 16, 16]
    # The i-th that began is the i-th of the array: each waits for the one two places before it.
    for late in range(2, 16):
        last = late - 2 if mode == "async" else late // 2 * 2 - 1
        assert sorted(stop for _, stop in spans[-1])[last] <= spans[0][late][0]
    if mode == "sync":
        for wave in range(8):
            assert spans[0][wave * 2 + 1][1] <= spans[1][wave * 2][0]


def loosely(plan):
    placement = dx.Placement.one_each(len(plan.stages), 2, allow_other_workers=True)
    return plan.with_placement(placement)


def homes(client):
    """Worker of each worker group."""
    places = client.run_on_scheduler(
        lambda dask_scheduler: dict(dask_scheduler.plugins["dask_onnx-stages"].places)
    )
    return {worker_group: place for (_, worker_group), place in places.items()}


def ran(client, plan):
    """Worker to how often it has run each stage."""
    found = plan.model._onnx.ref
    tokens = [stage_ref(found, stage, plan.model._facts.custom).token for stage in plan.stages]
    counts = {}
    for worker, (runs, _) in client.run(report, tokens).items():
        noted = [run.token for run in runs]
        counts[worker] = [noted.count(token) for token in tokens]
    return counts


def slow_relu(x):
    time.sleep(0.05)
    return np.maximum(x, 0)


slow_relu.axes = "independent"


@pytest.fixture
def slow_model():
    return dx.load(layers_model([32, 32], width=64), replace={"Relu": slow_relu})


def test_stages_may_prefer_their_workers(cluster, model):
    plan = loosely(model.plan("pipeline", n_stages=2))
    x = da.from_array(ROWS, chunks=(128, -1))
    found = model.predict(x, plan=plan, batch_size=None).compute()
    np.testing.assert_array_equal(found, model(ROWS, batch_size=None))
    counts, places = ran(cluster, plan), homes(cluster)
    assert len(set(places.values())) == 2
    at_home = sum(counts[place][worker_group] for worker_group, place in places.items())
    # Dask may steal one or the other.
    assert sum(map(sum, counts.values())) == 64 and at_home >= 56


def test_an_idle_worker_takes_what_prefers_others(slow_model):
    x = da.from_array(ROWS[:512], chunks=(16, -1))
    plan = loosely(slow_model.plan("pipeline", n_stages=2)).with_schedule(in_flight=16)
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        found = slow_model.predict(x, plan=plan, batch_size=None).compute()
        counts, places = ran(client, plan), homes(client)
        (spare,) = set(counts) - set(places.values())
        assert sum(counts[spare]) > 0
        np.testing.assert_array_equal(found, slow_model(ROWS[:512], batch_size=None))


def test_who_may_run_elsewhere_does_not_wait_for_a_worker_that_is_gone(monkeypatch, slow_model):
    monkeypatch.setattr("dask_onnx.cluster.worker_groups.TAKEOVER_SECONDS", 1000)
    plan = loosely(slow_model.plan("pipeline", n_stages=2))
    x = da.from_array(ROWS[:512], chunks=(16, -1))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        future = client.compute(slow_model.predict(x, plan=plan, batch_size=None))
        time.sleep(0.5)
        client.retire_workers([homes(client)[0]])
        found = future.result(timeout=120)
        np.testing.assert_array_equal(found, slow_model(ROWS[:512], batch_size=None))


def test_a_preference_loosens_nothing_that_the_caller_demands(cluster, model):
    plan = loosely(model.plan("pipeline", n_stages=2))
    (demanded, other) = cluster.scheduler_info()["workers"]
    lazy = model.predict(da.from_array(ROWS, chunks=(256, -1)), plan=plan, batch_size=None)
    cluster.compute(lazy, workers=[demanded], allow_other_workers=False).result()
    counts = ran(cluster, plan)
    assert counts[demanded] == [16, 16] and counts[other] == [0, 0]


def test_what_the_caller_demands_chooses_the_lanes_worker(cluster, model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    (demanded, other) = cluster.scheduler_info()["workers"]
    lazy = model.predict(da.from_array(ROWS, chunks=(256, -1)), plan=plan, batch_size=None)
    cluster.compute(lazy, workers=[demanded], allow_other_workers=False).result()
    counts = ran(cluster, plan)
    assert counts[demanded] == [16, 16] and counts[other] == [0, 0]


def test_resources_that_one_worker_has_decide_where_a_lane_is(model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    workers = {
        i: {"cls": Nanny, "options": {"nthreads": 1, "resources": {"big": i}}} for i in range(2)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with SpecCluster(workers, scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        dx.configure(client)
        lazy = model.predict(da.from_array(ROWS, chunks=(256, -1)), plan=plan, batch_size=None)
        client.compute(lazy, resources={"big": 1}).result(timeout=60)
        assert sorted(ran(client, plan).values()) == [[0, 0], [16, 16]]


def test_without_configure_it_is_said_that_stages_would_be_everywhere(model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        x = da.from_array(ROWS, chunks=(256, -1))
        for rows in (x, ROWS):
            with pytest.raises(dx.PlanError, match=r"(?s)every stage\ncall dx\.configure"):
                model.predict(rows, plan=plan)
        model.predict(ROWS[:8], plan=plan.with_placement(None))
        dx.configure(client)
        model.predict(x, plan=plan)


class MostLoaded(SchedulerPlugin):
    """The most chunks of input that were in memory at once."""

    name = "most-loaded"

    def __init__(self):
        self.most, self.here = 0, set()

    def transition(self, key, start, finish, *_, **__):
        if key_split(key) == "load_block":
            (self.here.add if finish == "memory" else self.here.discard)(key)
            self.most = max(self.most, len(self.here))


def load_block(block_info=None):
    return np.full((16, 64), block_info[None]["chunk-location"][0], np.float32)


def most_loaded(client, lazy):
    client.register_plugin(MostLoaded())
    found = client.compute(lazy).result(timeout=120)
    most = client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.plugins["most-loaded"].most
    )
    return found, most


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_is_in_flight_bounds_what_is_loaded(cluster, slow_model, is_kept):
    plan = slow_model.plan("pipeline", n_stages=2).with_schedule("async", in_flight=4)
    if is_kept:
        plan = plan.with_placement(dx.Placement.one_each(len(plan.stages), 2))
    x = da.map_blocks(
        load_block, chunks=((16,) * 60, (64,)), dtype="f4", meta=np.empty((0, 0), np.float32)
    )
    found, most = most_loaded(cluster, slow_model.predict(x, plan=plan, batch_size=None))
    assert most <= 6  # the gate opens before the last stage's result has gone
    assert found.shape == (960, 64)
    last = slow_model(np.full((16, 64), 59, np.float32), batch_size=None)
    np.testing.assert_array_equal(found[-16:], last)


def test_input_that_others_read_too_is_loaded_for_them(cluster, slow_model):
    plan = slow_model.plan("pipeline", n_stages=2).with_schedule("async", in_flight=2)
    x = da.from_array(ROWS[:512], chunks=(16, -1))
    y = slow_model.predict(x, plan=plan, batch_size=None)
    found, total = dask.compute(y, x.sum())
    np.testing.assert_array_equal(found, slow_model(ROWS[:512], batch_size=None))
    np.testing.assert_allclose(total, ROWS[:512].sum(), rtol=1e-4)


def test_what_workers_measured_is_known_when_they_have_gone(slow_model):
    plan = slow_model.plan("pipeline", n_stages=2, shapes={"x": (16, 64)})
    x = da.from_array(ROWS[:256], chunks=(16, -1))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        slow_model.predict(x, plan=plan, batch_size=None).compute()
        cluster.scale(0)
        while client.scheduler_info(n_workers=-1)["workers"]:
            time.sleep(0.1)
        found = plan.measured().stages
        assert all(times.runs >= 16 and max(times.workers).startswith("tcp") for times in found)
        assert "measured on " in plan.explain()


def test_the_same_request_again_finds_its_tasks_as_they_were(cluster, slow_model):
    plan = slow_model.plan("pipeline", n_stages=2).with_schedule("async", in_flight=2)
    x = da.map_blocks(
        load_block, chunks=((16,) * 8, (64,)), dtype="f4", meta=np.empty((0, 0), np.float32)
    )
    lazy = slow_model.predict(x, plan=plan, batch_size=None)
    for _ in range(3):
        cluster.compute(lazy).result(timeout=60)
    graphs = [e for _, e in cluster.get_events(cluster.id) if e["action"] == "update-graph"]
    assert graphs and sum(each["metrics"]["key_collisions"] for each in graphs) == 0
    held = cluster.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.plugins["dask_onnx-stages"].held
    )
    assert not held
