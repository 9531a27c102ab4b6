"""Damaged and hostile models are refused when they are loaded: versions, files, and the rest."""

from __future__ import annotations

import os

import numpy as np
import pytest
from builders import make_model, node, value
from modelio.damaged_models import X, model_of, refusal
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.core.errors import UnexpectedModelError


@pytest.mark.parametrize("version", [0, -1, 2**62, -(2**62)])
def test_versions_exist(version):
    model = model_of([node("Relu", "x", "y")])
    model.opset_import[0].version = version
    assert refusal(model).numbers == {"opset": version}


def external(tmp_path, **entries):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in ({"location": "w.bin", "offset": "0", "length": "16"} | entries).items():
        if text is not None:
            weight.external_data.add(key=key, value=text)
    (tmp_path / "w.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    (tmp_path / "folder").mkdir(exist_ok=True)
    if not (tmp_path / "pipe").exists():
        os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    path = tmp_path / "model.onnx"
    path.write_bytes(model_of([node("Add", "x w", "y")], [weight]).SerializeToString())
    return path


@pytest.mark.parametrize(
    "entries",
    [
        *({"offset": text} for text in ("-1", "x", "1e3", "0x10", "1_0", "+4", "٣", "9" * 40)),
        *({"length": text} for text in ("-1", "x", "4.0", "9" * 40, "15", "17", "32")),
        *({"location": text} for text in ("", ".", "..", "../w.bin", "/etc/passwd", "gone.bin")),
        *({"location": text} for text in ("folder", "pipe", "device", "w.bin\0", "/dev/zero")),
        *({"location": text} for text in ("a" * 5000, "a/" * 5000 + "w.bin")),
        {"location": None},
        {"offset": "17"},
        {"offset": str(2**62)},
    ],
)
def test_external_data_lie_inside_a_regular_file(tmp_path, entries):
    assert refusal(external(tmp_path, **entries)).input == "w"


@pytest.mark.parametrize("entries", [{}, {"offset": "16"}, {"length": None}, {"offset": None}])
def test_external_data_have_the_length_of_their_tensor(tmp_path, entries):
    model = dx.load(external(tmp_path, **entries))
    first = 4 if entries.get("offset") == "16" else 0
    found = model.predict(np.zeros((1, 4), np.float32))
    np.testing.assert_array_equal(found, [np.arange(first, first + 4)])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
def test_a_model_is_a_regular_file_of_a_size_that_can_be_read(tmp_path, kind):
    path = tmp_path / "m.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2**42)
    assert refusal(path)


def test_what_no_check_foresees_is_told_with_its_cause(monkeypatch):
    # An error of code that relies on a sound model, at a node.
    def fail(model):
        node = model.graph.node[0]
        raise IndexError(f"list index out of range at {node.op_type}")

    monkeypatch.setattr("dask_onnx.modelio.onnx_model.normalise", fail)
    with pytest.raises(UnexpectedModelError) as caught:
        dx.load(model_of([node("Relu", "x", "y", name="first")]))
    assert caught.value.node == "first"
    assert isinstance(caught.value.__cause__, IndexError)
    assert caught.value.reason.startswith("IndexError: list index")


def test_make_model_of_the_tests_is_sound():
    assert dx.load(make_model([node("Relu", "x", "y")], [X], [value("y", ["N", 4])])).inputs
