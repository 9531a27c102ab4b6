"""Workers keep some freed memory; page faults tell whether they do."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from types import SimpleNamespace

import dask.config
import numpy as np
import pytest
from builders import dense_model
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.runtime import freed_memory

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)
ARRAYS, ARRAY_BYTES = 100, 2**20
PAGES = ARRAYS * ARRAY_BYTES // resource.getpagesize()


def page_faults():
    """Return the page faults of arrays that are made and freed, one after the other."""
    np.ones(ARRAY_BYTES, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ARRAYS):
        np.ones(ARRAY_BYTES, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def faults_of_worker(kept):
    """Return the page faults in a worker of a nanny, after a prediction."""
    pythonpath = os.pathsep.join(sys.path)
    with (
        dask.config.set({"onnx.kept-freed-bytes": kept}),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PYTHONPATH", pythonpath)  # workers import this module
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            dx.load(dense_model()).predict(np.ones((4, 8), np.float32))
            return client.submit(page_faults).result()


@pytest.mark.cluster
def test_a_worker_keeps_freed_memory_after_its_first_session(store_directory):
    assert faults_of_worker(16 * 2**20) < PAGES / 10


@pytest.mark.cluster
def test_with_null_it_is_as_dask_sets_it(store_directory):
    assert faults_of_worker(None) > PAGES / 2


@pytest.mark.parametrize(
    ("environment", "worker"),
    [
        ({"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "131072"}, object()),
        ({"MALLOC_TRIM_THRESHOLD_": "0"}, object()),
        ({}, object()),
        ({"MALLOC_TRIM_THRESHOLD_": "65536"}, None),
    ],
    ids=["map threshold given", "trim threshold given", "no nanny", "no worker"],
)
def test_what_others_have_set_stays(environment, worker, monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(freed_memory, "current_worker", lambda: worker)
    called = []
    monkeypatch.setattr(freed_memory, "_keep", called.append)
    freed_memory.keep_freed_memory()
    assert called == []


def test_a_setting_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(freed_memory, "current_worker", SimpleNamespace)
    with (
        dask.config.set({"onnx.kept-freed-bytes": "16 MiB"}),
        pytest.raises(dx.InputError, match="kept-freed-bytes"),
    ):
        freed_memory.keep_freed_memory()
