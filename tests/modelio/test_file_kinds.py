"""Files that are mistaken for ONNX models."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import pytest
from builders import dense_model

import dask_onnx as dx
from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.file_kinds import kind_of_file

MODEL = dense_model().SerializeToString()


def zipped(name):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name, MODEL)
    return archive.getvalue()


def tarred():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        entry = tarfile.TarInfo("model.onnx")
        entry.size = len(MODEL)
        opened.addfile(entry, io.BytesIO(MODEL))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("data", "step"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html>", "download"),
        (zipped("archive/data.pkl"), "torch.onnx.export"),
        (zipped("model.onnx"), "unpack"),
        (tarred(), "unpack"),
        (gzip.compress(MODEL), "unpack"),
        (lzma.compress(MODEL), "unpack"),
        (bz2.compress(MODEL), "unpack"),
        (pickle.dumps({"a": 1}), "skl2onnx"),
        (b"\x20\0\0\0ORTM" + bytes(40), "ONNX model"),
        (b"\x1c\0\0\0TFL3" + bytes(40), "tf2onnx"),
    ],
    ids=["lfs", "page", "torch", "zip", "tar", "gzip", "xz", "bzip2", "pickle", "ort", "tflite"],
)
def test_a_file_of_another_kind_is_refused_with_the_way_to_a_model(tmp_path, data, step):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError) as raised:
        dx.load(path)
    assert step in raised.value.next_step
    assert raised.value.numbers["model_bytes"] == len(data)


@pytest.mark.parametrize("data", [b"", b"hello", MODEL, MODEL[:1]], ids=["none", "text", "m", "1"])
def test_what_may_be_a_model_has_no_other_kind(data):
    assert kind_of_file(data) is None
