"""Memory of requests on shards: what is predicted, what is refused, and what is proposed."""

from __future__ import annotations

from types import SimpleNamespace

import dask
import numpy as np
import pytest
import sequence_models as models
from builders import make_model, node, value

import dask_onnx as dx
from dask_onnx.core.errors import PlanError
from dask_onnx.planning.resources import Cluster
from dask_onnx.sharding import shard_memory
from dask_onnx.sharding.shard_memory import ShardMemory, check_shards_fit

MB = 10**6
CLIENT = SimpleNamespace(
    asynchronous=False, scheduler_info=lambda n_workers: {"workers": {"a": {}, "b": {}}}
)


def cluster_of(monkeypatch, *, room, workers=2, threads=1):
    cluster = Cluster(workers, threads, memory_limit=room, resident=0.0)
    monkeypatch.setattr(shard_memory, "cluster_facts", lambda client: cluster)


def halving(count):
    """Return the memory of a request whose tasks shrink with the shards; the rest does not."""
    if count > 64:
        raise PlanError("no more positions", "give fewer")
    return ShardMemory(6400 * MB // count, 300 * MB, 50 * MB)


def test_shards_that_do_not_fit_are_refused_with_the_number_that_does(monkeypatch):
    cluster_of(monkeypatch, room=700 * MB)
    with pytest.raises(PlanError) as caught:
        check_shards_fit(CLIENT, 4, halving(4), halving)
    numbers = caught.value.numbers
    assert numbers["needed_bytes"] == 1800 * MB and numbers["room_bytes"] == 700 * MB
    assert numbers["fitting_shards"] == 16
    assert [(each.option, each.value) for each in caught.value.suggestions] == [("n", 16)]
    check_shards_fit(CLIENT, 16, halving(16), halving)


def test_threads_of_a_worker_hold_a_task_each(monkeypatch):
    cluster_of(monkeypatch, room=700 * MB, threads=4)
    with pytest.raises(PlanError) as caught:
        check_shards_fit(CLIENT, 16, halving(16), halving)
    assert caught.value.numbers["fitting_shards"] == 64


def test_values_that_wait_are_shared_by_the_workers_and_no_number_of_shards_helps(monkeypatch):
    cluster_of(monkeypatch, room=180 * MB)
    with pytest.raises(PlanError) as caught:
        check_shards_fit(CLIENT, 4, halving(4), halving)
    assert caught.value.suggestions == () and "fitting_shards" not in caught.value.numbers
    cluster_of(monkeypatch, room=320 * MB, workers=4)
    check_shards_fit(CLIENT, 64, halving(64), halving)


def test_a_warning_takes_the_place_of_the_error_where_it_is_asked_for(monkeypatch):
    cluster_of(monkeypatch, room=700 * MB)
    with (
        dask.config.set({"onnx.plan.memory-check": "warn"}),
        pytest.warns(UserWarning, match="n=16"),
    ):
        check_shards_fit(CLIENT, 4, halving(4), halving)


def test_nothing_is_asked_without_workers_or_for_little(monkeypatch):
    cluster_of(monkeypatch, room=1)
    check_shards_fit(None, 4, halving(4), halving)
    check_shards_fit(CLIENT, 4, ShardMemory(MB, MB, MB), halving)
    empty = SimpleNamespace(asynchronous=False, scheduler_info=lambda n_workers: {"workers": {}})
    check_shards_fit(empty, 4, halving(4), halving)


def test_a_value_that_all_layers_read_waits_for_the_last_of_them():
    # The sum of all pairs is made once, and read by two layers on either side of a gather.
    width, tokens = 8, 1024
    nodes = [
        node("Transpose", "x", "xt", "turn", perm=[0, 2, 1]),
        node("MatMul", "x xt", "pairs", "pairs"),
        node("Softmax", "pairs", "p", "first_softmax", axis=-1),
        node("MatMul", "p x", "y", "first"),
        node("Transpose", "y", "yt", "turn_again", perm=[0, 2, 1]),
        node("MatMul", "y yt", "more", "more_pairs"),
        node("Add", "more pairs", "both", "both"),
        node("Softmax", "both", "q", "second_softmax", axis=-1),
        node("MatMul", "q y", "z", "second"),
    ]
    shape = ["N", "T", width]
    model = dx.load(make_model(nodes, [value("x", shape)], [value("z", shape)]))
    x = np.random.default_rng(0).standard_normal((1, tokens, width), dtype=np.float32)
    plan = model.plan(dx.Sharded({"x": 1}, 4), shapes={"x": x.shape})
    memory = plan.at().summary.memory
    assert memory.spread_bytes >= tokens * tokens * 4
    assert memory.copied_bytes >= tokens * width * 4
    np.testing.assert_allclose(model.predict(x, plan=plan), model.predict(x), rtol=1e-4, atol=1e-4)


def test_a_plan_that_does_not_fit_the_workers_is_refused_before_anything_runs(monkeypatch):
    model = dx.load(models.encoder())
    shapes = {"x": (1, 8192, models.WIDTH)}
    plan = model.plan(dx.Sharded("sequence", 2), shapes=shapes)
    needed = plan.at().summary.memory.task_bytes
    assert needed > 64 * 2**20
    cluster_of(monkeypatch, room=needed / 3)
    monkeypatch.setattr("dask_onnx.sharding.sequence_plan.current_client", lambda: CLIENT)
    x = np.zeros(shapes["x"], np.float32)
    with pytest.raises(PlanError) as caught:
        plan.predict(x)
    fitting = caught.value.numbers["fitting_shards"]
    better = model.plan(dx.Sharded("sequence", fitting), shapes=shapes).at().summary.memory
    assert better.on_each_of(Cluster(2, 1, 0)) <= needed / 3
