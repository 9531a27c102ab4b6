"""Runs that fail since memory is short: how they are recognised, and what is said of them."""

from __future__ import annotations

import re

import psutil

from dask_onnx.core.errors import RunError, Suggestion
from dask_onnx.runtime.memory_check import room_bytes, worker_memory

_NO_MEMORY = re.compile(
    r"bad.?alloc|failed to allocate|unable to allocate|cannot allocate|MemoryError|out of memory",
    re.IGNORECASE,
)
"""Texts of C++, ONNX Runtime, numpy and Python for an allocation that fails."""
_LEAST_ROOM = 64 * 2**20
"""Bytes that a run may always allocate: less says nothing about its rows."""


def is_memory_fault(error: RunError) -> bool:
    """Return whether a run failed since an allocation did."""
    return bool(_NO_MEMORY.search(error.reason or ""))


def lacking_memory(error: RunError, rows: int | None) -> RunError:
    """Return the error of a run that fails for lack of memory, and cannot be made smaller.

    Parameters
    ----------
    error : RunError
        The error as the kernel raised it.
    rows : int or None
        Rows of the run; None if it has none.
    """
    fields = {**error.fields, "suggestions": [Suggestion("memory_limit"), Suggestion("batch_size")]}
    if rows is not None:
        fields["numbers"] = {**error.numbers, "rows": rows}
    smaller = "" if rows == 1 else ", or run fewer rows at a time (batch_size=, smaller chunks)"
    return RunError(
        error.cause,
        f"memory is short: give each worker more (memory_limit=, --memory-limit){smaller}",
        **fields,
    )


def memory_limit() -> int:
    """Return the memory in bytes of this process's worker; that of the host without a limit."""
    return worker_memory()[0] or int(psutil.virtual_memory().total)


def bytes_for_a_run() -> int:
    """Return the bytes that a run in a subprocess of this process may allocate."""
    return max(room_bytes(), _LEAST_ROOM)
