"""Files of pictures that a path, a folder or a pattern names."""

from __future__ import annotations

from pathlib import Path

import pytest

import dask_onnx as dx
from dask_onnx.io.picture_files import find_pictures, is_picture_path


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "c d.webp", "ü.PNG", "notes.txt", ".hidden.png", "sub/e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(text):
    return [Path(path).name for path in find_pictures(str(text)).paths]


def test_a_folder_gives_its_pictures_sorted_and_tells_what_it_leaves_out(folder):
    assert names(folder) == ["a.JPG", "b.png", "c d.webp", "ü.PNG"]
    found = find_pictures(str(folder))
    assert [Path(path).name for path in found.skipped] == ["notes.txt"]
    assert "notes.txt" in found.skipped_text()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png", "ü.PNG"]),
        ("*.jpg", ["a.JPG"]),
        ("**/*.png", ["b.png", "e.png", "ü.PNG"]),
        ("c d.*", ["c d.webp"]),
        ("?.png", ["b.png", "ü.PNG"]),
        ("sub/../b.png", ["b.png"]),
    ],
)
def test_patterns_match_endings_in_any_case(folder, pattern, expected):
    assert names(folder / pattern) == expected


def test_a_path_with_brackets_that_exists_is_no_pattern(tmp_path):
    path = tmp_path / "scan [1].png"
    path.write_bytes(b"x")
    assert find_pictures(str(path)).paths == (str(path),)


@pytest.mark.parametrize("name", ["none.png", "*.gif", "empty"])
def test_nothing_there_is_an_error(folder, name):
    (folder / "empty").mkdir()
    with pytest.raises(dx.InputError) as caught:
        find_pictures(str(folder / name))
    assert caught.value.option == "path"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b.png", True),
        ("none.TIFF", True),
        ("", True),
        ("*", True),
        ("*.txt", False),
        ("notes.txt", False),
        ("x.npy", False),
        ("rows.parquet", False),
    ],
)
def test_paths_of_pictures_are_told_from_others(folder, name, expected):
    assert is_picture_path(str(folder / name)) is expected
