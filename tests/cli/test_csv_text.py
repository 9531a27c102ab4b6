"""CSV whose text is in another encoding than it should be."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from dask_onnx.cli.csv_text import check_encoding, read_block, read_csv, undecodable
from dask_onnx.core.errors import InputError

PYTHON_TEXT = pd.StringDtype("python", na_value=np.nan)


def test_the_first_place_is_named_wherever_it_is(tmp_path):
    path = tmp_path / "in.csv"
    line = b"0123456789,caf\xc3\xa9\r\n"
    for count in (1, 400_000):  # the second is beyond what is read at once
        path.write_bytes(b"n,name\r\n" + line * count + b"1,caf\xe9 au lait\r\n2,\xe9\r\n")
        error = undecodable(str(path), "utf-8")
        offset = 8 + len(line) * count + 5
        assert error is not None and error.cause == (
            f"the table {path} is not UTF-8: line {count + 2:,}, byte 5 of it ({offset:,} of the "
            "file): 0xe9 in '1,caf\\xe9 au lait'"
        )
        assert "--encoding latin-1" in error.next_step and "--quarantine" in error.next_step
    assert undecodable(str(path), "latin-1") is None


def test_a_character_that_the_file_ends_in_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"name\nfine\n")
    (tmp_path / "b.csv").write_bytes(b"name\ncaf\xc3")
    error = undecodable(f"{tmp_path}/*.csv", "utf-8")
    assert error is not None and f"{tmp_path}/b.csv is not UTF-8: line 2, byte 3" in error.cause


def test_a_block_keeps_what_cannot_be_decoded_in_its_rows():
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


def test_a_table_is_what_it_says_whether_or_not_it_can_be_decoded(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,name\n1,a\n")
    (tmp_path / "b.csv").write_bytes(b"id,name\n2,\xe9\n")
    table = read_csv(f"{tmp_path}/*.csv", "utf-8", keeps_bad_rows=True)
    for part in table.to_delayed():
        assert (part.compute(scheduler="sync").dtypes == table.dtypes).all()
    found = table.compute(scheduler="sync")
    np.testing.assert_array_equal(found["name"].to_numpy(object), ["a", "\udce9"])


@pytest.mark.parametrize(("name", "known"), [("latin1", "iso8859-1"), ("utf-8-sig", "utf-8")])
def test_encodings_go_by_pythons_names(name, known):
    assert check_encoding(name) == known


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("klingon", "no encoding 'klingon'"),
        ("hex", "no encoding 'hex'"),
        ("utf-16", "iconv -f utf-16 -t UTF-8"),
        ("utf-32-le", "their line ends are several bytes"),
    ],
)
def test_encodings_that_cannot_be_read_by_blocks_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        check_encoding(name)
