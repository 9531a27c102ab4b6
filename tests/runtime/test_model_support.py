"""Models of versions that ONNX Runtime does not know are refused when they are loaded."""

from __future__ import annotations

import onnx
import pytest
from builders import dense_model
from onnx import helper

import dask_onnx as dx
from dask_onnx.core.errors import ModelError
from dask_onnx.runtime import model_support
from dask_onnx.runtime.model_support import check_versions_known


def model_with(ir_version: int = 8, **versions: int) -> onnx.ModelProto:
    model = dense_model()
    model.ir_version = ir_version
    del model.opset_import[:]
    for domain, version in versions.items():
        name = {"onnx": "", "ml": "ai.onnx.ml", "ms": "com.microsoft"}.get(domain, domain)
        model.opset_import.append(helper.make_opsetid(name, version))
    return model


def test_an_ir_version_that_onnx_runtime_does_not_know_is_refused_at_loading():
    with pytest.raises(ModelError) as raised:
        dx.load(model_with(ir_version=99, onnx=17))
    numbers = raised.value.numbers
    assert numbers["ir_version"] == 99
    assert 10 <= numbers["newest_ir_version"] < 99
    assert f"model.ir_version = {numbers['newest_ir_version']}" in raised.value.next_step
    assert raised.value.reason
    dx.load(model_with(ir_version=int(numbers["newest_ir_version"]), onnx=17))


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ({"onnx": 99}, "ai.onnx"),
        ({"onnx": 17, "ml": 77}, "ai.onnx.ml"),
        ({"onnx": 17, "ms": 2}, "com.microsoft"),
    ],
)
def test_an_opset_that_onnx_runtime_does_not_know_is_refused_at_loading(versions, name):
    with pytest.raises(ModelError, match=name) as raised:
        dx.load(model_with(**versions))
    numbers = raised.value.numbers
    assert numbers["opset"] == max(v for v in versions.values() if v != 17)
    assert 1 <= numbers["newest_opset"] < numbers["opset"]


def test_versions_of_domains_of_other_owners_are_not_checked():
    assert dx.load(model_with(onnx=17, mine=7)).opsets["mine"] == 7


def test_nothing_is_checked_where_onnx_runtime_is_not_installed(monkeypatch):
    monkeypatch.setattr(model_support, "has_onnxruntime", lambda: False)
    check_versions_known(99, {"": 99})
