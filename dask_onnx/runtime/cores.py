"""CPU cores of this process: how many a task may use, and which CPU they belong to."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from dask.system import cpu_count

from dask_onnx.core.peers import ask_scheduler, current_worker
from dask_onnx.core.process_caches import BoundedCache, cached_in_process
from dask_onnx.runtime.package_versions import installed_versions

_MAX_AGE_SECONDS = 10.0
"""Age after which the number of cores, or of the other workers' threads, is asked for again."""

_host_threads: BoundedCache[str, int] = BoundedCache(
    "threads of hosts", 256, max_age_seconds=_MAX_AGE_SECONDS
)
"""Address of a worker of this process to the threads of all workers of its host."""


# Every task asks, and the limits are in files that take a tenth of a millisecond to read.
@cached_in_process("cores of this process", max_age_seconds=_MAX_AGE_SECONDS)
def available_cores() -> int:
    """Return the cores that this process may use, by affinity and cgroup limits."""
    return max(1, cpu_count())


def task_threads(wanted: int | None) -> int:
    """Return the number of threads for the operators of one task.

    Parameters
    ----------
    wanted : int or None
        A positive number is returned as it is, 0 means all cores of the process. None divides the
        cores by the Dask threads of all workers of this host. Outside a worker that is one
        thread: Dask's local schedulers run a task on each core.
    """
    if wanted:
        return wanted
    if wanted == 0:
        return available_cores()
    worker = current_worker()
    return 1 if worker is None else max(1, available_cores() // max(1, _threads_in_use(worker)))


def _threads_in_use(worker: Any) -> int:
    """Return the Dask threads of all workers of this host, as the scheduler knows them."""
    address = worker.address
    return _host_threads.get_or_make(
        address, lambda: ask_scheduler(worker, host_threads, address) or worker.state.nthreads
    )


def host_threads(address: str, dask_scheduler: Any = None) -> int:
    """Return the threads of all workers on the host of one; runs on the scheduler.

    Parameters
    ----------
    address : str
        Address of the worker.
    dask_scheduler : distributed.Scheduler
        Given by Dask.

    Returns
    -------
    int
        0 if the scheduler has no worker at that address.
    """
    worker = dask_scheduler.workers.get(address)
    if worker is None:
        return 0
    return sum(w.nthreads for w in dask_scheduler.workers.values() if w.host == worker.host)


def ort_version() -> str:
    """Return the version of ONNX Runtime, which packed weights and measurements depend on.

    Returns
    -------
    str
        "none" if it is not installed.
    """
    return installed_versions().onnxruntime or "none"


@cached_in_process("CPU identities")
def cpu_identity() -> str:
    """Return a short digest of this machine's CPU: model, instruction sets, number of cores.

    Packed weights and measurements of one CPU are not used on another.
    """
    facts = [platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        facts += sorted({line for line in lines if line.startswith(wanted)})
    facts.append(str(os.cpu_count()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def host_digest() -> str:
    """Return the key of measurements on this host: a digest of its CPU and ONNX Runtime."""
    return hashlib.sha256(f"{cpu_identity()} {ort_version()}".encode()).hexdigest()[:12]
