"""Supply of a host with a model: from its store, from the model's file, or through the graph.

Where workers cannot see the model's file, the client puts the weights into the graph (see
`weight_parts`). A process that lacks weights asks for them under its host's lock: each host is
sent them once, however many processes it has, and whichever of them dies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_onnx.core.errors import DaskOnnxError, ModelError, StoreError
from dask_onnx.core.files import FileSource, check_unchanged
from dask_onnx.core.peers import ask_scheduler, ask_worker, current_worker
from dask_onnx.core.subprocesses import run_in_subprocess
from dask_onnx.modelio.onnx_model import ModelRef, load_onnx
from dask_onnx.store.store_files import StoreWriteError
from dask_onnx.store.weight_parts import (
    BlobRange,
    Manifest,
    StoredWeightPart,
    Supply,
    read_blob_ranges,
    read_task_ranges,
)
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

_SUBPROCESS_BYTES = 64 * 2**20
"""Size of a model's file above which a worker loads it in a subprocess."""


def fetch_proto(store: Store, model: ModelRef, supplies: Sequence[Supply]) -> bytes:
    """Return the weightless proto, brought into the store if it is missing.

    Parameters
    ----------
    store : Store
        Store of this host.
    model : ModelRef
        Model to fetch.
    supplies : sequence of Supply
        Results of tasks that bring the model here.

    Raises
    ------
    StoreError
        The proto cannot be had from anywhere.
    """
    proto = store.proto(model.token)
    if proto is not None:
        return proto
    with store.lock(model.token):
        for supply in supplies:
            if isinstance(supply, Manifest):
                store.write_proto(model.token, supply.proto)
        if not store.has(model.token):
            _load_into(store, model, None)
    proto = store.proto(model.token)
    assert proto is not None
    return proto


def fetch_blobs(
    store: Store, model: ModelRef, keys: Iterable[str], supplies: Sequence[Supply]
) -> bool:
    """Bring weights into the store, as far as they are missing.

    Parameters
    ----------
    store : Store
        Store of this host.
    model : ModelRef
        Model that the weights are of.
    keys : iterable of str
        Keys of the blobs.
    supplies : sequence of Supply
        Results of tasks that bring the model here.

    Returns
    -------
    bool
        True if anything was missing.

    Raises
    ------
    StoreError
        Some of them cannot be had from anywhere.
    """
    wanted = list(dict.fromkeys(keys))
    if not store.missing(wanted):
        return False
    failures: list[str] = []
    with store.lock(model.token):
        for fetch in (_from_places, _from_weight_parts, _from_file):
            missing = store.missing(wanted)
            if missing:
                failures += fetch(store, model, missing, supplies)
    missing = store.missing(wanted)
    if missing:
        reason = "; ".join(failures)
        raise StoreError(
            f"{len(missing)} of {len(wanted)} weight blobs of model {model.token} are not in "
            f"{store.root} and cannot be had: {reason}",
            "put the model at a path that the workers see; or make the Client before you call "
            "predict, so that the weights travel with the graph",
            reason=reason,
            numbers={"missing_blobs": len(missing), "wanted_blobs": len(wanted)},
        )
    return True


def _from_places(
    store: Store, model: ModelRef, keys: Sequence[str], supplies: Sequence[Supply]
) -> list[str]:
    """Read missing weights by byte range from the model's files; return failures as text."""
    places = store.places(model.token)
    for supply in supplies:
        if isinstance(supply, Manifest):
            places.update(supply.places)
    for key in keys:
        if key in places:
            try:
                store.write_blob(key, places[key].read())
            except ModelError as error:
                return [error.cause]
    return []


def _from_file(
    store: Store, model: ModelRef, keys: Sequence[str], supplies: Sequence[Supply]
) -> list[str]:
    """Load the model's whole file; return failures as text."""
    try:
        _load_into(store, model, keys)
    except StoreWriteError:
        raise
    except StoreError as error:
        return [error.cause]
    return []


def _load_into(store: Store, model: ModelRef, keys: Sequence[str] | None) -> None:
    """Load the model's file, and write the wanted weights, or all of them, to the store."""
    if model.source is None:
        raise StoreError(
            f"model {model.token} was given as bytes or as a proto on another host, "
            f"and the store {store.root} on this host does not have it",
            "make the Client before you call predict, so that the weights travel with the graph; "
            "or save the model to a path that the workers see, and load it from there",
        )
    if model.source.size > _SUBPROCESS_BYTES and current_worker() is not None:
        try:
            run_in_subprocess(load_into, store.root, model, keys)
            return
        except RuntimeError as error:
            log.warning("a subprocess failed to load the model; this process loads it: %r", error)
    load_into(store.root, model, keys)


def load_into(root: Path, model: ModelRef, keys: Sequence[str] | None) -> None:
    """Load the model's file in this process, and write the wanted weights to a store.

    Parameters
    ----------
    root : Path
        Folder of the store.
    model : ModelRef
        Model, which must have a file.
    keys : sequence of str or None
        Keys of the wanted blobs; None for all.

    Raises
    ------
    StoreError
        The file cannot be read, is of another model, or the store cannot be written.
    """
    store, source = Store(root), model.source
    assert source is not None
    try:
        loaded = load_onnx(source.path, keep_weights=True)
        if loaded.token != model.token:
            raise StoreError(
                f"{source.path} is not the model that was planned: it has changed since, "
                "or this host has another file under that path",
                "load and plan the model again",
            )
        for key in store.missing(loaded.blob_keys if keys is None else keys):
            store.write_blob(key, loaded.blob_bytes(key))
        store.write_proto(model.token, loaded.proto)
    except ModelError as error:
        raise StoreError(
            f"this host cannot load the model: {error.cause}",
            "put the model at the same path on every worker's host; or make the Client before you "
            "call predict, so that the weights travel with the graph",
            reason=error.cause,
        ) from error


def _from_weight_parts(
    store: Store, model: ModelRef, keys: Sequence[str], supplies: Sequence[Supply]
) -> list[str]:
    """Get weights from the host that has them, or from the scheduler; return failures as text."""
    worker = current_worker()
    wanted = set(keys)
    failures = []
    for supply in supplies:
        if not isinstance(supply, StoredWeightPart) or worker is None:
            continue
        ranges = tuple(each for each in supply.ranges if each.key in wanted)
        if not ranges:
            continue
        parts = _request(worker, supply, ranges)
        if parts is None:
            failures.append(f"neither {supply.holder} nor the scheduler has {supply.key}")
            continue
        for each, data in zip(ranges, parts, strict=True):
            store.write_part(each.key, each.offset, data, each.blob_bytes)
    return failures


def _request(
    worker: Any, supply: StoredWeightPart, ranges: tuple[BlobRange, ...]
) -> Sequence[Any] | None:
    parts: Sequence[Any] | None = None
    if supply.holder is not None and supply.holder != worker.address:
        parts = ask_worker(worker, supply.holder, read_blob_ranges, ranges)
    if parts is None:
        parts = ask_scheduler(worker, read_task_ranges, supply.key, ranges)
    return parts


@dataclass(frozen=True, slots=True)
class StoreView:
    """Store and model file, as one worker process sees them."""

    store: str
    """`Store.identity`; empty if the process cannot write a store."""
    sees_file: bool
    """True if the process sees the model's file, unchanged."""


def view_store(source: FileSource | None) -> StoreView:
    """Return the store and model file that this process sees.

    Runs on a worker, for a client that decides whether to send the weights with the graph.

    Parameters
    ----------
    source : FileSource or None
        File of the model; None if it has none.
    """
    try:
        identity = Store().identity
    except DaskOnnxError:
        identity = ""  # its own tasks will raise the error
    if source is None:
        return StoreView(identity, sees_file=False)
    try:
        check_unchanged(source)
    except ModelError:
        return StoreView(identity, sees_file=False)
    return StoreView(identity, sees_file=True)
