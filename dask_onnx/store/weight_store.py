"""Store of a host: one folder with the protos and weights of models, by content.

    id                            random; equal for all processes that see the same store
    protos/<model token>.onnx     the weightless proto
    blobs/<blob key>              weights, aligned as ORT maps them
    places/<model token>.json     locations of the weights in files
    checksums/<blob key>          checksum record of the blob
    incoming/<blob key>           a blob of which some parts have arrived
    leases/<model token>          locked (flock) by processes that use the model; its time: last use
    locks/                        locked by processes that write; `upkeep` shared by all readers
                                  and writers, and held alone by the one that removes files
    prepacked/, measured/         packed weights and measurements of this host, by model

All processes of a host map the same files, so that weights are in memory once. A file gets its
final name only when it is whole, on the disk, and has the promised digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from dask_onnx.core import config
from dask_onnx.core.errors import StoreError
from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.weights import BlobPlace, content_digest
from dask_onnx.store.integrity import ChecksumRecord, digest_of, identity_of
from dask_onnx.store.store_files import (
    check_root,
    covers,
    explained_write_errors,
    make_folder,
    write_at,
    write_file,
)
from dask_onnx.store.store_locks import (
    LOCK_SECONDS,
    Lease,
    exclusive_access,
    named_lock,
    shared_access,
    take_lease,
)

log = logging.getLogger(__name__)

ContentsVersion = tuple[str | int, ...]
"""Result of `Store.contents_version`."""


_USER_FOLDERS = "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE"
"""Environment variables that decide where a user's cache folder is."""


@cached_in_process("folders of stores", 16)
def _root(configured: str, _variables: tuple[str | None, ...]) -> Path:
    """Return a store's folder; every request asks for it, and finding it takes 100 us."""
    return Path(configured or platformdirs.user_cache_path("dask_onnx")).expanduser()


class Store:
    """Store of this host.

    Parameters
    ----------
    directory : path, optional
        Folder; ``onnx.store.directory``, or the user's cache folder, by default.

    Raises
    ------
    StoreError
        The folder is a link, belongs to another user, or others can write to it.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        configured = directory or config.get("store.directory")
        self.root = _root(str(configured or ""), tuple(map(os.environ.get, _USER_FOLDERS)))
        check_root(self.root)

    @property
    def blobs(self) -> Path:
        """Folder that sessions map their external data from."""
        return self.root / "blobs"

    @property
    def identity(self) -> str:
        """Random text, equal for all processes that see this store."""
        path = self.root / "id"
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        with self.lock("id"):
            if not path.exists():
                self._write(path, secrets.token_hex(16).encode())
        return path.read_text()

    def contents_version(self) -> ContentsVersion:
        """Return a value that changes whenever a file is added to or removed from the store.

        It costs three calls of the file system, however many blobs there are. A blob that is
        damaged where it lies does not change it: that is found when a session maps the blob.
        """

        def changed(folder: Path) -> int:
            with contextlib.suppress(FileNotFoundError):
                return folder.stat().st_mtime_ns
            return 0

        folders = self.root / "protos", self.root / "places", self.blobs
        return str(self.root), *map(changed, folders)

    # Reading

    def has(self, token: str) -> bool:
        """Return whether the store has the weightless proto of a model."""
        return self.proto_path(token).is_file()

    def proto_path(self, token: str) -> Path:
        """Return the path of a model's weightless proto, whether it exists or not."""
        return self.root / "protos" / f"{token}.onnx"

    def proto(self, token: str) -> bytes | None:
        """Return the weightless proto; None if it is missing. A damaged one is removed."""
        path = self.proto_path(token)
        try:
            proto = path.read_bytes()
        except FileNotFoundError:
            return None
        if _has_token(proto, token):
            return proto
        log.warning("%s does not match its digest and is removed", path)
        path.unlink(missing_ok=True)
        return None

    def places(self, token: str) -> dict[str, BlobPlace]:
        """Return the locations of a model's weights in files, by blob key, as far as recorded."""
        try:
            places = json.loads((self.root / "places" / f"{token}.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {key: BlobPlace.from_json(place) for key, place in places.items()}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys whose blobs are missing or damaged.

        A blob that is unchanged since its checksum record is not read. Any other is read,
        compared with its digest, and removed if it differs.
        """
        return [key for key in keys if not self._is_sound(key)]

    def verify(self, key: str) -> bool:
        """Read a blob and return whether it has its digest; one that differs is removed."""
        return self._is_sound(key, read=True)

    def _is_sound(self, key: str, *, read: bool = False) -> bool:
        path = self.blobs / key
        if path.is_symlink():
            # The store writes none, and what it leads to may change without a trace here.
            log.warning("%s is a link and is removed", path)
            path.unlink(missing_ok=True)
        try:
            identity = identity_of(path)
        except FileNotFoundError:
            return False
        record = self._checksum_record(key)
        if record is not None and not read and record.identity == identity:
            return True
        promised = content_digest(key) or (record.digest if record is not None else None)
        if promised is not None and digest_of(path) == promised:
            self._save_checksum_record(key, promised)
            return True
        log.warning("%s does not match its digest and is removed", path)
        path.unlink(missing_ok=True)
        self._checksum_path(key).unlink(missing_ok=True)
        return False

    def read_part(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of a blob from `offset` on; the blob must be in the store."""
        with (self.blobs / key).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def _checksum_path(self, key: str) -> Path:
        return self.root / "checksums" / key

    def _checksum_record(self, key: str) -> ChecksumRecord | None:
        try:
            return ChecksumRecord.from_json(self._checksum_path(key).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _save_checksum_record(self, key: str, digest: str) -> None:
        record = ChecksumRecord(digest, identity_of(self.blobs / key))
        self._write(self._checksum_path(key), record.to_json().encode(), durable=False)

    # Writing

    def put(self, model: OnnxModel) -> None:
        """Write the proto and weights of a model, as far as they are missing.

        Safe to call from any number of processes.

        Raises
        ------
        StoreError
            The folder cannot be written, or the disk is full; no half-written file remains.
        ModelError
            Weights in files are gone or have changed.
        """
        keys = model.blob_keys
        if self.has(model.token) and not self.missing(keys):
            return
        with self.shared_access(), self.lock(model.token):
            for key in self.missing(keys):
                self.write_blob(key, model.blob_bytes(key))
            self.write_proto(model.token, model.proto)

    def put_proto(self, model: OnnxModel) -> None:
        """Write the weightless proto, and the locations of the weights in files.

        From these, processes of this host bring in just the weights that they need.

        Raises
        ------
        StoreError
            The folder cannot be written, or the disk is full.
        """
        # The same model may have been loaded from another file, which is gone by now.
        if self.has(model.token) and self.places(model.token) == dict(model.places):
            return
        with self.shared_access(), self.lock(model.token):
            places = {key: place.to_json() for key, place in model.places.items()}
            path = self.root / "places" / f"{model.token}.json"
            self._write(path, json.dumps(places).encode(), durable=False)
            self.write_proto(model.token, model.proto)

    def write_proto(self, token: str, proto: bytes) -> None:
        """Write a weightless proto, unless the store has it.

        Raises
        ------
        StoreError
            The bytes do not match the token, or cannot be written.
        """
        if not _has_token(proto, token):
            raise StoreError(
                f"the model {token} that arrived does not match its digest",
                "run the same again; if that does not help, load the model again",
            )
        if not self.has(token):
            self._write(self.proto_path(token), proto)

    def write_blob(self, key: str, data: bytes) -> None:
        """Write a blob.

        Raises
        ------
        StoreError
            The bytes do not match the digest in the key, or cannot be written.
        """
        digest = hashlib.sha256(data).hexdigest()
        _check_digest(key, digest)
        self._write(self.blobs / key, data)
        self._save_checksum_record(key, digest)

    def write_part(self, key: str, offset: int, data: Any, length: int) -> None:
        """Write a part of a blob; the part that completes the blob gives it its name.

        Parameters
        ----------
        key : str
            Key of the blob.
        offset : int
            Offset of the part in the blob, in bytes.
        data : bytes-like
            Content of the part.
        length : int
            Bytes of the whole blob.

        Raises
        ------
        StoreError
            The whole blob does not match the digest in the key, or a part cannot be written.
        """
        if offset == 0 and len(data) == length:
            self.write_blob(key, data)
            return
        path, parts = self.root / "incoming" / key, self.root / "incoming" / f"{key}.parts"
        with self.lock(f"part-{key}"):
            if (self.blobs / key).is_file():
                return
            make_folder(self.root, path.parent)
            with explained_write_errors(path.parent, len(data)):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    write_at(descriptor, data, offset)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                with parts.open("a") as file:
                    file.write(f"{offset} {len(data)}\n")
            if covers(parts.read_text(), length):
                self._complete(key, path, parts)

    def _complete(self, key: str, path: Path, parts: Path) -> None:
        digest = digest_of(path)
        try:
            _check_digest(key, digest)
            make_folder(self.root, self.blobs)
            path.replace(self.blobs / key)
            self._save_checksum_record(key, digest)
        finally:
            path.unlink(missing_ok=True)
            parts.unlink(missing_ok=True)

    # Measurements, shared by the processes of this host

    def measurement(self, name: str) -> dict[str, Any] | None:
        """Return the values that `save_measurement` saved under a name; None without any."""
        try:
            text = (self.root / "measured" / f"{name}.json").read_text()
            values: dict[str, Any] = json.loads(text)
        except (FileNotFoundError, ValueError):
            return None
        return values

    def save_measurement(self, name: str, values: Mapping[str, Any]) -> None:
        """Save values that JSON can write under a name.

        Raises
        ------
        StoreError
            The folder cannot be written, or the disk is full.
        """
        data = json.dumps(values).encode()
        self._write(self.root / "measured" / f"{name}.json", data, durable=False)

    def remove_measurements(self) -> int:
        """Remove all measurements, and return their number."""
        found = list((self.root / "measured").glob("*.json"))
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    # Access of several processes

    def lease(self, token: str) -> Lease:
        """Return a lease on a model, which keeps its files from eviction."""
        return take_lease(self.root, token)

    def shared_access(self) -> contextlib.AbstractContextManager[None]:
        """Keep all processes from evicting anything while the context is open."""
        return shared_access(self.root)

    def exclusive_access(self, seconds: float) -> contextlib.AbstractContextManager[bool]:
        """Wait until no other process reads or writes the store, and keep others out.

        Parameters
        ----------
        seconds : float
            Bound on the wait.

        Returns
        -------
        context manager of bool
            True if access is exclusive; False after the bound.
        """
        return exclusive_access(self.root, seconds)

    def lock(
        self, name: str, *, seconds: float = LOCK_SECONDS
    ) -> contextlib.AbstractContextManager[None]:
        """Hold a lock of this host, which the kernel releases if its holder dies.

        Parameters
        ----------
        name : str
            Name of the lock's file.
        seconds : float
            Bound on the wait for another holder, after which a StoreError is raised.
        """
        return named_lock(self.root, name, seconds)

    def _write(self, path: Path, data: bytes, *, durable: bool = True) -> None:
        # A prune that runs meanwhile would remove the temporary file.
        with self.shared_access():
            write_file(self.root, path, data, durable=durable)


def _has_token(proto: bytes, token: str) -> bool:
    return hashlib.sha256(proto).hexdigest()[:32] == token


def _check_digest(key: str, digest: str) -> None:
    if digest != (content_digest(key) or digest):
        raise StoreError(
            f"the bytes that came for {key} have the digest {digest}",
            "the model's file may have changed, or the transfer is damaged: load it again",
        )
