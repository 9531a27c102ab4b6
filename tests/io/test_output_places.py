"""Places of outputs: apart from each other and from the input, and writable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_onnx.core.errors import InputError
from dask_onnx.io.output_places import check_apart, check_distinct, check_folder, refuse_web_url
from dask_onnx.io.targets import explained_access


@pytest.fixture
def folder(tmp_path) -> Path:
    """A table `rows.csv`, a link to it, and a folder `parts` of two tables."""
    (tmp_path / "rows.csv").write_text("a\n1\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "rows.csv")
    (tmp_path / "parts").mkdir()
    for name in ("part-000000.csv", "part-000001.csv"):
        (tmp_path / "parts" / name).write_text("a\n1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "source", "files"),
    [
        ("rows.csv", "rows.csv", ["rows.csv"]),
        ("link.csv", "rows.csv", ["rows.csv"]),
        ("rows.csv", "link.csv", ["link.csv"]),
        ("rows.csv", "*.csv", ["rows.csv"]),
        ("parts", "parts", ["parts/part-000000.csv"]),
        ("parts", "parts/part-000001.csv", ["parts/part-000001.csv"]),
        ("parts/y.csv", "parts", ["parts/part-000000.csv"]),
    ],
)
def test_an_output_that_would_replace_or_join_the_input_is_refused(folder, output, source, files):
    paths = [str(folder / file) for file in files]
    with pytest.raises(InputError) as raised:
        check_apart([str(folder / output)], str(folder / source), paths, may_be_inside=False)
    assert raised.value.option == "output"


@pytest.mark.parametrize("output", ["y.csv", "parts2", "rows.csv2"])
def test_other_outputs_are_accepted(folder, output):
    (folder / "parts2").mkdir()
    for source in ("rows.csv", "parts", "*.csv"):
        paths = [str(folder / "rows.csv"), str(folder / "parts" / "part-000000.csv")]
        check_apart([str(folder / output)], str(folder / source), paths, may_be_inside=False)


def test_results_of_pictures_may_be_among_them(folder):
    check_apart([str(folder / "parts" / "y.csv")], str(folder / "parts"), (), may_be_inside=True)


def test_two_options_do_not_name_one_place(folder):
    check_distinct({"output": str(folder / "a"), "quarantine": str(folder / "b"), "draw": None})
    with pytest.raises(InputError) as raised:
        check_distinct({"output": str(folder / "rows.csv"), "draw": str(folder / "link.csv")})
    assert raised.value.option == "draw"


def test_a_folder_that_is_missing_or_not_writable_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError) as raised:
        check_folder(str(tmp_path / "none" / "y.npy"))
    assert raised.value.option == "path"
    check_folder(str(tmp_path / "y.npy"))
    # The superuser may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError) as raised:
        check_folder(str(tmp_path / "y.npy"), "draw")
    assert raised.value.option == "draw"


def test_servers_of_pages_are_only_read():
    with pytest.raises(InputError):
        refuse_web_url("https://example.org/y.zarr")
    refuse_web_url("s3://bucket/y.zarr")


def test_errors_of_a_file_system_behind_a_url_name_the_output():
    class NoCredentialsError(Exception):
        pass

    with pytest.raises(InputError) as raised, explained_access("s3://bucket/y.zarr"):
        raise NoCredentialsError("none found")
    assert raised.value.option == "path" and raised.value.reason == "none found"
    with pytest.raises(NoCredentialsError), explained_access("/data/y.zarr"):
        raise NoCredentialsError
