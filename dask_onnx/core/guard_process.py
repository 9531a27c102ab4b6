"""A subprocess that may die: functions run in it whose crash must not end this process.

A first subprocess imports what the functions need, and then only forks. Each fork answers calls
until it dies; the next one takes its place within milliseconds, since nothing is imported again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from dask_onnx.core.subprocesses import start_python

Result = TypeVar("Result")
Cause = Literal["signal", "exit", "memory", "time"]

_PROGRAM = """
import pickle, sys
with open(int(sys.argv[2]), "rb") as setup:
    sys.path[:], modules = pickle.load(setup)
from dask_onnx.core.guard_process import serve_forks
serve_forks(int(sys.argv[1]), modules)
"""
_STATUS = struct.Struct("<i")
"""Message about a fork that has died: its exit code, negative for a signal."""
_POLL_SECONDS = 0.01
"""Seconds between looks at whether a fork has died."""
_START_SECONDS = 120.0
"""Longest wait for the first subprocess to have imported its modules."""
_TAIL_BYTES = 2000
"""Bytes of the end of what a fork printed that tell why it died."""
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|MemoryError|annot allocate memory|out of memory", re.IGNORECASE
)
"""Texts that a process prints when a failed allocation ends it."""


class ProcessDiedError(RuntimeError):
    """The process that ran a function died, or was ended.

    Parameters
    ----------
    cause : {"signal", "exit", "memory", "time"}
        Cause of its end: a signal, a call of ``exit``, an allocation that failed, or the time
        limit.
    code : int
        Exit code; negative for a signal.
    printed : str
        Last line that it printed.
    """

    def __init__(self, cause: Cause, code: int, printed: str = "") -> None:
        super().__init__(cause, code, printed)
        self.cause = cause
        self.code = code
        self.printed = printed

    def __str__(self) -> str:
        return f"{self.ending}: {self.printed}" if self.printed else self.ending

    @property
    def signal(self) -> int | None:
        """Number of the signal that ended the process; None if none did."""
        return -self.code if self.code < 0 else None

    @property
    def ending(self) -> str:
        """Signal or exit code that ended the process, such as "SIGSEGV (Segmentation fault)"."""
        if self.cause == "time":
            return "the time limit"
        if self.signal is None:
            return f"exit code {self.code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(self.signal).name
            return f"{name} ({signal.strsignal(self.signal)})"
        return f"signal {self.signal}"


class GuardProcess:
    """Runs functions in a subprocess that is replaced when it dies; one call at a time.

    Parameters
    ----------
    modules : sequence of str
        Modules to import once. They must not start threads when they are imported.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = tuple(modules)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._printed: IO[bytes] | None = None
        self._fork: Connection | None = None

    def run(
        self,
        function: Callable[..., Result],
        *arguments: Any,
        seconds: float | None,
        memory_bytes: int | None = None,
    ) -> Result:
        """Return or raise what ``function(*arguments)`` returns or raises.

        Parameters
        ----------
        function : callable
            A function at the top level of an importable module. `arguments` and the result are
            pickled.
        seconds : float or None
            Time limit; None for none.
        memory_bytes : int, optional
            Bytes that the function may allocate; allocations beyond them fail.

        Raises
        ------
        ProcessDiedError
            The process died, or exceeded the time limit.
        RuntimeError
            The process could not be started.
        """
        data = pickle.dumps((function, arguments, memory_bytes), protocol=5)
        with self._lock:
            result, error = self._ask(data, seconds)
        if error is not None:
            raise error
        value: Result = result
        return value

    def close(self) -> None:
        """End the subprocess; the next call starts another one."""
        with self._lock:
            self._close()

    def _ask(self, data: bytes, seconds: float | None) -> tuple[Any, Exception | None]:
        fork = self._fork if self._fork is not None else self._new_fork()
        try:
            fork.send_bytes(data)
            if not fork.poll(seconds):
                self._close()
                raise ProcessDiedError("time", -signal.SIGKILL)
            answer: tuple[Any, Exception | None] = pickle.loads(fork.recv_bytes())
        except (EOFError, ConnectionError):
            raise self._death() from None
        except BaseException:
            # An interrupt: what the fork answers later belongs to no call.
            self._close()
            raise
        return answer

    def _new_fork(self) -> Connection:
        self._start()
        assert self._control is not None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError as error:
                self._close()
                raise RuntimeError(f"the guarding subprocess is gone: {error}") from error
        self._fork = Connection(ours.detach())
        return self._fork

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._close()
        ours, theirs = socket.socketpair()
        printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        with theirs, tempfile.TemporaryFile() as setup:
            setup.write(pickle.dumps((sys.path, self._modules)))
            setup.seek(0)
            descriptors = theirs.fileno(), setup.fileno()
            try:
                self._process = start_python(_PROGRAM, descriptors, printed)
            except OSError as error:
                ours.close()
                printed.close()
                raise RuntimeError(f"a guarding subprocess cannot be started: {error}") from error
        self._control, self._printed = ours, printed
        weakref.finalize(self, _end, self._process)
        ours.settimeout(_START_SECONDS)
        try:
            ready = ours.recv(1)
        except OSError:
            ready = b""
        if not ready:
            tail = self._tail()
            self._close()
            raise RuntimeError(f"a guarding subprocess cannot be started: {tail}")

    def _death(self) -> ProcessDiedError:
        """Return the reason why the fork has died."""
        if self._fork is not None:
            self._fork.close()
            self._fork = None
        tail = self._tail()
        try:
            assert self._control is not None
            (code,) = _STATUS.unpack(self._control.recv(_STATUS.size))
        except (OSError, struct.error):
            self._close()
            code = -signal.SIGKILL
        cause: Cause = "signal" if code < 0 else "exit"
        if _OUT_OF_MEMORY.search(tail) or code == -signal.SIGKILL:
            cause = "memory"  # nobody but the kernel's out-of-memory killer knows this process
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return ProcessDiedError(cause, code, lines[-1] if lines else "")

    def _tail(self) -> str:
        """Return the end of what was printed since the last call."""
        if self._printed is None:
            return ""
        descriptor = self._printed.fileno()
        size = os.fstat(descriptor).st_size
        text = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return text.decode(errors="replace")

    def _close(self) -> None:
        for each in (self._fork, self._control, self._printed):
            if each is not None:
                each.close()
        if self._process is not None:
            _end(self._process)
        self._process = self._control = self._printed = self._fork = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the first subprocess and its fork."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def serve_forks(descriptor: int, modules: Sequence[str]) -> None:
    """Fork once for each socket that arrives, and report how each fork ends: the subprocess's main.

    Parameters
    ----------
    descriptor : int
        Socket to the parent; this process ends when the parent closes it.
    modules : sequence of str
        Modules to import before the first fork.
    """
    for module in modules:
        importlib.import_module(module)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=descriptor) as control:
        control.send(b"r")
        while True:
            message, received, _, _ = socket.recv_fds(control, 1, 1)
            if not message:
                return
            pid = os.fork()
            if not pid:
                control.close()
                _answer_calls(Connection(received[0]))
                os._exit(0)
            os.close(received[0])
            code = _wait(pid, control)
            if code is None:
                return
            control.send(_STATUS.pack(code))


def _wait(pid: int, control: socket.socket) -> int | None:
    """Return the exit code of a fork; None if the parent is gone, with which the fork ends."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if select.select([control], [], [], _POLL_SECONDS)[0] and not control.recv(
            1, socket.MSG_PEEK
        ):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None


def _answer_calls(connection: Connection) -> None:
    """Answer calls until the parent closes the connection."""
    while True:
        try:
            function, arguments, memory_bytes = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        outcome: tuple[Any, Exception | None]
        try:
            _limit_memory(memory_bytes)
            outcome = function(*arguments), None
        except Exception as error:  # raised again where the answer is read
            outcome = None, error
        finally:
            _limit_memory(None)
        function = arguments = None
        sys.stdout.flush()
        connection.send_bytes(_pickled(outcome))


def _pickled(outcome: tuple[Any, Exception | None]) -> bytes:
    try:
        return pickle.dumps(outcome, protocol=5)
    except Exception as error:  # whatever the reduction of a class raises
        reason = f"{type(error).__name__}: {error}"
        return pickle.dumps((None, RuntimeError(f"the outcome cannot be pickled: {reason}")))


def _limit_memory(more_bytes: int | None) -> None:
    """Let allocations fail beyond so many bytes more than there are; None lifts the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if more_bytes is None else _data_bytes() + more_bytes
    if hard != resource.RLIM_INFINITY and soft != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """Return the bytes of private memory of this process, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
