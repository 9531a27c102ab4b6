"""Subprocesses: results, errors, time limits, failures to start, and libraries that print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dask_onnx.core import subprocesses
from dask_onnx.core.errors import StageError
from dask_onnx.core.subprocesses import run_in_subprocess


def test_the_result_comes_from_another_process():
    assert run_in_subprocess(os.getpid) != os.getpid()


def test_an_error_of_the_function_is_raised_in_the_caller():
    with pytest.raises(FileNotFoundError):
        run_in_subprocess(os.stat, "/no/such/file")


def fail_with_fields():
    raise StageError("stage a failed", "retry", stage="a", numbers={"rows": 3})


def test_an_error_keeps_its_fields():
    with pytest.raises(StageError) as caught:
        run_in_subprocess(fail_with_fields)
    assert caught.value.stage == "a" and caught.value.numbers == {"rows": 3}


def test_a_killed_subprocess_is_a_runtime_error():
    with pytest.raises(RuntimeError, match=f"exit code {-signal.SIGKILL}"):
        run_in_subprocess(signal.raise_signal, signal.SIGKILL)


@pytest.mark.parametrize("code", [0, 3])
def test_a_subprocess_that_exits_early_is_a_runtime_error(code):
    with pytest.raises(RuntimeError, match=f"exit code {code}"):
        run_in_subprocess(os._exit, code)


def test_a_subprocess_is_stopped_at_its_time_limit():
    with pytest.raises(RuntimeError, match="timed out"):
        run_in_subprocess(time.sleep, 60, seconds=1)


def test_a_subprocess_that_cannot_start_is_a_runtime_error(monkeypatch):
    monkeypatch.setattr(subprocesses.sys, "executable", "/no/such/python")
    with pytest.raises(RuntimeError, match="No such file"):
        run_in_subprocess(os.getpid)


def print_much():
    """Print to both streams, from Python and below it, more than a pipe holds."""
    for descriptor in (1, 2):
        os.write(descriptor, b"below Python\n")
    for stream in (sys.stdout, sys.stderr):
        stream.write("a warning\n" * 20_000)
    return "result"


def test_what_a_library_prints_is_no_part_of_the_result():
    assert run_in_subprocess(print_much) == "result"


def test_what_sitecustomize_prints_is_no_part_of_the_result(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys\nprint('hello', file=sys.stdout)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_in_subprocess(os.strerror, 2) == os.strerror(2)


def test_modules_in_the_current_folder_do_not_hide_installed_ones(tmp_path, monkeypatch):
    for name in ("onnx", "numpy", "pickle", "dask_onnx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hidden')\n")
    monkeypatch.chdir(tmp_path)
    assert run_in_subprocess(os.getcwd) == str(tmp_path)


def make_unpicklable():
    return lambda: None


def test_a_result_that_cannot_be_pickled_is_a_runtime_error():
    with pytest.raises(RuntimeError, match="pickle"):
        run_in_subprocess(make_unpicklable)


def start_another(seconds):
    """Start a process that keeps the standard streams open, and hang."""
    path = Path(os.environ["TEST_PID_FILE"])
    other = subprocess.Popen(["sleep", "300"])
    path.write_text(str(other.pid))
    time.sleep(seconds)


def is_running(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("seconds", [0, 300])
def test_processes_of_a_subprocess_end_with_it(tmp_path, monkeypatch, seconds):
    path = tmp_path / "pid"
    monkeypatch.setenv("TEST_PID_FILE", str(path))
    if seconds:
        limits = iter((3, 10, 30, 90))
        # A limit may end it before it has started the other process.
        while not (path.exists() and path.read_text()):
            with pytest.raises(RuntimeError, match="timed out"):
                run_in_subprocess(start_another, seconds, seconds=next(limits))
    else:
        run_in_subprocess(start_another, seconds)
    until = time.monotonic() + 60
    while is_running(int(path.read_text())):
        assert time.monotonic() < until
        time.sleep(0.02)


def write_pid_and_hang(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(300)


def test_a_subprocess_ends_with_its_parent(tmp_path):
    path = tmp_path / "pid"
    code = "import sys\nsys.path.insert(0, sys.argv[1])\n"
    code += "from test_subprocesses import write_pid_and_hang\n"
    code += "from dask_onnx.core.subprocesses import run_in_subprocess\n"
    code += "run_in_subprocess(write_pid_and_hang, sys.argv[2])\n"
    parent = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(path)])
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while is_running(int(path.read_text())):
        assert time.monotonic() < until
        time.sleep(0.02)
