"""Preloads of schedulers and workers that are processes of their own, with TLS."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from builders import dense_model
from click.testing import CliRunner
from distributed import Client, LocalCluster, Security
from distributed.diagnostics.plugin import SchedulerPlugin

import dask_onnx as dx
import dask_onnx.scheduler
import dask_onnx.worker
from dask_onnx.api.warm_sessions import WarmRequest, host_threads_with, make_warm
from dask_onnx.cluster.page_facts import PAGE_NAME
from dask_onnx.runtime import session_cache

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(3).standard_normal((20, 8)).astype(np.float32)
ROLES = ("scheduler", "worker", "client")


def certificates(folder: Path) -> SimpleNamespace:
    """Write certificates to files; return the options of commands, and those of a client."""
    found = Security.temporary()
    (folder / "ca.pem").write_text(found.tls_ca_file)
    for role in ROLES:
        (folder / f"{role}.pem").write_text(getattr(found, f"tls_{role}_cert"))
        (folder / f"{role}.key").write_text(getattr(found, f"tls_{role}_key"))
    options = {
        role: [
            *("--tls-ca-file", folder / "ca.pem"),
            *("--tls-cert", folder / f"{role}.pem"),
            *("--tls-key", folder / f"{role}.key"),
        ]
        for role in ROLES
    }
    client = Security(
        tls_ca_file=str(folder / "ca.pem"),
        tls_client_cert=str(folder / "client.pem"),
        tls_client_key=str(folder / "client.key"),
        require_encryption=True,
    )
    return SimpleNamespace(options=options, client=client)


@contextlib.contextmanager
def process(log: Path, *arguments: object):
    """Run a command of Dask until the end of the body, and end it as a service manager does."""
    command = [sys.executable, "-m", "dask", *map(str, arguments)]
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=file, env=dict(os.environ))
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def until(condition, seconds=90):
    """Wait for a condition; return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.05)
    return found


def test_a_preloaded_worker_has_its_session_before_the_first_task(tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_ONNX__STORE__DIRECTORY", str(tmp_path / "store"))
    model = tmp_path / "dense.onnx"
    onnx.save(dense_model(), model)
    np.save(tmp_path / "x.npy", ROWS)
    tls, place = certificates(tmp_path), tmp_path / "scheduler.json"
    scheduler = [
        *("scheduler", "--protocol", "tls", "--port", 0, "--scheduler-file", place),
        *("--dashboard-address", ":0", "--preload", "dask_onnx.scheduler"),
        *tls.options["scheduler"],
    ]
    worker = [
        *("--nthreads", 1, "--no-dashboard", *tls.options["worker"]),
        *("--preload", "dask_onnx.worker", "--model", model),
        *("--model", tmp_path / "missing.onnx"),
    ]
    with process(tmp_path / "s.log", *scheduler):
        until(lambda: place.exists() and place.read_text().endswith("}"))
        address = json.loads(place.read_text())["address"]
        with (
            process(tmp_path / "w.log", "worker", address, *worker),
            Client(scheduler_file=str(place), security=tls.client) as client,
        ):
            client.wait_for_workers(1, timeout=90)
            assert client.scheduler.address.startswith("tls://")
            # Functions of this module cannot be imported there; these travel by value.
            plugins = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
            assert PAGE_NAME in plugins
            assert list(client.run(lambda: session_cache.SESSION_CACHE.built).values()) == [1]
            found = dx.predict_files(model, tmp_path / "x.npy", tmp_path / "y.npy")
            assert found.rows == 20
            assert list(client.run(lambda: session_cache.SESSION_CACHE.built).values()) == [1]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), dx.load(model)(ROWS), rtol=1e-5)
    # A model that is not there is told, and does not keep the worker from starting.
    log = (tmp_path / "w.log").read_text()
    assert "missing.onnx" in log and "Traceback" not in log


def test_sessions_of_all_stages_of_a_plan_are_built_once(tmp_path):
    path = tmp_path / "dense.onnx"
    onnx.save(dense_model(hidden=21), path)
    request = WarmRequest(str(path), "per_node")
    made, before = make_warm(request, 1), session_cache.SESSION_CACHE.built
    assert made.stages > 1 and made.threads == 1
    model = dx.load(path)
    assert made.token == model.token
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None):
        make_warm(request, 1)
    model.plan("per_node").predict(ROWS)
    assert session_cache.SESSION_CACHE.built == before


def test_threads_of_the_other_workers_of_a_host_count():
    workers = {
        "tls://10.0.0.1:1": SimpleNamespace(host="10.0.0.1", nthreads=2),
        "tls://10.0.0.2:1": SimpleNamespace(host="10.0.0.2", nthreads=4),
    }
    scheduler = SimpleNamespace(workers=workers)
    assert host_threads_with("tls://10.0.0.1:9", 3, scheduler) == 5
    assert host_threads_with("tls://10.0.0.1:1", 2, scheduler) == 2
    assert host_threads_with("tls://10.0.0.3:1", 1, scheduler) == 1


def test_the_options_of_the_preload_are_told_and_checked():
    result = CliRunner().invoke(dask_onnx.worker.dask_setup, ["--help"])
    assert result.exit_code == 0 and "--host-threads" in result.output
    for arguments in (["--model", "m.onnx", "--n-stages", "0"], ["--model", "m", "--else"]):
        context = CliRunner().invoke(dask_onnx.worker.dask_setup, arguments)
        assert context.exit_code == 2


def test_models_may_be_given_by_the_environment(monkeypatch):
    monkeypatch.setenv("DASK_ONNX_WARM_MODELS", "/a.onnx s3://b/c.onnx")
    context = dask_onnx.worker.dask_setup.make_context("dask_setup", [])
    assert context.params["models"] == ("/a.onnx", "s3://b/c.onnx")
    monkeypatch.setenv("DASK_ONNX_WARM_MODELS", "")
    context = dask_onnx.worker.dask_setup.make_context("dask_setup", [])
    assert context.params["models"] == ()


def test_the_preload_of_a_scheduler_may_be_applied_twice():
    added = {}

    class Scheduler:
        def add_plugin(self, plugin, *, name, idempotent):
            assert idempotent and isinstance(plugin, SchedulerPlugin)
            added[name] = plugin

    for _ in range(2):
        dask_onnx.scheduler.dask_setup(Scheduler())
    assert PAGE_NAME in added and len(added) == 3
