from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import dask.config
import numpy as np
import onnx
import pytest
from builders import dense_model

import dask_onnx as dx
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.runtime.session_cache import SESSION_CACHE
from dask_onnx.store.maintenance import (
    evict_above_limit,
    folder_bytes,
    preview_prune,
    prune,
    stored_models,
    verify,
)
from dask_onnx.store.store_files import TEMPORARY
from dask_onnx.store.store_locks import UPKEEP
from dask_onnx.store.weight_store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def put(store, hidden, age):
    """A model in the store that was last used `age` seconds ago."""
    model = load_onnx(dense_model(hidden=hidden))
    store.put(model)
    store.lease(model.token).release()
    when = time.time() - age
    os.utime(store.root / "leases" / model.token, (when, when))
    return model


def test_models_are_listed_least_recently_used_first(store):
    old, new = put(store, 2000, 900), put(store, 3000, 10)
    found = stored_models(store)
    assert [entry.token for entry in found] == [old.token, new.token]
    assert [entry.name for entry in found] == ["dense", "dense"]
    assert found[0].bytes > 2000 * 12 * 4
    assert not found[0].in_use and found[0].missing_blobs == 0


def test_a_model_that_another_process_evicts_meanwhile_is_not_listed(store):
    kept = put(store, 2000, 900)
    # A name in the folder without a file behind it, as a listing sees one that is being removed.
    (store.root / "protos" / "gone.onnx").symlink_to("nothing")
    assert [entry.token for entry in stored_models(store)] == [kept.token]
    assert preview_prune(store, 0).models[0].token == kept.token


def test_prune_removes_the_least_recently_used_model(store):
    old, new = put(store, 2000, 900), put(store, 3000, 10)
    pruned = prune(store, folder_bytes(store.root) - 1)
    assert [entry.token for entry in pruned.models] == [old.token]
    assert [entry.token for entry in stored_models(store)] == [new.token]
    assert store.missing(new.blob_keys) == []
    assert store.missing(old.blob_keys) == list(old.blob_keys)
    assert pruned.freed_bytes > 0 and pruned.kept_bytes == folder_bytes(store.root)


def test_prune_keeps_blobs_that_another_model_uses(store):
    model = dense_model(hidden=2000)
    first = load_onnx(model)
    store.put(first)
    model.graph.node[2].op_type = "Tanh"
    second = load_onnx(model)
    store.put(second)
    assert first.token != second.token and first.blob_keys == second.blob_keys
    prune(store, folder_bytes(store.root) - 1)
    (left,) = stored_models(store)
    assert left.missing_blobs == 0 and store.missing(second.blob_keys) == []


def test_prune_keeps_a_model_that_another_process_uses(store):
    model = put(store, 2000, 900)
    code = "import sys; from dask_onnx.store.weight_store import Store\n"
    code += "lease = Store(sys.argv[1]).lease(sys.argv[2])\n"
    code += "print('held', flush=True); sys.stdin.readline()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), model.token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"held\n"
        pruned = prune(store, 0)
        assert pruned.models == () and pruned.kept_in_use == 1
        assert store.missing(model.blob_keys) == []
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert len(prune(store, 0).models) == 1


def test_prune_keeps_the_model_of_a_session(tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path / "own")}):
        store = Store()
        model = dx.load(dense_model(hidden=2000))
        x = np.ones((2, 8), "f4")
        expected = model(x)
        assert prune(store, 0).kept_in_use == 1
        np.testing.assert_array_equal(model(x), expected)
        SESSION_CACHE.clear()
        assert len(prune(store, 0).models) == 1
        np.testing.assert_array_equal(model(x), expected)  # brought in again


def test_prune_gives_up_while_another_process_reads(store):
    put(store, 2000, 900)
    with store.shared_access():
        assert prune(store, 0, wait_seconds=0.05) is None
    assert len(stored_models(store)) == 1


def test_prune_keeps_models_that_were_used_recently_if_asked(store):
    old, new = put(store, 2000, 900), put(store, 3000, 10)
    pruned = prune(store, 0, unused_seconds=100, now=time.time())
    assert [entry.token for entry in pruned.models] == [old.token]
    assert [entry.token for entry in stored_models(store)] == [new.token]


def test_prune_removes_leftovers_of_a_killed_process(store):
    model = put(store, 2000, 0)
    (store.blobs / f"{TEMPORARY}abc").write_bytes(b"half")
    (store.blobs / ("0" * 64)).write_bytes(b"of no model")
    prune(store, 10**9)
    assert sorted(path.name for path in store.blobs.iterdir()) == sorted(model.blob_keys)


def test_models_above_the_limit_are_evicted_when_another_arrives(tmp_path):
    settings = {"onnx.store.directory": str(tmp_path / "own")}
    with dask.config.set(settings):
        for hidden in (20_000, 30_000):
            path = tmp_path / f"{hidden}.onnx"
            onnx.save(dense_model(hidden=hidden), path)
            with dask.config.set({"onnx.store.max-bytes": 2_000_000}):
                dx.load(path)(np.ones((1, 8), "f4"))
            SESSION_CACHE.clear()
        evict_above_limit(Store())
        (left,) = stored_models(Store())
        assert left.token == dx.load(path).token


def test_verify_removes_a_damaged_blob(store):
    model = put(store, 40_000, 0)
    assert verify(store).damaged == ()
    damaged = store.blobs / model.blob_keys[0]
    data = bytearray(damaged.read_bytes())
    data[7] ^= 1
    damaged.write_bytes(data)
    found = verify(store)
    assert found.damaged == (damaged.name,) and found.blobs == 2
    assert not damaged.exists()
    assert verify(store).blobs == 1


def test_an_empty_store_has_no_models(store):
    assert stored_models(store) == []
    assert prune(store, 0).freed_bytes == 0


def test_a_preview_is_what_a_prune_removes(store):
    put(store, 2_000, age=10)
    put(store, 3_000, age=5)
    (store.blobs / "leftover").write_bytes(b"x" * 100)
    preview = preview_prune(store, 0)
    assert len(preview.models) == 2 and len(stored_models(store)) == 2
    assert prune(store, 0) == preview
    assert stored_models(store) == []


def test_prune_removes_the_locks_and_records_of_models_that_are_gone(store):
    model = put(store, 2000, 900)
    with store.lock("part-x"):
        pass
    gone = store.root / "leases" / "gone"
    store.lease("gone").release()
    (store.root / "places" / "gone.json").parent.mkdir(exist_ok=True)
    (store.root / "places" / "gone.json").write_text("{}")
    assert prune(store, folder_bytes(store.root)).models == ()
    assert [path.name for path in (store.root / "locks").iterdir()] == [UPKEEP]
    assert not gone.exists() and not (store.root / "places" / "gone.json").exists()
    assert (store.root / "leases" / model.token).exists()
    assert len(prune(store, 0).models) == 1
    left = [path for path in store.root.rglob("*") if path.is_file() and path.name != UPKEEP]
    assert left == []


def test_a_held_lock_keeps_its_file_and_the_store_from_a_prune(store):
    put(store, 2000, 900)
    with store.lock("m"):
        assert prune(store, 0, wait_seconds=0.05) is None
        assert (store.root / "locks" / "m").exists()
    assert len(prune(store, 0).models) == 1


def hold_in_turns(root, name, path, turns):
    """Add 1 to the number in a file, under a lock of the store, some times."""
    for _ in range(turns):
        with Store(root).lock(name):
            path.write_text(str(int(path.read_text()) + 1))


def test_no_two_processes_hold_a_lock_whose_file_is_removed_meanwhile(store, tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=hold_in_turns, args=(store.root, "m", path, 40)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        prune(store, 0, wait_seconds=0.01)
    assert [process.exitcode for process in processes] == [0, 0]
    assert path.read_text() == "80"


def test_a_lock_that_is_held_for_too_long_is_an_error(store):
    with (
        store.lock("m"),
        pytest.raises(dx.StoreError) as caught,
        store.lock("m", seconds=0.05),
    ):
        pass
    assert caught.value.numbers == {"waited_seconds": 0.05}
