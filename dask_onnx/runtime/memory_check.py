"""Whether a stage's weights fit the worker, in the terms of Dask's own memory monitor.

The monitor sees the resident size of the process. Pages of mapped weights are in it once a session
has touched them, although the processes of a host share them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

import psutil
from dask.utils import format_bytes

from dask_onnx.core.errors import StageError
from dask_onnx.core.peers import own_worker
from dask_onnx.runtime.session import CACHE


def check_memory(label: str, weight_bytes: int) -> None:
    """Refuse a stage whose weights would take the worker above its pause threshold.

    Sessions that nobody has used for longest go first, if that makes room.

    Raises
    ------
    StageError
        With the need, the limit and the threshold, in bytes.
    """
    worker = own_worker()
    manager = getattr(worker, "memory_manager", None)
    limit = getattr(manager, "memory_limit", None)
    share = getattr(manager, "memory_pause_fraction", False)
    if not limit or not share:
        return
    threshold = int(limit * share)
    used = resident_bytes()
    while used + weight_bytes > threshold and CACHE.drop_oldest():
        return_memory()
        used = resident_bytes()
    if used + weight_bytes <= threshold:
        return
    least = int((used + weight_bytes) / share) + 1
    raise StageError(
        f"stage {label} has {format_bytes(weight_bytes)} of weights, and this worker's process "
        f"{format_bytes(used)} already: together {format_bytes(used + weight_bytes)}. "
        f"Its limit is {format_bytes(limit)}, and Dask pauses it at {format_bytes(threshold)}",
        f"give each worker more than {format_bytes(least)} (memory_limit=, --memory-limit), or cut "
        "the model into smaller stages: model.plan('fused', n_stages=...)",
    )


def resident_bytes() -> int:
    """What Dask's monitor compares with the limit."""
    size: int = psutil.Process().memory_info().rss
    return size


def return_memory() -> None:
    """Give what is free back to the system; glibc would keep it for the process."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
