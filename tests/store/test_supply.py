from __future__ import annotations

import os
import pickle

import fsspec
import onnx
import pytest
from builders import dense_model

from dask_onnx.core.errors import StoreError
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store import supply
from dask_onnx.store.supply import Manifest, Piece, Segment, fetch_blobs, fetch_proto, look
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


def test_a_model_comes_from_its_file_when_it_is_wanted(store, path):
    model = load_onnx(path)
    assert not store.has(model.token)
    assert fetch_proto(store, model.ref, ()) == model.proto
    assert fetch_blobs(store, model.ref, model.blob_keys, ()) is False  # they came with it
    assert store.lacking(model.blob_keys) == []


def test_external_data_comes_too(store, tmp_path):
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
    assert store.lacking(model.blob_keys) == []


def test_a_model_that_is_there_needs_its_file_no_more(store, path):
    ref = load_onnx(path).ref
    proto = fetch_proto(store, ref, ())
    path.unlink()
    assert fetch_proto(store, ref, ()) == proto


def test_a_file_that_vanished_is_named(store, path):
    ref = load_onnx(path).ref
    path.unlink()
    with pytest.raises(StoreError, match=r"m\.onnx does not exist"):
        fetch_proto(store, ref, ())


def test_a_file_that_changed_is_not_taken_for_the_model(store, path):
    ref = load_onnx(path).ref
    onnx.save(dense_model(hidden=50), path)
    with pytest.raises(StoreError, match="is not the model that was planned"):
        fetch_proto(store, ref, ())


def test_a_model_given_as_bytes_elsewhere_cannot_be_found(store):
    with pytest.raises(StoreError, match="on another host"):
        fetch_proto(store, load_onnx(dense_model()).ref, ())


def test_a_damaged_blob_is_fetched_again(store, path):
    model = load_onnx(path)
    fetch_proto(store, model.ref, ())
    damaged = store.blobs / model.blob_keys[0]
    damaged.write_bytes(b"damage")
    assert fetch_blobs(store, model.ref, model.blob_keys, ()) is True
    assert store.lacking(model.blob_keys) == []


def test_a_damaged_blob_that_nobody_has_is_an_error_that_names_the_ways(store, path):
    model = load_onnx(path)
    fetch_proto(store, model.ref, ())
    (store.blobs / model.blob_keys[0]).write_bytes(b"damage")
    path.unlink()
    with pytest.raises(StoreError, match=r"1 of 2 weight blobs .*m\.onnx does not exist"):
        fetch_blobs(store, model.ref, model.blob_keys, ())


def test_a_full_disk_is_what_the_error_is_about(store, path, monkeypatch):
    model = load_onnx(path)
    fetch_proto(store, model.ref, [manifest_of(model)])

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    for supplies in ((), [manifest_of(model)]):
        with pytest.raises(StoreError, match="No space left on device") as caught:
            fetch_blobs(store, model.ref, model.blob_keys, supplies)
        assert "dask-onnx store prune" in caught.value.next_step
        assert not list(store.blobs.iterdir())


def test_a_manifest_lets_one_blob_be_read_by_its_range(store, path, monkeypatch):
    model = load_onnx(path)
    monkeypatch.setattr(supply, "load_onnx", lambda *_, **__: pytest.fail("read it all"))
    assert fetch_proto(store, model.ref, [manifest_of(model)]) == model.proto
    wanted = model.blob_keys[0]
    assert fetch_blobs(store, model.ref, [wanted], [manifest_of(model)]) is True
    assert store.lacking(model.blob_keys) == [model.blob_keys[1]]


def test_places_that_the_client_noted_spare_reading_the_file_whole(store, path, monkeypatch):
    model = load_onnx(path)
    store.note_places(model)
    monkeypatch.setattr(supply, "load_onnx", lambda *_, **__: pytest.fail("read it all"))
    assert fetch_proto(store, model.ref, ()) == model.proto
    assert fetch_blobs(store, model.ref, model.blob_keys[:1], ()) is True
    assert store.lacking(model.blob_keys) == [model.blob_keys[1]]


def test_ranges_are_read_from_a_url_too(store, path, monkeypatch):
    fsspec.filesystem("memory").pipe("/supply/m.onnx", path.read_bytes())
    model = load_onnx("memory://supply/m.onnx")
    monkeypatch.setattr(supply, "load_onnx", lambda *_, **__: pytest.fail("read it all"))
    fetch_proto(store, model.ref, [manifest_of(model)])
    fetch_blobs(store, model.ref, model.blob_keys, [manifest_of(model)])
    assert all(store.verify(key) for key in model.blob_keys)


def test_a_piece_reads_its_weights_when_it_is_sent(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    segment = Segment(key, 8, 100, model.places[key].length)
    piece = Piece((segment,), model)
    sent = pickle.loads(pickle.dumps(piece, protocol=5))
    expected = model.blob_bytes(key)[8:108]
    assert bytes(sent.checked()[0]) == expected
    again = pickle.loads(pickle.dumps(sent, protocol=5))  # from the scheduler to a worker
    assert bytes(again.checked()[0]) == expected


def test_a_piece_that_was_damaged_on_its_way_is_refused(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    sent = pickle.loads(pickle.dumps(Piece((Segment(key, 0, 64, 64),), model), protocol=5))
    damaged = Piece(sent.segments, None, [b"\0" * 64], sent._digests)
    with pytest.raises(StoreError, match="were damaged on their way"):
        damaged.checked()


def test_a_worker_that_lacks_a_blob_says_so(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    Store().put(model)
    (part,) = supply._read_segments((Segment(key, 8, 100, 0),))
    assert part == model.blob_bytes(key)[8:108]
    assert supply._read_segments((Segment("0" * 64, 0, 1, 1),)) is None


def test_look_tells_a_file_from_another_under_the_same_name(path):
    source = load_onnx(path).source
    assert look(source).sees_file
    assert look(source).store == Store().identity
    path.write_bytes(b"another")
    assert not look(source).sees_file
    assert not look(None).sees_file
