"""Looking after a host's store: what is in it, what is broken, what may go."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dask_onnx.core import config
from dask_onnx.modelio.onnx_model import blob_keys_of
from dask_onnx.store.weight_store import TEMPORARY, Store

log = logging.getLogger(__name__)

_PRUNE_SECONDS = 5.0
"""How long a prune waits for those who are bringing something in."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in a store."""

    token: str
    name: str
    """The graph's name."""
    keys: frozenset[str]
    """Its blobs, as far as they are here."""
    lacking: int
    """Blobs that are not: a worker that runs one stage brings in no more than that needs."""
    bytes: int
    """Of the blobs, the proto and what was prepacked; blobs that models share count in each."""
    last_used: float
    """Seconds since the epoch."""
    in_use: bool
    """A live process has a session of it."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune took away."""

    models: tuple[Entry, ...]
    freed_bytes: int
    kept_bytes: int
    kept_in_use: int
    """Models that would have gone, but are in use."""


def entries(store: Store) -> list[Entry]:
    """The models of a store, least recently used first."""
    paths = sorted((store.root / "protos").glob("*.onnx"))
    return sorted((_entry(store, path) for path in paths), key=lambda entry: entry.last_used)


def _entry(store: Store, path: Path) -> Entry:
    token = path.stem
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        model.graph.name = "(damaged)"
    named = blob_keys_of(model)
    keys = frozenset(key for key in named if (store.blobs / key).is_file())
    lease = store.root / "leases" / token
    return Entry(
        token=token,
        name=model.graph.name,
        keys=keys,
        lacking=len(named) - len(keys),
        bytes=sum((store.blobs / key).stat().st_size for key in keys)
        + path.stat().st_size
        + folder_bytes(store.root / "prepacked" / token),
        last_used=(lease if lease.exists() else path).stat().st_mtime,
        in_use=_is_leased(lease),
    )


def _is_leased(lease: Path) -> bool:
    try:
        descriptor = os.open(lease, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if it is not there."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # another process has just put it under its final name
    return total


def keep_below_limit(store: Store) -> None:
    """Take the least recently used models away while the store is above its limit.

    If others are reading or writing just now, the next one to bring something in does it.
    """
    limit = int(config.get("store.max-bytes"))
    if folder_bytes(store.root) > limit:
        prune(store, limit, wait_seconds=0)


def prune(
    store: Store,
    max_bytes: int,
    *,
    wait_seconds: float = _PRUNE_SECONDS,
    unused_seconds: float = 0,
    now: float = 0,
) -> Pruned | None:
    """Remove what nobody wants, then models, least recently used first, down to a size.

    Parameters
    ----------
    max_bytes : int
        What may stay, in bytes. A model that a live process has a session of always stays.
    wait_seconds : float
        For others to be done with bringing something in.
    unused_seconds, now : float
        Only models that were not used for so long go, seen from `now`.

    Returns
    -------
    Pruned, or None if others used the store all the time
    """
    if not store.root.is_dir():
        return Pruned((), 0, 0, 0)
    with store.alone(wait_seconds) as is_alone:
        if not is_alone:
            log.info("%s is in use; it is pruned later", store.root)
            return None
        before = folder_bytes(store.root)
        found = entries(store)
        _sweep(store, found)
        gone: list[Entry] = []
        in_use = 0
        for entry in found:
            if folder_bytes(store.root) <= max_bytes:
                break
            if unused_seconds and now - entry.last_used < unused_seconds:
                continue
            if entry.in_use:
                in_use += 1
                continue
            _remove(store, entry, [e for e in found if e is not entry and e not in gone])
            gone.append(entry)
        after = folder_bytes(store.root)
        return Pruned(tuple(gone), before - after, after, in_use)


def _remove(store: Store, entry: Entry, others: Sequence[Entry]) -> None:
    store.proto_path(entry.token).unlink(missing_ok=True)
    shared = frozenset[str]().union(*(other.keys for other in others))
    for key in entry.keys - shared:
        (store.blobs / key).unlink(missing_ok=True)
        (store.root / "seals" / key).unlink(missing_ok=True)
    shutil.rmtree(store.root / "prepacked" / entry.token, ignore_errors=True)
    (store.root / "places" / f"{entry.token}.json").unlink(missing_ok=True)
    (store.root / "leases" / entry.token).unlink(missing_ok=True)
    log.info("%s (%s) was evicted from %s", entry.token, entry.name, store.root)


def _sweep(store: Store, found: Sequence[Entry]) -> None:
    """What a killed process left half-written, and blobs and notes that belong to no model."""
    wanted = frozenset[str]().union(*(entry.keys for entry in found))
    for folder in (store.blobs, store.root / "seals"):
        for path in folder.glob("*"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)
    for path in store.root.rglob(f"{TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (store.root / "incoming").glob("*"):
        path.unlink(missing_ok=True)
    tokens = {entry.token for entry in found}
    for path in (store.root / "prepacked").glob("*"):
        if path.name not in tokens:
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Verified:
    """What reading all of a store showed."""

    blobs: int
    bytes: int
    damaged: tuple[str, ...]
    """Keys of the blobs that were not what they should be, and are gone now."""
    damaged_protos: tuple[str, ...]


def verify(store: Store) -> Verified:
    """Read every blob and proto and compare it with its digest; what differs is removed."""
    with store.using():
        keys = [p.name for p in store.blobs.glob("*") if not p.name.startswith(TEMPORARY)]
        total = sum((store.blobs / key).stat().st_size for key in keys)
        damaged = tuple(key for key in keys if not store.verify(key))
        protos = [path.stem for path in (store.root / "protos").glob("*.onnx")]
        broken = tuple(token for token in protos if store.proto(token) is None)
    return Verified(len(keys), total, damaged, broken)
