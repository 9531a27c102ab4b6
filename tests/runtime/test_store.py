from __future__ import annotations

import hashlib
import multiprocessing
from dataclasses import replace

import onnx
import pytest
from builders import dense_model

from dask_onnx.errors import StoreError
from dask_onnx.onnx_model import load_onnx
from dask_onnx.runtime.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def path(tmp_path):
    onnx.save(dense_model(hidden=40_000), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_blobs_are_named_by_their_content(store):
    model = load_onnx(dense_model(hidden=40_000))
    store.put(model)
    blobs = list(store.blobs.iterdir())
    assert len(blobs) == 2  # one tensor above a MiB, and the pack of the rest
    for blob in blobs:
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def test_the_folder_is_the_users_own(store):
    store.put(load_onnx(dense_model()))
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_a_model_comes_from_its_file_when_it_is_wanted(store, path):
    model = load_onnx(path)
    assert not store.has(model.token)
    assert store.get(model.ref) == model.proto
    assert store.missing(model.blob_keys) == []


def test_external_data_comes_too(store, tmp_path):
    onnx.save_model(
        dense_model(hidden=40_000),
        tmp_path / "e.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    model = load_onnx(tmp_path / "e.onnx")
    store.get(model.ref)
    assert len(model.blob_keys) == 3
    assert store.missing(model.blob_keys) == []


def test_a_model_that_is_there_needs_its_file_no_more(store, path):
    ref = load_onnx(path).ref
    proto = store.get(ref)
    path.unlink()
    assert store.get(ref) == proto


def test_a_file_that_vanished_is_named(store, path):
    ref = load_onnx(path).ref
    path.unlink()
    with pytest.raises(StoreError, match=r"m\.onnx does not exist"):
        store.get(ref)


def test_a_file_that_changed_is_not_taken_for_the_model(store, path):
    ref = load_onnx(path).ref
    onnx.save(dense_model(hidden=50), path)
    with pytest.raises(StoreError, match="is not the model that was planned"):
        store.get(ref)


def test_a_model_given_as_bytes_elsewhere_cannot_be_found(store):
    with pytest.raises(StoreError, match="on another host"):
        store.get(load_onnx(dense_model()).ref)


def test_a_model_without_its_weights_is_not_put(store):
    model = replace(load_onnx(dense_model(hidden=1000)), blobs={})
    with pytest.raises(StoreError, match="neither in"):
        store.put(model)
    assert not store.has(model.token)


def test_a_damaged_proto_is_found_and_removed(store, path):
    ref = load_onnx(path).ref
    store.get(ref)
    (store.root / "protos" / f"{ref.token}.onnx").write_bytes(b"damage")
    with pytest.raises(StoreError, match="damaged"):
        store.get(ref)
    assert store.get(ref) == load_onnx(path).proto


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be made"):
        Store(tmp_path / "file" / "store").put(load_onnx(dense_model()))


def _get(root, ref):
    Store(root).get(ref)


def test_processes_that_arrive_at_once_leave_one_whole_copy(store, path):
    ref = load_onnx(path).ref
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_get, args=(store.root, ref)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = sorted(blob.name for blob in store.blobs.iterdir())
    assert found == sorted(load_onnx(path).blob_keys)
