"""Files of finished chunks: written whole or not at all, and never believed when damaged."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dask_onnx as dx
from dask_onnx.io.kept_chunks import (
    MISSING,
    checkpoint_folder,
    open_checkpoint,
    stored_manifest,
)
from dask_onnx.io.run_manifest import RunManifest


def manifest(model="m", **others):
    return RunManifest(kind="arrays", model=model, options=others, inputs={"x": "token"})


@pytest.fixture(params=["path", "url"])
def folder(request, tmp_path):
    return str(tmp_path / "kept") if request.param == "path" else f"memory://{tmp_path.name}/kept"


VALUES = {
    "numbers": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "texts": np.array(["a", None, "b"], dtype=object),
    "halves": np.array([1.5, np.nan], np.float16),
    "frame": pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}, index=["p", "q"]),
    "rows": [np.ones(3), {"label": "cat"}, None],
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_chunk_is_read_as_it_was_written(folder, kind):
    store = open_checkpoint(folder, manifest())
    assert store.read(kind) is MISSING and not store.complete()
    store.write(kind, VALUES[kind])
    again = pickle.loads(pickle.dumps(store))
    assert again.complete() == {kind}
    found = again.read(kind)
    assert type(found) is type(VALUES[kind])
    if kind == "frame":
        pd.testing.assert_frame_equal(found, VALUES[kind])
    else:
        assert pickle.dumps(found) == pickle.dumps(VALUES[kind])


def test_opening_writes_nothing(tmp_path):
    open_checkpoint(str(tmp_path / "kept"), manifest())
    assert not list(tmp_path.iterdir())


def only_chunk(folder):
    (path,) = Path(folder).glob("chunks.*/*")
    return path


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:5]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped bit": flip,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_chunk_counts_as_missing(tmp_path, kind):
    folder = str(tmp_path / "kept")
    store = open_checkpoint(folder, manifest())
    store.write("00-000000", np.arange(9.0))
    DAMAGE[kind](only_chunk(folder))
    assert store.read("00-000000") is MISSING
    # A listing sees lengths only.
    assert store.complete() == ({"00-000000"} if kind == "flipped bit" else frozenset())


def test_another_prediction_is_refused_with_what_differs(folder):
    open_checkpoint(folder, manifest(outputs=["y"])).write("00-000000", np.zeros(2))
    with pytest.raises(dx.InputError) as caught:
        open_checkpoint(folder, manifest("other", outputs=["z"]))
    assert caught.value.option == "checkpoint"
    assert caught.value.numbers["differences"] == 2
    assert "outputs" in caught.value.reason and "other" in caught.value.reason


def test_tasks_of_another_prediction_are_refused_too(folder):
    first = open_checkpoint(folder, manifest("first"))
    second = open_checkpoint(folder, manifest("second"))  # nothing was there yet
    first.write("00-000000", np.zeros(2))
    with pytest.raises(dx.InputError) as caught:
        second.write("00-000000", np.ones(2))
    assert caught.value.option == "checkpoint"
    np.testing.assert_array_equal(first.read("00-000000"), np.zeros(2))
    assert second.read("00-000000") is MISSING


def test_a_folder_without_chunks_may_be_taken_by_another_prediction(folder):
    store = open_checkpoint(folder, manifest("first"))
    store.write("00-000000", np.zeros(2))
    if "://" not in folder:
        shutil.rmtree(folder)
        assert stored_manifest(folder) is None
        open_checkpoint(folder, manifest("second")).write("00-000000", np.ones(2))
        assert stored_manifest(folder).model == "second"


def test_chunks_are_written_after_somebody_has_removed_the_folder(tmp_path):
    folder = str(tmp_path / "kept")
    store = open_checkpoint(folder, manifest())
    store.write("00-000000", np.zeros(2))
    shutil.rmtree(folder)
    store.write("00-000001", np.ones(2))
    assert store.complete() == {"00-000001"}


def test_a_file_that_cannot_be_written_is_no_chunk(tmp_path, monkeypatch):
    folder = str(tmp_path / "kept")
    store = open_checkpoint(folder, manifest())
    store.write("00-000000", np.zeros(2))

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(dx.OutputError) as caught:
        store.write("00-000001", np.ones(2))
    monkeypatch.undo()
    assert caught.value.option == "checkpoint" and "free_bytes" in caught.value.numbers
    assert [path.name for path in Path(folder).glob("chunks.*/*")] == ["00-000000"]
    assert store.complete() == {"00-000000"}


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(dx.InputError) as caught:
        open_checkpoint(str(tmp_path), manifest())
    assert caught.value.option == "checkpoint" and caught.value.numbers["foreign_files"] == 1


def test_a_damaged_manifest_is_an_error_of_the_checkpoint(tmp_path):
    folder = str(tmp_path / "kept")
    open_checkpoint(folder, manifest()).write("00-000000", np.zeros(2))
    (tmp_path / "kept" / "journal" / "manifest.json").write_text("{")
    with pytest.raises(dx.InputError) as caught:
        open_checkpoint(folder, manifest())
    assert caught.value.option == "checkpoint"


@pytest.mark.parametrize(
    "value",
    ["", "  ", 3, b"run", ["run"], "http://host/run", "nosuch://run", "/no/such/folder/run"],
)
def test_nonsense_is_refused(value):
    with pytest.raises(dx.InputError) as caught:
        checkpoint_folder(value)
    assert caught.value.option == "checkpoint"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(dx.InputError) as caught:
        checkpoint_folder(tmp_path / "x.npy")
    assert caught.value.option == "checkpoint"


def test_urls_of_local_files_are_paths(tmp_path):
    assert checkpoint_folder(f"file://{tmp_path}/run") == str(tmp_path / "run")
    assert checkpoint_folder(tmp_path / "run") == str(tmp_path / "run")
    assert checkpoint_folder("memory://a/run/") == "memory://a/run"
