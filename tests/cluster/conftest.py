from __future__ import annotations

import uuid

import pytest
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

import dask_onnx as dx


@pytest.fixture(scope="session")
def cluster(store_directory):
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        dx.configure(client)
        yield client


@pytest.fixture
def own_client(store_directory):
    """Client of a cluster that a test may break."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


class Counter(SchedulerPlugin):
    """Counts how often each key came into memory, and records its retries."""

    def __init__(self):
        self.finished: dict[str, int] = {}
        self.retries: dict[str, int] = {}

    def update_graph(self, scheduler, *, tasks, **_):
        for key in tasks:
            self.retries[str(key)] = scheduler.tasks[key].retries

    def transition(self, key, start, finish, *_, **__):
        if start == "processing" and finish == "memory":
            self.finished[str(key)] = self.finished.get(str(key), 0) + 1


@pytest.fixture
def counted():
    """Function that installs a counter on a client's scheduler, and returns one for its counts."""

    def counted(client):
        name = f"counter-{uuid.uuid4()}"
        client.register_plugin(Counter(), name=name)

        def seen(dask_scheduler):
            plugin = dask_scheduler.plugins[name]
            return plugin.finished, plugin.retries

        return lambda: client.run_on_scheduler(seen)

    return counted
