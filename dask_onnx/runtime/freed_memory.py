"""Freed memory that a Dask worker keeps for its next arrays.

Dask's nannies start workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so that freed memory goes back
to the system. With that, glibc maps each array of more than 128 KiB by itself and unmaps it when it
is freed: the system clears every page of the next one. A job over small pictures then takes 1.3 to
1.6 times as long (``benchmarks/freed_memory.py``). Without that setting, glibc keeps more as larger
arrays are freed, up to the sizes here; see mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from dask_onnx.core import config
from dask_onnx.core.peers import current_worker

_KEPT_KEY = "kept-freed-bytes"
_TRIM_VARIABLE, _MAP_VARIABLE = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
_TRIM_OF_DASK = "65536"
"""Value of Dask's setting ``distributed.nanny.pre-spawn-environ``, by default."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAPPED_BYTES = 32 * 2**20
"""Bytes of arrays that get memory of their own, which goes back as soon as they are freed: the
most that glibc takes."""


def keep_freed_memory() -> None:
    """Let this worker keep some freed memory, ``onnx.kept-freed-bytes``.

    Does nothing outside workers, where a nanny did not start the worker, where somebody has set
    glibc's environment variables otherwise, and with another C library.

    Raises
    ------
    InputError
        The setting is neither a number of bytes above 0, nor null.
    """
    if current_worker() is None or not _is_as_dask_sets_it() or config.get(_KEPT_KEY) is None:
        return
    _keep(config.count(_KEPT_KEY))


def _is_as_dask_sets_it() -> bool:
    environment = os.environ
    return environment.get(_TRIM_VARIABLE) == _TRIM_OF_DASK and _MAP_VARIABLE not in environment


def _keep(size: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # musl, macOS, Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, min(size, 2**31 - 1))
