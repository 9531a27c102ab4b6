"""Journal of a resumable run: which blocks are complete, beside the run's manifest.

A block is recorded after its data were written, by the process that wrote them. On a disk, each
process appends lines to a file of its own, since appends of several hosts to one file mix. In an
object store, each block is an object without content, whose name says everything.

Data need not be flushed before each line: the lines of this boot of the host are true as long as it
runs, since the operating system keeps what was written. Once a second, the data are flushed and
another line says so; after a power cut, and for workers on other hosts, only lines before it count.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.io.run_manifest import RunManifest
from dask_onnx.io.targets import explained_writes, new_run_name, remove_folder

_MANIFEST, _FINISHING, _DONE = "manifest.json", "finishing", "done"
_FLUSH_SECONDS = 1.0
"""Interval at which data are flushed to the disk."""
_OPEN_LOGS = 32
"""Journals that one process remembers."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BLOCK_NAME = re.compile(r"[0-9A-Za-z_-]+")


@dataclass(frozen=True, slots=True)
class DoneBlock:
    """A block that is complete."""

    block: str
    """Name of the block: its position, or a place such as "000003-000012"."""
    counts: tuple[int, ...]
    """Rows that were written, one number for each output."""
    at: float
    """Time of completion, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class BlockJournal:
    """Manifest and finished blocks of a run, in a folder at a path or URL.

    It is small and travels to the tasks, which call `record`.
    """

    folder: str
    """Absolute path or URL."""
    run: str = ""
    """Name of the run. A task of an earlier run, which may still end, records under another."""

    @property
    def _done(self) -> str:
        return f"{_DONE}.{self.run}" if self.run else _DONE

    def begin(self, manifest: RunManifest) -> None:
        """Create the journal of a new run, in place of any other.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        with explained_writes(self.folder):
            self.remove()
            if not is_url(self.folder):
                Path(self.folder, self._done).mkdir(parents=True)
            self._put_manifest(manifest)

    def join(self, manifest: RunManifest) -> RunManifest:
        """Begin the run unless a run of which something is complete is there, and return the
        manifest of that one.

        Several processes may do so at a time.

        Raises
        ------
        OutputError
            The journal cannot be written.
        InputError
            The manifest that is there is damaged.
        """
        with explained_writes(self.folder):
            if not is_url(self.folder):
                Path(self.folder, self._done).mkdir(parents=True, exist_ok=True)
            found = self.manifest()
            if found is not None and found.to_json() == manifest.to_json():
                return found
            if found is None or not self._has_blocks():
                self._put_manifest(manifest)
                found = self.manifest()
        return found or manifest

    def _has_blocks(self) -> bool:
        """Return whether something is complete, whatever the run."""
        if is_url(self.folder):
            system, root = filesystem_of(self.folder)
            return any(f"/{_DONE}" in path.removeprefix(root) for path in system.find(root))
        return any(Path(self.folder).glob(f"{_DONE}*/*.log"))

    def _put_manifest(self, manifest: RunManifest) -> None:
        content = manifest.to_json().encode()
        self._put(_MANIFEST, b"%s\n%08x\n" % (content, zlib.crc32(content)))

    def manifest(self) -> RunManifest | None:
        """Return the manifest; None if there is no journal.

        Raises
        ------
        InputError
            The manifest is damaged.
        """
        content = self._get(_MANIFEST)
        if content is None:
            return None
        try:
            text, _, check = content.rstrip(b"\n").rpartition(b"\n")
            if check != b"%08x" % zlib.crc32(text):
                raise ValueError("its checksum is another")
            return RunManifest.from_json(text)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"the record {self.folder}/{_MANIFEST} of an earlier run is damaged: {error}",
                "start anew with overwrite=True, or remove the folder",
                option="resume",
                reason=str(error),
            ) from error

    def record(self, block: int | str, counts: Sequence[int], written: Sequence[str] = ()) -> None:
        """Note that a block is complete; called by the process that has written it.

        Parameters
        ----------
        block : int or str
            Position of the block, or a name of digits, letters, "-" and "_".
        counts : sequence of int
            Rows that were written, one number for each output.
        written : sequence of str
            Local files that hold the block's data, which are flushed to the disk.

        Raises
        ------
        OutputError
            The journal cannot be written, or the data cannot be flushed.
        """
        name = str(block)
        if _BLOCK_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a block")
        with explained_writes(self.folder):
            if is_url(self.folder):
                numbers = "-".join(map(str, counts))
                self._put(f"{self._done}/{name}.{numbers}.{int(time.time() * 1000)}", b"")
            else:
                _log_of(f"{self.folder}/{self._done}", os.getpid()).append(name, counts, written)

    def completed(self) -> dict[str, DoneBlock]:
        """Return the blocks that are complete, by name."""
        return {done.block: done for done in self.entries()}

    def entries(self) -> Iterator[DoneBlock]:
        """Return the records of blocks one by one; a block that was repeated has several."""
        return self._objects() if is_url(self.folder) else self._lines()

    def note_finishing(self) -> None:
        """Note that all blocks are complete, before the outputs get their names."""
        with explained_writes(self.folder):
            self._put(_FINISHING, b"")

    @property
    def is_finishing(self) -> bool:
        """True if all blocks are complete, and some outputs may have their names already."""
        return self._get(_FINISHING) is not None

    def remove(self) -> None:
        """Remove the journal."""
        remove_folder(self.folder)

    def _put(self, name: str, content: bytes) -> None:
        if is_url(self.folder):
            system, root = filesystem_of(self.folder)
            # Some file systems, such as file://, have folders that must exist.
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            system.pipe_file(f"{root}/{name}", content)
            return
        place = Path(self.folder, name)
        partial = place.with_name(f".{place.name}.{new_run_name()}.partial")
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _flush_folder(place.parent)

    def _get(self, name: str) -> bytes | None:
        try:
            if not is_url(self.folder):
                return Path(self.folder, name).read_bytes()
            system, root = filesystem_of(self.folder)
            content: bytes = system.cat_file(f"{root}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return content

    def _objects(self) -> Iterator[DoneBlock]:
        system, root = filesystem_of(self.folder)
        with contextlib.suppress(AttributeError):
            system.invalidate_cache(f"{root}/{self._done}")
        for path in system.find(f"{root}/{self._done}"):
            parts = path.rpartition("/")[2].split(".")
            if len(parts) == 3:
                counts = tuple(int(count) for count in parts[1].split("-") if count)
                yield DoneBlock(parts[0], counts, int(parts[2]) / 1000)

    def _lines(self) -> Iterator[DoneBlock]:
        for path in sorted(Path(self.folder, self._done).glob("*.log")):
            yield from read_log(path.read_bytes(), _boot())


def read_log(content: bytes, boot: str) -> list[DoneBlock]:
    """Return the blocks of one process's file that are known to be on the disk.

    Parameters
    ----------
    content : bytes
        Lines; those that are torn or damaged are left out.
    boot : str
        Identity of this boot of this host: lines that it wrote need not have been flushed.
    """
    found: list[tuple[int, DoneBlock]] = []
    is_same_boot, flushed, offset = False, 0, 0
    for line in content.split(b"\n"):
        start, offset = offset, offset + len(line) + 1
        fields = _fields_of(line)
        if not fields:
            continue
        mark = fields[0]
        if mark == "boot":
            is_same_boot = bool(boot) and fields[1] == boot
        elif mark == "flushed":
            flushed = max(flushed, int(fields[1]))
        elif mark == "failed":
            # Data that could not be flushed may be lost.
            found = [each for each in found if each[0] < flushed]
        elif mark == "done":
            counts = tuple(int(count) for count in fields[3].split(",") if count)
            found.append((start, DoneBlock(fields[1], counts, float(fields[2]))))
    return [done for place, done in found if is_same_boot or place < flushed]


def _line(*fields: Any) -> bytes:
    text = " ".join(map(str, fields)).encode()
    return b"%s %08x\n" % (text, zlib.crc32(text))


def _fields_of(line: bytes) -> list[str]:
    """Return the fields of a line; none if it is damaged."""
    text, _, check = line.rpartition(b" ")
    if check != b"%08x" % zlib.crc32(text):
        return []
    return text.decode().split(" ")


@functools.cache
def _boot() -> str:
    """Return the identity of this boot of this host; empty where the system does not tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


@dataclass(slots=True)
class _Log:
    """The file of this process in a journal."""

    path: Path
    unflushed: set[str] = field(default_factory=set)
    flushed_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, block: str, counts: Sequence[int], written: Sequence[str]) -> None:
        """Add a line; flush the data of all lines so far if that has not been done lately."""
        now = time.time()
        line = _line("done", block, round(now, 3), ",".join(map(str, counts)))
        with self.lock:
            self._write(line)
            self.unflushed.update(written)
            if abs(now - self.flushed_at) < _FLUSH_SECONDS:
                return
            self.flushed_at, paths = now, self.unflushed
            self.unflushed = set()
            end = self.path.stat().st_size
        try:
            flush_files(paths)
        except OSError:
            with self.lock:
                self._write(_line("failed", end))
            raise
        with self.lock:
            self._write(_line("flushed", end))

    def _write(self, line: bytes) -> None:
        is_new = not self.path.exists()
        # The folder is not made anew: a task may run on after its job has ended.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        try:
            content = _line("boot", _boot() or "-") + line if is_new else line
            if os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a torn line does not count
        finally:
            os.close(descriptor)


def flush_files(paths: Collection[str]) -> None:
    """Flush files and their folders to the disk; files that are gone are left out."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    for folder in {Path(path).parent for path in paths}:
        with contextlib.suppress(FileNotFoundError):
            _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without it
            raise
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=_OPEN_LOGS)
def _log_of(folder: str, pid: int) -> _Log:
    return _Log(Path(folder, f"{new_run_name()}.log"))
