"""Upkeep of a host's store: listing, verifying and evicting models."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dask_onnx.core import config
from dask_onnx.modelio.onnx_model import blob_keys_of
from dask_onnx.store.store_files import TEMPORARY
from dask_onnx.store.store_locks import UPKEEP, is_leased
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

_PRUNE_WAIT_SECONDS = 5.0
"""Seconds that a prune waits for processes that bring something in."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model in a store."""

    token: str
    """Token of the model."""
    name: str
    """Name of the graph."""
    keys: frozenset[str]
    """Keys of its blobs that are in the store."""
    missing_blobs: int
    """Number of blobs that are not: a worker brings in no more than its stages need."""
    bytes: int
    """Bytes of the blobs, the proto and the packed weights; blobs that models share count in
    each."""
    last_used: float
    """Seconds since the epoch."""
    in_use: bool
    """True if a live process has a session of it."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Result of a prune."""

    models: tuple[StoredModel, ...]
    """Models that were removed."""
    freed_bytes: int
    """Bytes that were freed, leftovers of killed processes included."""
    kept_bytes: int
    """Bytes that are still in the store."""
    kept_in_use: int
    """Number of models that would have been removed, but are in use."""


def stored_models(store: Store) -> list[StoredModel]:
    """Return the models of a store, least recently used first."""
    paths = sorted((store.root / "protos").glob("*.onnx"))
    found = (_stored_model(store, path) for path in paths)
    return sorted(filter(None, found), key=lambda each: each.last_used)


def _stored_model(store: Store, path: Path) -> StoredModel | None:
    """Return the model of a proto; None if another process evicts it meanwhile."""
    token = path.stem
    lease = store.root / "leases" / token
    try:
        data = path.read_bytes()
        last_used = (lease if lease.exists() else path).stat().st_mtime
    except FileNotFoundError:
        return None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.graph.name = "(damaged)"
    named = blob_keys_of(model)
    keys = frozenset(key for key in named if (store.blobs / key).is_file())
    own = [path, store.root / "prepacked" / token, *(store.blobs / key for key in keys)]
    return StoredModel(
        token=token,
        name=model.graph.name,
        keys=keys,
        missing_blobs=len(named) - len(keys),
        bytes=sum(map(_path_bytes, own)),
        last_used=last_used,
        in_use=is_leased(lease),
    )


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if it is missing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # another process has just renamed it to its final name
    return total


def evict_above_limit(store: Store) -> None:
    """Evict the least recently used models while the store exceeds ``onnx.store.max-bytes``.

    Does nothing while other processes read or write: the next one that brings something in evicts.
    """
    limit = int(config.get("store.max-bytes"))
    if folder_bytes(store.root) > limit:
        prune(store, limit, wait_seconds=0)


def prune(
    store: Store,
    max_bytes: int,
    *,
    wait_seconds: float = _PRUNE_WAIT_SECONDS,
    unused_seconds: float = 0,
    now: float = 0,
) -> Pruned | None:
    """Remove leftovers, then the least recently used models, until the store fits a size.

    Parameters
    ----------
    store : Store
        Store to prune.
    max_bytes : int
        Bytes that may stay. A model that a live process has a session of stays in any case.
    wait_seconds : float
        Seconds to wait for processes that read or write the store.
    unused_seconds : float
        Seconds for which a model must have been unused.
    now : float
        Time from which `unused_seconds` counts back, in seconds since the epoch.

    Returns
    -------
    Pruned or None
        None if other processes used the store all the time.
    """
    if not store.root.is_dir():
        return Pruned((), 0, 0, 0)
    with store.exclusive_access(wait_seconds) as is_exclusive:
        if not is_exclusive:
            log.info("%s is in use; it is pruned later", store.root)
            return None
        before = folder_bytes(store.root)
        chosen = _choose(store, max_bytes, unused_seconds, now)
        for path in chosen.paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for model in chosen.models:
            log.info("%s (%r) was evicted from %s", model.token, model.name, store.root)
        after = folder_bytes(store.root)
        return Pruned(chosen.models, before - after, after, chosen.in_use)


def preview_prune(
    store: Store, max_bytes: int, *, unused_seconds: float = 0, now: float = 0
) -> Pruned:
    """Return what `prune` would remove now, without removing it; see there for parameters."""
    before = folder_bytes(store.root)
    chosen = _choose(store, max_bytes, unused_seconds, now)
    freed = sum(map(_path_bytes, chosen.paths))
    return Pruned(chosen.models, freed, before - freed, chosen.in_use)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Files that a prune removes."""

    models: tuple[StoredModel, ...]
    paths: tuple[Path, ...]
    """Files and folders of these models, and leftovers."""
    in_use: int
    """Number of models that would have been removed, but are in use."""


def _choose(store: Store, max_bytes: int, unused_seconds: float, now: float) -> _Choice:
    found = stored_models(store)
    paths = dict.fromkeys(_leftovers(store, found))
    remaining = folder_bytes(store.root) - sum(map(_path_bytes, paths))
    removed: list[StoredModel] = []
    in_use = 0
    for model in found:
        if remaining <= max_bytes:
            break
        if unused_seconds and now - model.last_used < unused_seconds:
            continue
        if model.in_use:
            in_use += 1
            continue
        others = [m for m in found if m is not model and m not in removed]
        own = [path for path in _files_of(store, model, others) if path not in paths]
        remaining -= sum(map(_path_bytes, own))
        paths.update(dict.fromkeys(own))
        removed.append(model)
    return _Choice(tuple(removed), tuple(paths), in_use)


def _files_of(store: Store, model: StoredModel, others: Sequence[StoredModel]) -> Iterator[Path]:
    """Yield the files and folders of a model, without blobs that other models share."""
    shared = frozenset[str]().union(*(other.keys for other in others))
    for key in sorted(model.keys - shared):
        yield store.blobs / key
        yield store.root / "checksums" / key
    yield store.proto_path(model.token)
    yield store.root / "prepacked" / model.token
    yield store.root / "places" / f"{model.token}.json"
    yield store.root / "leases" / model.token


def _leftovers(store: Store, found: Sequence[StoredModel]) -> Iterator[Path]:
    """Yield what belongs to no model, locks too, and what killed processes left half-written."""
    wanted = frozenset[str]().union(*(model.keys for model in found))
    for folder in (store.blobs, store.root / "checksums"):
        yield from (path for path in folder.glob("*") if path.name not in wanted)
    partial = sorted(store.root.rglob(f"{TEMPORARY}*"))
    # A file inside of a folder that is a leftover is not counted twice.
    yield from (path for path in partial if not any(each in path.parents for each in partial))
    yield from (store.root / "incoming").glob("*")
    tokens = {model.token for model in found}
    yield from (p for p in (store.root / "prepacked").glob("*") if p.name not in tokens)
    yield from (p for p in (store.root / "places").glob("*.json") if p.stem not in tokens)
    leases = (p for p in (store.root / "leases").glob("*") if p.name not in tokens)
    yield from (path for path in leases if not is_leased(path))
    # Every holder of a lock has shared access, so that none is held during a prune.
    yield from (p for p in (store.root / "locks").glob("*") if p.name != UPKEEP)


def _path_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 if it is missing."""
    if path.is_dir():
        return folder_bytes(path)
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def measurement_files(store: Store) -> list[Path]:
    """Return the files of the measurements that a store keeps."""
    return sorted((store.root / "measured").glob("*.json"))


@dataclass(frozen=True, slots=True)
class Verified:
    """Result of reading all of a store."""

    blobs: int
    """Number of blobs that were read."""
    bytes: int
    """Bytes of these blobs."""
    damaged: tuple[str, ...]
    """Keys of blobs that did not match their digests, and were removed."""
    damaged_protos: tuple[str, ...]
    """Tokens of models whose protos did not match, and were removed."""


def verify(store: Store) -> Verified:
    """Compare every blob and proto with its digest, and remove those that differ."""
    with store.shared_access():
        keys = [p.name for p in store.blobs.glob("*") if not p.name.startswith(TEMPORARY)]
        total = sum((store.blobs / key).stat().st_size for key in keys)
        damaged = tuple(key for key in keys if not store.verify(key))
        protos = [path.stem for path in (store.root / "protos").glob("*.onnx")]
        damaged_protos = tuple(token for token in protos if store.proto(token) is None)
    return Verified(len(keys), total, damaged, damaged_protos)
