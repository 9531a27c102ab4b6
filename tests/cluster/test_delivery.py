"""Clusters whose workers see neither the client's files nor its store."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import onnx
import pandas as pd
import pytest
from builders import dense_model, run_onnx
from distributed import Client, Nanny, Scheduler, SpecCluster

import dask_onnx as dx
from dask_onnx.cluster.delivery import deliver
from dask_onnx.modelio.onnx_model import OnnxModel, load_onnx
from dask_onnx.store import supply
from dask_onnx.store.weight_store import Store

X = np.random.default_rng(5).standard_normal((12, 8)).astype(np.float32)
LAZY = da.from_array(X, chunks=(3, 8))
# These graphs are meant to carry weights.
pytestmark = pytest.mark.filterwarnings("ignore:Sending large graph")
HIDDEN = 300_000  # 14 MB of weights: W1 and W2 are a blob each, b1 too


def worker(store: Path) -> dict:
    config = {"onnx.store.directory": str(store)}
    return {"cls": Nanny, "options": {"nthreads": 1, "config": config}}


@contextlib.contextmanager
def blind_cluster(root: Path):
    """Start workers named by their store: two processes share "a", one has "b"."""
    spec = {name: worker(root / name[0]) for name in ("a0", "a1", "b0")}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with (
        SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(3)
        yield client


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def shared_client(shared_root, store_directory):
    with blind_cluster(shared_root) as client:
        yield client


@pytest.fixture
def blind(shared_client):
    with shared_client.as_current():
        yield shared_client


@pytest.fixture
def own_blind(tmp_path):
    """Cluster that a test may break."""
    with blind_cluster(tmp_path) as client:
        yield client


def written(client):
    """Return the bytes of weights that each worker process has written to its store."""

    def count(dask_worker):
        return dask_worker.name, dask_worker._bytes_written_in_test

    return dict(client.run(count).values())


def count_writes(client):
    def watch(dask_worker):
        dask_worker._bytes_written_in_test = 0
        real = getattr(Store, "_real_write_part", Store.write_part)

        def write_part(self, key, offset, data, length):
            dask_worker._bytes_written_in_test += len(data)
            return real(self, key, offset, data, length)

        Store._real_write_part, Store.write_part = real, write_part

    client.run(watch)


@pytest.mark.parametrize("strategy", ["whole", "fused"])
def test_a_model_from_bytes_reaches_every_host_once(blind, shared_root, strategy):
    count_writes(blind)
    source = dense_model(hidden=HIDDEN + len(strategy))
    model = dx.load(source.SerializeToString())
    plan = model.plan(strategy, **({"n_stages": 2} if strategy == "fused" else {}))
    y = model.predict(da.concatenate([LAZY] * 6), plan=plan).compute()
    expected = run_onnx(source, {"x": X})[0]
    np.testing.assert_allclose(y, np.concatenate([expected] * 6), rtol=2e-4, atol=1e-3)
    size = sum(map(len, load_onnx(source).blobs.values()))
    by_worker = written(blind)
    assert by_worker["a0"] + by_worker["a1"] <= size
    assert by_worker["b0"] <= size
    for host in "ab":
        store = Store(shared_root / host)
        assert all(store.verify(path.name) for path in store.blobs.iterdir())


def test_a_file_that_was_deleted_since_loading_is_sent(blind, tmp_path):
    source = dense_model(hidden=2000)
    onnx.save(source, tmp_path / "m.onnx")
    model = dx.load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").unlink()
    for x in (LAZY, X):  # lazily, and at once
        y = model.predict(x, batch_size=3)
        np.testing.assert_allclose(
            dask.compute(y)[0], run_onnx(source, {"x": X})[0], rtol=1e-4, atol=1e-5
        )


def test_another_scheduler_than_the_clients_may_run_the_model(blind):
    source = dense_model(hidden=2006)
    with dask.config.set(scheduler="threads"):
        y = dx.load(source).predict(X)
    np.testing.assert_allclose(y, run_onnx(source, {"x": X})[0], rtol=1e-4, atol=1e-5)


def test_delayed_values_bring_the_model(blind):
    source = dense_model(hidden=2001)
    y = dx.load(source).predict(dask.delayed(X))
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0], rtol=1e-4, atol=1e-5)


def test_weights_are_sent_once_for_many_requests(blind):
    model = dx.load(dense_model(hidden=2002))
    model.predict(X)
    (sent,) = [key for key in all_keys(blind) if key.startswith(f"weights-{model.token}")]
    model.predict(X + 1)
    assert runs_of(blind, sent) == 1


def test_weights_of_stages_are_found_once_for_many_requests(blind, monkeypatch):
    model = dx.load(dense_model(hidden=2001))
    plan = model.plan("fused", n_stages=2)
    y = model.predict(X, plan=plan)
    monkeypatch.setattr(OnnxModel, "parse", None)
    np.testing.assert_array_equal(model.predict(X, plan=plan), y)


def all_keys(client):
    return client.run_on_scheduler(lambda dask_scheduler: set(map(str, dask_scheduler.tasks)))


def runs_of(client, key):
    def count(dask_scheduler):
        story = dask_scheduler.story(key)
        return sum(1 for event in story if event[1:3] == ("processing", "memory"))

    return client.run_on_scheduler(count)


def test_a_worker_that_joins_late_gets_the_model(own_blind, tmp_path):
    blind = own_blind
    source = dense_model(hidden=2003)
    model = dx.load(source)
    y = model.predict(LAZY)
    blind.cluster.worker_spec["c0"] = worker(tmp_path / "c")
    blind.sync(blind.cluster._correct_state)
    blind.wait_for_workers(4)
    with dask.annotate(workers=["c0"]):
        late = model.predict(X + 1, batch_size=6)
    y, late = dask.compute(y, late)
    np.testing.assert_allclose(y, run_onnx(source, {"x": X})[0], rtol=1e-4, atol=1e-5)
    # Wherever these ran, the new worker itself can run the model.
    on_newcomer = blind.compute(model.predict(LAZY + 2), workers=["c0"], retries=0)
    np.testing.assert_allclose(
        on_newcomer.result(), run_onnx(source, {"x": X + 2})[0], rtol=1e-4, atol=1e-5
    )
    assert list(Store(tmp_path / "c").blobs.iterdir())


def test_weights_survive_the_death_of_the_only_worker_that_has_them(own_blind, tmp_path):
    """The scheduler has the tasks of weights, and sends them again to another host."""
    blind = own_blind
    source = dense_model(hidden=HIDDEN)
    model = dx.load(source)
    whole = model.plan("whole").stage_graph
    delivery = deliver(model._onnx, whole, with_weights=True)
    model._published()
    futures = blind.get(dict(delivery.tasks), list(delivery.tasks), sync=False, workers=["b0"])
    for future in futures:
        future.result()
    on_other_host = [blind.submit(lambda note: note, f, workers=["a0"]) for f in futures]
    notes = blind.gather(on_other_host)
    holder = next(n.holder for n in notes if isinstance(n, supply.StoredWeightPart))
    assert not list(Store(tmp_path / "a").blobs.glob("*"))
    addresses = blind.run(lambda dask_worker: dask_worker.name)
    assert addresses[holder] == "b0"
    blind.cluster.worker_spec.pop("b0")
    blind.sync(blind.cluster._correct_state)
    deadline = time.monotonic() + 30
    while holder in blind.scheduler_info(n_workers=-1)["workers"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    def fetch(*notes):
        store = Store()
        ref, keys = model_ref, blob_keys
        supply.fetch_proto(store, ref, notes)
        supply.fetch_blobs(store, ref, keys, notes)
        return not store.missing(keys)

    model_ref, blob_keys = model._onnx.ref, model._onnx.blob_keys
    assert blind.submit(fetch, *on_other_host, workers=["a1"]).result()


def test_other_hosts_that_see_the_file_read_only_what_a_stage_needs(blind, tmp_path, shared_root):
    onnx.save(dense_model(hidden=HIDDEN + 1), tmp_path / "m.onnx")
    model = dx.load(tmp_path / "m.onnx")
    plan = model.plan("per_node")
    first = plan.stages[0].outputs[0].name
    y = model.predict(LAZY[:3], outputs=first, plan=plan)
    blind.compute(y, workers=["b0"]).result()
    lacking = Store(shared_root / "b").missing(model._onnx.blob_keys)
    assert len(lacking) == 2 and len(model._onnx.blob_keys) == 3


def test_nothing_is_sent_to_a_cluster_that_shares_the_store(client):
    model = dx.load(dense_model(hidden=2005))
    y = model.predict(LAZY)
    assert not [key for key in dict(y.__dask_graph__()) if "weights-" in str(key)]
    np.testing.assert_allclose(
        y.compute(), run_onnx(dense_model(hidden=2005), {"x": X})[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["table", "bag"])
def test_tables_and_bags_bring_the_model_with_them(blind, kind):
    source = dense_model(hidden=HIDDEN + len(kind))
    model = dx.load(source.SerializeToString())
    if kind == "table":
        table = pd.DataFrame(X, columns=list("abcdefgh"))
        found = model.predict(dd.from_pandas(table, npartitions=6)).compute().to_numpy()
    else:
        found = np.stack(model.predict(db.from_sequence(list(X), npartitions=6)).compute())
    expected = run_onnx(source, {"x": X})[0]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-3)
