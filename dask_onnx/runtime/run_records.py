"""Records of what runs now, in files that outlive a worker that dies.

Each worker process maps a file in the host's store and notes in it which tasks are inside native
code. A process of the same host that later gets such a task reads there that the task was running
when a worker died, while tasks that only waited in that worker's queue are known to be innocent.

A record costs some microseconds and no system call: the kernel keeps a mapped page when the process
is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_onnx.core import config
from dask_onnx.core.errors import StoreError
from dask_onnx.core.peers import current_worker
from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.core.stage_tasks import SUSPICION
from dask_onnx.store.store_files import make_folder
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

FOLDER = "runs"
"""Folder of the records in a store."""
_RUNNING, _CRASHED = "running-", "crashed-"
_SLOTS, _DIGEST_BYTES = 128, 16
"""Threads of a process that have a record, and bytes of each."""
_FREE = bytes(_DIGEST_BYTES)
_KEPT_SECONDS = 3600.0
"""Seconds for which the record of a dead process, and of a crash, is kept."""
_LOOK_SECONDS = 0.1
"""Seconds between looks at the folder, unless the scheduler tells of a death."""
_CRASHES_TO_GUARD = 2
"""Crashes of a stage on a host after which all its tasks there run in a guarding process."""


@dataclass(frozen=True, slots=True)
class RunningTask:
    """The task that this thread runs."""

    key: Any
    """Dask's key."""
    deaths: int = 0
    """Workers that died while they had the task, as far as the scheduler tells."""

    @property
    def digest(self) -> bytes:
        """Name of the task in records."""
        return hashlib.blake2b(str(self.key).encode(), digest_size=_DIGEST_BYTES).digest()


def running_task() -> RunningTask | None:
    """Return the task that this thread runs on a Dask worker; None elsewhere."""
    worker = current_worker()
    if worker is None:
        return None
    key = worker.active_threads.get(threading.get_ident())
    state = None if key is None else worker.state.tasks.get(key)
    if state is None:
        return None
    return RunningTask(key, (state.annotations or {}).get(SUSPICION, 0))


@dataclass(slots=True)
class RunRecords:
    """Records of one process, and what it knows of those of dead processes of the host."""

    folder: Path
    """Folder of the records of all processes."""
    page: Any = None
    """Mapped file of this process; None if the folder cannot be written."""
    own: Path | None = None
    """File of this process."""
    interrupted: set[bytes] = field(default_factory=set)
    """Digests of the tasks that were running when a process died."""
    crashing: frozenset[str] = frozenset()
    """Tokens of stages that all run in a guarding process, since they crashed repeatedly."""
    _slots: list[int] = field(default_factory=lambda: list(range(_SLOTS)))
    _seen: int = -1
    """Modification time of the folder, in nanoseconds, when it was last read."""
    _next: float = 0.0
    """Monotonic time at which to look at the folder again."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, task: RunningTask) -> int | None:
        """Note that a task is in native code, and return what `end` takes."""
        if self.page is None:
            return None
        try:
            slot = self._slots.pop()  # in one step: threads share the list
        except IndexError:
            return None
        self.page[slot * _DIGEST_BYTES : (slot + 1) * _DIGEST_BYTES] = task.digest
        return slot

    def end(self, slot: int | None) -> None:
        """Note that the task that `begin` was called for has left native code."""
        if slot is not None:
            self.page[slot * _DIGEST_BYTES : (slot + 1) * _DIGEST_BYTES] = _FREE
            self._slots.append(slot)

    def is_suspect(self, task: RunningTask, stage_token: str) -> bool:
        """Return whether a task is likely to end the process that runs it.

        It was running when a worker of this host died; or, since records of other hosts cannot be
        read, two workers that had it have died.
        """
        self._refresh(force=task.deaths > 0)
        if stage_token in self.crashing or task.deaths > 1:
            return True
        return bool(self.interrupted) and task.digest in self.interrupted

    def note_crash(self, stage_token: str, task: RunningTask) -> None:
        """Note that a stage ended a process on some row of a task."""
        name = f"{_CRASHED}{stage_token}-{task.digest.hex()}"
        with contextlib.suppress(OSError):
            (self.folder / name).touch(mode=0o600)

    def _refresh(self, *, force: bool) -> None:
        """Read the records of other processes, if there may be new ones."""
        now = time.monotonic()
        if self.page is None or (now < self._next and not force):
            return
        self._next = now + _LOOK_SECONDS
        try:
            changed = os.stat(self.folder).st_mtime_ns  # noqa: PTH116 - on the way of every run
            if changed == self._seen and not force:
                return
            paths = list(self.folder.iterdir())
        except OSError:  # somebody has removed the folder
            return
        with self._lock:
            self._seen = changed
            crashes: dict[str, int] = {}
            for path in paths:
                if path.name.startswith(_CRASHED):
                    token = path.name.removeprefix(_CRASHED).rpartition("-")[0]
                    crashes[token] = crashes.get(token, 0) + (not _is_old(path))
                elif path != self.own:
                    self.interrupted.update(_of_dead_process(path))
            self.crashing = frozenset(
                token for token, count in crashes.items() if count >= _CRASHES_TO_GUARD
            )


def _is_old(path: Path) -> bool:
    """Return whether a record is too old to count, and remove it then."""
    try:
        if time.time() - path.stat().st_mtime < _KEPT_SECONDS:
            return False
        path.unlink(missing_ok=True)
    except OSError:
        pass
    return True


def _of_dead_process(path: Path) -> Iterator[bytes]:
    """Yield the tasks that were running when a process died; none if it lives."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        data = file.read()
        digests = {
            data[start : start + _DIGEST_BYTES] for start in range(0, len(data), _DIGEST_BYTES)
        } - {_FREE}
        if digests and not _is_old(path):
            yield from digests
        elif len(data) == _SLOTS * _DIGEST_BYTES:  # shorter while its process is starting
            path.unlink(missing_ok=True)


@cached_in_process("run records", 8)
def _records(directory: str | None, pid: int) -> RunRecords:
    root = Store(directory).root
    folder = root / FOLDER
    records = RunRecords(folder)
    try:
        make_folder(root, folder)
        own = folder / f"{_RUNNING}{pid}-{time.time_ns()}"
        descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, _SLOTS * _DIGEST_BYTES)
            # The mapping has a copy of the descriptor, and keeps the lock until the process ends.
            records.page = mmap.mmap(descriptor, _SLOTS * _DIGEST_BYTES)
        finally:
            os.close(descriptor)
        records.own = own
    except (OSError, StoreError) as error:
        log.warning("runs are not recorded, since %s cannot be written: %s", folder, error)
    return records


def run_records() -> RunRecords:
    """Return the records of this process in the host's store."""
    return _records(config.get("store.directory"), os.getpid())
