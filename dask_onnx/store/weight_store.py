"""One folder per host with the protos and weights of models, by content.

    id                            says whether two processes look at the same store
    protos/<model token>.onnx     the weightless proto
    blobs/<blob key>              weights, aligned as ORT wants to map them
    places/<model token>.json     where the weights lie in files
    seals/<blob key>              what the blob was when its digest was last checked
    incoming/<blob key>           a blob that arrives in parts
    leases/<model token>          held (flock) by processes that use the model; its time: last use
    locks/                        held by whoever writes; `upkeep` shared by all that read or write
    prepacked/, measured/         what was made or found out on this host, for each model

All processes of a host map the same files, so that weights are in memory once. A file gets its
final name only when it is whole, on the disk, and of the promised digest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from dask_onnx.core import config
from dask_onnx.core.errors import StoreError
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.weights import BlobPlace, content_digest
from dask_onnx.store.integrity import Seal, digest_of, identity_of

log = logging.getLogger(__name__)

_LOCK_SECONDS = 600
"""How long one process waits for another that brings the same model in."""
TEMPORARY = ".incoming-"
"""How names of files begin that are being written."""


class StoreWriteError(StoreError):
    """The store's folder cannot be written: wherever weights come from, they cannot be kept."""


class Lease:
    """Says that this process uses a model: while it lives, nobody evicts the model's files."""

    def __init__(self, descriptor: int) -> None:
        self._close = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        self._close()


class Store:
    """The host's store, at ``onnx.store.directory``."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        configured = directory or config.get("store.directory")
        self.root = Path(configured or platformdirs.user_cache_path("dask_onnx")).expanduser()

    @property
    def blobs(self) -> Path:
        """The folder that sessions take their external data from."""
        return self.root / "blobs"

    @property
    def identity(self) -> str:
        """The same for all processes that see this very store."""
        path = self.root / "id"
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        with self.lock("id"):
            if not path.exists():
                self._write(path, secrets.token_hex(16).encode())
        return path.read_text()

    # What is there

    def proto_path(self, token: str) -> Path:
        return self.root / "protos" / f"{token}.onnx"

    def proto(self, token: str) -> bytes | None:
        """The weightless proto; None if it is not there. A damaged one is removed."""
        path = self.proto_path(token)
        try:
            proto = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(proto).hexdigest()[:32] == token:
            return proto
        log.warning("%s is damaged and is removed", path)
        path.unlink(missing_ok=True)
        return None

    def lacking(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are no blob of this store, or not what they should be.

        A blob that is as its seal says was checked before; any other is read, compared with its
        digest, and removed if it differs.
        """
        return [key for key in keys if not self._is_sound(key)]

    def _is_sound(self, key: str, *, read: bool = False) -> bool:
        path = self.blobs / key
        try:
            identity = identity_of(path)
        except FileNotFoundError:
            return False
        seal = self.seal(key)
        if seal is not None and not read and seal.identity == identity:
            return True
        promised = content_digest(key) or (seal.digest if seal is not None else None)
        if promised is not None and digest_of(path) == promised:
            self._seal(key, promised)
            return True
        log.warning("%s is not what its digest says and is removed", path)
        path.unlink(missing_ok=True)
        self._seal_path(key).unlink(missing_ok=True)
        return False

    def read_part(self, key: str, offset: int, length: int) -> bytes:
        """Some bytes of a blob that is there."""
        with (self.blobs / key).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def verify(self, key: str) -> bool:
        """Read a blob and compare it with its digest; one that differs is removed."""
        return self._is_sound(key, read=True)

    def _seal_path(self, key: str) -> Path:
        return self.root / "seals" / key

    def seal(self, key: str) -> Seal | None:
        try:
            return Seal.read(self._seal_path(key).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _seal(self, key: str, digest: str) -> None:
        seal = Seal(digest, identity_of(self.blobs / key))
        self._write(self._seal_path(key), seal.write().encode(), durable=False)

    # Bringing in

    def put(self, model: OnnxModel) -> None:
        """Write what the store lacks of a model. Safe to call from any number of processes.

        Raises
        ------
        StoreError
            The folder cannot be written, or the disk is full; nothing half-written stays.
        ModelError
            Weights in files are gone or have changed.
        """
        keys = model.blob_keys
        if self.has(model.token) and not self.lacking(keys):
            return
        with self.using(), self.lock(model.token):
            for key in self.lacking(keys):
                self.write_blob(key, model.blob_bytes(key))
            self.write_proto(model.token, model.proto)

    def has(self, token: str) -> bool:
        return self.proto_path(token).is_file()

    def write_proto(self, token: str, proto: bytes) -> None:
        if hashlib.sha256(proto).hexdigest()[:32] != token:
            raise StoreError(
                f"the model {token} that arrived is not what its digest says",
                "run the same again; if it stays so, load the model again",
            )
        if not self.has(token):
            self._write(self.proto_path(token), proto)

    def note_places(self, model: OnnxModel) -> None:
        """Write the weightless proto, and where the weights lie in files: enough for processes of
        this host to bring in what they need, and no more."""
        if self.has(model.token):
            return
        with self.using(), self.lock(model.token):
            places = {key: place.to_json() for key, place in model.places.items()}
            path = self.root / "places" / f"{model.token}.json"
            self._write(path, json.dumps(places).encode(), durable=False)
            self.write_proto(model.token, model.proto)

    def places(self, token: str) -> dict[str, BlobPlace]:
        """Where weights of a model lie in files, by blob key, as far as somebody has noted."""
        try:
            noted = json.loads((self.root / "places" / f"{token}.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {key: BlobPlace.from_json(place) for key, place in noted.items()}

    def write_blob(self, key: str, data: bytes) -> None:
        """Raises
        ------
        StoreError
            The bytes are not those that the key promises; the disk is full.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._check_digest(key, digest)
        self._write(self.blobs / key, data)
        self._seal(key, digest)

    def _check_digest(self, key: str, digest: str) -> None:
        if digest != (content_digest(key) or digest):
            raise StoreError(
                f"the bytes that came for {key} have the digest {digest}",
                "the model's file may have changed, or the transfer is damaged: load it again",
            )

    def write_part(self, key: str, offset: int, data: Any, length: int) -> None:
        """Write some bytes of a blob of `length` bytes; the last of its parts makes it a blob."""
        if offset == 0 and len(data) == length:
            self.write_blob(key, data)
            return
        path, parts = self.root / "incoming" / key, self.root / "incoming" / f"{key}.parts"
        with self.lock(f"part-{key}"):
            if (self.blobs / key).is_file():
                return
            self._make(path.parent)
            with self._explained(path.parent, len(data)):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    _write_at(descriptor, data, offset)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                with parts.open("a") as file:
                    file.write(f"{offset} {len(data)}\n")
            if not _covers(parts.read_text(), length):
                return
            digest = digest_of(path)
            try:
                self._check_digest(key, digest)
                self._make(self.blobs)
                path.replace(self.blobs / key)
                self._seal(key, digest)
            finally:
                path.unlink(missing_ok=True)
                parts.unlink(missing_ok=True)

    # Notes that processes of this host leave each other

    def measured(self, name: str) -> dict[str, Any] | None:
        """What was measured under this name; None if nothing was."""
        try:
            text = (self.root / "measured" / f"{name}.json").read_text()
            found: dict[str, Any] = json.loads(text)
        except (FileNotFoundError, ValueError):
            return None
        return found

    def note_measured(self, name: str, values: Mapping[str, Any]) -> None:
        data = json.dumps(values).encode()
        self._write(self.root / "measured" / f"{name}.json", data, durable=False)

    def forget_measured(self) -> int:
        """Remove all of these notes; how many there were."""
        found = list((self.root / "measured").glob("*.json"))
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    # Who uses it

    def lease(self, token: str) -> Lease:
        """Note that this process uses a model, from now until the lease is let go."""
        self._make(self.root / "leases")
        path = self.root / "leases" / token
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)
        return Lease(descriptor)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """While this is open, in any process, nothing is evicted."""
        with self._upkeep_lock(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self, seconds: float) -> Iterator[bool]:
        """True inside if within `seconds` nobody else reads or writes the store."""
        until = time.monotonic() + seconds
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._upkeep_lock(fcntl.LOCK_EX | fcntl.LOCK_NB))
                except BlockingIOError:
                    if time.monotonic() < until:
                        time.sleep(0.02)
                        continue
                    yield False
                else:
                    yield True
                return

    @contextlib.contextmanager
    def _upkeep_lock(self, operation: int) -> Iterator[None]:
        self._make(self.root / "locks")
        descriptor = os.open(self.root / "locks" / "upkeep", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)

    def lock(self, name: str) -> filelock.BaseFileLock:
        """Held by the one process that brings something in; the kernel frees it if that dies."""
        self._make(self.root / "locks")
        return filelock.FileLock(self.root / "locks" / name, timeout=_LOCK_SECONDS)

    # Files

    def _make(self, folder: Path) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self.root)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the store's folder {folder} cannot be made: {error.strerror}",
                "set onnx.store.directory to a folder that you may write to",
            ) from error

    @contextlib.contextmanager
    def _explained(self, folder: Path, size: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(folder).free
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StoreWriteError(
                f"{size:,} bytes cannot be written to {folder}: {error.strerror} "
                f"({free:,} bytes are free)",
                "run `dask-onnx store prune`, free some space there, or set "
                "onnx.store.directory to another disk"
                if full
                else "set onnx.store.directory to a folder that you may write to",
            ) from error

    def _write(self, path: Path, data: bytes, *, durable: bool = True) -> None:
        """To a temporary file, to the disk, then under its name."""
        self._make(path.parent)
        temporary = None
        try:
            with self._explained(path.parent, len(data)):
                with tempfile.NamedTemporaryFile(
                    dir=path.parent, prefix=TEMPORARY, delete=False
                ) as file:
                    temporary = Path(file.name)
                    file.write(data)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise


def _check_owner(root: Path) -> None:
    """Nobody else may put files there: a session maps them."""
    status = root.stat()
    if status.st_uid != os.geteuid():
        raise StoreError(
            f"the store {root} belongs to user {status.st_uid}, and this is user {os.geteuid()}",
            "each user has a store of their own: set onnx.store.directory to your own folder",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(
            f"others may write to the store {root} (mode {stat.S_IMODE(status.st_mode):o})",
            f"run `chmod 700 {root}` if nobody has put files there, or choose another folder",
        )


def _write_at(descriptor: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _covers(parts: str, length: int) -> bool:
    """Whether parts, "offset length" a line, leave no gap."""
    reached = 0
    for offset, size in sorted(tuple(map(int, line.split())) for line in parts.splitlines()):
        if offset > reached:
            return False
        reached = max(reached, offset + size)
    return reached >= length
