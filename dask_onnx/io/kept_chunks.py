"""Finished chunks of a prediction, kept in a folder until the prediction is asked for again.

A chunk is one file. It is written under a name of its own and renamed, and it has its length and a
digest of its content in its header, so that a file that is torn or damaged is recognised when it is
read. `BlockJournal` records which chunks are complete, and the manifest says what they belong to.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from dask_onnx.core.errors import InputError, OutputError
from dask_onnx.core.files import is_url
from dask_onnx.core.filesystems import filesystem_of, is_web_url
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.run_manifest import RunManifest, digest_of
from dask_onnx.io.targets import explained_writes, new_run_name

_JOURNAL, _CHUNKS = "journal", "chunks."
_HEADER = struct.Struct("<8sc16sQ")
_MAGIC = b"dxchunk1"
_ARRAY, _PICKLE = b"A", b"P"
_PLAIN_KINDS = "biufcSU"
"""Kinds of dtypes that the format .npy holds exactly."""


class _Missing:
    """Type of `MISSING`."""


MISSING: Final = _Missing()
"""Result of `ChunkStore.read` for a chunk that is not there, or is damaged."""

_begun: BoundedCache[tuple[str, str], bool] = BoundedCache("checkpoints begun", 64)
"""Checkpoints that this process has begun or joined, by folder and run."""


@dataclass(frozen=True, slots=True)
class ChunkStore:
    """Finished chunks of one prediction, in a folder at a path or URL.

    It is small and travels to the tasks, which call `read` and `write`. Creating one has no effect.
    """

    folder: str
    """Absolute path, or URL."""
    manifest: str
    """Description of the prediction that the chunks belong to: a `RunManifest` as JSON."""

    @property
    def run(self) -> str:
        """Name of the prediction: a digest of what decides its results."""
        return digest_of(self.manifest.encode())[:16]

    @property
    def _journal(self) -> BlockJournal:
        return BlockJournal(f"{self.folder}/{_JOURNAL}", self.run)

    @property
    def _chunks(self) -> str:
        return f"{self.folder}/{_CHUNKS}{self.run}"

    def complete(self) -> frozenset[str]:
        """Return the names of the chunks that are recorded as complete and have their full length.

        The folder is listed once; no chunk is read.
        """
        done = self._journal.completed()
        sizes = dict(_sizes(self._chunks)) if done else {}
        return frozenset(n for n, d in done.items() if d.counts and sizes.get(n) == d.counts[0])

    def read(self, name: str) -> Any:
        """Return a chunk; `MISSING` if it is not there or damaged.

        Parameters
        ----------
        name : str
            Name of the chunk.
        """
        try:
            content = _content(f"{self._chunks}/{name}")
        except (OSError, ValueError):
            return MISSING
        return _decoded(content)

    def write(self, name: str, value: Any) -> None:
        """Write a chunk and record it; called by the process that has computed it.

        Parameters
        ----------
        name : str
            Name of the chunk: digits, letters, "-" and "_".
        value : ndarray, DataFrame or list
            Content of the chunk.

        Raises
        ------
        OutputError
            The folder cannot be written, as on a full disk.
        InputError
            Another prediction has begun in the folder meanwhile.
        """
        content = _encoded(value)
        key = self.folder, self.run
        with _as_checkpoint(), explained_writes(self.folder):
            if not _begun.get(key):
                self._begin()
                _begun.put(key, True)
            try:
                self._put(name, content)
            except FileNotFoundError:  # somebody has removed the folder since
                self._begin()
                self._put(name, content)

    def _put(self, name: str, content: bytes) -> None:
        path = f"{self._chunks}/{name}"
        if is_url(path):
            system, inner = filesystem_of(path)
            system.pipe_file(inner, content)
            self._journal.record(name, [len(content)])
            return
        target = Path(path)
        partial = target.with_name(f".{name}.{new_run_name()}.partial")
        try:
            with partial.open("xb") as file:
                file.write(content)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._journal.record(name, [len(content)], [path])

    def _begin(self) -> None:
        """Create the folder and its manifest, or check that they belong to this prediction."""
        manifest = RunManifest.from_json(self.manifest)
        stored = self._journal.join(manifest)
        refuse_others(self.folder, manifest, stored)
        if is_url(self._chunks):
            system, inner = filesystem_of(self._chunks)
            system.makedirs(inner, exist_ok=True)
        else:
            Path(self._chunks).mkdir(parents=True, exist_ok=True)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return self.folder, self.run


def open_checkpoint(folder: str, manifest: RunManifest) -> ChunkStore:
    """Return the store of a prediction's chunks. Reads the folder's manifest, and writes nothing.

    Parameters
    ----------
    folder : str
        Absolute path, or URL, from `checkpoint_folder`.
    manifest : RunManifest
        What decides the results.

    Raises
    ------
    InputError
        The folder holds chunks of another prediction, with the differences as `reason`; or files
        that are no checkpoint.
    """
    stored = stored_manifest(folder)
    if stored is not None:
        refuse_others(folder, manifest, stored)
    elif foreign := sorted(name for name, _ in _sizes(folder) if not _is_own(name)):
        raise InputError(
            f"the checkpoint {folder} is a folder with other files: {', '.join(foreign[:3])}",
            "name a folder that is empty or does not exist",
            option="checkpoint",
            numbers={"foreign_files": len(foreign)},
        )
    return ChunkStore(folder, _identity(manifest))


def stored_manifest(folder: str) -> RunManifest | None:
    """Return the manifest of a checkpoint that has chunks; None if there is none.

    Parameters
    ----------
    folder : str
        Absolute path, or URL.

    Raises
    ------
    InputError
        It is damaged, or the URL cannot be accessed.
    """
    try:
        stored = BlockJournal(f"{folder}/{_JOURNAL}").manifest()
    except InputError as error:
        raise InputError(
            error.cause,
            "name another folder, or remove this one",
            option="checkpoint",
            reason=error.reason,
        ) from error
    except Exception as error:  # file systems behind URLs raise errors of their own
        raise InputError(
            f"the checkpoint {folder} cannot be accessed: {error}",
            "check the path or URL, and the credentials",
            option="checkpoint",
            reason=str(error),
        ) from error
    if stored is None or not BlockJournal(f"{folder}/{_JOURNAL}", _run_of(stored)).completed():
        return None  # nothing is lost if another prediction takes the folder
    return stored


def checkpoint_folder(checkpoint: Any) -> str:
    """Return the folder that a caller names, as an absolute path or a URL.

    Raises
    ------
    InputError
        It is no path, its parent does not exist, it is a file, or it cannot be written.
    """
    try:
        text = os.fspath(checkpoint)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"checkpoint is {checkpoint!r}, which is no path",
            "name a folder, such as checkpoint='run1', or a URL",
            option="checkpoint",
        )
    if is_web_url(text):
        raise InputError(
            f"the checkpoint {text} cannot be written: servers of http:// are only read",
            "name a path, or s3://, gs:// or hf://",
            option="checkpoint",
        )
    if is_url(text):
        system, inner = filesystem_of(text, "checkpoint")
        protocols = (
            system.protocol if isinstance(system.protocol, tuple | list) else [system.protocol]
        )
        if "file" not in protocols:
            return text.rstrip("/")
        text = inner
    path = Path(text).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise InputError(f"the checkpoint {path} is a file", "name a folder", option="checkpoint")
    if not path.parent.is_dir():
        raise InputError(
            f"the checkpoint's folder {path.parent} does not exist",
            "create the folder, or check the path",
            option="checkpoint",
        )
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"the folder {place} is not writable",
            "name a folder that you may write to",
            option="checkpoint",
        )
    return str(path)


def refuse_others(folder: str, manifest: RunManifest, stored: RunManifest) -> None:
    """Raise an error unless a checkpoint belongs to a prediction.

    Raises
    ------
    InputError
        With the differences as `reason`.
    """
    if _identity(stored) == _identity(manifest):
        return
    found = manifest.differences(stored)
    raise InputError(
        f"the checkpoint {folder} belongs to another prediction: {'; '.join(found[:8])}",
        "name another folder, or remove this one to compute all anew; of an input, Dask's token is "
        "compared, which a Delayed or a local function may change with each process: give those "
        "a name (name=, dask_key_name=)",
        option="checkpoint",
        reason="; ".join(found),
        numbers={"differences": len(found)},
    )


def _identity(manifest: RunManifest) -> str:
    """Return the part of a manifest that decides results, as JSON."""
    return replace(manifest, layout={}).to_json()


def _run_of(manifest: RunManifest) -> str:
    return digest_of(_identity(manifest).encode())[:16]


def _is_own(name: str) -> bool:
    return name == _JOURNAL or name.startswith(_CHUNKS)


@contextmanager
def _as_checkpoint() -> Iterator[None]:
    """Name the caller's option in errors about writing."""
    try:
        yield
    except OutputError as error:
        error.option = "checkpoint"
        raise


def _sizes(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the names in a folder and their bytes; nothing if it does not exist."""
    if not is_url(folder):
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            yield entry.name, entry.stat(follow_symlinks=False).st_size
        return
    system, root = filesystem_of(folder)
    system.invalidate_cache(root)
    try:
        found = system.ls(root, detail=True)
    except FileNotFoundError:
        return
    for info in found:
        name = str(info["name"]).rstrip("/").rpartition("/")[2]
        if name and name != root.rstrip("/").rpartition("/")[2]:
            yield name, int(info.get("size") or 0)


def _content(path: str) -> bytes:
    if not is_url(path):
        return Path(path).read_bytes()
    system, inner = filesystem_of(path)
    content: bytes = system.cat_file(inner)
    return content


def _encoded(value: Any) -> bytes:
    """Return a chunk as the bytes of its file."""
    if type(value) is np.ndarray and value.dtype.kind in _PLAIN_KINDS and value.dtype.isnative:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, value, allow_pickle=False)
        kind, payload = _ARRAY, buffer.getvalue()
    else:
        kind, payload = _PICKLE, pickle.dumps(value, protocol=5)
    return _HEADER.pack(_MAGIC, kind, _check_of(payload), len(payload)) + payload


def _decoded(content: bytes) -> Any:
    """Return a chunk from the bytes of its file; `MISSING` if they are damaged."""
    if len(content) < _HEADER.size:
        return MISSING
    magic, kind, check, length = _HEADER.unpack_from(content)
    payload = memoryview(content)[_HEADER.size :]
    if magic != _MAGIC or len(payload) != length or _check_of(payload) != check:
        return MISSING
    if kind == _ARRAY:
        return np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
    return pickle.loads(payload)


def _check_of(payload: Any) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
