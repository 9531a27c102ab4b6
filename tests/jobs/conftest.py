"""A cluster in the process of the tests, and an object store in its memory."""

from __future__ import annotations

import fsspec
import pytest
from distributed import Client, LocalCluster


@pytest.fixture(scope="session")
def one_thread():
    """Return a client of one worker with one thread."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def memory():
    """Return the URL of a folder in memory, which is removed afterwards."""
    yield "memory://resume"
    system = fsspec.filesystem("memory")
    if system.exists("/resume"):
        system.rm("/resume", recursive=True)
