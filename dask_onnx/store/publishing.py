"""Models made available to the processes of this host, and brought back from there."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref

from dask_onnx.core.errors import ModelError, StoreError
from dask_onnx.core.files import FileSource, check_unchanged, is_url
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.store.supply import fetch_proto
from dask_onnx.store.weight_store import ContentsVersion, Store

_PICKLED_PROTO_BYTES = 256 * 1024
"""Size of a proto up to which it travels in a pickle. A larger one (a tree ensemble is all
attributes) is found where its weights are."""

_published: BoundedCache[int, tuple[weakref.ref[OnnxModel], ContentsVersion]] = BoundedCache(
    "published models", 256
)
"""Models that the store holds, and its version when that was found, by the object's identity.

Not by the token: an equal model may have been loaded from another file.
"""


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
    is_in_file = source is not None and _is_unchanged(source)
    is_by_place = is_in_file or _are_weights_in_files(model)
    # What the store has is looked at once, rather than at every request, as long as the store is as
    # it was then. The version is taken first: what is written now is confirmed the next time.
    version = store.contents_version()
    known = _published.get(id(model))
    if known is not None and known[0]() is model and known[1] == version:
        return
    if is_in_file:
        # Workers can load the file themselves, which takes memory: save them that if we can.
        with contextlib.suppress(StoreError):
            store.put_proto(model)
    elif is_by_place:
        store.put_proto(model)
    else:
        store.put(model)
    _published.put(id(model), (weakref.ref(model), version))


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
