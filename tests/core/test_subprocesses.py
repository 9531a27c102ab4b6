"""Subprocesses: results, errors, time limits and failures to start."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dask_onnx.core import subprocesses
from dask_onnx.core.subprocesses import run_in_subprocess


def test_the_result_comes_from_another_process():
    assert run_in_subprocess(os.getpid) != os.getpid()


def test_an_error_of_the_function_is_raised_in_the_caller():
    with pytest.raises(FileNotFoundError):
        run_in_subprocess(os.stat, "/no/such/file")


def test_a_killed_subprocess_is_a_runtime_error():
    with pytest.raises(RuntimeError, match=f"exit code {-signal.SIGKILL}"):
        run_in_subprocess(signal.raise_signal, signal.SIGKILL)


def test_a_subprocess_is_stopped_at_its_time_limit():
    with pytest.raises(RuntimeError, match="timed out"):
        run_in_subprocess(time.sleep, 60, seconds=1)


def test_a_subprocess_that_cannot_start_is_a_runtime_error(monkeypatch):
    monkeypatch.setattr(subprocesses.sys, "executable", "/no/such/python")
    with pytest.raises(RuntimeError, match="No such file"):
        run_in_subprocess(os.getpid)
