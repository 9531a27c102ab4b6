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
from dask_onnx.runtime.session import CACHE, Session

GIB = 2**30


@pytest.fixture
def worker(monkeypatch):
    """A worker of 1 GiB whose process has 300 MiB."""
    manager = SimpleNamespace(memory_limit=GIB, memory_pause_fraction=0.8)
    monkeypatch.setattr(memory, "own_worker", lambda: SimpleNamespace(memory_manager=manager))
    monkeypatch.setattr(memory, "resident_bytes", lambda: 300 * 2**20)
    return manager


def test_what_fits_is_taken(worker):
    memory.check_memory("s", 500 * 2**20)


def test_what_does_not_fit_is_refused_with_the_numbers(worker):
    with pytest.raises(dx.StageError) as caught:
        memory.check_memory("s", 600 * 2**20)
    for part in ("600.00 MiB of weights", "300.00 MiB already", "1.00 GiB", "819.20 MiB"):
        assert part in caught.value.cause
    assert "more than 1.10 GiB" in caught.value.next_step


def test_old_sessions_make_room_first(worker, monkeypatch):
    sizes = iter([500, 500, 100])
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(sizes) * 2**20)
    for name in "ab":
        key = (name, dx.SessionSpec())
        CACHE.get(key, lambda key=key: (key, lambda: Session(None, (), (), 1)))
    memory.check_memory("s", 600 * 2**20)
    assert len(CACHE.sessions) == 0


@pytest.mark.parametrize(("limit", "share"), [(None, 0.8), (GIB, False), (0, 0.8)])
def test_a_worker_without_a_limit_takes_everything(worker, limit, share):
    worker.memory_limit, worker.memory_pause_fraction = limit, share
    memory.check_memory("s", 100 * GIB)


def test_outside_a_worker_there_is_no_limit():
    memory.check_memory("s", 100 * GIB)


def test_a_session_that_goes_gives_its_memory_back():
    model = dx.load(dense_model(hidden=4_000_000))  # 208 MB
    x = np.ones((1, 8), "f4")
    process = psutil.Process()
    model(x)
    with_session = process.memory_info().rss
    CACHE.clear()
    memory.return_memory()
    assert with_session - process.memory_info().rss > 150 * 2**20


def test_a_model_that_is_too_large_for_its_worker_says_so_and_pauses_nobody(monkeypatch):
    model = dx.load(dense_model(hidden=6_000_000))  # 312 MB
    x = da.zeros((2, 8), chunks=(1, 8), dtype="f4")
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="400MiB", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(dx.PlanError, match=r"of weights, .*; a worker has room for"):
            model.predict(x)
        # Where nobody asked beforehand, the worker refuses it.
        monkeypatch.setattr("dask_onnx.cluster.capacity._WORTH_ASKING", sys.maxsize)
        with pytest.raises(dx.StageError, match=r"of weights, and this worker's process"):
            model.predict(x, retries=0).compute()
        (state,) = client.run(lambda dask_worker: dask_worker.status.name).values()
        assert state == "running"
