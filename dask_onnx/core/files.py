"""Files that weights lie in, local or at URLs: what is there, and its byte ranges."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_onnx.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file, and what tells that it is still the one that was seen."""

    path: str
    """Absolute, or a URL that fsspec opens."""
    size: int
    """Bytes."""
    version: str
    """Modification time in nanoseconds of a local file; of a URL what its file system says of it:
    an etag, a checksum, a time."""


def is_url(path: str) -> bool:
    return "://" in path


def see_file(path: str) -> FileSource:
    """The file as it is now.

    Raises
    ------
    OSError
        It is not there, or cannot be looked at.
    """
    if is_url(path):
        return _see_url(path)
    status = Path(path).stat()
    return FileSource(path, status.st_size, str(status.st_mtime_ns))


_VERSION_KEYS = ("ETag", "etag", "md5Hash", "version_id", "LastModified", "last_modified", "mtime")


def _see_url(path: str) -> FileSource:
    import fsspec

    system, inner = fsspec.core.url_to_fs(path)
    info = system.info(inner)
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return FileSource(path, int(info["size"]), version)


def check_unchanged(source: FileSource) -> None:
    """Raises
    ------
    ModelError
        The file is gone, or is not the one that was seen.
    """
    try:
        now = see_file(source.path)
    except FileNotFoundError:
        raise ModelError(
            f"{source.path} no longer exists", "load the model again, from where it is now"
        ) from None
    except Exception as error:  # file systems behind URLs raise errors of their own
        raise ModelError(f"{source.path} cannot be seen: {error}", "check the path") from error
    if now != source:
        raise ModelError(
            f"{source.path} has changed since the model was loaded: it had {source.size:,} bytes "
            f"(version {source.version}), and has {now.size:,} ({now.version})",
            "load the model again",
        )


@contextlib.contextmanager
def _opened(source: FileSource) -> Iterator[Any]:
    if is_url(source.path):
        import fsspec

        # Ranges are asked for one by one: reading ahead would fetch what nobody wants.
        with fsspec.open(source.path, "rb", cache_type="none") as file:
            yield file
    else:
        with open(source.path, "rb") as file:
            yield file


@dataclass(slots=True)
class KeptFiles:
    """Local files held open, so that they can be read after their names are gone.

    Does not travel: pickled, it is empty.
    """

    descriptors: dict[FileSource, int] = field(default_factory=dict)

    def keep(self, source: FileSource) -> None:
        if source not in self.descriptors and not is_url(source.path):
            self.descriptors[source] = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)

    def holds(self, source: FileSource) -> bool:
        """Whether the file is open here, and was not written to since."""
        descriptor = self.descriptors.get(source)
        if descriptor is None:
            return False
        status = os.fstat(descriptor)
        return (status.st_size, str(status.st_mtime_ns)) == (source.size, source.version)

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptFiles, ()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for descriptor in self.descriptors.values():
            close(descriptor)


def read_ranges(
    source: FileSource, ranges: Sequence[tuple[int, int]], kept: KeptFiles | None = None
) -> list[bytes]:
    """The bytes at each (offset, length) of a file.

    Raises
    ------
    ModelError
        The file is gone, cannot be read, or is no longer the one that was seen.
    """
    if kept is not None and kept.holds(source):
        descriptor = kept.descriptors[source]
        return [_read_descriptor(descriptor, offset, length) for offset, length in ranges]
    check_unchanged(source)
    try:
        with _opened(source) as file:
            found = []
            for offset, length in ranges:
                file.seek(offset)
                found.append(file.read(length))
    except Exception as error:  # file systems behind URLs raise errors of their own
        raise ModelError(f"{source.path} cannot be read: {error}", "check the file") from error
    return found


def _read_descriptor(descriptor: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_file(path: str) -> tuple[bytes, FileSource]:
    """A whole file, and what it was when it was read.

    Raises
    ------
    OSError
    """
    source = see_file(path)
    with _opened(source) as file:
        return file.read(), source
