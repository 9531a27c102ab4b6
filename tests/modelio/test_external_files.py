"""External data in hub caches and behind links."""

from __future__ import annotations

import hashlib
import os
import shutil

import numpy as np
import onnx
import pytest
from builders import dense_model

import dask_onnx as dx
from dask_onnx.core.errors import ModelError

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def saved(tmp_path):
    """Return a folder with model.onnx and its external data, model.onnx_data."""
    folder = tmp_path / "saved"
    folder.mkdir()
    onnx.save_model(
        dense_model(hidden=512),
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=1024,
    )
    return folder


@pytest.fixture
def repository(tmp_path, saved):
    """Return a repository in a hub cache: blobs, refs, and links to blobs in a snapshot."""
    repository = tmp_path / "models--acme--tiny"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    for path in ("model.onnx", "model.onnx_data", "onnx/model.onnx", "onnx/model.onnx_data"):
        blob = repository / "blobs" / blob_name(path)
        shutil.copy(saved / path.rpartition("/")[2], blob)
        link(repository / "snapshots" / REVISION / path, blob)
    return repository


def blob_name(path):
    return hashlib.sha256(path.encode()).hexdigest()


def link(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(target, place.parent))


@pytest.mark.parametrize("path", ["model.onnx", "onnx/model.onnx"])
def test_a_snapshot_of_a_hub_cache_is_loaded(repository, path):
    model = dx.load(repository / "snapshots" / REVISION / path)
    np.testing.assert_array_equal(model.predict(X), dx.load(dense_model(hidden=512)).predict(X))
    assert model.name == "tiny"


def test_a_blob_of_a_hub_cache_names_the_snapshots(repository):
    with pytest.raises(ModelError) as raised:
        dx.load(repository / "blobs" / blob_name("model.onnx"))
    assert str(repository / "snapshots") in raised.value.next_step


def outside(tmp_path, saved, repository):
    """Yield what a link to data may lead to, and must not."""
    other = tmp_path / "models--acme--other" / "blobs" / "b"
    other.parent.mkdir(parents=True)
    shutil.copy(saved / "model.onnx_data", other)
    return {
        "a file elsewhere": saved / "model.onnx_data",
        "another repository": other,
        "a ref": repository / "refs" / "main",
    }


@pytest.mark.parametrize("target", ["a file elsewhere", "another repository", "a ref"])
def test_links_that_leave_the_cache_are_refused(tmp_path, saved, repository, target):
    folder = repository / "snapshots" / REVISION / "evil"
    folder.mkdir()
    shutil.copy(saved / "model.onnx", folder)
    link(folder / "model.onnx_data", outside(tmp_path, saved, repository)[target])
    with pytest.raises(ModelError, match="outside the model's folder") as raised:
        dx.load(folder / "model.onnx")
    assert raised.value.input == "W1"


def test_a_folder_of_blobs_that_is_a_link_is_no_cache(tmp_path, saved):
    snapshot = tmp_path / "models--evil--evil" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").symlink_to(saved)
    shutil.copy(saved / "model.onnx", snapshot)
    (snapshot / "model.onnx_data").symlink_to(snapshot.parents[1] / "blobs" / "model.onnx_data")
    with pytest.raises(ModelError, match="outside the model's folder"):
        dx.load(snapshot / "model.onnx")


def test_a_link_out_of_a_plain_folder_is_refused(tmp_path, saved):
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(saved / "model.onnx", folder)
    (folder / "model.onnx_data").symlink_to(saved / "model.onnx_data")
    with pytest.raises(ModelError, match="outside the model's folder"):
        dx.load(folder / "model.onnx")


def test_data_are_found_where_a_link_to_the_model_leads(tmp_path, saved):
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "mine.onnx").symlink_to(saved / "model.onnx")
    model = dx.load(folder / "mine.onnx")
    assert model.name == "mine"
    assert model.predict(X).shape == (3, 4)
    # Data beside the link go first.
    shutil.copy(saved / "model.onnx_data", folder)
    (saved / "model.onnx_data").unlink()
    assert dx.load(folder / "mine.onnx").predict(X).shape == (3, 4)


def test_a_link_inside_the_folder_is_followed(tmp_path, saved):
    (saved / "data").mkdir()
    (saved / "model.onnx_data").rename(saved / "data" / "weights")
    (saved / "model.onnx_data").symlink_to("data/weights")
    assert dx.load(saved / "model.onnx").predict(X).shape == (3, 4)


def test_a_link_to_a_snapshots_folder_is_in_the_cache(tmp_path, repository):
    (tmp_path / "latest").symlink_to(repository / "snapshots" / REVISION)
    model = dx.load(tmp_path / "latest" / "onnx" / "model.onnx")
    np.testing.assert_array_equal(model.predict(X), dx.load(dense_model(hidden=512)).predict(X))


def test_a_link_to_a_snapshots_model_finds_the_data_beside_it(tmp_path, repository):
    (tmp_path / "first.onnx").symlink_to(repository / "snapshots" / REVISION / "model.onnx")
    (tmp_path / "second.onnx").symlink_to("first.onnx")
    model = dx.load(tmp_path / "second.onnx")
    np.testing.assert_array_equal(model.predict(X), dx.load(dense_model(hidden=512)).predict(X))


def test_external_data_that_are_a_pointer_of_git_lfs_say_so(saved):
    (saved / "model.onnx_data").write_text("version https://git-lfs.github.com/spec/v1\noid sha\n")
    with pytest.raises(ModelError) as raised:
        dx.load(saved / "model.onnx")
    assert "git lfs pull" in raised.value.next_step
    assert raised.value.numbers["file_bytes"] < raised.value.numbers["needed_bytes"]
