"""Outputs: files of others, the final swap, and errors of the disk."""

from __future__ import annotations

import errno
import json
import pickle
import re
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import zarr

from dask_onnx.core.errors import InputError, OutputError
from dask_onnx.io.output_formats import open_sink
from dask_onnx.io.output_places import check_target
from dask_onnx.io.picture_folder import open_picture_folder
from dask_onnx.io.sinks import OutputSpec
from dask_onnx.io.targets import (
    MARKER,
    RUN_NAME,
    explained_writes,
    foreign_files,
    new_run_name,
)

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)
SPEC = OutputSpec("y", ROWS.dtype, (2,))


def write(target, rows=ROWS, *, overwrite=False, finish=True):
    sink = open_sink(str(target), overwrite=overwrite)
    sink.prepare(len(rows), len(rows), (SPEC,))
    sink.write(0, 0, len(rows), {"y": rows})
    if finish:
        sink.finish()
    return sink


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["y.npy", "y.parquet", "y.zarr", "y.jsonl"])
def test_an_output_is_replaced_when_the_new_one_is_complete(tmp_path, name):
    target = tmp_path / name
    write(target)
    before = {path: path.read_bytes() for path in [target, *target.rglob("*")] if path.is_file()}
    open_again = write(target, ROWS[:2] + 1, overwrite=True, finish=False)
    assert all(path.read_bytes() == content for path, content in before.items())
    open_again.discard()
    assert all(path.read_bytes() == content for path, content in before.items())
    write(target, ROWS[:2] + 1, overwrite=True)
    assert any(path.read_bytes() != content for path, content in before.items() if path.exists())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["y.parquet", "y.zarr"])
def test_a_folder_with_files_of_others_is_not_replaced(tmp_path, name):
    target = tmp_path / name
    write(target)
    (target / "notes.txt").write_text("mine")
    before = files_of(target)
    with pytest.raises(InputError) as raised:
        open_sink(str(target), overwrite=True)
    assert raised.value.option == "overwrite" and raised.value.numbers == {"foreign_files": 1}
    assert "notes.txt" in raised.value.cause
    assert files_of(target) == before


def test_files_of_others_that_appear_meanwhile_survive(tmp_path):
    target = tmp_path / "y.parquet"
    write(target)
    sink = write(target, overwrite=True, finish=False)
    (target / "sub").mkdir()
    (target / "sub" / "notes.txt").write_text("mine")
    sink.finish()
    assert files_of(target) == {"part-000000.parquet", MARKER, "sub/notes.txt"}


def test_own_files_are_told_from_those_of_others(tmp_path):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("a.b", shape=(4, 4), chunks=(2, 2), dtype="f4")[:] = 1
    old = zarr.create_array(
        str(tmp_path / "v2.zarr"), shape=(4,), chunks=(2,), dtype="f4", zarr_format=2
    )
    old[:] = 1
    assert foreign_files(str(tmp_path / "g.zarr")) == []
    assert foreign_files(str(tmp_path / "v2.zarr")) == []
    (tmp_path / "g.zarr" / "a.b" / "c" / "x.csv").write_text("")
    assert foreign_files(str(tmp_path / "g.zarr")) == ["a.b/c/x.csv"]
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("part-000001.parquet", "part-000001-000002.csv.gz", MARKER, "part.0.parquet"):
        (parts / name).touch()
    assert foreign_files(str(parts)) == ["part.0.parquet"]
    assert foreign_files(str(tmp_path / "none")) == []


@pytest.mark.parametrize("name", ["y.parquet", "y.zarr"])
def test_an_output_at_a_url_is_replaced_as_a_whole(name):
    url, system = f"memory://swapped/{name}", fsspec.filesystem("memory")
    write(url, np.concatenate([ROWS, ROWS]))
    with pytest.raises(InputError) as raised:
        check_target(url, overwrite=False)
    assert raised.value.option == "overwrite"
    sink = write(url, overwrite=True, finish=False)
    assert system.exists(f"/swapped/{name}/{MARKER}")
    sink.finish()
    assert system.exists(f"/swapped/{name}/{MARKER}")
    assert {path.split("/")[2] for path in system.find("/swapped")} == {name}
    if name == "y.zarr":
        np.testing.assert_array_equal(zarr.open_array(url, mode="r")[:], ROWS)
    system.pipe_file(f"/swapped/{name}/notes.txt", b"mine")
    with pytest.raises(InputError) as raised:
        check_target(url, overwrite=True)
    assert raised.value.numbers == {"foreign_files": 1}
    system.rm("/swapped", recursive=True)


def test_names_of_runs_differ_in_one_process():
    found = {new_run_name() for _ in range(100)}
    assert len(found) == 100 and all(re.fullmatch(RUN_NAME, name) for name in found)


def test_a_full_disk_is_told_with_the_path_and_its_free_bytes(tmp_path):
    with pytest.raises(OutputError) as raised, explained_writes(str(tmp_path / "y.npy")):
        raise OSError(errno.ENOSPC, "No space left on device")
    error = pickle.loads(pickle.dumps(raised.value))
    assert str(tmp_path / "y.npy") in error.cause and error.option == "path"
    assert error.reason == "No space left on device" and error.numbers["free_bytes"] > 0


def test_an_error_of_a_write_is_one_of_the_output(tmp_path):
    sink = write(tmp_path / "y.npy", finish=False)
    sink.partial.unlink()
    with pytest.raises(OutputError):
        sink.write(0, 0, 3, {"y": ROWS})
    with pytest.raises(OutputError):
        sink.finish()


@pytest.mark.parametrize(
    ("path", "tables"),
    [
        ("memory://a/y.npy", False),
        ("http://127.0.0.1/y.parquet", True),
        ("y.npy", True),
        ("y.parqet", True),
    ],
)
def test_outputs_that_cannot_be_written_are_refused(path, tables):
    with pytest.raises(InputError) as raised:
        open_sink(path, overwrite=False, results="tables" if tables else "any")
    assert raised.value.option == "path"


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "y.npy").mkdir()
    with pytest.raises(InputError) as raised:
        open_sink(str(tmp_path / "y.npy"), overwrite=True)
    assert raised.value.option == "path"


def test_json_lines_hold_every_value_exactly_or_are_refused(tmp_path):
    frame = pd.DataFrame(
        {
            "i": pd.array([2**63 - 1, None], "Int64"),
            "f": [0.1, np.nan],
            "l": [np.array([1.5, np.nan]), None],
            "t": pd.to_datetime(["2024-01-02T03:04:05.000000001", None]),
            "b": [True, False],
            "s": ["é\n", None],
        }
    )
    sink = open_sink(str(tmp_path / "y.jsonl"), overwrite=False, results="tables")
    sink.prepare(0, 0, ())
    sink.write_frame(0, frame)
    sink.finish()
    first, second = map(
        json.loads, (tmp_path / "y.jsonl/part-000000.jsonl").read_text().splitlines()
    )
    assert first == {
        "i": 2**63 - 1,
        "f": 0.1,
        "l": [1.5, None],
        "t": "2024-01-02T03:04:05.000000001",
        "b": True,
        "s": "é\n",
    }
    assert second == {"i": None, "f": None, "l": None, "t": None, "b": False, "s": None}
    with pytest.raises(InputError) as raised:
        sink.write_frame(1, pd.DataFrame({"x": [1.0, np.inf]}))
    assert raised.value.column == "x"


def test_pictures_of_others_that_appear_meanwhile_survive(tmp_path):
    target = tmp_path / "masks"
    for content in (b"first", b"second"):
        folder = open_picture_folder(str(target), overwrite=True)
        folder.prepare()
        folder.write("a.png", content)
        if content == b"second":
            (target / "notes.txt").write_text("mine")
        folder.finish()
    assert files_of(target) == {"a.png", MARKER, "notes.txt"}
    assert (target / "a.png").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


@pytest.mark.parametrize("name", ["y.npy", "y.zarr"])
def test_what_cannot_be_read_at_the_moment_is_not_taken_for_missing(tmp_path, name, monkeypatch):
    sink = open_sink(str(tmp_path / name), overwrite=False)
    assert set(sink.kept({"0"})) == set()
    sink.prepare(3, 3, (SPEC,))
    assert sink.kept({"0"}) == {"0"}

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(zarr, "open", denied)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(OutputError) as raised:
        sink.kept({"0"})
    assert raised.value.reason == "Permission denied"
