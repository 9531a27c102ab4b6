"""ONNX's backend interface: prepare, run_model, run_node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import dense_model, node
from onnx.backend.base import Backend

import dask_onnx as dx
from dask_onnx import backend

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def test_backend_implements_the_interface_of_onnx():
    assert issubclass(backend.DaskOnnxBackend, Backend)
    assert dx.backend is backend


@pytest.mark.parametrize("strategy", ["whole", "fused", "per_node"])
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_prepared_model_accepts_every_form_of_inputs(strategy, scheduler):
    prepared = backend.prepare(dense_model(), strategy=strategy, scheduler=scheduler)
    expected = dx.load(dense_model()).predict(X)
    for inputs in ([X], (X,), X, {"x": X}):
        (found,) = prepared.run(inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_run_model_passes_plan_options():
    (found,) = backend.run_model(dense_model(), [X], n_stages=2, strategy="fused")
    assert found.shape == (3, 4)


def test_run_node_infers_types_from_its_inputs():
    (found,) = backend.run_node(node("Add", "a b", "c"), [X, X])
    np.testing.assert_array_equal(found, 2 * X)
    (text,) = backend.run_node(
        node("StringConcat", "a b", "c"), [np.array(["a"], object), np.array(["b"], object)]
    )
    assert text.tolist() == ["ab"]
    (joined,) = backend.run_node(node("ConcatFromSequence", "s", "c", axis=0), [[X, X]])
    assert joined.shape == (6, 8)


def test_run_node_uses_the_given_opset():
    (found,) = backend.run_node(node("Squeeze", "a", "b", axes=[0]), [X[None]], opset_version=11)
    assert found.shape == (3, 8)


@pytest.mark.parametrize(
    ("device", "is_supported"), [("CPU", True), ("CPU:0", True), ("CUDA", False), ("TPU", False)]
)
def test_only_the_cpu_is_supported(device, is_supported):
    assert backend.supports_device(device) is is_supported
    assert backend.is_compatible(dense_model(), device) is is_supported


def test_prepare_refuses_another_device():
    with pytest.raises(dx.InputError) as caught:
        backend.prepare(dense_model(), "CUDA")
    assert caught.value.option == "device"
    assert caught.value.suggestions == (dx.Suggestion("device", "CPU"),)


def test_model_with_an_unknown_operator_is_not_compatible():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17, "unknown" : 1]> '
        "g (float[N] x) => (float[N] y) { y = unknown.Op (x) }"
    )
    assert not backend.is_compatible(model)


def test_run_refuses_more_inputs_than_the_model_has():
    with pytest.raises(dx.InputError) as caught:
        backend.prepare(dense_model()).run([X, X])
    assert caught.value.option == "inputs"
    assert caught.value.numbers == {"given": 2, "inputs": 1}
