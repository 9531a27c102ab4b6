from __future__ import annotations

import contextlib
import os

import dask.array as da
import numpy as np
import pytest
from builders import dense_model, layers_model
from distributed import Client

import dask_onnx as dx
from dask_onnx.cluster.profile_scheduler_plugin import plugin_name
from dask_onnx.core.dask_internals import worker_of_process
from dask_onnx.diagnostics.profiling.run_profile import CLIENT

pytestmark = pytest.mark.cluster

X = np.random.default_rng(0).standard_normal((64, 8)).astype("f4")


def has_plugins(profile, dask_scheduler):
    return plugin_name(profile) in dask_scheduler.plugins


def worker_has(profile, dask_worker):
    return plugin_name(profile) in dask_worker.plugins


def wide_plan(workers):
    """Return a model of wide values, and its plan of two stages on two workers."""
    model = dx.load(layers_model([64, 64], width=64))
    plan = model.plan("fused", n_stages=2)
    return model, plan.with_placement(dx.Placement((0, 1)))


def test_stages_transfers_phases_and_nodes_of_two_workers_are_recorded(client):
    model, plan = wide_plan(client)
    x = da.ones((4096, 64), chunks=(512, 64), dtype="f4")
    with dx.profile() as prof:
        model.predict(x, plan=plan).sum().compute()
    result = prof.result
    stages = [task for task in result.tasks if task.stage]
    assert len(stages) == 16
    assert sum(task.rows for task in stages) == 2 * 4096
    by_stage = {token: {t.worker for t in stages if t.stage == token} for token in _tokens(stages)}
    assert all(len(workers) == 1 for workers in by_stage.values())
    assert len(set.union(*by_stage.values())) == 2
    moved = [each for each in result.transfers if each.receiver != CLIENT]
    between = [each for each in moved if each.stage == plan.stages[0].label]
    assert sum(each.plain_bytes for each in between) == pytest.approx(4096 * 64 * 4, rel=0.01)
    assert all(each.wire_bytes > 0 for each in between)
    assert all(0 <= t.submitted <= t.ready <= t.start <= t.stop <= result.wall for t in stages)
    assert {"run", "session", "convert", "stage"} <= {p.name for t in stages for p in t.phases}
    summary = prof.summary()
    assert sum(summary.shares.values()) == pytest.approx(result.wall * 2, rel=0.03)
    assert {node.op_type for node in result.nodes} >= {"MatMul"}
    assert {node.stage for node in result.nodes} == set(_tokens(stages))
    # All are on this host; what is estimated from a late heartbeat is off by as much.
    assert all(abs(w.clock_offset) < 30 for w in result.workers)
    labels = {(each.context, each.label) for each in result.digests}
    assert {("execute", "onnx-run"), ("execute", "onnx-rows")} <= labels
    rows = [d.value for d in result.digests if d.label == "onnx-rows"]
    assert sum(rows) == 2 * 4096
    assert result.gauges == () or {g.worker for g in result.gauges} <= {
        w.name for w in result.workers
    }
    assert not client.run_on_scheduler(has_plugins, result.id)
    assert not any(client.run(worker_has, result.id).values())


def _tokens(tasks):
    return list(dict.fromkeys(task.stage for task in tasks))


def test_profiles_of_two_clients_are_kept_apart(client, cluster):
    model = dx.load(dense_model())
    with (
        Client(cluster, set_as_default=False) as other,
        dx.profile(nodes="none", client=client) as one,
        dx.profile(nodes="none", client=other) as two,
    ):
        mine = client.compute(model.predict(da.from_array(X, chunks=(8, 8))))
        theirs = other.compute(model.predict(da.from_array(X[:24] + 1, chunks=(8, 8))))
        mine.result(timeout=60)
        theirs.result(timeout=60)
    rows = [sum(t.rows or 0 for t in prof.result.tasks) for prof in (one, two)]
    assert rows == [64, 24]
    assert not {t.key for t in one.result.tasks} & {t.key for t in two.result.tasks}
    assert one.result.others
    for prof in (one, two):
        summary = prof.summary()
        assert sum(summary.shares.values()) == pytest.approx(summary.slot_seconds)


def test_two_profiles_of_one_client_share_no_tasks(client):
    model = dx.load(dense_model())
    with dx.profile(nodes="none") as outer:
        model.predict(da.from_array(X + 2, chunks=(32, 8))).compute()
        with dx.profile(nodes="none") as inner:
            model.predict(da.from_array(X + 3, chunks=(16, 8))).compute()
    assert sum(t.rows or 0 for t in inner.result.tasks) == 64
    assert sum(t.rows or 0 for t in outer.result.tasks) == 128  # the inner block is inside it


def test_errors_and_retries_are_counted(client):
    model = dx.load(dense_model())
    bad = client.submit(np.ones, (2, 7), np.float32)
    with pytest.raises(dx.DaskOnnxError), dx.profile(nodes="none") as prof:
        model.predict(da.from_delayed(bad, (2, 8), np.float32), retries=1).compute()
    (row,) = [row for row in prof.rows("error") if row["kind"].endswith("Error")]
    assert row["count"] == 2


def test_what_a_lost_worker_noted_is_kept(own_client, tmp_path):
    client = own_client
    model = dx.load(dense_model())

    def end_once(block, marker):
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return block

    marker = tmp_path / "ended"
    with dx.profile(nodes="none") as prof:
        model.predict(da.from_array(X, chunks=(8, 8))).compute()
        _flushed(client, prof)
        x = da.from_array(X[:8] + 5, chunks=(8, 8)).map_blocks(
            end_once, marker, dtype=X.dtype, meta=X[:0]
        )
        model.predict(x, retries=3).compute()
    assert prof.result.tasks[-1].stop <= prof.result.wall
    lost = [worker for worker in prof.result.workers if worker.left < prof.result.wall]
    assert len(lost) == 1
    assert any(lost[0].name in note for note in prof.result.notes)
    noted = [task for task in prof.result.tasks if task.rows]
    assert sum(task.rows for task in noted) >= 64
    assert {lost[0].name} <= {task.worker for task in noted}
    assert all(task.seconds_of("run") > 0 for task in noted)


def _flushed(client, prof):
    """Let workers send their notes now, as they do every second."""
    name = plugin_name(prof._id)

    def flush(dask_worker):
        dask_worker.plugins[name].flush()

    client.run(flush)


def test_a_client_that_is_made_inside_the_block_is_recorded_from_its_first_prediction(cluster):
    model = dx.load(dense_model())
    with contextlib.ExitStack() as stack, dx.profile(nodes="none") as prof:
        stack.enter_context(Client(cluster))
        model.predict(da.from_array(X + 7, chunks=(8, 8))).compute()
        with pytest.raises(dx.InputError):
            prof.result  # noqa: B018 - the property raises
    assert sum(t.rows or 0 for t in prof.result.tasks) == 64
    assert prof.result.scheduler == cluster.scheduler_address


def test_a_cluster_that_is_gone_at_the_end_is_an_error(cluster):
    client = Client(cluster, set_as_default=False)
    with pytest.raises(dx.ClusterError), dx.profile(nodes="none", client=client) as prof:
        client.close()
    with Client(cluster, set_as_default=False) as after:
        name = plugin_name(prof._id)
        after.unregister_worker_plugin(name)
        after.unregister_scheduler_plugin(name)


def test_a_worker_is_found_while_it_sends(client):
    """The rate of a link is that of the sender's log, which no task's context leads to."""

    def is_found(dask_worker):
        host = dask_worker.address.rpartition(":")[0]
        found = [worker_of_process(end) for end in (dask_worker.address, f"{host}:1")]
        return all(worker is dask_worker for worker in found)

    assert set(client.run(is_found).values()) == {True}
