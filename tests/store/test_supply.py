from __future__ import annotations

import os

import fsspec
import onnx
import pytest
from builders import dense_model

from dask_onnx.core.errors import StoreError
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store import supply
from dask_onnx.store.store_files import StoreWriteError
from dask_onnx.store.supply import fetch_blobs, fetch_proto, view_store
from dask_onnx.store.weight_parts import Manifest
from dask_onnx.store.weight_store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def path(tmp_path):
    onnx.save(dense_model(hidden=40_000), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def manifest_of(model):
    return Manifest(model.token, model.proto, model.places)


def test_a_missing_model_is_loaded_from_its_file(store, path):
    model = load_onnx(path)
    assert not store.has(model.token)
    assert fetch_proto(store, model.ref, ()) == model.proto
    assert fetch_blobs(store, model.ref, model.blob_keys, ()) is False  # they came with it
    assert store.missing(model.blob_keys) == []


def test_external_data_is_loaded_too(store, tmp_path):
    onnx.save_model(
        dense_model(hidden=40_000),
        tmp_path / "e.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    model = load_onnx(tmp_path / "e.onnx")
    fetch_proto(store, model.ref, ())
    assert len(model.blob_keys) == 3
    assert store.missing(model.blob_keys) == []


def test_a_stored_model_does_not_need_its_file(store, path):
    ref = load_onnx(path).ref
    proto = fetch_proto(store, ref, ())
    path.unlink()
    assert fetch_proto(store, ref, ()) == proto


def test_a_missing_file_is_named(store, path):
    ref = load_onnx(path).ref
    path.unlink()
    with pytest.raises(StoreError) as caught:
        fetch_proto(store, ref, ())
    assert str(path) in caught.value.reason


def test_a_file_that_changed_is_not_taken_for_the_model(store, path):
    ref = load_onnx(path).ref
    onnx.save(dense_model(hidden=50), path)
    with pytest.raises(StoreError, match="is not the model that was planned"):
        fetch_proto(store, ref, ())


def test_a_model_given_as_bytes_on_another_host_cannot_be_found(store):
    with pytest.raises(StoreError, match="on another host"):
        fetch_proto(store, load_onnx(dense_model()).ref, ())


def test_a_damaged_blob_is_fetched_again(store, path):
    model = load_onnx(path)
    fetch_proto(store, model.ref, ())
    damaged = store.blobs / model.blob_keys[0]
    damaged.write_bytes(b"damage")
    assert fetch_blobs(store, model.ref, model.blob_keys, ()) is True
    assert store.missing(model.blob_keys) == []


def test_a_damaged_blob_without_a_source_is_an_error_with_all_reasons(store, path):
    model = load_onnx(path)
    fetch_proto(store, model.ref, ())
    (store.blobs / model.blob_keys[0]).write_bytes(b"damage")
    path.unlink()
    with pytest.raises(StoreError) as caught:
        fetch_blobs(store, model.ref, model.blob_keys, ())
    assert caught.value.numbers == {"missing_blobs": 1, "wanted_blobs": 2}
    assert str(path) in caught.value.reason


def test_a_full_disk_is_the_reason_of_the_error(store, path, monkeypatch):
    model = load_onnx(path)
    fetch_proto(store, model.ref, [manifest_of(model)])

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    for supplies in ((), [manifest_of(model)]):
        with pytest.raises(StoreWriteError) as caught:
            fetch_blobs(store, model.ref, model.blob_keys, supplies)
        assert caught.value.option == "onnx.store.directory"
        assert caught.value.reason == os.strerror(28)
        assert caught.value.numbers["needed_bytes"] > 0
        assert "dask-onnx store prune" in caught.value.next_step
        assert not list(store.blobs.iterdir())


def test_a_manifest_lets_one_blob_be_read_by_its_range(store, path, monkeypatch):
    model = load_onnx(path)
    monkeypatch.setattr(supply, "load_onnx", lambda *_, **__: pytest.fail("read it all"))
    assert fetch_proto(store, model.ref, [manifest_of(model)]) == model.proto
    wanted = model.blob_keys[0]
    assert fetch_blobs(store, model.ref, [wanted], [manifest_of(model)]) is True
    assert store.missing(model.blob_keys) == [model.blob_keys[1]]


def test_recorded_places_let_one_blob_be_read_by_its_range(store, path, monkeypatch):
    model = load_onnx(path)
    store.put_proto(model)
    monkeypatch.setattr(supply, "load_onnx", lambda *_, **__: pytest.fail("read it all"))
    assert fetch_proto(store, model.ref, ()) == model.proto
    assert fetch_blobs(store, model.ref, model.blob_keys[:1], ()) is True
    assert store.missing(model.blob_keys) == [model.blob_keys[1]]


def test_ranges_are_read_from_a_url_too(store, path, monkeypatch):
    fsspec.filesystem("memory").pipe("/supply/m.onnx", path.read_bytes())
    model = load_onnx("memory://supply/m.onnx")
    monkeypatch.setattr(supply, "load_onnx", lambda *_, **__: pytest.fail("read it all"))
    fetch_proto(store, model.ref, [manifest_of(model)])
    fetch_blobs(store, model.ref, model.blob_keys, [manifest_of(model)])
    assert all(store.verify(key) for key in model.blob_keys)


def test_view_store_tells_a_file_from_another_under_the_same_name(path):
    source = load_onnx(path).source
    assert view_store(source).sees_file
    assert view_store(source).store == Store().identity
    path.write_bytes(b"another")
    assert not view_store(source).sees_file
    assert not view_store(None).sees_file
