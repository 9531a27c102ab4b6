from __future__ import annotations

import pytest
from builders import dense_model
from distributed import Client, LocalCluster

import dask_onnx as dx


@pytest.fixture(scope="module")
def client(store_directory):
    """Client of two workers that are threads of this process: quick to start."""
    with (
        LocalCluster(
            processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


@pytest.fixture(scope="session")
def models(store_directory):
    """Three models x (N, 8) -> y (N, 4); the first and the last are equal."""
    return {
        "a": dx.load(dense_model()),
        "b": dx.load(dense_model(hidden=16)),
        "c": dx.load(dense_model()),
    }
