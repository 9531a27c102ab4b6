"""Files of a table: formats by suffix, folders, globs, Hive partitions."""

from __future__ import annotations

import fsspec
import pytest

from dask_onnx.core.errors import InputError
from dask_onnx.io.table_files import find_table, format_of, is_table


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.parquet", ("parquet", None)),
        ("s3://bucket/a.b/x.CSV.gz", ("csv", "gzip")),
        ("x.tsv.zst", ("csv", "zstd")),
        ("x.ndjson.bz2", ("jsonl", "bz2")),
        ("x.jsonl.xz", ("jsonl", "xz")),
        ("x.feather", ("ipc", None)),
        ("x.orc", ("orc", None)),
        ("*.csv", ("csv", None)),
        ("x.gz", (None, "gzip")),
        ("csv", (None, None)),
    ],
)
def test_the_suffix_gives_format_and_compression(name, found):
    assert format_of(name) == found


def names(files, folder):
    return [file.path.removeprefix(f"{folder}/") for file in files]


def test_a_folder_is_its_visible_files_in_natural_order(tmp_path):
    for name in ("part-10.csv", "part-2.csv.gz", "_SUCCESS", ".hidden.csv", "README.md"):
        (tmp_path / name).write_text("a\n1\n")
    found = find_table(str(tmp_path))
    assert names(found, tmp_path) == ["part-2.csv.gz", "part-10.csv"]
    assert [file.compression for file in found] == ["gzip", None]
    assert [file.can_be_cut for file in found] == [False, True]
    assert is_table(str(tmp_path)) and not is_table(str(tmp_path / "none"))
    assert names(find_table(f"{tmp_path}/*.csv"), tmp_path) == ["part-10.csv"]


def test_a_name_with_the_characters_of_a_glob_is_a_file_if_it_exists(tmp_path):
    (tmp_path / "rows[1].csv").write_text("a\n1\n")
    assert len(find_table(f"{tmp_path}/rows[1].csv")) == 1


def test_hive_partitions_keep_their_texts(tmp_path):
    for folder in ("zip=01234/day=a%2Fb", "zip=__HIVE_DEFAULT_PARTITION__/day=2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "f.parquet").touch()
    wanted = [(("zip", "01234"), ("day", "a/b")), (("zip", None), ("day", "2"))]
    assert sorted((f.keys for f in find_table(str(tmp_path))), key=str) == sorted(wanted, key=str)
    found = find_table(f"{tmp_path}/zip=0*/day=*")
    assert [file.keys for file in found] == wanted[:1]


def test_a_folder_at_a_url_is_found():
    system = fsspec.filesystem("memory")
    system.pipe_file("/found/a.csv", b"a\n1\n")
    assert is_table("memory://found") and not is_table("memory://nothing")
    (file,) = find_table("memory://found")
    assert (file.path, file.size) == ("memory:///found/a.csv", 4)
    system.rm("/found", recursive=True)


@pytest.mark.parametrize(
    ("files", "path", "words"),
    [
        ({}, "none.csv", "none.csv"),
        ({}, "*.csv", "no file matches"),
        ({"book.xlsx": b""}, "book.xlsx", "spreadsheet"),
        ({"a.csv": b"", "b.jsonl": b""}, "", "several formats: csv, jsonl"),
        ({"a.parquet.gz": b""}, "a.parquet.gz", "compressed parquet"),
        ({"k=1/a.csv": b"", "b.csv": b""}, "", "partitioned by different columns"),
        ({"a.txt": b""}, "", "no file with a known suffix"),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(tmp_path, files, path, words):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        find_table(f"{tmp_path}/{path}")
    assert raised.value.option == "path" and words in raised.value.cause
    assert raised.value.next_step
