"""A file that has not changed is loaded once; one that has, with whatever times, is read again."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import dask
import numpy as np
import onnx
import pytest
from builders import make_model, node, value

import dask_onnx as dx
from dask_onnx.core.process_caches import PROCESS_CACHES
from dask_onnx.modelio import onnx_model, repeated_loads

_TICK = 0.05
"""Seconds in which the clock of a file system goes on."""


def adds(number, size=4):
    """Return x (N, size) -> x + number; files of equal sizes have equal numbers of bytes."""
    return make_model(
        [node("Add", "x b", "y", "add")],
        [value("x", ["N", size])],
        [value("y", ["N", size])],
        {"b": np.full(size, number, np.float32)},
    )


def result(path):
    return float(dx.load(path).predict(np.zeros((1, 4), np.float32))[0, 0])


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Path of a file that counts as settled at once."""
    PROCESS_CACHES.clear()
    monkeypatch.setattr(repeated_loads, "_SETTLED_SECONDS", 0.0)
    path = tmp_path / "adds.onnx"
    onnx.save(adds(1), path)
    return path


@pytest.fixture
def reads(monkeypatch):
    """Paths of the files that are read."""
    found = []
    read = onnx_model.read_model_file

    def noted(path):
        found.append(path)
        return read(path)

    monkeypatch.setattr(onnx_model, "read_model_file", noted)
    return found


def test_a_file_that_has_not_changed_is_read_once(path, reads, monkeypatch):
    monkeypatch.chdir(path.parent)
    first, second, third = dx.load(path), dx.load(str(path)), dx.load("adds.onnx", name="other")
    assert len(reads) == 1
    assert first.token == second.token == third.token
    assert (first.name, second.name, third.name) == ("adds", "adds", "other")


def test_a_file_written_a_moment_before_is_read_again(path, reads, monkeypatch):
    monkeypatch.setattr(repeated_loads, "_SETTLED_SECONDS", 60.0)
    assert result(path) == 1
    dx.load(path)
    assert len(reads) == 2


@pytest.mark.parametrize("way", ["written over", "moved there", "times set back", "removed"])
def test_a_file_that_has_changed_is_read_again(way, path, tmp_path):
    assert result(path) == 1
    before, size = path.stat(), path.stat().st_size
    time.sleep(_TICK)
    other = tmp_path / "other.onnx"
    onnx.save(adds(2), other)
    if way == "removed":
        path.unlink()
        with pytest.raises(dx.ModelError, match="does not exist"):
            dx.load(path)
        return
    if way == "moved there":
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(path)
    else:
        path.write_bytes(other.read_bytes())
    if way == "times set back":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == size
    assert result(path) == 2


def test_external_data_are_looked_at_each_time(path):
    def saved(number):
        (path.parent / "data").unlink(missing_ok=True)  # onnx appends to it
        onnx.save(adds(number), path, save_as_external_data=True, location="data", size_threshold=0)

    saved(1)
    proto = path.read_bytes()
    assert result(path) == 1
    saved(3)
    assert path.read_bytes() == proto
    assert result(path) == 3


def test_weights_are_read_after_the_file_was_deleted(path):
    onnx.save(adds(5, 4096), path)
    dx.load(path)
    model = dx.load(path)
    path.unlink()
    assert float(model.predict(np.zeros((1, 4096), np.float32))[0, 0]) == 5


def test_no_file_stays_open_for_what_is_remembered(path):
    onnx.save(adds(5, 4096), path)

    def opened():
        links = Path("/proc/self/fd").iterdir()
        return sum(str(path) == os.path.realpath(link) for link in links)

    models = [dx.load(path), dx.load(path)]
    assert opened() == 2
    models.clear()
    gc.collect()
    assert opened() == 0


def test_another_bound_of_nodes_is_looked_at(path):
    dx.load(path)
    with dask.config.set({"onnx.model.max-nodes": 0}), pytest.raises(dx.ModelError):
        dx.load(path)
