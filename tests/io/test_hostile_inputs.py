"""Damaged and hostile files of input are refused when they are opened, in bounded memory."""

from __future__ import annotations

import os
import struct
import zipfile

import numpy as np
import pytest

from dask_onnx.core.errors import InputError
from dask_onnx.io.input_formats import open_source
from dask_onnx.io.table_files import find_table


def npy(shape, *, dtype="'<f4'", header=None, body=b""):
    text = header or f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + body


@pytest.mark.parametrize(
    "data",
    [
        npy("(1000000, 8)", body=bytes(64)),
        npy(f"({2**62}, 8)", body=bytes(64)),
        npy(f"({2**100}, 8)", body=bytes(64)),
        npy("(-3, 8)", body=bytes(96)),
        npy("(3, 8)", dtype="'|O'", body=bytes(96)),
        npy("(3, 8)", dtype="'<q99'", body=bytes(96)),
        npy("", header="(" * 5000),
        npy("", header="__import__('os').getcwd()"),
        npy("(3, 8)")[:30],
        b"",
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 100,
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_arrays_with_false_headers_are_refused(tmp_path, data, archive):
    path = tmp_path / ("x.npz" if archive else "x.npy")
    if archive:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("x.npy", data)
    else:
        path.write_bytes(data)
    with pytest.raises(InputError):
        open_source(str(path))


def test_an_archive_that_expands_is_read_by_rows(tmp_path):
    path = tmp_path / "x.npz"
    rows = 2**20  # 32 MiB in 32 KiB
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("x.npy", npy(f"({rows}, 8)", body=bytes(32 * rows)))
    array = open_source(str(path))["x"]
    assert array.shape == (rows, 8)
    np.testing.assert_array_equal(array.read_rows(rows - 3, rows), np.zeros((3, 8)))


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize(
    ("opens", "name"),
    [
        (open_source, "x.npy"),
        (open_source, "x.npz"),
        (find_table, "x.csv"),
        (find_table, "x.parquet"),
        (find_table, "x.jsonl"),
        (find_table, "x.csv.gz"),
    ],
)
def test_inputs_are_regular_files(tmp_path, opens, name, kind):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError) as caught:
        opens(str(path))
    assert caught.value.option == "path"
