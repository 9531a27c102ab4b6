"""Worker groups on a cluster whose workers die, join and restart."""

from __future__ import annotations

import os
import signal
import time

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
from dask_onnx.cluster.scheduler_plugin import placed_hint
from dask_onnx.lowering.lower import stage_ref

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((4096, 64), dtype=np.float32)


@pytest.fixture
def cluster(own_client):
    return own_client


@pytest.fixture
def model():
    return dx.load(layers_model([3000] * 6, width=64))


def wait_until(condition, seconds=60):
    """Wait until a condition holds, and fail if it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_until_busy(client):
    """Wait until every worker has run a stage and has more to do."""
    wait_until(lambda: all(client.processing().values()) and all(client.has_what().values()))


def tasks_of(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def sessions():
    from dask_onnx.runtime.session_cache import SESSION_CACHE

    return SESSION_CACHE.built


def test_each_stage_is_loaded_by_its_worker_only(cluster, model):
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
    wait_until_busy(cluster)
    first = next(iter(pids.values()))
    os.kill(first, signal.SIGKILL)
    found = future.result(timeout=120)
    np.testing.assert_allclose(found, model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
    assert first not in cluster.run(os.getpid).values()


def test_other_workers_take_over_worker_groups_in_time(monkeypatch, model):
    monkeypatch.setattr("dask_onnx.cluster.worker_groups.TAKEOVER_SECONDS", 0.5)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        plan = model.plan("pipeline", memory_limit=5_000_000)
        x = da.from_array(ROWS, chunks=(64, -1))
        future = client.compute(model.predict(x, plan=plan, batch_size=1))
        wait_until_busy(client)
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


def test_worker_groups_of_plans_without_tasks_are_forgotten(cluster, model):
    x = da.from_array(ROWS[:64], chunks=(16, -1))
    for limit in (5_000_000, 3_500_000):
        model.predict(x, plan=model.plan("pipeline", memory_limit=limit)).compute()
        wait_until(lambda: not tasks_of(cluster))
    worker_groups = cluster.run_on_scheduler(
        lambda dask_scheduler: dict(dask_scheduler.plugins["dask_onnx-stages"].places)
    )
    assert len({plan for plan, _ in worker_groups}) == 1


@pytest.mark.filterwarnings("ignore:Sending large graph")
def test_worker_groups_wait_for_the_workers_of_an_empty_cluster(model):
    plan = model.plan("pipeline", n_stages=2).with_placement(dx.Placement((0, 1)))
    x = da.from_array(ROWS, chunks=(256, -1))
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        future = client.compute(model.predict(x, plan=plan, batch_size=None))
        wait_until(lambda: tasks_of(client))
        cluster.scale(2)
        found = future.result(timeout=120)
        np.testing.assert_allclose(found, model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
        assert sorted(ran(client, plan).values()) == [[0, 16], [16, 0]]


def test_a_loosely_restricted_task_runs_on_a_worker_that_joins_later(monkeypatch, slow_model):
    monkeypatch.setattr("dask_onnx.cluster.worker_groups.TAKEOVER_SECONDS", 1000)
    plan = loosely(slow_model.plan("pipeline", n_stages=2))
    x = da.from_array(ROWS[:512], chunks=(16, -1))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        future = client.compute(slow_model.predict(x, plan=plan, batch_size=None))
        wait_until_busy(client)
        cluster.scale(0)
        wait_until(lambda: not client.scheduler_info(n_workers=-1)["workers"])
        cluster.scale(1)
        found = future.result(timeout=120)
        np.testing.assert_array_equal(found, slow_model(ROWS[:512], batch_size=None))


def test_a_worker_group_follows_its_resource_to_a_new_worker(model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    options = {"nthreads": 1, "resources": {"big": 1}}
    workers = {i: {"cls": Nanny, "options": options if i else {"nthreads": 1}} for i in range(2)}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with SpecCluster(workers, scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        dx.configure(client)
        lazy = model.predict(da.from_array(ROWS, chunks=(16, -1)), plan=plan, batch_size=1)
        future = client.compute(lazy, resources={"big": 1})
        wait_until(lambda: any(client.has_what().values()))
        names = {each["name"]: a for a, each in client.scheduler_info()["workers"].items()}
        os.kill(client.run(os.getpid)[names[1]], signal.SIGKILL)
        found = future.result(timeout=120)
        np.testing.assert_allclose(found, model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
        assert ran(client, plan)[names[0]] == [0, 0]


def test_times_and_workers_of_stages_are_known_after_a_run(cluster, model):
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
    # The i-th run that began is that of the i-th chunk: each waits for the one two places before.
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
    """Return the worker of each worker group."""
    places = client.run_on_scheduler(
        lambda dask_scheduler: dict(dask_scheduler.plugins["dask_onnx-stages"].places)
    )
    return {worker_group: place for (_, worker_group), place in places.items()}


def ran(client, plan):
    """Return the number of runs of each stage, by worker."""
    found = plan.facts.onnx.ref
    tokens = [stage_ref(found, stage, plan.facts.custom).token for stage in plan.stages]
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
    # Dask may steal some; without a preference half of them would be at home.
    assert sum(map(sum, counts.values())) == 64 and at_home >= 48


def test_an_idle_worker_takes_tasks_that_prefer_others(slow_model):
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


def test_tasks_that_may_run_elsewhere_do_not_wait_for_a_lost_worker(monkeypatch, slow_model):
    monkeypatch.setattr("dask_onnx.cluster.worker_groups.TAKEOVER_SECONDS", 1000)
    plan = loosely(slow_model.plan("pipeline", n_stages=2))
    x = da.from_array(ROWS[:512], chunks=(16, -1))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        future = client.compute(slow_model.predict(x, plan=plan, batch_size=None))
        wait_until_busy(client)
        client.retire_workers([homes(client)[0]])
        found = future.result(timeout=120)
        np.testing.assert_array_equal(found, slow_model(ROWS[:512], batch_size=None))


def test_a_preference_does_not_loosen_the_callers_demand(cluster, model):
    plan = loosely(model.plan("pipeline", n_stages=2))
    (demanded, other) = cluster.scheduler_info()["workers"]
    lazy = model.predict(da.from_array(ROWS, chunks=(256, -1)), plan=plan, batch_size=None)
    cluster.compute(lazy, workers=[demanded], allow_other_workers=False).result()
    counts = ran(cluster, plan)
    assert counts[demanded] == [16, 16] and counts[other] == [0, 0]


def test_the_callers_demand_decides_the_worker_of_a_worker_group(cluster, model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    (demanded, other) = cluster.scheduler_info()["workers"]
    lazy = model.predict(da.from_array(ROWS, chunks=(256, -1)), plan=plan, batch_size=None)
    cluster.compute(lazy, workers=[demanded], allow_other_workers=False).result()
    counts = ran(cluster, plan)
    assert counts[demanded] == [16, 16] and counts[other] == [0, 0]


def test_resources_of_one_worker_decide_the_worker_of_a_worker_group(model):
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


def test_a_placement_is_refused_on_a_cluster_without_the_plugin(model):
    plan = model.plan("pipeline", memory_limit=5_000_000)
    with (
        dask.config.set({"onnx.auto-configure": False}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        x = da.from_array(ROWS, chunks=(256, -1))
        for rows in (x, ROWS):
            with pytest.raises(dx.PlanError) as caught:
                model.predict(rows, plan=plan)
            assert caught.value.option == "placement"
        model.predict(ROWS[:8], plan=plan.with_placement(None))
        dx.configure(client)
        model.predict(x, plan=plan)


class MostLoaded(SchedulerPlugin):
    """Records the most chunks of input that were in memory at once."""

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
def test_micro_batches_in_flight_bound_the_loaded_input(cluster, slow_model, is_kept):
    plan = slow_model.plan("pipeline", n_stages=2).with_schedule("async", in_flight=4)
    if is_kept:
        plan = plan.with_placement(dx.Placement.one_each(len(plan.stages), 2))
    x = da.map_blocks(
        load_block, chunks=((16,) * 60, (64,)), dtype="f4", meta=np.empty((0, 0), np.float32)
    )
    found, most = most_loaded(cluster, slow_model.predict(x, plan=plan, batch_size=None))
    assert most <= 6  # the barrier is passed before the last stage's result is released
    assert found.shape == (960, 64)
    last = slow_model(np.full((16, 64), 59, np.float32), batch_size=None)
    np.testing.assert_array_equal(found[-16:], last)


def test_input_that_other_tasks_read_does_not_wait(cluster, slow_model):
    plan = slow_model.plan("pipeline", n_stages=2).with_schedule("async", in_flight=2)
    x = da.from_array(ROWS[:512], chunks=(16, -1))
    y = slow_model.predict(x, plan=plan, batch_size=None)
    found, total = dask.compute(y, x.sum())
    np.testing.assert_array_equal(found, slow_model(ROWS[:512], batch_size=None))
    np.testing.assert_allclose(total, ROWS[:512].sum(), rtol=1e-4)


def test_times_of_workers_that_have_closed_are_known(slow_model):
    plan = slow_model.plan("pipeline", n_stages=2, shapes={"x": (16, 64)})
    x = da.from_array(ROWS[:256], chunks=(16, -1))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        slow_model.predict(x, plan=plan, batch_size=None).compute()
        cluster.scale(0)
        wait_until(lambda: not client.scheduler_info(n_workers=-1)["workers"])
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
    inputs = cluster.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.plugins["dask_onnx-stages"].inputs
    )
    assert not inputs
