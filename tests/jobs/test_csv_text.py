"""CSV files with bytes that are not in the encoding."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.io.table_files import find_table
from dask_onnx.io.table_frames import PYTHON_TEXT
from dask_onnx.jobs.csv_text import check_encoding, undecodable
from dask_onnx.jobs.opening_options import OpenOptions
from dask_onnx.jobs.table_opening import open_table
from dask_onnx.jobs.table_request import TableRequest

INPUTS = (TensorSpec("x", np.dtype("f4"), ("N", None)),)


def opened(path, **options):
    return open_table(str(path), OpenOptions(TableRequest(columns=None, **options), INPUTS))


def test_the_first_invalid_byte_is_found(tmp_path):
    path = tmp_path / "in.csv"
    line = b"0123456789,caf\xc3\xa9\r\n"
    for count in (1, 400_000):  # the second is in a later chunk
        path.write_bytes(b"n,name\r\n" + line * count + b"1,caf\xe9 au lait\r\n2,\xe9\r\n")
        error = undecodable(find_table(str(path)), "utf-8")
        offset = 8 + len(line) * count + 5
        assert error is not None and error.numbers == {
            "line": count + 2,
            "byte_of_line": 5,
            "byte_of_file": offset,
        }
        assert "0xe9 in '1,caf\\xe9 au lait'" in error.cause
        assert error.suggestions[0] == Suggestion("encoding", "latin-1")
        assert Suggestion("quarantine") in error.suggestions
    assert undecodable(find_table(str(path)), "latin-1") is None


def test_an_incomplete_character_at_the_end_is_found(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"name\nfine\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"name\ncaf\xc3"))
    error = undecodable(find_table(str(tmp_path)), "utf-8")
    assert error is not None and f"{tmp_path}/b.csv.gz" in error.cause
    assert (error.numbers["line"], error.numbers["byte_of_line"]) == (2, 3)


def test_a_block_keeps_invalid_bytes_as_surrogates(tmp_path):
    content = b'id,name,x\n1,"caf\xe9, \xff",1.5\n2,,2.5\n3,na\xc3\xafve,\n'
    (tmp_path / "in.csv").write_bytes(content)
    source = opened(tmp_path / "in.csv", append=True, on_error="null")
    (found,) = [source.reader(block) for block in source.blocks]
    assert found["name"].dtype == PYTHON_TEXT
    assert found["name"].to_list() == ["caf\udce9, \udcff", "", "na\xefve"]
    assert found["id"].to_list() == [1, 2, 3] and found["x"].to_list()[:2] == [1.5, 2.5]


def test_bytes_that_are_no_text_of_another_encoding_are_kept_too(tmp_path):
    (tmp_path / "in.csv").write_bytes(b"x,name\n1,caf\xe9\n2,\x81\n")
    source = opened(tmp_path / "in.csv", append=True, on_error="null", encoding="cp1252")
    (found,) = [source.reader(block) for block in source.blocks]
    assert found["name"].to_list() == ["caf\xe9", "\udc81"]


def test_all_blocks_have_the_dtypes_of_the_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,name\n1,a\n")
    (tmp_path / "b.csv").write_bytes(b"id,name\n2,\xe9\n")
    source = opened(f"{tmp_path}/*.csv", append=True, on_error="null")
    table = source.to_dask()
    for part in table.to_delayed():
        assert (part.compute(scheduler="sync").dtypes == table.dtypes).all()
    found = table.compute(scheduler="sync")
    np.testing.assert_array_equal(found["name"].to_numpy(object), ["a", "\udce9"])


def test_bytes_that_are_no_text_in_a_column_of_numbers_are_an_error(tmp_path):
    (tmp_path / "in.csv").write_bytes(b"x\n" + b"1\n" * 200_000 + b"2\xe9\n")
    source = opened(tmp_path / "in.csv", on_error="null")
    with pytest.raises(InputError) as raised:
        [source.reader(block) for block in source.blocks]
    assert raised.value.column == "x"


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
