"""Ctrl-C while Python runs code that drops exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

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
    time.sleep(30)

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
        timeout=25,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ},
    )
    assert done.stdout.strip() == "interrupted", done.stderr
    assert "Traceback" not in done.stderr
