"""Files: identity, changes, byte ranges, and reading after deletion."""

from __future__ import annotations

import pickle

import fsspec
import pytest

from dask_onnx.core.errors import ModelError
from dask_onnx.core.files import (
    FileSource,
    OpenFiles,
    check_unchanged,
    read_file,
    read_ranges,
    stat_file,
)

DATA = bytes(range(100))


@pytest.fixture(params=["local", "memory"])
def path(request, tmp_path):
    if request.param == "local":
        (tmp_path / "data").write_bytes(DATA)
        yield str(tmp_path / "data")
        return
    system = fsspec.filesystem("memory")
    system.pipe("/core-files/data", DATA)
    yield "memory://core-files/data"
    if system.exists("/core-files"):
        system.rm("/core-files", recursive=True)


def remove(path):
    system, inner = fsspec.url_to_fs(path)
    system.rm(inner)


def test_ranges_are_read_in_their_order(path):
    source = stat_file(path)
    assert source.size == len(DATA)
    assert read_ranges(source, [(90, 5), (0, 3)]) == [DATA[90:95], DATA[:3]]
    assert read_file(path) == (DATA, source)


def test_a_range_beyond_the_end_is_short(path):
    assert read_ranges(stat_file(path), [(95, 50)]) == [DATA[95:]]


def test_a_deleted_file_is_reported(path):
    source = stat_file(path)
    assert source.problem() is None
    remove(path)
    assert path in source.problem()
    with pytest.raises(ModelError) as caught:
        check_unchanged(source)
    assert caught.value.numbers == {"expected_bytes": len(DATA)}


def test_a_changed_file_is_reported_with_both_sizes(path):
    source = stat_file(path)
    with fsspec.open(path, "wb") as file:
        file.write(DATA[:7])
    assert "100 bytes" in source.problem() and "has 7" in source.problem()
    with pytest.raises(ModelError):
        read_ranges(source, [(0, 1)])


def test_a_directory_is_the_same_while_it_exists(tmp_path):
    folder = tmp_path / "store.zarr"
    folder.mkdir()
    source = stat_file(str(folder))
    (folder / "chunk").write_bytes(DATA)
    assert source.problem() is None
    (folder / "chunk").unlink()
    folder.rmdir()
    assert source.problem() is not None
    folder.write_bytes(DATA)
    assert source.problem() is not None


def test_an_open_file_is_readable_after_its_deletion(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    source, open_files = stat_file(str(path)), OpenFiles()
    open_files.open(source)
    path.unlink()
    assert read_ranges(source, [(10, 4), (98, 9)], open_files) == [DATA[10:14], DATA[98:]]
    assert not pickle.loads(pickle.dumps(open_files)).has(source)


def test_an_open_file_that_was_overwritten_is_not_used(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    source, open_files = stat_file(str(path)), OpenFiles()
    open_files.open(source)
    path.write_bytes(DATA[::-1] + b"more")
    assert not open_files.has(source)
    with pytest.raises(ModelError):
        read_ranges(source, [(0, 1)], open_files)


def test_urls_are_not_held_open():
    open_files = OpenFiles()
    open_files.open(FileSource("memory://nothing", 0, ""))
    assert open_files.descriptors == {}
