"""Check that a stage's weights fit the worker, in the terms of Dask's own memory monitor.

The monitor sees the resident size of the process. Pages of mapped weights count as soon as a
session has touched them, although the processes of a host share them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time

import psutil
from dask.utils import format_bytes

from dask_onnx.core.errors import StageError, Suggestion
from dask_onnx.core.peers import current_worker
from dask_onnx.runtime.session_cache import SESSION_CACHE

_RECENT_SECONDS = 1.0
_AMPLE = 8
"""A reading up to a second old will do where it is so many times what is needed."""
_last_reading = (-_RECENT_SECONDS, 0)
"""Monotonic time in seconds, and the bytes that the process could still take then."""


def check_memory(label: str, weight_bytes: int) -> None:
    """Refuse a stage whose weights would take the worker above its pause threshold.

    Drops the least recently used sessions first, as far as that makes room.

    Parameters
    ----------
    label : str
        Name of the stage in errors.
    weight_bytes : int
        Bytes of its weights.

    Raises
    ------
    StageError
        The weights do not fit.
    """
    limit, share = worker_memory()
    if not limit or not share:
        return
    threshold = int(limit * share)
    used = resident_bytes()
    while used + weight_bytes > threshold and SESSION_CACHE.drop_oldest():
        return_memory()
        used = resident_bytes()
    if used + weight_bytes <= threshold:
        return
    needed = int((used + weight_bytes) / share) + 1
    raise StageError(
        f"stage {label} has {format_bytes(weight_bytes)} of weights, and this worker's process "
        f"{format_bytes(used)} already: together {format_bytes(used + weight_bytes)}. "
        f"Its limit is {format_bytes(limit)}, and Dask pauses it at {format_bytes(threshold)}",
        f"give each worker more than {format_bytes(needed)} (memory_limit=, --memory-limit), or "
        "cut the model into smaller stages: model.plan('fused', n_stages=...)",
        stage=label,
        numbers={
            "weight_bytes": weight_bytes,
            "used_bytes": used,
            "limit_bytes": limit,
            "pause_bytes": threshold,
            "needed_limit_bytes": needed,
        },
        suggestions=[Suggestion("memory_limit", needed), Suggestion("n_stages")],
    )


def worker_memory() -> tuple[int | None, float | None]:
    """Return the memory of this process's worker, as Dask manages it.

    Returns
    -------
    limit : int or None
        Limit in bytes; None outside workers and without a limit.
    share : float or None
        Share of the limit at which Dask pauses the worker; None if it never does.
    """
    manager = getattr(current_worker(), "memory_manager", None)
    limit = getattr(manager, "memory_limit", None)
    share = getattr(manager, "memory_pause_fraction", None)
    return limit or None, share or None


def resident_bytes() -> int:
    """Return the resident size of this process, which Dask's monitor compares with the limit."""
    size: int = psutil.Process().memory_info().rss
    return size


def return_memory() -> None:
    """Return free memory to the system; glibc would keep it for the process."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def room_bytes() -> int:
    """Return the bytes that this process may still take.

    On a Dask worker up to where Dask pauses it; elsewhere what the host has available.
    """
    available = int(psutil.virtual_memory().available)
    limit, share = worker_memory()
    if not limit or not share:
        return available
    return max(0, min(available, int(limit * share) - resident_bytes()))


def room_for(needed: int) -> int:
    """Return the bytes that this process may still take, as `room_bytes` does.

    Reading them opens two files of the system, and lets other threads of Python in. Where the last
    reading is recent, and far above what is needed, it is returned.

    Parameters
    ----------
    needed : int
        Bytes that the caller is about to take.
    """
    global _last_reading
    now = time.monotonic()
    then, room = _last_reading
    if now - then > _RECENT_SECONDS or needed * _AMPLE > room:
        room = room_bytes()
        _last_reading = (now, room)
    return room
