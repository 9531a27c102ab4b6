from __future__ import annotations

import pickle
from types import SimpleNamespace

import onnx
import pytest
from builders import dense_model

from dask_onnx.core.errors import StoreError
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store import weight_parts
from dask_onnx.store.weight_parts import BlobRange, WeightPart, read_task_ranges, store_weight_part
from dask_onnx.store.weight_store import Store


@pytest.fixture
def path(tmp_path):
    onnx.save(dense_model(hidden=40_000), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_part_reads_its_weights_when_it_is_pickled(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    blob_range = BlobRange(key, 8, 100, model.places[key].length)
    part = WeightPart((blob_range,), model)
    sent = pickle.loads(pickle.dumps(part, protocol=5))
    expected = model.blob_bytes(key)[8:108]
    assert bytes(sent.checked()[0]) == expected
    again = pickle.loads(pickle.dumps(sent, protocol=5))  # from the scheduler to a worker
    assert bytes(again.checked()[0]) == expected


def test_a_part_that_was_damaged_in_transfer_is_refused(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    sent = pickle.loads(pickle.dumps(WeightPart((BlobRange(key, 0, 64, 64),), model), protocol=5))
    damaged = WeightPart(sent.ranges, None, [b"\0" * 64], sent._digests)
    with pytest.raises(StoreError) as caught:
        damaged.checked()
    assert caught.value.numbers == {"offset_bytes": 0, "length_bytes": 64}


def test_a_worker_without_a_blob_returns_none(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    Store().put(model)
    (data,) = weight_parts._read_blob_ranges((BlobRange(key, 8, 100, 0),))
    assert data == model.blob_bytes(key)[8:108]
    assert weight_parts._read_blob_ranges((BlobRange("0" * 64, 0, 1, 1),)) is None


def test_a_task_writes_its_part_to_the_store(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    (Store().blobs / key).unlink(missing_ok=True)
    whole = BlobRange(key, 0, model.places[key].length, model.places[key].length)
    stored = store_weight_part("task", WeightPart((whole,), model))
    assert (stored.key, stored.ranges, stored.holder) == ("task", (whole,), None)
    assert Store().missing([key]) == []


def test_the_scheduler_returns_ranges_of_a_task_it_has(path):
    model = load_onnx(path)
    key = model.blob_keys[0]
    known, unknown = BlobRange(key, 0, 64, 64), BlobRange(key, 64, 64, 128)
    task = SimpleNamespace(run_spec=SimpleNamespace(args=("key", WeightPart((known,), model))))
    scheduler = SimpleNamespace(tasks={"task": task})
    (data,) = read_task_ranges("task", (known,), dask_scheduler=scheduler)
    assert data == model.blob_bytes(key)[:64]
    assert read_task_ranges("task", (unknown,), dask_scheduler=scheduler) is None
    assert read_task_ranges("other", (known,), dask_scheduler=scheduler) is None
