"""Locks of outputs: one run at a time writes an output, whatever its format.

A local lock is one of the operating system on a file beside the output: it ends with its process.
An object store has no such locks: there the lock is an object that a run creates and removes.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.io.begun_outputs import begun_run
from dask_onnx.io.targets import RUN_NAME, remove_local

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without locks."""


@contextlib.contextmanager
def locked_outputs(targets: Sequence[str]) -> Iterator[None]:
    """Hold the locks of outputs, and remove what runs that were killed have left beside them.

    What a run has left that can be resumed is kept.

    Parameters
    ----------
    targets : sequence of str
        Absolute paths, or URLs.

    Raises
    ------
    InputError
        Another run writes one of them; with its host, process and start.
    """
    with contextlib.ExitStack() as stack:
        for target in sorted(set(targets)):
            lock = _remote_lock if is_url(target) else _local_lock
            stack.enter_context(lock(target))
        kept = frozenset(run for target in targets if (run := begun_run(target)))
        for target in sorted(set(targets)):
            if not is_url(target):
                sweep_leftovers(Path(target), kept)
        yield


def lock_path(target: str) -> str:
    """Return the path or URL of the lock of an output."""
    if is_url(target):
        return f"{target}.lock"
    path = Path(target)
    return str(path.with_name(f".{path.name}.lock"))


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The run that writes an output."""

    host: str
    pid: int
    since: str
    """Time at which it began, in ISO format."""


def lock_holder(target: str) -> LockHolder | None:
    """Return the run that writes an output at the moment; None if there is none.

    Parameters
    ----------
    target : str
        Absolute path, or URL.
    """
    content = _remote_content(target) if is_url(target) else _local_content(target)
    try:
        found = json.loads(content or b"")
        return LockHolder(str(found["host"]), int(found["pid"]), str(found["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def require_free(target: str) -> None:
    """Raise an error if a run writes an output at the moment.

    Parameters
    ----------
    target : str
        Absolute path, or URL.

    Raises
    ------
    InputError
        One does; with its host, process and start.
    """
    is_remote = is_url(target)
    content = _remote_content(target) if is_remote else _local_content(target)
    if content is not None:
        raise _refused(target, content, is_remote=is_remote)


def _local_content(target: str) -> bytes | None:
    """Return the content of a lock that another process holds."""
    try:
        descriptor = os.open(lock_path(target), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 4096, 0)
    except OSError:
        content = os.pread(descriptor, 4096, 0)
        return None if _has_ended(content) else content
    finally:
        os.close(descriptor)
    return None


def _remote_content(target: str) -> bytes | None:
    system, path = filesystem_of(lock_path(target))
    try:
        content: bytes = system.cat_file(path)
    except FileNotFoundError:
        return None
    return None if _has_ended(content) else content


def _holder() -> dict[str, Any]:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    started = _start_of(os.getpid())
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "started": started}


def _start_of(pid: int) -> str:
    """Return a text that tells the start of a process, whatever has been done to the clock.

    Raises
    ------
    psutil.NoSuchProcess
        It has ended.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program, in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return str(psutil.Process(pid).create_time())
    return f"{boot} {fields[19]}"


def _refused(target: str, content: bytes, *, is_remote: bool) -> InputError:
    try:
        found = json.loads(content)
        who = f"process {found['pid']} on {found['host']}, since {found['since']}"
        numbers = {"pid": int(found["pid"])}
    except (ValueError, KeyError, TypeError):
        who, numbers = "another process", {}
    path = lock_path(target)
    return InputError(
        f"another run writes the output {target}: {who}",
        f"wait for it, or choose another output; if it is gone, remove {path}"
        if is_remote
        else "wait for it, or choose another output",
        option="path",
        reason=path,
        numbers=numbers,
    )


@contextlib.contextmanager
def _local_lock(target: str) -> Iterator[None]:
    path = lock_path(target)
    descriptor = None
    while descriptor is None:
        descriptor = _try_lock(target, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(path).unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(target: str, path: str) -> int | None:
    """Return the descriptor of a locked file; None if its last holder has removed it meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise InputError(
            f"the lock {path} of the output cannot be made: {error.strerror}",
            "choose an output in a folder that you may write to",
            option="path",
            reason=error.strerror,
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        current = Path(path).lstat()
        if current.st_ino != os.fstat(descriptor).st_ino:
            raise FileNotFoundError(path)
    except BlockingIOError:
        content = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        raise _refused(target, content, is_remote=False) from None
    except FileNotFoundError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        _check_free(target, os.pread(descriptor, 4096, 0))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_holder()).encode(), 0)
    return descriptor


def _check_free(target: str, content: bytes) -> None:
    """Refuse a lock that is a file only, unless its holder was a process here that has ended."""
    if content and not _has_ended(content):
        raise _refused(target, content, is_remote=True)


def _has_ended(content: bytes) -> bool:
    """Return whether the holder was a process of this host that has ended."""
    try:
        found = json.loads(content)
        if found["host"] != socket.gethostname():
            return False
        return _start_of(int(found["pid"])) != str(found["started"])
    except psutil.NoSuchProcess:
        return True
    except (ValueError, KeyError, TypeError, psutil.Error):
        return False


@contextlib.contextmanager
def _remote_lock(target: str) -> Iterator[None]:
    system, path = filesystem_of(lock_path(target))
    content = json.dumps(_holder()).encode()
    try:
        _create(system, path, content)
    except FileExistsError:
        _check_free(target, system.cat_file(path))
        system.pipe_file(path, content)
    except Exception as error:  # file systems behind URLs raise errors of their own
        raise InputError(
            f"the output {target} cannot be written: {error}",
            "check the URL and the credentials",
            option="path",
            reason=str(error),
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            system.rm_file(path)


def _create(system: Any, path: str, content: bytes) -> None:
    """Create an object that must not exist; not all file systems do that in one step."""
    parent = path.rpartition("/")[0]
    if parent:
        system.makedirs(parent, exist_ok=True)
    try:
        system.pipe_file(path, content, mode="create")
    except (NotImplementedError, TypeError, ValueError):
        if system.exists(path):
            raise FileExistsError(path) from None
        system.pipe_file(path, content)


def sweep_leftovers(target: Path, kept: Collection[str] = ()) -> None:
    """Remove incomplete outputs of runs that were killed; called by the holder of the lock.

    An output that was being replaced when its run was killed gets its name back.

    Parameters
    ----------
    target : Path
    kept : collection of str
        Names of runs whose incomplete outputs stay.
    """
    pattern = re.compile(
        rf"\.{re.escape(target.name)}(\.npy)?\.(?P<run>{RUN_NAME})\.(?P<kind>partial|old)"
    )
    for path in sorted(target.parent.iterdir()) if target.parent.is_dir() else ():
        if (found := pattern.fullmatch(path.name)) is None:
            continue
        if found["kind"] == "partial" and found["run"] in kept:
            continue
        if path.suffix == ".old" and not os.path.lexists(target):
            path.rename(target)
        else:
            remove_local(path)
