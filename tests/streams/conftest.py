from __future__ import annotations

import pytest
from builders import dense_model
from distributed import Client, LocalCluster
from stream_models import recurrent_model

import dask_onnx as dx


@pytest.fixture(scope="session")
def threads_cluster(store_directory):
    """Cluster of two workers that are threads of this process: quick to start."""
    with LocalCluster(
        processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(threads_cluster):
    with Client(threads_cluster) as client:
        dx.configure(client)
        yield client


@pytest.fixture(scope="session")
def model(store_directory):
    return dx.load(dense_model())


@pytest.fixture(scope="session")
def recurrent(store_directory):
    return dx.load(recurrent_model())
