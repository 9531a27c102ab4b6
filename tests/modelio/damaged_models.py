"""Parts of models for tests of the checks that each model passes, and the error of one."""

from __future__ import annotations

import pytest
from builders import value
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.core.errors import ModelError, UnexpectedModelError

IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
X, Y = value("x", ["N", 4]), value("y", None)


def model_of(nodes, weights=(), inputs=(X,), outputs=(Y,), **more):
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), list(weights))
    more.setdefault("opset_imports", IMPORTS)
    return helper.make_model(graph, ir_version=8, **more)


def function(name, nodes, inputs=("a",), outputs=("b",), attributes=()):
    return helper.make_function(
        "mine", name, list(inputs), list(outputs), nodes, IMPORTS, list(attributes)
    )


def call(name, inputs="a", outputs="b"):
    return helper.make_node(name, inputs.split(), outputs.split(), domain="mine")


def refusal(model) -> ModelError:
    """Return the error of loading a model, which no check may have missed."""
    with pytest.raises(ModelError) as caught:
        dx.load(model)
    assert not isinstance(caught.value, UnexpectedModelError), caught.value
    return caught.value


def tensor(name="w", dims=(4,), data_type=TensorProto.FLOAT, **fields):
    made = TensorProto(name=name, data_type=data_type, dims=dims)
    for field, given in fields.items():
        if field == "raw_data":
            made.raw_data = given
        else:
            getattr(made, field).extend(given)
    return made
