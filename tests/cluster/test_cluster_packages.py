"""Schedulers and workers without the package are told before anything of it is sent to them."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
from builders import dense_model
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.cluster import cluster_packages
from dask_onnx.cluster.scheduler_plugin import is_configured

pytestmark = pytest.mark.cluster
X = np.ones((8, 8), np.float32)


@pytest.fixture
def fresh(cluster):
    """A client that has asked nothing yet."""
    with Client(cluster) as client:
        yield client


@pytest.fixture
def lacking(monkeypatch):
    """Let processes be asked for a package that none of them has."""
    monkeypatch.setattr(cluster_packages, "_VERSION", "no_such_package_here:__version__")


REQUESTS = {
    "configure": lambda model, client: dx.configure(client),
    "array": lambda model, client: model.predict(X),
    "dask.array": lambda model, client: model.predict(da.from_array(X, chunks=(4, 8))),
}


@pytest.mark.parametrize("request_of", REQUESTS)
def test_a_scheduler_without_the_package_is_refused(fresh, lacking, request_of):
    with pytest.raises(dx.ClusterError) as caught:
        REQUESTS[request_of](dx.load(dense_model()), fresh)
    assert caught.value.option == "scheduler"
    assert caught.value.reason.startswith("ModuleNotFoundError")
    assert pickle.loads(pickle.dumps(caught.value)).fields == caught.value.fields


@pytest.mark.parametrize("request_of", REQUESTS)
def test_workers_without_the_package_are_refused(fresh, lacking, monkeypatch, request_of):
    monkeypatch.setattr(cluster_packages, "_check_scheduler", lambda client: None)
    before = set(fresh.scheduler_info(n_workers=-1)["workers"])
    with pytest.raises(dx.ClusterError) as caught:
        REQUESTS[request_of](dx.load(dense_model()), fresh)
    assert caught.value.numbers == {"workers": 2, "workers_without_package": 2}
    assert "no_such_package_here" in caught.value.reason
    assert set(fresh.scheduler_info(n_workers=-1)["workers"]) == before  # none has died of it


def test_each_process_is_asked_once(fresh, monkeypatch):
    model = dx.load(dense_model())
    model.predict(X)
    assert fresh.run_on_scheduler(is_configured)
    monkeypatch.setattr(cluster_packages, "_VERSION", "no_such_package_here:__version__")
    np.testing.assert_allclose(model.predict(X), model(X), rtol=1e-5)


def test_configuring_a_cluster_without_workers_measures_nothing(store_directory):
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        dask.config.set({"onnx.plan.calibrate": True}),
    ):
        dx.configure(client)
        dx.calibrate(client)
        assert client.run_on_scheduler(is_configured)
