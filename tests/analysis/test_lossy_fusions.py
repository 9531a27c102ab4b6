"""Quantised nodes whose results depend on whether a plan lets ONNX Runtime fuse them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import make_model, node, value
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.analysis.lossy_fusions import lossy_fusions
from dask_onnx.diagnostics.summary import ACCURACY_LEVEL

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((5, 64)).astype(np.float32)


def four_bits() -> onnx.ModelProto:
    """Return a product with weights of 4 bits, in blocks of 16, as weight-only quantisers write."""
    model = make_model(
        [
            node("DequantizeLinear", "w s", "wide", "dequantise", axis=0, block_size=16),
            node("MatMul", "x wide", "y", "product"),
        ],
        [value("x", ["N", 64])],
        [value("y", ["N", 32])],
        {"s": (RANDOM.random((4, 32)) / 10).astype(np.float32)},
        opset=21,
        ir_version=10,
    )
    small = RANDOM.integers(-8, 8, 64 * 32)
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [64, 32], small))
    return model


def quantised(op: str, shape, weight, second=False) -> onnx.ModelProto:
    """Return an operator between DequantizeLinear and QuantizeLinear, twice if `second`."""
    again = "b" if second else "o"
    nodes = [
        node("QuantizeLinear", "x xs xz", "q", "first"),
        node("DequantizeLinear", "q xs xz", "d"),
        node("DequantizeLinear", "w ws wz", "wd", "weights"),
        node(op, "d wd", "o", "fused"),
    ]
    if second:
        nodes += [
            node("QuantizeLinear", "o xs xz", "oq"),
            node("DequantizeLinear", "oq xs xz", "b"),
        ]
    nodes += [
        node("QuantizeLinear", f"{again} ys yz", "yq", "last"),
        node("DequantizeLinear", "yq ys yz", "y", "end"),
    ]
    constants = {
        "xs": np.array(0.03, np.float32),
        "xz": np.array(128, np.uint8),
        "w": RANDOM.integers(-127, 127, weight).astype(np.int8),
        "ws": np.array(0.01, np.float32),
        "wz": np.array(0, np.int8),
        "ys": np.array(0.2, np.float32),
        "yz": np.array(120, np.uint8),
    }
    return make_model(nodes, [value("x", ["N", *shape])], [value("y", None)], constants)


def found_in(proto):
    model = dx.load(proto)
    return lossy_fusions(model.facts, model.facts.outputs)


def test_a_product_with_dequantised_weights_is_found_and_explained():
    found = found_in(four_bits())
    assert (found.products, found.steps, found.repeated) == (("product",), (), ())
    text = dx.load(four_bits()).plan().explain()
    assert "product: in one stage with the DequantizeLinear" in text
    assert ACCURACY_LEVEL in text


def test_plans_agree_once_activations_stay_as_they_are():
    model = dx.load(four_bits())
    lossy = model.predict(X, plan=model.plan("whole"))
    apart = model.predict(X, plan=model.plan("per_node"))
    assert 1e-4 < np.abs(lossy - apart).max() < 0.05 * np.abs(apart).max()
    session = dx.SessionSpec(config={ACCURACY_LEVEL: "1"})
    exact = model.plan("whole", session=session)
    np.testing.assert_allclose(model.predict(X, plan=exact), apart, rtol=1e-4, atol=1e-4)
    assert "quantisation" not in exact.explain()


@pytest.mark.parametrize(
    ("op", "shape", "weight"),
    [("Conv", (4, 9, 9), (8, 4, 3, 3)), ("Gemm", (64,), (64, 32)), ("MatMul", (64,), (64, 32))],
)
def test_a_node_between_two_quantisations_differs_by_one_step_at_most(op, shape, weight):
    proto = quantised(op, shape, weight)
    found = found_in(proto)
    assert (found.products, found.steps, found.repeated) == ((), ("fused",), ())
    x = RANDOM.standard_normal((20, *shape)).astype(np.float32)
    model = dx.load(proto)
    whole = model.predict(x, plan=model.plan("whole"))
    apart = model.predict(x, plan=model.plan("per_node"))
    assert np.abs(whole - apart).max() <= 0.2 + 1e-5
    assert "one step of quantisation" in model.plan().explain()
    basic = dx.SessionSpec(optimization="basic")
    assert "one step of quantisation" not in model.plan("whole", session=basic).explain()


def test_two_quantisations_in_a_row_are_found():
    found = found_in(quantised("Gemm", (64,), (64, 32), second=True))
    assert (found.steps, found.repeated) == (("fused",), ("last",))


def test_a_model_without_quantisation_says_nothing():
    proto = make_model([node("Relu", "x", "y")], [value("x", ["N", 3])], [value("y", ["N", 3])])
    found = found_in(proto)
    assert (found.products, found.steps, found.repeated) == ((), (), ())
    assert "quantisation" not in dx.load(proto).plan().explain()
