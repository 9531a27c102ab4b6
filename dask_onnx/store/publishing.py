"""Models made available to the processes of this host, and brought back from there."""

from __future__ import annotations

import contextlib
import dataclasses

from dask_onnx.core.errors import ModelError, StoreError
from dask_onnx.core.files import FileSource, check_unchanged, is_url
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.store.supply import fetch_proto
from dask_onnx.store.weight_store import Store

_PICKLED_PROTO_BYTES = 256 * 1024
"""Size of a proto up to which it travels in a pickle. A larger one (a tree ensemble is all
attributes) is found where its weights are."""

_published: BoundedCache[str, tuple[str, int, int]] = BoundedCache("published models", 256)
"""Versions of the store that hold all of a model, by the model's token."""


def publish(model: OnnxModel) -> None:
    """Let processes of this host find a model: in its own file, or else in the host's store.

    Weights that lie in unchanged files stay there: the store then has the proto and the locations
    of the weights, of which a process reads what it needs. Only weights in memory are copied.

    Raises
    ------
    StoreError
        The model lies in no file, and the store cannot be written.
    """
    source, store = model.source, Store()
    if source is not None and _is_unchanged(source):
        # Workers can load the file themselves, which takes memory: save them that if we can.
        with contextlib.suppress(StoreError):
            store.put_proto(model)
    elif _are_weights_in_files(model):
        store.put_proto(model)
    else:
        # Each blob is looked at once, rather than at every request, as long as the store is as it
        # was then. The version is taken first: what `put` writes is confirmed the next time.
        version = store.contents_version()
        if _published.get(model.token) != version:
            store.put(model)
            _published.put(model.token, version)


def as_reference(model: OnnxModel) -> OnnxModel:
    """Return a model that is small to pickle: without weights, and without a large proto.

    The model is published, so that `from_reference` finds the rest on the receiving host.
    """
    publish(model)
    proto = model.proto if len(model.proto) <= _PICKLED_PROTO_BYTES else b""
    return dataclasses.replace(model, proto=proto, blobs={})


def from_reference(model: OnnxModel) -> OnnxModel:
    """Return the model behind `as_reference`, with its proto."""
    if model.proto:
        return model
    store = Store()
    with store.shared_access():
        proto = fetch_proto(store, model.ref, ())
    return dataclasses.replace(model, proto=proto)


def _are_weights_in_files(model: OnnxModel) -> bool:
    """Return whether all weights outside the proto lie in files that are as they were loaded."""
    if not all(key in model.places for key in model.blob_keys):
        return False
    return all(_is_unchanged(file) for file in {place.file for place in model.places.values()})


def _is_unchanged(source: FileSource) -> bool:
    """Return whether a model's file is still the one that was loaded; true of any URL."""
    if is_url(source.path):
        return True
    try:
        check_unchanged(source)
    except ModelError:
        return False
    return True
