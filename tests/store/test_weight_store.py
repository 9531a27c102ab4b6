from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from builders import dense_model

from dask_onnx.core.errors import ModelError, StoreError
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store import weight_store as store_module
from dask_onnx.store.store_files import TEMPORARY, StoreWriteError
from dask_onnx.store.weight_store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def model():
    return load_onnx(dense_model(hidden=40_000))


def flip(path):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_blobs_are_named_by_their_content(store, model):
    store.put(model)
    blobs = list(store.blobs.iterdir())
    assert len(blobs) == 2  # one tensor above a MiB, and the pack of the rest
    for blob in blobs:
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def test_the_folder_is_private_to_the_user(store, model):
    store.put(model)
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_is_refused(store, model):
    store.root.mkdir(mode=0o700)
    store.root.chmod(0o777)
    with pytest.raises(StoreError) as caught:
        store.put(model)
    assert caught.value.numbers == {"mode": 0o777}
    assert caught.value.option == "onnx.store.directory"


def test_a_folder_of_another_user_is_refused(store, model, monkeypatch):
    store.put(model)
    monkeypatch.setattr(os, "geteuid", lambda: store.root.stat().st_uid + 1)
    with pytest.raises(StoreError) as caught:
        store.put(load_onnx(dense_model()))
    owner = store.root.stat().st_uid
    assert caught.value.numbers == {"owner_uid": owner, "own_uid": owner + 1}


def test_a_model_without_its_weights_is_not_put(store, model):
    with pytest.raises(ModelError, match="unpickled on another host"):
        store.put(replace(model, blobs={}))
    assert not store.has(model.token)


def test_a_damaged_proto_is_removed(store, model):
    store.put(model)
    flip(store.proto_path(model.token))
    assert store.proto(model.token) is None
    assert not store.has(model.token)


def test_a_flipped_bit_is_found_and_the_blob_removed(store, model):
    store.put(model)
    assert store.missing(model.blob_keys) == []
    damaged = model.blob_keys[0]
    flip(store.blobs / damaged)
    assert store.missing(model.blob_keys) == [damaged]
    assert not (store.blobs / damaged).exists()
    store.put(model)
    assert store.missing(model.blob_keys) == []


def test_a_flipped_bit_with_the_old_modification_time_is_found(store, model):
    store.put(model)
    path = store.blobs / model.blob_keys[0]
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.missing(model.blob_keys) == [path.name]


def test_another_file_with_a_blobs_name_is_refused(store, model):
    store.put(model)
    path = store.blobs / model.blob_keys[0]
    path.unlink()
    path.write_bytes(b"not these")
    assert store.missing(model.blob_keys) == [path.name]


def test_a_checked_blob_is_not_read_again(store, model, monkeypatch):
    store.put(model)
    monkeypatch.setattr(store_module, "digest_of", lambda path: pytest.fail(f"read {path}"))
    assert store.missing(model.blob_keys) == []


def test_bytes_with_another_digest_are_not_written(store, model):
    with pytest.raises(StoreError, match="have the digest"):
        store.write_blob(model.blob_keys[0], b"other")
    assert not store.blobs.exists() or not list(store.blobs.iterdir())


def test_a_blob_may_arrive_in_parts_in_any_order(store):
    data = os.urandom(1000)
    key = hashlib.sha256(data).hexdigest()
    for start, stop in ((600, 1000), (0, 300), (600, 1000)):
        store.write_part(key, start, data[start:stop], len(data))
        assert store.missing([key]) == [key]
    store.write_part(key, 300, memoryview(data)[300:600], len(data))
    assert store.missing([key]) == []
    assert (store.blobs / key).read_bytes() == data
    assert not list((store.root / "incoming").iterdir())


def test_parts_of_a_blob_with_another_digest_are_removed(store):
    key = hashlib.sha256(b"promised").hexdigest()
    store.write_part(key, 0, b"some", 8)
    with pytest.raises(StoreError, match="have the digest"):
        store.write_part(key, 4, b"else", 8)
    assert store.missing([key]) == [key]
    assert not list((store.root / "incoming").iterdir())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, model):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "file" / "store").put(model)
    assert caught.value.reason == os.strerror(errno.ENOTDIR)


def _put(root, barrier):
    barrier.wait()
    Store(root).put(load_onnx(dense_model(hidden=40_000)))


def test_ten_processes_at_once_leave_one_whole_copy(store, model):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(10)
    processes = [context.Process(target=_put, args=(store.root, barrier)) for _ in range(10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(blob.name for blob in store.blobs.iterdir()) == sorted(model.blob_keys)
    assert all(store.verify(key) for key in model.blob_keys)


_WRITE_AND_PAUSE = """
import os, sys
from dask_onnx.store import weight_store as module
real, pause = os.fsync, iter(range(10**6))
def fsync(descriptor):
    real(descriptor)
    print("written", flush=True)
    sys.stdin.readline()
os.fsync = fsync
module.Store(sys.argv[1]).write_blob(sys.argv[2], b"x" * 2_000_000)
"""


def test_a_process_killed_while_writing_leaves_no_file_with_a_final_name(store):
    data = b"x" * 2_000_000
    key = hashlib.sha256(data).hexdigest()
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITE_AND_PAUSE, str(store.root), key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"written\n"  # in a temporary file, not renamed yet
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert [path.name[: len(TEMPORARY)] for path in store.blobs.iterdir()] == [TEMPORARY]
    assert store.missing([key]) == [key]
    store.write_blob(key, data)
    assert store.missing([key]) == []


def test_a_lock_whose_holder_was_killed_is_free(store):
    code = "import sys, time; from dask_onnx.store.weight_store import Store\n"
    code += "with Store(sys.argv[1]).lock('m'):\n print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    process.kill()
    process.wait()
    process.stdout.close()
    with store.lock("m", seconds=5):
        pass


def test_a_write_to_a_full_disk_leaves_nothing(store, model, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreWriteError) as caught:
        store.put(model)
    assert caught.value.reason == os.strerror(errno.ENOSPC)
    assert set(caught.value.numbers) == {"needed_bytes", "free_bytes"}
    assert "dask-onnx store prune" in caught.value.next_step
    assert not list(store.blobs.iterdir())


def test_stores_in_the_same_folder_have_the_same_identity(store, tmp_path):
    assert Store(store.root).identity == store.identity
    assert Store(tmp_path / "other").identity != store.identity


def test_access_is_not_exclusive_while_another_reads(store):
    with store.shared_access():
        with store.shared_access():
            pass
        with store.exclusive_access(0) as is_exclusive:
            assert not is_exclusive
    with store.exclusive_access(0) as is_exclusive:
        assert is_exclusive


def test_readers_wait_while_access_is_exclusive(store):
    entered = []

    def read():
        with store.shared_access():
            entered.append(time.monotonic())

    with store.exclusive_access(0):
        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.1)
        assert entered == []
    thread.join()
    assert len(entered) == 1


def test_measurements_are_kept_in_private_files(store):
    assert store.measurement("m") is None
    store.save_measurement("m", {"rows": 8})
    assert store.measurement("m") == {"rows": 8}
    mode = (store.root / "measured" / "m.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
