"""Diagnosis of a running cluster, also where a side lacks the package or has other versions."""

from __future__ import annotations

import subprocess
import sys

import cloudpickle
import pytest
from distributed import Client, Future, wait

import dask_onnx as dx
from dask_onnx.cluster.cluster_probe import worker_question


def broken(client):
    return {(f.topic, f.subject) for f in dx.diagnose(client).findings if f.level == "broken"}


def pretend(what):
    """Change what a worker's process says of itself, until `pretend(None)`."""
    import importlib.metadata
    import time

    state = sys.modules.setdefault("dask_onnx_test_state", type(sys)("state"))
    if not hasattr(state, "kept"):
        state.kept = importlib.metadata.version, time.time
    version, clock = state.kept
    importlib.metadata.version, time.time = version, clock
    if what == "version":
        importlib.metadata.version = lambda name: "0.1" if name == "onnxruntime" else version(name)
    elif what == "clock":
        time.time = lambda: clock() - 60


@pytest.mark.cluster
def test_a_running_cluster_is_healthy_until_a_worker_says_otherwise(client):
    first, _ = client.scheduler_info()["workers"]
    assert broken(client) == set()
    try:
        for what, topic in (("version", "versions"), ("clock", "clocks")):
            client.run(pretend, what, workers=[first])
            assert broken(client) == {(topic, first)}
    finally:
        client.run(pretend, None, workers=[first])
    assert broken(client) == set()


@pytest.mark.cluster
def test_a_task_that_no_worker_may_run_is_found(client):
    future: Future = client.submit(bool, 1, resources={"GPU": 2}, key="needs-a-gpu")
    wait(client.submit(bool, 2))
    try:
        (found,) = (f for f in dx.diagnose(client).findings if f.subject == "needs-a-gpu")
        assert found.level == "broken" and "GPU=2" in found.cause
    finally:
        future.cancel()


def test_a_process_without_the_package_can_be_asked(tmp_path):
    question = tmp_path / "question"
    question.write_bytes(cloudpickle.dumps(worker_question()))
    code = (
        "import pickle, sys, types\n"
        "sys.modules['dask_onnx'] = None\n"
        f"ask = pickle.loads(open({str(question)!r}, 'rb').read())\n"
        "memory = types.SimpleNamespace(memory_limit=5)\n"
        "worker = types.SimpleNamespace(plugins={'p': 1}, memory_manager=memory,\n"
        "    state=types.SimpleNamespace(nthreads=3))\n"
        "found = ask(('numpy', 'no-such-package'), 'dask_onnx.cluster.host_report', worker)\n"
        "assert found['package'] is None and 'dask_onnx' in found['package_error'], found\n"
        "assert found['versions']['numpy'] and found['versions']['no-such-package'] is None\n"
        "assert found['details']['threads'] == 3 and found['details']['memory_limit'] == 5\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_asynchronous_client_is_refused():
    class Asynchronous:
        asynchronous, status = True, "running"

    with pytest.raises(dx.ClusterError) as caught:
        dx.diagnose(Asynchronous())
    assert caught.value.option == "client"


@pytest.mark.cluster
def test_a_closed_client_is_refused(cluster):
    with Client(cluster, set_as_default=False) as closed:
        pass
    with pytest.raises(dx.ClusterError):
        dx.diagnose(closed)
