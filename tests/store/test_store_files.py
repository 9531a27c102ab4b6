from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from builders import layers_model

from dask_onnx.core.errors import StoreError
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store.store_files import TEMPORARY, covers, write_file
from dask_onnx.store.weight_store import Store


@pytest.mark.parametrize(
    ("parts", "is_covered"),
    [
        ("0 10\n", True),
        ("6 4\n0 3\n3 3\n", True),
        ("0 6\n4 6\n", True),
        ("0 3\n6 4\n", False),
        ("0 9\n", False),
        ("", False),
    ],
    ids=["whole", "any order", "overlap", "gap", "too short", "nothing"],
)
def test_parts_cover_a_file_without_gaps(parts, is_covered):
    assert covers(parts, 10) == is_covered


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    root = tmp_path / "store"
    for data in (b"old", b"new"):
        write_file(root, root / "folder" / "file", data)
    assert (root / "folder" / "file").read_bytes() == b"new"
    assert not list(root.rglob(f"{TEMPORARY}*"))


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_folders_and_files_of_a_store_are_private_under_any_umask(tmp_path):
    root = tmp_path / "store"
    before = os.umask(0)
    try:
        store = Store(root)
        store.put(load_onnx(layers_model([64, 64], width=64)))
        store.save_measurement("speed", {})
        with store.shared_access(), store.lock("name"):
            pass
        store.lease("token").release()
    finally:
        os.umask(before)
    assert mode_of(root) == 0o700
    found = list(root.rglob("*"))
    assert {mode_of(path) for path in found if path.is_dir()} == {0o700}
    assert {mode_of(path) for path in found if path.is_file()} == {0o600}


def make_link(root, target):
    root.symlink_to(target, target_is_directory=True)


def make_dangling_link(root, target):
    root.symlink_to(target / "nowhere")


def make_file(root, target):
    root.write_bytes(b"")


@pytest.mark.parametrize("make", [make_link, make_dangling_link, make_file])
def test_a_store_that_is_no_folder_of_its_own_is_refused(tmp_path, make):
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    make(tmp_path / "store", target)
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "store")
    assert caught.value.option == "onnx.store.directory"
    assert caught.value.reason == ("no folder" if make is make_file else "a link")
    assert list(target.iterdir()) == []


def use(store, model):
    store.put(model)
    store.lease(model.token)
    store.save_measurement("speed", {})


@pytest.mark.parametrize("name", ["blobs", "protos", "locks", "leases", "checksums", "measured"])
def test_links_among_the_folders_of_a_store_are_refused(tmp_path, name):
    target = tmp_path / "target"
    target.mkdir()
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    (root / name).symlink_to(target)
    store, model = Store(root), load_onnx(layers_model([64, 64], width=64))
    with pytest.raises(StoreError) as caught:
        use(store, model)
    assert caught.value.reason == "a link"
    assert list(target.iterdir()) == []


def test_a_blob_that_is_a_link_is_removed_and_written_anew(tmp_path):
    store, model = Store(tmp_path / "store"), load_onnx(layers_model([64, 64], width=64))
    store.put(model)
    (blob,) = store.blobs.iterdir()
    elsewhere = tmp_path / "elsewhere"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)
    assert store.missing(model.blob_keys) == list(model.blob_keys)
    store.put(model)
    assert not blob.is_symlink() and elsewhere.exists()
    assert blob.read_bytes() == elsewhere.read_bytes()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_store_that_others_can_write_to_is_refused(tmp_path, mode):
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(StoreError) as caught:
        Store(root)
    assert caught.value.numbers == {"mode": mode}


def test_the_store_of_another_user_is_refused_even_for_reading(tmp_path, monkeypatch):
    root = tmp_path / "store"
    Store(root).save_measurement("speed", {"flops": 1})
    monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
    with pytest.raises(StoreError) as caught:
        Store(root).measurement("speed")
    assert caught.value.numbers["owner_uid"] == root.stat().st_uid


def in_child(function):
    """Return what a function returns in a forked process, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing"
        try:
            text = function()
        except BaseException as error:  # the child must never return into the test
            text = f"{type(error).__name__} {getattr(error, 'option', '')}"
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as file:
        return file.read()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_two_users_of_a_host_keep_apart(tmp_path):
    """Needs the right to change the user; without it the test above covers the case."""
    if os.geteuid() != 0:
        assert tmp_path.stat().st_uid == os.geteuid()
        return
    shared = Path(tempfile.mkdtemp())
    shared.chmod(0o1777)
    try:
        root = shared / "store"
        store, model = Store(root), load_onnx(layers_model([64, 64], width=64))
        store.put(model)

        def as_other(directory):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            other = Store(directory)
            other.put(model)
            return f"wrote {len(other.missing(model.blob_keys))} missing"

        assert in_child(lambda: as_other(root)) == "StoreError onnx.store.directory"
        assert in_child(lambda: as_other(shared / "own")) == "wrote 0 missing"
        with pytest.raises(StoreError) as caught:  # root could read it, and must not believe it
            Store(shared / "own").has(model.token)
        assert caught.value.numbers["owner_uid"] == 65534
    finally:
        shutil.rmtree(shared)
