"""Models whose file moved between two uses."""

from __future__ import annotations

import onnx
from builders import dense_model

from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store.supply import fetch_blobs
from dask_onnx.store.weight_store import Store


def test_the_store_reads_weights_from_the_file_that_a_model_was_loaded_from_last(tmp_path):
    """Parts of a model, such as shards, know no file but the places of their weights."""
    store = Store(tmp_path / "store")
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    for path in (first, second):
        onnx.save_model(dense_model(hidden=4096), path)
    old, new = load_onnx(first), load_onnx(second)
    assert old.token == new.token
    store.put_proto(old)
    first.unlink()
    store.put_proto(new)
    places = store.places(new.token).values()
    assert {place.file.path for place in places} == {str(second)}
    assert fetch_blobs(store, new.ref, new.blob_keys, ()) is True
    assert not store.missing(new.blob_keys)
