"""Signals and closed pipes: Ctrl-C while Python drops exceptions, SIGTERM, SIGHUP, no reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from builders import dense_model

SCRIPT = """
import gc, os, signal, time
import dask_onnx.cli as cli

def press(phase, info):
    gc.callbacks.remove(press)
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass

def waiting(*_, **__):
    gc.callbacks.append(press)
    gc.collect()
    time.sleep(600)

cli.main = waiting
try:
    cli.run()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_in_the_garbage_collector_is_not_lost():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ},
    )
    assert done.stdout.strip() == "interrupted", done.stderr
    assert "Traceback" not in done.stderr


SLOW = """
import time

def wait(block):
    time.sleep(600 if len(block) > 1 else 0)
    return block
"""


STORE_LIST = """
import os, signal, sys, time
import dask_onnx.cli as cli
from dask_onnx.cli import store_command

number = int(sys.argv.pop())

def waiting(*_):
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)

store_command.stored_models = waiting
cli.run()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_command_that_gets_a_signal_says_so_in_message_and_exit_code(number):
    command = [sys.executable, "-c", STORE_LIST, "store", "list", str(int(number))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        # nohup ignores SIGHUP, and so would the command.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr == f"error: ended by {number.name}\n"


@pytest.mark.cluster
def test_a_signal_before_the_first_block_leaves_nothing_and_meanwhile_the_output_is_locked(
    model, run, tmp_path
):
    np.save(tmp_path / "x.npy", np.zeros((20_000, 4), np.float32))
    (tmp_path / "slow.py").write_text(SLOW)
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-m", "dask_onnx", "predict", str(model), "x.npy", "y.npy"]
    command += ["--outputs", "y", "--pre", "slow:wait", "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".y.npy.*.partial")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    second = run("predict", model, tmp_path / "x.npy", tmp_path / "y.npy", "--outputs", "y")
    assert second.code == 2
    assert f"process {process.pid} on " in second.err and ", since 20" in second.err
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "error: ended by SIGTERM" in err and "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before


def test_output_that_nobody_reads_ends_a_command_quietly(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(dense_model().SerializeToString())
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "dask_onnx", "inspect", str(path)],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1 and done.stderr == b""
