from __future__ import annotations

import sys
from types import SimpleNamespace

import dask.array as da
import numpy as np
import psutil
import pytest
from builders import dense_model
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.runtime import memory_check as memory
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.session_cache import SESSION_CACHE

GIB = 2**30


@pytest.fixture
def worker(monkeypatch):
    """A worker of 1 GiB whose process has 300 MiB."""
    manager = SimpleNamespace(memory_limit=GIB, memory_pause_fraction=0.8)
    monkeypatch.setattr(memory, "current_worker", lambda: SimpleNamespace(memory_manager=manager))
    monkeypatch.setattr(memory, "resident_bytes", lambda: 300 * 2**20)
    return manager


def test_weights_that_fit_are_accepted(worker):
    memory.check_memory("s", 500 * 2**20)


def test_weights_that_do_not_fit_are_refused_with_the_numbers(worker):
    with pytest.raises(dx.StageError) as caught:
        memory.check_memory("s", 600 * 2**20)
    numbers = caught.value.numbers
    assert caught.value.stage == "s"
    assert numbers["weight_bytes"] == 600 * 2**20 and numbers["used_bytes"] == 300 * 2**20
    assert numbers["limit_bytes"] == GIB and numbers["pause_bytes"] == int(0.8 * GIB)
    assert numbers["needed_limit_bytes"] == pytest.approx(900 * 2**20 / 0.8, abs=1)
    assert [each.option for each in caught.value.suggestions] == ["memory_limit", "n_stages"]


def test_old_sessions_are_dropped_first(worker, monkeypatch):
    sizes = iter([500, 500, 100])
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(sizes) * 2**20)
    for name in "ab":
        key = (name, dx.SessionSpec())
        SESSION_CACHE.get(key, lambda key=key: (key, lambda: Session(None, (), (), 1)))
    memory.check_memory("s", 600 * 2**20)
    assert len(SESSION_CACHE.sessions) == 0


@pytest.mark.parametrize(("limit", "share"), [(None, 0.8), (GIB, False), (0, 0.8)])
def test_a_worker_without_a_limit_accepts_all_weights(worker, limit, share):
    worker.memory_limit, worker.memory_pause_fraction = limit, share
    memory.check_memory("s", 100 * GIB)


def test_outside_a_worker_there_is_no_limit():
    memory.check_memory("s", 100 * GIB)


def test_a_dropped_session_returns_its_memory():
    model = dx.load(dense_model(hidden=4_000_000))  # 208 MB
    x = np.ones((1, 8), "f4")
    process = psutil.Process()
    model(x)
    with_session = process.memory_info().rss
    SESSION_CACHE.clear()
    memory.return_memory()
    assert with_session - process.memory_info().rss > 150 * 2**20


def test_a_model_too_large_for_its_worker_is_refused_without_a_pause(monkeypatch):
    model = dx.load(dense_model(hidden=6_000_000))  # 312 MB
    x = da.zeros((2, 8), chunks=(1, 8), dtype="f4")
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="400MiB", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(dx.PlanError):
            model.predict(x)
        # Without that check, the worker refuses the stage.
        monkeypatch.setattr("dask_onnx.cluster.capacity._WORTH_ASKING_BYTES", sys.maxsize)
        with pytest.raises(dx.StageError) as caught:
            model.predict(x, retries=0).compute()
        assert caught.value.numbers["weight_bytes"] > 300e6
        (state,) = client.run(lambda dask_worker: dask_worker.status.name).values()
        assert state == "running"
