"""Opset imports of a model in normal form are those that ONNX Runtime reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import make_model, node, run_onnx, value
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.modelio.onnx_model import load_onnx

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def model_of(op: str, imports, domain: str = "", **attributes) -> onnx.ModelProto:
    nodes = [node(op, "x", "y", domain=domain, **attributes)]
    model = make_model(nodes, [value("x", [2, 3, 4])], [value("y", None)])
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*each) for each in imports)
    return model


@pytest.mark.parametrize(
    ("imports", "version"),
    [
        ([("", 11), ("", 13)], 13),
        ([("", 13), ("", 11)], 11),
        ([("ai.onnx", 13), ("", 11)], 11),
        ([("", 13), ("ai.onnx", 11)], 11),
    ],
)
def test_the_last_import_of_a_domain_counts(imports, version):
    # The default axis of Softmax, and what it means, changed in opset 13.
    model = model_of("Softmax", imports)
    loaded = dx.load(model)
    assert loaded.opsets[""] == version
    (expected,) = run_onnx(model, {"x": X})
    for strategy in ("whole", "per_node"):
        np.testing.assert_array_equal(loaded.predict(X, plan=loaded.plan(strategy)), expected)


@pytest.mark.parametrize(
    ("op", "domain", "attributes"),
    [
        ("FastGelu", "com.microsoft", {}),
        ("Normalizer", "ai.onnx.ml", {"norm": "L2"}),
        ("Relu", "", {}),
        ("Relu", "ai.onnx", {}),
    ],
)
def test_a_domain_without_import_has_the_newest_version(op, domain, attributes):
    unrelated = [("com.microsoft.nchwc", 1)] if domain in ("", "ai.onnx") else [("", 17)]
    model = model_of(op, unrelated, domain, **attributes)
    x = X[0]
    model.graph.input[0].CopyFrom(value("x", ["N", 4]))
    (expected,) = run_onnx(model, {"x": x})
    loaded = dx.load(model)
    assert loaded.analysis.op_histogram
    for strategy in ("whole", "per_node"):
        np.testing.assert_array_equal(loaded.predict(x, plan=loaded.plan(strategy)), expected)
    assert loaded.opsets["" if domain == "ai.onnx" else domain] >= 1


def test_an_import_of_no_node_stays():
    loaded = load_onnx(model_of("Relu", [("", 17), ("mine", 3)]))
    assert dict(loaded.opsets) == {"": 17, "mine": 3}


def test_a_body_with_a_sparse_initializer_of_its_own_runs():
    weight = helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("places", TensorProto.INT64, [1], [1]),
        [3],
    )
    then = helper.make_graph([node("Add", "x w", "t")], "then", [], [value("t", [3])])
    then.sparse_initializer.append(weight)
    other = helper.make_graph([node("Identity", "x", "e")], "else", [], [value("e", [3])])
    choice = node("If", "c", "y", then_branch=then, else_branch=other)
    inputs = [value("x", [3]), value("c", [], TensorProto.BOOL)]
    model = make_model([choice], inputs, [value("y", [3])])
    feeds = {"x": np.ones(3, np.float32), "c": np.array(True)}
    (expected,) = run_onnx(model, feeds)
    np.testing.assert_array_equal(expected, [1, 3, 1])
    np.testing.assert_array_equal(dx.load(model)(feeds), expected)
