"""Paths given to `predict`, which takes data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

import dask_onnx as dx


@pytest.mark.parametrize("verb", ["predict", "__call__", "check", "delayed", "predict_checked"])
@pytest.mark.parametrize(
    "given",
    [
        "image.png",
        Path("rows.npy"),
        "s3://bucket/rows.parquet",
        ["a.jpg", "b.jpg"],
        {"x": "rows.csv"},
    ],
    ids=str,
)
def test_a_path_is_refused_with_what_takes_it(verb, given):
    with pytest.raises(dx.InputError) as raised:
        getattr(dx.load(dense_model()), verb)(given)
    assert raised.value.option == "x" and raised.value.input == "x"
    assert "dx.predict_files" in raised.value.next_step


@pytest.mark.parametrize(
    ("path", "reader"),
    [("a.npy", "np.load"), ("a.parquet", "dd.read_parquet"), ("a.csv", "dd.read_csv")],
)
def test_a_table_or_array_is_read_first(path, reader):
    with pytest.raises(dx.InputError) as raised:
        dx.load(dense_model()).predict(path)
    assert f"model.predict({reader}({path!r}))" in raised.value.next_step


def test_texts_for_an_input_of_strings_are_data_unless_they_are_a_file(tmp_path):
    model = dx.load(
        make_model(
            [node("Identity", "x", "y", "same")],
            [value("x", ["N"], TensorProto.STRING)],
            [value("y", ["N"], TensorProto.STRING)],
        )
    )
    names = np.array(["a.png", "rows.csv"], object)
    assert model.predict(names).tolist() == names.tolist()
    assert model.predict(names.tolist()).tolist() == names.tolist()
    (tmp_path / "rows.csv").touch()
    with pytest.raises(dx.InputError) as raised:
        model.predict(str(tmp_path / "rows.csv"))
    assert raised.value.option == "x"


@pytest.mark.parametrize("text", ["z" * 300, "z" * 5000, "a\0b", "a" * 200 + "/" + "b" * 400])
def test_texts_that_cannot_be_paths_are_data(text):
    kind = TensorProto.STRING
    echo = dx.load(
        make_model([node("Identity", "x", "y")], [value("x", [], kind)], [value("y", [], kind)])
    )
    assert echo.predict({"x": text}) == text
    assert echo.predict(text) == text
    with pytest.raises(dx.InputError):
        dx.load(make_model([node("Abs", "x", "y")], [value("x", [])], [value("y", [])])).predict(
            text
        )
