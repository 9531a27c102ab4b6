"""One folder per host with the protos and weights of models, by content.

    protos/<model token>.onnx     the weightless proto; written last: it vouches for the rest
    blobs/<blob key>              weights, aligned as ORT wants to map them
    locks/<model token>           held while a model is being brought in

All processes of a host map the same files, so that weights are in memory once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import filelock
import platformdirs

from dask_onnx import config
from dask_onnx.errors import ModelError, StoreError
from dask_onnx.onnx_model import ModelRef, OnnxModel, load_onnx
from dask_onnx.weights import read_range

_LOCK_SECONDS = 600
"""How long one process waits for another that brings the same model in."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Store:
    """The host's store, at ``dask_onnx.store.directory``."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        configured = directory or config.get("store.directory")
        self.root = Path(configured or platformdirs.user_cache_path("dask_onnx")).expanduser()

    @property
    def blobs(self) -> Path:
        """The folder that sessions take their external data from."""
        return self.root / "blobs"

    def _proto_path(self, token: str) -> Path:
        return self.root / "protos" / f"{token}.onnx"

    def has(self, token: str) -> bool:
        return self._proto_path(token).is_file()

    def put(self, model: OnnxModel) -> None:
        """Write what the store lacks of a model. Safe to call from any number of processes.

        Raises
        ------
        StoreError
            The folder cannot be written, or the disk is full; nothing half-written stays.
        ModelError
            Weights in external files are gone or have changed.
        """
        if self.has(model.token):
            return
        with self._lock(model.token):
            if self.has(model.token):
                return
            for key, data in model.blobs.items():
                self._write(self.blobs / key, data)
            for key, place in model.ranges.items():
                if not (self.blobs / key).is_file():
                    self._write(self.blobs / key, read_range(place))
            lacking = self.missing(model.blob_keys)
            if lacking:
                raise StoreError(
                    f"{len(lacking)} blobs of model {model.token} are neither in {self.root} "
                    "nor with the model: it was pickled, and unpickled on another host",
                    "load the model from a path that this host sees",
                )
            self._write(self._proto_path(model.token), model.proto)

    def get(self, ref: ModelRef) -> bytes:
        """The weightless proto of a model whose weights the store then has.

        Raises
        ------
        StoreError
            Neither the store nor the model's file on this host has it.
        """
        path = self._proto_path(ref.token)
        if not path.is_file():
            self._fetch(ref)
        proto = path.read_bytes()
        if hashlib.sha256(proto).hexdigest()[:32] != ref.token:
            path.unlink(missing_ok=True)
            raise StoreError(f"{path} is damaged and was removed", "run the same again")
        return proto

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are no blob of this store."""
        return [key for key in keys if not (self.blobs / key).is_file()]

    def forget(self, token: str) -> None:
        """Let the next `get` bring the model in again."""
        self._proto_path(token).unlink(missing_ok=True)

    def _fetch(self, ref: ModelRef) -> None:
        if ref.source is None:
            raise StoreError(
                f"model {ref.token} was given as bytes or as a proto on another host, "
                f"and the store {self.root} on this host does not have it",
                "save the model to a path that the workers see, and load it from there",
            )
        try:
            model = load_onnx(ref.source.path, keep_weights=True)
        except ModelError as error:
            raise StoreError(
                f"this host cannot load the model: {error.cause}",
                "put the model at the same path on every worker's host, or on a shared disk",
            ) from error
        if model.token != ref.token:
            raise StoreError(
                f"{ref.source.path} is not the model that was planned: it has changed since, "
                "or this host has another file under that path",
                "load and plan the model again",
            )
        self.put(model)

    def _lock(self, token: str) -> filelock.BaseFileLock:
        folder = self.root / "locks"
        self._make(folder)
        return filelock.FileLock(folder / token, timeout=_LOCK_SECONDS)

    def _make(self, folder: Path) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the store's folder {folder} cannot be made: {error.strerror}",
                "set dask_onnx.store.directory to a folder that you may write to",
            ) from error

    def _write(self, path: Path, data: bytes) -> None:
        """To a temporary file, to the disk, then under its name."""
        if _DIGEST.fullmatch(path.name) and hashlib.sha256(data).hexdigest() != path.name:
            raise StoreError(f"the bytes for {path.name} are not those", "load the model again")
        self._make(path.parent)
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                temporary = Path(file.name)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StoreError(
                f"{len(data):,} bytes cannot be written to {path.parent}: {error.strerror}",
                "free some space there, or set dask_onnx.store.directory to another disk"
                if full
                else "set dask_onnx.store.directory to a folder that you may write to",
            ) from error
