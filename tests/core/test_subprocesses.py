from __future__ import annotations

import os
import signal
import time

import pytest

from dask_onnx.core import subprocesses as elsewhere
from dask_onnx.core.subprocesses import run_in_subprocess


def test_another_process_answers():
    assert run_in_subprocess(os.getpid) != os.getpid()


def test_what_it_raises_is_raised_here():
    with pytest.raises(FileNotFoundError):
        run_in_subprocess(os.stat, "/no/such/file")


def test_a_process_that_is_killed_is_a_runtime_error():
    with pytest.raises(RuntimeError, match=f"exit code {-signal.SIGKILL}"):
        run_in_subprocess(signal.raise_signal, signal.SIGKILL)


def test_a_process_that_takes_too_long_is_ended():

    with pytest.raises(RuntimeError, match="timed out"):
        run_in_subprocess(time.sleep, 60, seconds=1)


def test_a_process_that_cannot_start_is_a_runtime_error(monkeypatch):
    monkeypatch.setattr(elsewhere.sys, "executable", "/no/such/python")
    with pytest.raises(RuntimeError, match="No such file"):
        run_in_subprocess(os.getpid)
