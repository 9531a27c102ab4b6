"""A subprocess that may die: what its functions return, and how its ends are told apart."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dask_onnx.core.guard_process import GuardProcess, ProcessDiedError


def double(x):
    return x * 2


def fail(message):
    raise ValueError(message)


def end_by(number):
    os.kill(os.getpid(), number)


def leave(code):
    os._exit(code)


def print_and_abort(text):
    os.write(2, f"{text}\n".encode())
    os.abort()


def allocate(size):
    return len(bytearray(size))


def own_pid():
    return os.getpid()


def unpicklable():
    return lambda: 0


@pytest.fixture(scope="module")
def guard():
    # The subprocess finds this module's functions where this process does.
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    process = GuardProcess(["numpy"])
    yield process
    process.close()
    sys.path.remove(folder)


@pytest.fixture(autouse=True, scope="module")
def importable_by_name():
    """Let this module be imported by its plain name, as the subprocess does."""
    name = "test_guard_process"
    before = sys.modules.get(name)
    sys.modules[name] = sys.modules[__name__]
    for function in (double, fail, end_by, leave, print_and_abort, allocate, own_pid, unpicklable):
        function.__module__ = name
    yield
    if before is None:
        del sys.modules[name]
    else:
        sys.modules[name] = before


def test_results_and_errors_come_back(guard):
    x = np.arange(1000.0)
    np.testing.assert_array_equal(guard.run(double, x, seconds=60), 2 * x)
    with pytest.raises(ValueError, match="no good"):
        guard.run(fail, "no good", seconds=60)
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        guard.run(unpicklable, seconds=60)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE])
def test_a_signal_is_told_and_the_next_call_runs(guard, number):
    with pytest.raises(ProcessDiedError) as caught:
        guard.run(end_by, number, seconds=60)
    assert (caught.value.cause, caught.value.signal) == ("signal", number)
    assert signal.Signals(number).name in str(caught.value)
    assert guard.run(double, 2, seconds=60) == 4


def test_an_exit_code_is_told(guard):
    with pytest.raises(ProcessDiedError) as caught:
        guard.run(leave, 3, seconds=60)
    assert (caught.value.cause, caught.value.code, caught.value.signal) == ("exit", 3, None)


def test_the_last_line_that_it_printed_is_told_once(guard):
    with pytest.raises(ProcessDiedError) as caught:
        guard.run(print_and_abort, "assertion failed", seconds=60)
    assert caught.value.printed == "assertion failed"
    with pytest.raises(ProcessDiedError) as caught:
        guard.run(end_by, signal.SIGABRT, seconds=60)
    assert caught.value.printed == ""


def test_an_abort_for_lack_of_memory_is_told_from_other_aborts(guard):
    with pytest.raises(ProcessDiedError) as caught:
        guard.run(print_and_abort, "terminate called: std::bad_alloc", seconds=60)
    assert caught.value.cause == "memory"


def test_allocations_beyond_the_limit_fail_and_the_limit_ends_with_the_call(guard):
    with pytest.raises(MemoryError):
        guard.run(allocate, 10**8, seconds=60, memory_bytes=10**7)
    assert guard.run(allocate, 10**8, seconds=60) == 10**8


def test_processes_are_reused_until_they_die(guard):
    first = guard.run(own_pid, seconds=60)
    assert guard.run(own_pid, seconds=60) == first
    with pytest.raises(ProcessDiedError):
        guard.run(leave, 1, seconds=60)
    assert guard.run(own_pid, seconds=60) != first


def test_a_call_beyond_its_time_is_ended(guard):
    with pytest.raises(ProcessDiedError) as caught:
        guard.run(time.sleep, 10_000, seconds=0.2)
    assert caught.value.cause == "time"
    assert guard.run(double, 3, seconds=60) == 6


def test_a_call_may_have_no_time_limit(guard):
    assert guard.run(double, 3, seconds=None) == 6


def test_closing_ends_the_subprocess(guard):
    pid = guard.run(own_pid, seconds=60)
    guard.close()
    until = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ProcessDiedError("signal", -11, "last words")))
    assert (error.cause, error.signal, error.printed) == ("signal", 11, "last words")
