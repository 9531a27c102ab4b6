"""Files whose content is of another kind than their names say are refused with what they are."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import sqlite3
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from builders import dense_model
from pyarrow import feather, ipc, orc
from pyarrow import parquet as pq

import dask_onnx as dx
from dask_onnx.core.errors import InputError
from dask_onnx.io.foreign_content import foreign_content

TABLE = pa.table({name: np.arange(4, dtype=np.float32) for name in "abcdefgh"})
CSV = b"a,b,c,d,e,f,g,h\n1,2,3,4,5,6,7,8\n"


def written(write):
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def of_feather_1(folder):
    path = folder / "old"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow writes version 1 for the last time
        feather.write_feather(TABLE, path, version=1)
    return path.read_bytes()


def of_sqlite(folder):
    path = folder / "base"
    with sqlite3.connect(path) as base:
        base.execute("create table t (a)")
    base.close()
    return path.read_bytes()


def of_stream(sink):
    with ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


def of_spreadsheet(sink):
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")


CONTENTS = {
    "page": b"<!DOCTYPE html>\n<html><body>Not found</body></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "gzip": gzip.compress(CSV),
    "bzip2": bz2.compress(CSV),
    "utf-16": CSV.decode().encode("utf-16"),
    "parquet": written(lambda sink: pq.write_table(TABLE, sink)),
    "orc": written(lambda sink: orc.write_table(TABLE, sink)),
    "arrow": written(lambda sink: feather.write_feather(TABLE, sink)),
    "arrow stream": written(of_stream),
    "npy": written(lambda sink: np.save(sink, np.ones(3))),
    "spreadsheet": written(of_spreadsheet),
    "pickle": pickle.dumps({"a": [1, 2]}),
    "feather 1": of_feather_1,
    "sqlite": of_sqlite,
}
OWN = {"arrow": "ipc", "arrow stream": "ipc", "orc": "orc", "parquet": "parquet", "npy": "npy"}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet", "ipc", "orc", "npy"])
def test_the_error_names_what_the_file_is(tmp_path, kind, name):
    content = CONTENTS[kind]
    data = content(tmp_path) if callable(content) else content
    error = foreign_content(data[:300], name, "/data/rows")
    if OWN.get(kind) == name:
        assert error is None
    else:
        assert error.reason == kind and error.option == "path"
        assert "/data/rows" in error.cause and error.next_step


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rows.csv", "page"),
        ("rows.csv", "gzip"),
        ("rows.jsonl", "parquet"),
        ("rows.parquet", "lfs"),
        ("rows.feather", "feather 1"),
        ("rows.orc", "npy"),
        ("rows.npy", "spreadsheet"),
    ],
)
def test_a_job_on_such_a_file_is_refused(tmp_path, name, kind):
    content = CONTENTS[kind]
    (tmp_path / name).write_bytes(content(tmp_path) if callable(content) else content)
    model = tmp_path / "m.onnx"
    model.write_bytes(dense_model().SerializeToString())
    with pytest.raises(InputError) as caught:
        dx.predict_files(str(model), str(tmp_path / name), str(tmp_path / "out.parquet"))
    assert caught.value.reason == kind


@pytest.mark.parametrize("first", ["PAR1", "FEA1", "Obj", "BZh", "GGUF", "ORC", "SQLite format 3"])
def test_names_of_columns_are_no_marks_of_other_formats(first):
    head = f"{first},b,c\n1,2,3\n".encode()
    assert foreign_content(head, "csv", "rows.csv") is None
    assert foreign_content(b'{"PAR1": 1}\n', "jsonl", "rows.jsonl") is None


def test_a_named_encoding_is_believed_where_bytes_look_like_a_mark():
    head = "\u00ff\u00feb,c\n1,2\n".encode("latin-1")
    assert foreign_content(head, "csv", "rows.csv", has_encoding=True) is None
    assert foreign_content(head, "csv", "rows.csv") is not None


def test_a_compressed_file_that_holds_another_kind_is_named_too(tmp_path):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(CONTENTS["page"]))
    model = tmp_path / "m.onnx"
    model.write_bytes(dense_model().SerializeToString())
    with pytest.raises(InputError) as caught:
        dx.predict_files(str(model), str(path), str(tmp_path / "out.parquet"))
    assert caught.value.reason == "page"
