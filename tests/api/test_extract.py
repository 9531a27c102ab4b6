"""`Model.extract`: parts of a model between named values."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pytest
from builders import branching_model, dense_model, make_model, node, run_onnx, value

import dask_onnx as dx

X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


def test_two_halves_in_turn_equal_the_whole():
    source = dense_model(hidden=500)
    model = dx.load(source)
    first, second = model.extract(outputs=["h2"]), model.extract(inputs=["h2"])
    assert [spec.name for spec in first.outputs] == ["h2"]
    assert [spec.name for spec in second.inputs] == ["h2"]
    np.testing.assert_allclose(
        second.predict(first.predict(X)), run_onnx(source, {"x": X})[0], rtol=1e-5, atol=1e-5
    )


def test_a_part_has_only_its_own_weights(tmp_path):
    onnx.save(dense_model(hidden=40_000), tmp_path / "m.onnx")
    model = dx.load(tmp_path / "m.onnx")
    head = model.extract(inputs=["h3"])
    assert head._onnx.parameter_bytes == 40_000 * 4 * 4
    assert head._onnx.parameters == 40_000 * 4
    assert len(head._onnx.blob_keys) == 1


def test_equal_parts_have_equal_tokens():
    first, again = (dx.load(dense_model()).extract(outputs=["h1"]) for _ in range(2))
    assert first.token == again.token != dx.load(dense_model()).token


def test_a_part_survives_pickling():
    part = dx.load(dense_model(hidden=300)).extract(outputs=["h3"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).predict(X), part.predict(X))


def test_unneeded_inputs_are_dropped_unless_named():
    model = dx.load(branching_model())
    assert [spec.name for spec in model.extract(inputs=["a", "x"], outputs=["a2"]).inputs] == [
        "a",
        "x",
    ]
    assert [spec.name for spec in model.extract(outputs=["m"]).inputs] == ["x"]


def test_error_names_the_missing_input():
    with pytest.raises(dx.InputError) as caught:
        dx.load(branching_model()).extract(inputs=["a"], outputs=["y"])
    assert (caught.value.option, caught.value.input) == ("inputs", "x")
    assert caught.value.suggestions == (dx.Suggestion("inputs", ["a", "x"]),)


@pytest.mark.parametrize("names", [{"outputs": ["h22"]}, {"inputs": ["h22"]}])
def test_error_suggests_values_with_similar_names(names):
    with pytest.raises(dx.InputError) as caught:
        dx.load(dense_model()).extract(**names)
    assert caught.value.option == next(iter(names))
    assert dx.Suggestion(caught.value.option, "h2") in caught.value.suggestions


def test_a_part_may_have_no_inputs():
    source = make_model(
        [node("RandomNormal", "", "r", "noise", shape=[3]), node("Abs", "r", "y", "end")],
        [],
        [value("y", [3])],
    )
    part = dx.load(source).extract(outputs=["r"])
    assert part.inputs == () and [spec.name for spec in part.outputs] == ["r"]
