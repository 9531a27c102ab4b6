"""Models on worker processes: number of tasks, retries, worker deaths and errors."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections import Counter
from dataclasses import replace

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import onnx
import pandas as pd
import pytest
from builders import dense_model, layers_model, run_onnx
from dask.task_spec import Task
from dask.utils import key_split
from distributed import futures_of, wait

import dask_onnx as dx

pytestmark = pytest.mark.cluster

X = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
LAZY = da.from_array(X, chunks=(3, 8))


def labels_of(finished):
    """Return the number of finished tasks by the label of their key."""
    return Counter(key_split(eval(key) if key.startswith("(") else key) for key in finished)


def test_a_lazy_array_computes_on_the_workers(client):
    source = dense_model()
    y = dx.load(source).predict(LAZY, batch_size=2)
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0], rtol=1e-6)
    built = client.run(lambda: __import__("dask_onnx").runtime.session_cache.SESSION_CACHE.built)
    assert all(count >= 1 for count in built.values())


@pytest.mark.parametrize(("strategy", "options"), [("per_node", {}), ("fused", {"n_stages": 2})])
def test_n_stages_on_m_chunks_are_n_times_m_tasks(client, counted, strategy, options):
    seen = counted(client)
    source = dense_model()
    model = dx.load(source)
    plan = model.plan(strategy, **options)
    y = (model.predict(LAZY, plan=plan) + 1).compute()
    np.testing.assert_allclose(y, run_onnx(source, {"x": X})[0] + 1, rtol=1e-6)
    finished, _ = seen()
    found = labels_of(finished)
    assert {stage.label: found[stage.label] for stage in plan.stages} == {
        stage.label: 4 for stage in plan.stages
    }


def test_a_whole_plan_is_a_task_a_chunk(client, counted):
    seen = counted(client)
    dx.load(dense_model()).predict(da.zeros((12, 8), chunks=(3, 8), dtype="f4")).compute()
    finished, _ = seen()
    found = [key for key in finished if key.startswith("('dense-")]
    assert len(found) == 4


def test_the_same_request_is_computed_once_while_it_is_held(client, counted):
    seen = counted(client)
    model = dx.load(dense_model(hidden=48))
    plan = model.plan("fused", n_stages=2)
    held = model.predict(LAZY, plan=plan).persist()
    wait(held)
    again = dx.load(dense_model(hidden=48))
    again.predict(LAZY, plan=again.plan("fused", n_stages=2)).compute()
    finished, _ = seen()
    stages = {stage.label for stage in plan.stages}
    runs = {key: n for key, n in finished.items() if any(label in key for label in stages)}
    assert len(runs) == 8
    assert set(runs.values()) == {1}


def test_numpy_goes_to_the_client(client, counted):
    seen = counted(client)
    source = dense_model(hidden=56)
    y = dx.load(source).predict(X, batch_size=3)
    np.testing.assert_allclose(y, run_onnx(source, {"x": X})[0], rtol=1e-6)
    finished, retries = seen()
    keys = [key for key in finished if "dense" in key]
    assert len(keys) == 4
    assert {retries[key] for key in keys} == {3}


def test_rows_are_shared_by_the_threads_of_the_cluster_not_of_the_client(
    client, counted, monkeypatch
):
    monkeypatch.setattr("dask_onnx.collections.eager.available_cores", lambda: 64)
    seen = counted(client)
    model = dx.load(dense_model(hidden=64))
    model.predict(np.ones((100, 8), np.float32), batch_size=2)
    finished, _ = seen()
    assert labels_of(finished)["dense"] == 13  # 50 runs over two threads, 8 tasks each at most


def test_batches_of_numpy_are_the_micro_batches_of_a_pipeline(client, counted):
    seen = counted(client)
    model = dx.load(layers_model([72] * 4))
    plan = model.plan("pipeline", n_stages=2)
    x = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    np.testing.assert_allclose(
        model.predict(x, plan=plan, batch_size=2), model.predict(x), rtol=1e-5, atol=1e-3
    )
    found = labels_of(seen()[0])
    assert [found[stage.label] for stage in plan.stages] == [50, 50]


@pytest.mark.parametrize("wanted", [None, 7])
@pytest.mark.parametrize("strategy", ["whole", "per_node"])
@pytest.mark.parametrize("kind", ["array", "fused array", "delayed"])
def test_every_path_has_its_retries(client, counted, kind, strategy, wanted):
    seen = counted(client)
    model = dx.load(dense_model(hidden=(40 if wanted else 41) + len(kind) + 50 * len(strategy)))
    plan = model.plan(strategy)
    x = dask.delayed(X) if kind == "delayed" else LAZY
    y = model.predict(x, plan=plan, retries=wanted)
    if kind == "fused array":
        y = (y * 2).sum(axis=1)
    y.compute()
    _, retries = seen()
    graph = dict(dask.optimize(y)[0].__dask_graph__())
    ours = [
        str(key)
        for key, task in graph.items()
        if isinstance(task, Task) and b"StageCall" in pickle.dumps(task)
    ]
    assert ours
    assert {retries[key] for key in ours} == {wanted or 3}


@pytest.mark.parametrize("kind", ["table", "bag"])
def test_partitions_have_their_retries(client, counted, kind):
    seen = counted(client)
    model = dx.load(dense_model(hidden=59 + len(kind)))
    if kind == "table":
        frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
        lazy = model.predict(dd.from_pandas(frame, npartitions=2), retries=5)
    else:
        lazy = model.predict(db.from_sequence(list(X), npartitions=2), retries=5)
    lazy.compute()
    _, retries = seen()
    # Beside the tasks of a bag there are aliases of them, which cannot fail.
    assert [n for key, n in retries.items() if "dense" in key and n] == [5, 5], retries


def test_a_stage_that_fails_at_first_is_repeated_by_dask(client, tmp_path):
    # The model's file is away when the task first runs, and comes back while Dask repeats it.
    onnx.save(dense_model(hidden=333), tmp_path / "m.onnx")
    model = dx.load(tmp_path / "m.onnx")
    away = tmp_path / "away.onnx"

    def bring_back_late(x):
        marker = tmp_path / "seen"
        if marker.exists() and away.exists():
            away.rename(tmp_path / "m.onnx")
        marker.touch()
        return x

    x = LAZY.rechunk(-1).map_blocks(bring_back_late, dtype="f4", meta=X[:0])
    y = model.predict(x)
    (tmp_path / "m.onnx").rename(away)
    np.testing.assert_allclose(y, run_onnx(dense_model(hidden=333), {"x": X})[0], rtol=1e-6)


def test_a_failure_is_raised_without_retries(client, tmp_path):
    onnx.save(dense_model(hidden=334), tmp_path / "m.onnx")
    model = dx.load(tmp_path / "m.onnx")
    y = model.predict(LAZY, retries=0)
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(dx.StoreError, match=r"m\.onnx does not exist") as caught:
        y.compute()
    assert "at a path that the workers see" in caught.value.next_step


def test_input_errors_keep_their_type(client):
    model = dx.load(dense_model())
    with pytest.raises(dx.InputError, match="complex64") as caught:
        model.predict(dask.delayed(X.astype("c8")), retries=0).compute()
    assert caught.value.input == "x"


def test_a_worker_with_other_versions_raises(client, monkeypatch):
    from dask_onnx.lowering import lower

    other = replace(lower.installed_versions(), onnxruntime="1.0.0")
    monkeypatch.setattr(lower, "installed_versions", lambda: other)
    with pytest.raises(dx.StageError, match=r"onnxruntime .* here, 1\.0\.0 where the plan"):
        dx.load(dense_model(hidden=77)).predict(LAZY, retries=0).compute()


def test_a_model_called_in_a_task_stays_in_it(client, counted):
    seen = counted(client)
    source = dense_model(hidden=60)
    model = dx.load(source)
    by_hand = LAZY.map_blocks(model.predict, chunks=(LAZY.chunks[0], (4,)), dtype="f4", meta=X[:0])
    np.testing.assert_allclose(by_hand.compute(), run_onnx(source, {"x": X})[0], rtol=1e-6)
    finished, _ = seen()
    assert not [key for key in finished if "dense" in key]


def test_a_model_from_bytes_runs_on_this_host(client):
    source = dense_model(hidden=70)
    y = dx.load(source.SerializeToString()).predict(LAZY)
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0], rtol=1e-6)


def test_the_size_of_tasks_does_not_grow_with_the_model(client, tmp_path):
    sizes = []
    for hidden in (100, 400_000):
        model = dx.load(dense_model(hidden=hidden))
        for plan in (model.plan(), model.plan("per_node")):
            (y,) = dask.optimize(
                model.predict(da.zeros((40, 8), chunks=(1, 8)).astype("f4"), plan=plan)
            )
            graph = dict(y.__dask_graph__())
            sizes.append(max(len(pickle.dumps(task)) for task in graph.values()))
    assert max(sizes) < 4000
    assert abs(sizes[0] - sizes[2]) < 100
    assert abs(sizes[1] - sizes[3]) < 100


def _pause(block):
    time.sleep(0.4)
    return block


def test_only_results_of_a_killed_worker_are_computed_again(own_client, counted):
    client = own_client
    seen = counted(client)
    source = dense_model(hidden=90)
    model = dx.load(source)
    x = da.from_array(np.tile(X, (2, 1)), chunks=(3, 8))  # 8 chunks
    plan = model.plan("per_node")
    slow = model.predict(x, plan=plan).map_blocks(_pause, dtype="f4", meta=X[:0, :4])
    first = slow.persist()
    while sum(future.done() for future in futures_of(first)) < 4:
        time.sleep(0.02)
    before, _ = seen()
    held = client.has_what()
    victim = max(held, key=lambda address: len(held[address]))
    assert held[victim]
    pid = client.run(os.getpid, workers=[victim])[victim]
    os.kill(pid, signal.SIGKILL)
    result = first.compute()
    expected = run_onnx(source, {"x": np.tile(X, (2, 1))})[0]
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    finished, _ = seen()
    repeated = sum(count - 1 for count in finished.values())
    assert before
    assert repeated > 0
    # Each task of the plan at most once more for each chunk that the dead worker held or ran.
    assert repeated <= 8 * (len(plan.stages) + 2)
    assert max(finished.values()) <= 3


def test_both_workers_run_tasks(client):
    def where(block):
        time.sleep(0.05)
        return np.full((len(block), 1), os.getpid(), "i8")

    model = dx.load(dense_model())
    y = model.predict(da.from_array(np.tile(X, (4, 1)), chunks=(3, 8)))
    places = y.map_blocks(where, dtype="i8", chunks=(y.chunks[0], (1,)), meta=X[:0, :1]).compute()
    assert len(np.unique(places)) == 2
