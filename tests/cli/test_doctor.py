"""The command `doctor`: exit codes, JSON, and nothing that is changed on the cluster."""

from __future__ import annotations

import pytest
from distributed import Client


@pytest.mark.cluster
def test_a_healthy_cluster_exits_with_0_and_is_left_as_it_was(run, scheduler):
    with Client(scheduler, set_as_default=False) as client:
        before = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.plugins))
        found = run("doctor", "--scheduler", scheduler, "--json")
        after = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.plugins))
    assert found.code == 0, found.out
    report = found.json()
    assert report["is_broken"] is False
    assert [side["name"] for side in report["sides"]][:2] == ["client", "scheduler"]
    assert len(report["sides"]) == 4
    assert before == after


def test_without_a_cluster_this_host_is_looked_at(run, store_directory):
    found = run("doctor")
    assert found.code == 0, found.out
    assert "processes" in found.out and "client" in found.out


def test_a_broken_host_exits_with_1(run, monkeypatch):
    monkeypatch.setattr("dask_onnx.cluster.host_report.shutil.disk_usage", lambda _: Full)
    found = run("doctor")
    assert found.code == 1
    assert "broken  stores" in found.out


class Full:
    free = 1


def test_a_scheduler_that_cannot_be_reached_is_bad_input(run):
    found = run("doctor", "--scheduler", "tcp://127.0.0.1:1", "--json")
    assert found.code == 2
    assert found.error()["fields"]["option"] == "scheduler"
