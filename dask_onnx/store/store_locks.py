"""Locks of a store, by which the processes of a host agree who reads, writes and removes.

All are locks of the kernel (`flock`), which end with their holder. Processes in containers that
share the folder take part, as long as they are on one host or the file system passes locks on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import filelock

from dask_onnx.core.errors import StoreError
from dask_onnx.store.store_files import make_folder

UPKEEP = "upkeep"
"""Name of the lock that all processes share, and that one holds alone to remove files."""
LOCK_SECONDS = 600.0
"""Seconds that a process waits for another one that brings in the same model."""
_EXCLUSIVE_POLL_SECONDS = 0.02
"""Seconds between attempts to get exclusive access: `flock` has no timeout."""


class Lease:
    """Evidence that this process uses a model: nobody evicts its files while the lease lives."""

    def __init__(self, descriptor: int) -> None:
        self._close = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """End the lease now, rather than when the object is collected."""
        self._close()


def take_lease(root: Path, token: str) -> Lease:
    """Return a lease on a model of a store, which keeps its files from eviction.

    Parameters
    ----------
    root : Path
        Folder of the store.
    token : str
        Token of the model.
    """
    make_folder(root, root / "leases")
    descriptor = os.open(root / "leases" / token, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(descriptor)
    return Lease(descriptor)


@contextlib.contextmanager
def shared_access(root: Path) -> Iterator[None]:
    """Keep all processes from removing anything from a store while the context is open."""
    with _upkeep_lock(root, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def exclusive_access(root: Path, seconds: float) -> Iterator[bool]:
    """Wait until no other process reads or writes a store, and keep others out.

    Parameters
    ----------
    root : Path
        Folder of the store.
    seconds : float
        Bound on the wait.

    Yields
    ------
    bool
        True if access is exclusive; False after the bound.
    """
    until = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_upkeep_lock(root, fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(_EXCLUSIVE_POLL_SECONDS)
                    continue
                yield False
            else:
                yield True
            return


@contextlib.contextmanager
def named_lock(root: Path, name: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock of a store by name, and shared access to the store.

    Lock files are removed under exclusive access only, so that no two processes ever lock different
    files of one name.

    Parameters
    ----------
    root : Path
        Folder of the store.
    name : str
        Name of the lock's file.
    seconds : float
        Bound on the wait for another holder.

    Raises
    ------
    StoreError
        Another process holds the lock for longer.
    """
    with shared_access(root):
        path = root / "locks" / name
        lock = filelock.FileLock(path, timeout=seconds, mode=0o600)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise StoreError(
                f"another process has held {path} for {seconds:.0f} s",
                "see which process does, with `lsof` or `fuser`, and end it if it hangs",
                reason=str(error),
                numbers={"waited_seconds": seconds},
            ) from error
        try:
            yield
        finally:
            lock.release()


def is_leased(path: Path) -> bool:
    """Return whether a live process holds the lease in a file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _upkeep_lock(root: Path, operation: int) -> Iterator[None]:
    make_folder(root, root / "locks")
    descriptor = os.open(root / "locks" / UPKEEP, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
