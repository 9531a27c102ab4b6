"""Operators are named by domain and type together."""

from __future__ import annotations

import pytest
from onnx import helper

from dask_onnx.modelio.operator_names import (
    onnx_has,
    operator_name,
    operator_text,
    public_op_type,
    standard_op_type,
)


@pytest.mark.parametrize(
    ("domain", "name", "text", "standard", "public"),
    [
        ("", ("", "Conv"), "Conv", "Conv", "Conv"),
        ("ai.onnx", ("", "Conv"), "Conv", "Conv", "Conv"),
        ("com.microsoft", ("com.microsoft", "Conv"), "com.microsoft::Conv", None, "Conv"),
        (
            "com.microsoft.nchwc",
            ("com.microsoft.nchwc", "Conv"),
            "com.microsoft.nchwc::Conv",
            None,
            "Conv",
        ),
        ("ai.onnx.ml", ("ai.onnx.ml", "Conv"), "ai.onnx.ml::Conv", None, "Conv"),
        ("mine", ("mine", "Conv"), "mine::Conv", None, ""),
        ("ai.onnx.contrib", ("ai.onnx.contrib", "Conv"), "ai.onnx.contrib::Conv", None, ""),
    ],
)
def test_a_node_is_named_by_its_domain_too(domain, name, text, standard, public):
    node = helper.make_node("Conv", ["x", "w"], ["y"], domain=domain)
    assert operator_name(node) == name
    assert operator_text(node) == text
    assert standard_op_type(node) == standard
    assert public_op_type(node) == public


@pytest.mark.parametrize(
    ("op", "domain", "opsets", "expected"),
    [
        ("LayerNormalization", "", {"": 17}, True),
        ("LayerNormalization", "", {"": 16}, False),
        ("LayerNormalization", "ai.onnx", {"": 17}, True),
        ("SimplifiedLayerNormalization", "", {"": 17}, False),
        ("Relu", "mine", {"": 17, "mine": 17}, False),
        ("Scaler", "ai.onnx.ml", {"": 17, "ai.onnx.ml": 3}, True),
        ("Scaler", "ai.onnx.ml", {"": 17}, False),
    ],
)
def test_onnx_has_an_operator_in_some_opsets(op, domain, opsets, expected):
    assert onnx_has(helper.make_node(op, ["x"], ["y"], domain=domain), opsets) is expected
