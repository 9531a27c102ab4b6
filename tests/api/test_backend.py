"""ONNX's backend interface."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import dense_model, node
from onnx.backend.base import Backend

import dask_onnx as dx
from dask_onnx import backend

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def test_it_is_a_backend():
    assert issubclass(backend.DaskOnnxBackend, Backend)
    assert dx.backend is backend


@pytest.mark.parametrize("strategy", ["whole", "fused", "per_node"])
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_model_is_prepared_once_and_run_often(strategy, scheduler):
    prepared = backend.prepare(dense_model(), strategy=strategy, scheduler=scheduler)
    expected = dx.load(dense_model()).predict(X)
    for inputs in ([X], (X,), X, {"x": X}):
        (found,) = prepared.run(inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_model_runs_at_once():
    (found,) = backend.run_model(dense_model(), [X], n_stages=2, strategy="fused")
    assert found.shape == (3, 4)


def test_a_node_runs_at_the_types_of_its_inputs():
    (found,) = backend.run_node(node("Add", "a b", "c"), [X, X])
    np.testing.assert_array_equal(found, 2 * X)
    (text,) = backend.run_node(
        node("StringConcat", "a b", "c"), [np.array(["a"], object), np.array(["b"], object)]
    )
    assert text.tolist() == ["ab"]
    (joined,) = backend.run_node(node("ConcatFromSequence", "s", "c", axis=0), [[X, X]])
    assert joined.shape == (6, 8)


def test_a_node_runs_at_the_opset_that_is_asked_for():
    (found,) = backend.run_node(node("Squeeze", "a", "b", axes=[0]), [X[None]], opset_version=11)
    assert found.shape == (3, 8)


@pytest.mark.parametrize(
    ("device", "is_there"), [("CPU", True), ("CPU:0", True), ("CUDA", False), ("TPU", False)]
)
def test_the_device_is_the_cpu(device, is_there):
    assert backend.supports_device(device) is is_there
    assert backend.is_compatible(dense_model(), device) is is_there


def test_another_device_is_refused():
    with pytest.raises(dx.InputError, match="there is no device 'CUDA'"):
        backend.prepare(dense_model(), "CUDA")


def test_what_nobody_has_is_not_compatible():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17, "nobody" : 1]> '
        "g (float[N] x) => (float[N] y) { y = nobody.Op (x) }"
    )
    assert not backend.is_compatible(model)


def test_more_inputs_than_there_are_is_refused():
    with pytest.raises(dx.InputError, match="2 inputs were given; the model takes 1"):
        backend.prepare(dense_model()).run([X, X])
