"""Locks of outputs, and what runs that were killed leave behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import fsspec
import psutil
import pytest

from dask_onnx.core.errors import InputError
from dask_onnx.io import output_lock
from dask_onnx.io.output_lock import lock_path, locked_outputs
from dask_onnx.io.targets import new_run_name

HOLD = """
import sys
from dask_onnx.io.output_lock import locked_outputs
with locked_outputs([sys.argv[1]]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(target):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_run_is_refused_with_the_holder_and_a_killed_one_holds_nothing(tmp_path):
    target = str(tmp_path / "y.parquet")
    process = holder(target)
    with pytest.raises(InputError) as raised, locked_outputs([target]):
        pass
    assert raised.value.numbers == {"pid": process.pid} and raised.value.option == "path"
    assert f"process {process.pid} on {socket.gethostname()}, since 20" in raised.value.cause
    process.kill()
    process.communicate()
    with locked_outputs([target]), pytest.raises(InputError) as raised, locked_outputs([target]):
        pass
    assert raised.value.numbers == {"pid": os.getpid()}
    assert list(tmp_path.iterdir()) == []


def test_all_outputs_are_locked_or_none(tmp_path):
    a, b = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    with locked_outputs([b]), pytest.raises(InputError), locked_outputs([a, b]):
        pass
    with locked_outputs([a, b, a]):
        assert {path.name for path in tmp_path.iterdir()} == {".a.csv.lock", ".b.csv.lock"}


def test_the_lock_at_a_url_is_an_object():
    target, system = "memory://locked/y.parquet", fsspec.filesystem("memory")
    with locked_outputs([target]):
        assert system.exists(lock_path(target))
        with pytest.raises(InputError) as raised, locked_outputs([target]):
            pass
        assert lock_path(target) in raised.value.next_step
    assert not system.exists(lock_path(target))
    dead = {"host": socket.gethostname(), "pid": 1, "since": "2020", "started": 0.0}
    system.pipe_file("/locked/y.parquet.lock", json.dumps(dead).encode())
    with locked_outputs([target]):
        pass
    other = {**dead, "host": "another", "started": psutil.Process().create_time()}
    system.pipe_file("/locked/y.parquet.lock", json.dumps(other).encode())
    with pytest.raises(InputError) as raised, locked_outputs([target]):
        pass
    assert "process 1 on another, since 2020" in raised.value.cause
    system.rm("/locked", recursive=True)


def test_the_holder_of_a_lock_still_runs_after_the_clock_was_set(monkeypatch):
    held = json.dumps(output_lock._holder()).encode()
    monkeypatch.setattr("psutil.Process.create_time", lambda _: 0.0)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert not output_lock._has_ended(held)
    other = json.loads(held) | {"started": "another boot 1"}
    assert output_lock._has_ended(json.dumps(other).encode())


def test_leftovers_of_killed_runs_are_swept_and_nothing_else(tmp_path):
    run = new_run_name()
    kept = [".y.npy.partial", ".z.npy." + run + ".partial", ".y.npy.mine.partial", "y.npy"]
    for name in (f".y.npy.{run}.partial", *kept):
        (tmp_path / name).touch()
    (tmp_path / f".y.npy.{new_run_name()}.partial").mkdir()
    (tmp_path / f".y.npy.{run}.old").mkdir()
    with locked_outputs([str(tmp_path / "y.npy")]):
        pass
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_an_output_that_was_being_replaced_gets_its_name_back(tmp_path):
    (tmp_path / f".y.zarr.{new_run_name()}.old").mkdir()
    with locked_outputs([str(tmp_path / "y.zarr")]):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["y.zarr"]


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("content")
    (tmp_path / ".y.npy.lock").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError), locked_outputs([str(tmp_path / "y.npy")]):
        pass
    assert (tmp_path / "secret").read_text() == "content"
