"""Workers of a job's own cluster: their ends are told, and those that give up are replaced."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

import dask
import pytest
from distributed.core import Status

import dask_onnx as dx
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.jobs.own_workers import WorkerLog, WorkerReplacement

nanny = logging.getLogger("distributed.nanny")


def test_the_last_lines_about_workers_are_kept(caplog, monkeypatch):
    # Another test may have silenced Dask's loggers: import-linter disables all that exist.
    caplog.set_level(logging.INFO, "distributed.nanny")
    monkeypatch.setattr(nanny, "disabled", False)
    with WorkerLog().attached() as ends:
        for number in range(9):
            nanny.info("Worker process %d exited with status 3", number)
        nanny.info("Start Nanny at: 'tcp://127.0.0.1:1'")
        try:
            raise RuntimeError("no licence")
        except RuntimeError:
            nanny.exception("Failed to start process")
    nanny.error("after the job")
    assert len(ends.lines) == 6
    assert ends.lines[0].startswith("Worker process 4")
    assert ends.lines[-1] == "Failed to start process: RuntimeError: no licence"


@dataclass
class FakeNanny:
    status: Status


@dataclass
class FakeCluster:
    """The part of a LocalCluster that is used; nannies that it starts run at once."""

    workers: dict
    worker_spec: dict
    sizes: list = field(default_factory=list)
    has_scaled: threading.Event = field(default_factory=threading.Event)

    def scale(self, n):
        self.sizes.append(n)
        for number in range(len(self.worker_spec), n):
            self.worker_spec[number] = {}
            self.workers[number] = FakeNanny(Status.running)
        self.has_scaled.set()


def fake(*statuses, specs=None):
    workers = {number: FakeNanny(status) for number, status in enumerate(statuses)}
    return FakeCluster(workers, dict.fromkeys(range(specs or len(statuses))))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr("dask_onnx.jobs.own_workers._FIRST_WAIT_SECONDS", 0.01)


def test_nannies_that_have_given_up_are_replaced(fast):
    cluster = fake(Status.running, Status.closed, Status.failed)
    with WorkerReplacement(cluster, 3).running():
        assert cluster.has_scaled.wait(10)
        time.sleep(0.05)
    assert cluster.sizes == [5]


def test_nannies_that_are_about_to_start_count(fast):
    cluster = fake(Status.running, Status.closed, specs=3)
    with WorkerReplacement(cluster, 2).running():
        assert cluster.has_scaled.wait(10)
    assert set(cluster.sizes) == {3}  # asks for those again that Dask has dropped


def test_running_workers_are_left_alone(fast):
    cluster = fake(Status.running, Status.running)
    with WorkerReplacement(cluster, 2).running():
        assert not cluster.has_scaled.wait(0.1)


@pytest.mark.cluster
@pytest.mark.slow
def test_workers_that_end_while_they_start_are_told_with_their_reason(tmp_path, store_directory):
    preload = tmp_path / "licence.py"
    preload.write_text("raise RuntimeError('no licence for this host')")
    with (
        dask.config.set({"distributed.worker.preload": [str(preload)]}),
        pytest.raises(dx.ClusterError) as caught,
        JobCluster(workers=1).connect(),
    ):
        pass
    assert caught.value.option == "workers" and caught.value.numbers == {"workers": 1}
    assert "no licence for this host" in caught.value.reason


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tls://127.0.0.1:9", "tls"),
        ("wss://127.0.0.1:9", "wss"),
        ("grpc://127.0.0.1:9", "unknown address scheme"),
        ("inproc://nothing", "not enough values"),
        ("tcp://[::1", "invalid address"),
        ("tcp://127.0.0.1", "missing port"),
    ],
)
def test_an_address_that_dask_cannot_use_leaves_no_default_scheduler(address, reason):
    with pytest.raises(dx.InputError) as caught, JobCluster(scheduler=address).connect():
        pass
    assert caught.value.option == "scheduler" and reason in caught.value.reason
    assert dask.config.get("scheduler", None) is None


def test_certificates_that_cannot_be_read_are_named(tmp_path):
    missing = {"distributed.comm.tls.ca-file": str(tmp_path / "ca.pem")}
    with (
        dask.config.set(missing),
        pytest.raises(dx.InputError) as caught,
        JobCluster(scheduler="tls://127.0.0.1:9").connect(),
    ):
        pass
    assert caught.value.option == "scheduler"
    assert dask.config.get("scheduler", None) is None
