"""Work that takes memory for a moment, done by a process of its own.

Dask pauses a worker that comes near its limit, and what a process has once used it seldom gives
back whole. So a worker does not itself hold a model's file, or its weights twice.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_PROGRAM = "from dask_onnx.core.subprocesses import answer; answer()"


def run_in_subprocess(
    function: Callable[..., Result], *arguments: Any, seconds: float = 900
) -> Result:
    """What `function(*arguments)` returns or raises, run by a process that then ends.

    Parameters
    ----------
    function : a function of a module that can be imported; `arguments` and its result are pickled

    Raises
    ------
    RuntimeError
        The process could not be started, took too long or was killed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=pickle.dumps((function, arguments)),
            capture_output=True,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip()[-500:]
        raise RuntimeError(last or f"it ended with exit code {done.returncode}")
    result, raised = pickle.loads(done.stdout)
    if raised is not None:
        raise raised
    value: Result = result
    return value


def answer() -> None:
    """The other process: a request on stdin, an answer on stdout."""
    function, arguments = pickle.load(sys.stdin.buffer)
    outcome: tuple[Any, Exception | None]
    try:
        outcome = function(*arguments), None
    except Exception as error:
        outcome = None, error
    sys.stdout.buffer.write(pickle.dumps(outcome))
