"""Work in short-lived subprocesses, for functions that need much memory for a moment.

Dask pauses a worker that comes near its memory limit, and memory that a process has used is seldom
returned to the system completely. A worker therefore never holds a whole model file, or its weights
twice, in its own memory.

A subprocess reads its work from one temporary file and writes the outcome to another. Its standard
streams are not part of that, since any library, or the interpreter's ``sitecustomize``, may print.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeVar

Result = TypeVar("Result")

_PROGRAM = """
import pickle, sys
with open(int(sys.argv[1]), "rb", closefd=False) as work:
    sys.path[:] = pickle.load(work)
    from dask_onnx.core.subprocesses import answer
    answer(work, int(sys.argv[2]), int(sys.argv[3]))
"""
"""Program of a subprocess. The modules that it imports are those of this process, not those that
happen to be in the current folder."""
_MAX_ERROR_BYTES = 500
"""Bytes of the end of what a subprocess printed that an error quotes."""
_WATCH_SECONDS = 0.5
"""Seconds between looks of a subprocess at whether its parent is alive."""


class SubprocessEndedError(RuntimeError):
    """A subprocess ended without an outcome: by a signal, or at its time limit."""


def run_in_subprocess(
    function: Callable[..., Result], *arguments: Any, seconds: float = 900
) -> Result:
    """Return or raise what ``function(*arguments)`` returns or raises in a subprocess.

    What the subprocess and its own subprocesses print is discarded. They are all ended with the
    call, and with this process.

    Parameters
    ----------
    function : callable
        A function at the top level of an importable module. `arguments` and the result are pickled.
    seconds : float
        Time limit.

    Raises
    ------
    RuntimeError
        The subprocess could not be started, or the outcome cannot be pickled; a
        `SubprocessEndedError` if it exceeded its time limit or ended without an outcome.
    """
    with contextlib.ExitStack() as stack:
        try:
            work, outcome, printed = (
                stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)
            )
            pickle.dump(sys.path, work)
            pickle.dump((function, arguments), work)
            work.seek(0)
            descriptors = work.fileno(), outcome.fileno()
            process = start_python(_PROGRAM, descriptors, printed, str(os.getpid()))
        except OSError as error:
            raise RuntimeError(f"a subprocess cannot be started: {error}") from error
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise SubprocessEndedError(f"the subprocess timed out after {seconds} s") from None
        finally:
            _end(process)
        result, raised = _read_outcome(process, outcome, printed)
    if raised is not None:
        raise raised
    value: Result = result
    return value


def start_python(
    program: str, descriptors: Sequence[int], printed: IO[bytes], *arguments: str
) -> subprocess.Popen[bytes]:
    """Start this interpreter on a program, in a process group of its own.

    Parameters
    ----------
    program : str
        Source text.
    descriptors : sequence of int
        Open files that the subprocess inherits; their numbers are its first arguments.
    printed : binary file
        File for both of its standard streams.
    *arguments : str
        Further arguments.

    Raises
    ------
    OSError
        It cannot be started.
    """
    # -P: the current folder is not on the path, whose modules would hide the installed ones.
    command = [sys.executable, "-P", "-c", program, *map(str, descriptors), *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=printed,
        pass_fds=descriptors,
        start_new_session=True,  # its own subprocesses can be ended with it
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a subprocess and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_outcome(
    process: subprocess.Popen[bytes], outcome: IO[bytes], printed: IO[bytes]
) -> tuple[Any, Exception | None]:
    outcome.seek(0)
    data = outcome.read()
    if process.returncode == 0 and data:
        try:
            result, raised = pickle.loads(data)
        except Exception as error:  # whatever the reconstruction of a class raises
            raise RuntimeError(f"the outcome of the subprocess cannot be read: {error}") from error
        return result, raised
    # The end of a traceback names the error.
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(0, size - _MAX_ERROR_BYTES))
    message = printed.read().decode(errors="replace").strip()
    ending = f"the subprocess ended with exit code {process.returncode}, without an outcome"
    raise SubprocessEndedError(f"{ending}: {message}" if message else ending)


def answer(work: IO[bytes], outcome: int, parent: int) -> None:
    """Run the function that a file names, in the subprocess, and write its outcome to another.

    Parameters
    ----------
    work : binary file
        A pickled function and its arguments.
    outcome : int
        Descriptor of the file for the outcome: a pickled pair of result and error.
    parent : int
        Process that waits for the outcome; this one ends when it is gone.
    """
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    function, arguments = pickle.load(work)
    result: tuple[Any, Exception | None]
    try:
        result = function(*arguments), None
    except Exception as error:  # raised again where the outcome is read
        result = None, error
    with open(outcome, "wb", closefd=False) as file:
        file.write(pickle.dumps(result))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.killpg(0, signal.SIGKILL)
