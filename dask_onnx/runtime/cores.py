"""How many cores a task may use: what the process has, shared among the tasks that run at once."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

from dask.system import cpu_count

from dask_onnx.core.peers import ask_scheduler, own_worker

_KNOWN_SECONDS = 10.0
"""How long an answer about this process's cores, or the other workers of its host, stays good."""

_cores: tuple[float, int] = (0.0, 0)


def available_cores() -> int:
    """Cores that this process may use: affinity and cgroup limits, the smaller of the two."""
    global _cores
    until, cores = _cores
    if time.monotonic() > until:
        # Every task asks, and the answer is in files that take a tenth of a millisecond to read.
        cores = max(1, cpu_count())
        _cores = (time.monotonic() + _KNOWN_SECONDS, cores)
    return cores


def task_threads(wanted: int | None) -> int:
    """Threads for the operators of one task.

    Parameters
    ----------
    wanted : int or None
        A number is taken as it is, 0 means all cores of the process. None shares the cores among
        the Dask threads that use them: those of all workers of this host. Outside a worker that is
        one thread: Dask's local schedulers run a task on each core.
    """
    if wanted:
        return wanted
    if wanted == 0:
        return available_cores()
    worker = own_worker()
    return 1 if worker is None else max(1, available_cores() // max(1, _threads_in_use(worker)))


_known: dict[str, tuple[float, int]] = {}


def _threads_in_use(worker: Any) -> int:
    """Dask threads of all workers of this host, as the scheduler knows them."""
    known = _known.get(worker.address)
    if known is None or time.monotonic() > known[0]:
        count = ask_scheduler(worker, host_threads, worker.address) or worker.state.nthreads
        known = _known[worker.address] = (time.monotonic() + _KNOWN_SECONDS, count)
    return known[1]


def host_threads(address: str, dask_scheduler: Any = None) -> int:
    """Threads of all workers on the host of one; runs on the scheduler."""
    worker = dask_scheduler.workers.get(address)
    if worker is None:
        return 0
    return sum(w.nthreads for w in dask_scheduler.workers.values() if w.host == worker.host)


@functools.cache
def ort_version() -> str:
    """What was packed or measured with one version of onnxruntime is not used with another."""
    return importlib.metadata.version("onnxruntime")


@functools.cache
def cpu_identity() -> str:
    """Model and instruction sets of this machine's CPU, as a short digest: what was packed or
    measured on one CPU is not used on another."""
    facts = [platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        facts += sorted({line for line in lines if line.startswith(wanted)})
    facts.append(str(os.cpu_count()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def host_digest() -> str:
    """What was measured is noted under: the CPU, and the onnxruntime that ran on it."""
    return hashlib.sha256(f"{cpu_identity()} {ort_version()}".encode()).hexdigest()[:12]
