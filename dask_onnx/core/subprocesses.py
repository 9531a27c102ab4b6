"""Work in short-lived subprocesses, for functions that need much memory for a moment.

Dask pauses a worker that comes near its memory limit, and memory that a process has used is seldom
returned to the system completely. A worker therefore never holds a whole model file, or its weights
twice, in its own memory.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_PROGRAM = "from dask_onnx.core.subprocesses import answer; answer()"
_MAX_ERROR_CHARACTERS = 500


def run_in_subprocess(
    function: Callable[..., Result], *arguments: Any, seconds: float = 900
) -> Result:
    """Return or raise what ``function(*arguments)`` returns or raises in a subprocess.

    Parameters
    ----------
    function : callable
        A function at the top level of an importable module. `arguments` and the result are pickled.
    seconds : float
        Time limit.

    Raises
    ------
    RuntimeError
        The subprocess could not be started, exceeded its time limit, or was killed.
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
        # The end of a traceback names the error.
        message = done.stderr.decode(errors="replace").strip()[-_MAX_ERROR_CHARACTERS:]
        raise RuntimeError(message or f"the subprocess ended with exit code {done.returncode}")
    result, raised = pickle.loads(done.stdout)
    if raised is not None:
        raise raised
    value: Result = result
    return value


def answer() -> None:
    """Run the function that stdin names and write its outcome to stdout, in the subprocess."""
    function, arguments = pickle.load(sys.stdin.buffer)
    outcome: tuple[Any, Exception | None]
    try:
        outcome = function(*arguments), None
    except Exception as error:
        outcome = None, error
    sys.stdout.buffer.write(pickle.dumps(outcome))
