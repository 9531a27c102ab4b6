"""Clusters with TLS: everything that is sent goes over connections with certificates."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, layers_model
from distributed import Client, Nanny, Scheduler, Security, SpecCluster

import dask_onnx as dx
from dask_onnx.jobs.job_cluster import JobCluster

pytestmark = [
    pytest.mark.cluster,
    # These graphs carry weights, which workers have no other way to get.
    pytest.mark.filterwarnings("ignore:Sending large graph"),
]
X = np.random.default_rng(5).standard_normal((12, 8)).astype(np.float32)
HIDDEN = 30_000  # 1.4 MB of weights, which are delivered


@pytest.fixture(scope="module")
def security() -> Security:
    return Security.temporary()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, security, store_directory):
    """Two workers with a store of their own each, so that models are delivered to them."""
    root: Path = tmp_path_factory.mktemp("hosts")

    def worker(name: str) -> dict:
        config = {"onnx.store.directory": str(root / name)}
        options = {"nthreads": 1, "config": config, "security": security}
        return {"cls": Nanny, "options": {**options, "protocol": "tls://"}}

    scheduler = {"dashboard_address": ":0", "security": security, "protocol": "tls://"}
    with SpecCluster(
        workers={name: worker(name) for name in "ab"},
        scheduler={"cls": Scheduler, "options": scheduler},
        security=security,
        silence_logs=logging.ERROR,
    ) as found:
        yield found


@pytest.fixture
def client(cluster, security):
    with Client(cluster, security=security) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


def encrypted_peers(dask_worker):
    """Return the protocols of a worker's address and of its connections to other workers."""
    addresses = [dask_worker.address, dask_worker.scheduler.address, *dask_worker.rpc.available]
    return {address.partition("://")[0] for address in addresses}


def test_a_model_is_delivered_and_runs_over_encrypted_connections(client):
    model = dx.load(dense_model(hidden=HIDDEN))
    dx.configure(client)
    found = model.predict(da.from_array(X, chunks=(3, 8)), batch_size=None).compute()
    expected = np.concatenate([model(X[i : i + 3], batch_size=None) for i in range(0, 12, 3)])
    np.testing.assert_array_equal(found, expected)
    assert set().union(*client.run(encrypted_peers).values()) == {"tls"}


def test_stages_on_different_workers_send_values_over_encrypted_connections(client):
    model = dx.load(layers_model([64, 64], width=64))
    plan = model.plan("pipeline", n_stages=2)
    plan = plan.with_placement(dx.Placement.one_each(2, 2)).with_schedule("async", in_flight=2)
    rows = np.random.default_rng(6).standard_normal((48, 64)).astype(np.float32)
    x = da.from_array(rows, chunks=(8, 64))
    found = model.predict(x, plan=plan, batch_size=None).compute()
    np.testing.assert_allclose(found, model(rows, batch_size=None), rtol=1e-4, atol=1e-4)
    assert set().union(*client.run(encrypted_peers).values()) == {"tls"}
    assert plan.measured() is not None  # the workers were asked for their runs


def test_tables_and_measurements_work_over_encrypted_connections(client):
    model = dx.load(dense_model())
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(8)])
    found = model.predict(dd.from_pandas(frame, npartitions=3), batch_size=None).compute()
    assert len(found) == 12
    with dask.config.set({"onnx.plan.calibrate": True}):
        dx.calibrate(client)
    assert model.plan("auto").judge().sentence


def test_a_job_finds_certificates_in_the_configuration_of_dask(cluster, security, tmp_path):
    """As the command line does, which gets no more than the address of the scheduler."""
    settings = {
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        "distributed.comm.tls.client.cert": security.tls_client_cert,
        "distributed.comm.tls.client.key": security.tls_client_key,
        "distributed.comm.require-encryption": True,
    }
    source, target = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(source, X)
    model = dx.load(dense_model())
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        client = stack.enter_context(JobCluster(cluster.scheduler_address).connect())
        assert client.scheduler.address.startswith("tls://")
        dx.predict_files(model, str(source), str(target), scheduler=client)
    np.testing.assert_allclose(np.load(target), model(X), rtol=1e-6)
