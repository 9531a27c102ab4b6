"""CSV files with bytes that are not in the encoding."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.jobs.csv_text import (
    check_encoding,
    other_types,
    read_block,
    read_csv,
    undecodable,
)

PYTHON_TEXT = pd.StringDtype("python", na_value=np.nan)


def test_the_first_invalid_byte_is_found(tmp_path):
    path = tmp_path / "in.csv"
    line = b"0123456789,caf\xc3\xa9\r\n"
    for count in (1, 400_000):  # the second is in a later chunk
        path.write_bytes(b"n,name\r\n" + line * count + b"1,caf\xe9 au lait\r\n2,\xe9\r\n")
        error = undecodable(str(path), "utf-8")
        offset = 8 + len(line) * count + 5
        assert error is not None and error.numbers == {
            "line": count + 2,
            "byte_of_line": 5,
            "byte_of_file": offset,
        }
        assert "0xe9 in '1,caf\\xe9 au lait'" in error.cause
        assert error.suggestions[0] == Suggestion("encoding", "latin-1")
        assert Suggestion("quarantine") in error.suggestions
    assert undecodable(str(path), "latin-1") is None


def test_an_incomplete_character_at_the_end_is_found(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"name\nfine\n")
    (tmp_path / "b.csv").write_bytes(b"name\ncaf\xc3")
    error = undecodable(f"{tmp_path}/*.csv", "utf-8")
    assert error is not None and f"{tmp_path}/b.csv" in error.cause
    assert (error.numbers["line"], error.numbers["byte_of_line"]) == (2, 3)


def test_other_errors_of_pandas_are_not_translated():
    assert other_types("x.csv", ValueError("something else")) is None


def test_a_block_keeps_invalid_bytes_as_surrogates():
    content = b'id,name,x\n1,"caf\xe9, \xff",1.5\n2,,2.5\n3,na\xc3\xafve,\n'
    found = read_block(io.BytesIO(content), encoding="utf-8")
    plain = pd.read_csv(io.BytesIO(content), encoding="utf-8", encoding_errors="replace")
    assert found.dtypes.to_list() == [np.int64, PYTHON_TEXT, np.float64]
    assert found["name"].to_list()[::2] == ["caf\udce9, \udcff", "naïve"]
    assert found["name"].isna().to_list() == [False, True, False]
    pd.testing.assert_frame_equal(found[["id", "x"]], plain[["id", "x"]])
    fine = b"id,name\n1,na\xc3\xafve\n"
    found = read_block(io.BytesIO(fine), encoding="utf-8")
    assert found.dtypes.to_list() == [np.int64, PYTHON_TEXT]
    assert found["name"].to_list() == ["naïve"]


def test_all_blocks_have_the_dtypes_of_the_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,name\n1,a\n")
    (tmp_path / "b.csv").write_bytes(b"id,name\n2,\xe9\n")
    table = read_csv(f"{tmp_path}/*.csv", "utf-8", keeps_bad_rows=True)
    for part in table.to_delayed():
        assert (part.compute(scheduler="sync").dtypes == table.dtypes).all()
    found = table.compute(scheduler="sync")
    np.testing.assert_array_equal(found["name"].to_numpy(object), ["a", "\udce9"])


@pytest.mark.parametrize(("name", "known"), [("latin1", "iso8859-1"), ("utf-8-sig", "utf-8")])
def test_encodings_have_the_names_of_python(name, known):
    assert check_encoding(name) == known


@pytest.mark.parametrize(
    ("name", "next_step"),
    [("klingon", "latin-1"), ("hex", "latin-1"), ("utf-16", "iconv"), ("utf-32-le", "iconv")],
)
def test_encodings_that_cannot_be_read_by_blocks_are_refused(name, next_step):
    with pytest.raises(InputError) as raised:
        check_encoding(name)
    assert raised.value.option == "encoding" and next_step in raised.value.next_step
