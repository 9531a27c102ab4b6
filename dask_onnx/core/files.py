"""Identity and byte ranges of files that a task reads, local or at URLs."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from dask_onnx.core.errors import ModelError
from dask_onnx.core.filesystems import filesystem_of


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file as it was when it was opened, so that another process can recognise it."""

    path: str
    """Absolute path, or a URL that fsspec opens."""
    size: int
    """Bytes; 0 for a directory."""
    version: str
    """Modification time in nanoseconds of a local file; the etag, checksum or time that the file
    system of a URL reports; empty for a directory, which changes with its entries."""

    def problem(self) -> str | None:
        """Return how the file differs from the one recorded; None if it is the same."""
        try:
            now = stat_file(self.path)
        except FileNotFoundError:
            return f"{self.path} does not exist"
        except Exception as error:  # file systems behind URLs raise errors of their own
            return f"{self.path} cannot be accessed: {error}"
        if now == self:
            return None
        return (
            f"{self.path} has changed since it was opened: it had {self.size:,} bytes "
            f"(version {self.version}), and has {now.size:,} (version {now.version})"
        )


def is_url(path: str) -> bool:
    """Return whether a path is a URL for fsspec."""
    return "://" in path


def stat_file(path: str) -> FileSource:
    """Return the current identity of a file or directory.

    Raises
    ------
    OSError
        It does not exist, or cannot be accessed.
    """
    if is_url(path):
        return _stat_url(path)
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        return FileSource(path, 0, "")
    return FileSource(path, status.st_size, str(status.st_mtime_ns))


_VERSION_KEYS = "ETag etag md5Hash version_id LastModified last_modified mtime created".split()
"""Names under which fsspec's file systems report a file's version; those made from its content
come first."""


def reported_version(info: Mapping[str, Any]) -> str:
    """Return the version that a record of fsspec reports; empty if it reports none."""
    return next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")


def _stat_url(path: str) -> FileSource:
    system, inner = filesystem_of(path)
    info = system.info(inner)
    return FileSource(path, int(info.get("size") or 0), reported_version(info))


def check_unchanged(source: FileSource) -> None:
    """Raise an error unless a model's file is still the one that was opened.

    Raises
    ------
    ModelError
        The file is gone, cannot be accessed, or has changed.
    """
    if problem := source.problem():
        raise ModelError(
            problem,
            "load the model again, from its current path",
            numbers={"expected_bytes": source.size},
        )


@contextlib.contextmanager
def _opened(source: FileSource) -> Iterator[Any]:
    if is_url(source.path):
        # Each range is requested exactly; fsspec's read-ahead would fetch bytes that are not used.
        with fsspec.open(source.path, "rb", cache_type="none") as file:
            yield file
    else:
        with open(source.path, "rb") as file:
            yield file


@dataclass(slots=True)
class OpenFiles:
    """Local files held open, so that they stay readable after they are deleted or renamed.

    Belongs to one process: pickling gives an empty one.
    """

    descriptors: dict[FileSource, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def open(self, source: FileSource) -> None:
        """Hold a local file open; a URL is ignored."""
        if is_url(source.path):
            return
        with self._lock:  # two threads would open it twice, and one descriptor would be lost
            if source not in self.descriptors:
                self.descriptors[source] = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)

    def has(self, source: FileSource) -> bool:
        """Return whether the file is open here and unchanged since it was recorded."""
        descriptor = self.descriptors.get(source)
        if descriptor is None:
            return False
        status = os.fstat(descriptor)
        return (status.st_size, str(status.st_mtime_ns)) == (source.size, source.version)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, ()

    # `close` is bound early: at interpreter shutdown the module `os` may be gone already.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for descriptor in self.descriptors.values():
            close(descriptor)


def read_ranges(
    source: FileSource, ranges: Sequence[tuple[int, int]], open_files: OpenFiles | None = None
) -> list[bytes]:
    """Return the bytes of several ranges of a model's file.

    Parameters
    ----------
    ranges : sequence of (int, int)
        Offset and length of each range, in bytes.
    open_files : OpenFiles, optional
        Read from here if it has the file, even if the path is gone.

    Returns
    -------
    list of bytes
        One entry for each range; shorter than the range where the file ends before it.

    Raises
    ------
    ModelError
        The file is gone, cannot be read, or has changed since it was opened.
    """
    if open_files is not None and open_files.has(source):
        descriptor = open_files.descriptors[source]
        return [_read_descriptor(descriptor, offset, length) for offset, length in ranges]
    check_unchanged(source)
    try:
        with _opened(source) as file:
            found = []
            for offset, length in ranges:
                file.seek(offset)
                found.append(file.read(length))
    except Exception as error:  # file systems behind URLs raise errors of their own
        raise ModelError(
            f"{source.path} cannot be read: {error}", "check the file", reason=str(error)
        ) from error
    return found


def _read_descriptor(descriptor: int, offset: int, length: int) -> bytes:
    """Read without moving the descriptor's position, which threads share."""
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_file(path: str) -> tuple[bytes, FileSource]:
    """Return the content of a file and its identity, taken before it was read.

    Raises
    ------
    OSError
        The file does not exist, or cannot be read.
    """
    source = stat_file(path)
    with _opened(source) as file:
        return file.read(), source
