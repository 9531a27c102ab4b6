from __future__ import annotations

import os
import subprocess
import sys

import pytest
from distributed import Client, LocalCluster

from dask_onnx.runtime import cores
from dask_onnx.runtime.cores import available_cores, cpu_identity, task_threads


def test_outside_a_worker_a_task_has_one_thread_by_default():
    assert task_threads(None) == 1
    assert task_threads(0) == available_cores()
    assert task_threads(3) == 3


def test_affinity_limits_the_cores():
    code = "from dask_onnx.runtime.cores import available_cores; print(available_cores())"
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}])\n{code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("own_cores", "threads_in_use", "expected"),
    [(2, 2, 1), (2, 1, 2), (2, 4, 1), (8, 2, 4), (8, 3, 2), (1, 4, 1)],
)
def test_cores_are_shared_among_the_threads_that_use_them(
    monkeypatch, own_cores, threads_in_use, expected
):
    monkeypatch.setattr(cores, "available_cores", lambda: own_cores)
    monkeypatch.setattr(cores, "current_worker", object)
    monkeypatch.setattr(cores, "_threads_in_use", lambda _: threads_in_use)
    assert task_threads(None) == expected


@pytest.mark.parametrize(("processes", "threads"), [(2, 1), (1, 2), (2, 2), (1, 1)])
def test_in_a_cluster_all_threads_of_the_host_count(processes, threads):
    with (
        LocalCluster(
            n_workers=processes, threads_per_worker=threads, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        share, everything = client.submit(lambda: (task_threads(None), task_threads(0))).result()
    assert share == max(1, available_cores() // (processes * threads))
    assert everything == available_cores()


def test_a_cpu_has_a_short_identity():
    assert len(cpu_identity()) == 16
    assert cpu_identity() == cpu_identity()
