"""Errors of other code on a model reach the caller as errors about the model."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, value

import dask_onnx as dx
from dask_onnx.analysis import shape_folding
from dask_onnx.core.errors import InputError, ModelError, UnexpectedModelError
from dask_onnx.modelio.model_faults import model_faults


def test_a_division_by_zero_in_the_analysis_names_the_node():
    weights = {"w": np.ones((1, 1, 3, 3), np.float32)}
    conv = node("Conv", "x w", "y", name="conv", strides=[0, 0])
    model = make_model([conv], [value("x", ["N", 1, 8, 8])], [value("y", None)], weights)
    loaded = dx.load(model)
    with pytest.raises(UnexpectedModelError) as caught:
        _ = loaded.analysis
    assert caught.value.node == "conv"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.reason.startswith("ZeroDivisionError")


@pytest.mark.parametrize("error", [KeyError("x"), IndexError(1), OverflowError(), TypeError("t")])
def test_errors_of_other_code_become_model_errors(error):
    with pytest.raises(UnexpectedModelError) as caught, model_faults("analysed", "m"):
        raise error
    assert caught.value.__cause__ is error
    assert type(error).__name__ in caught.value.reason
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, type(again)) == (caught.value.reason, UnexpectedModelError)


@pytest.mark.parametrize(
    "error", [InputError("a", "b"), ModelError("a"), OSError(1, "disk"), FutureWarning("w")]
)
def test_errors_that_are_not_about_the_model_pass(error):
    with pytest.raises(type(error)) as caught, model_faults("analysed", "m"):
        raise error
    assert caught.value is error


def test_wrong_arguments_of_a_caller_are_no_faults_of_the_model():
    model = dx.load(dense_model())
    with pytest.raises(InputError):
        model.analyse({"gone": (1, 2)})
    with pytest.raises(InputError):
        model.predict(np.zeros((3, 5), np.float32))


def test_results_too_large_for_any_computer_are_planned_without_being_made():
    weights = {"size": np.array([2**62])}
    nodes = [
        node("ConstantOfShape", "size", "big"),
        node("ReduceSum", "big", "sum", keepdims=0),
        node("Add", "x sum", "y"),
    ]
    model = dx.load(make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights))
    assert model.analysis.flops <= 3 * 2**53
    for strategy in ("whole", "per_node", "fused", "branches"):
        assert model.plan(strategy).explain()


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("ConstantOfShape", [np.array([2**33])]),
        ("Expand", [np.array([1]), np.array([2**33])]),
        ("Tile", [np.array([1]), np.array([2**33])]),
        ("Range", [np.array(0), np.array(2**33), np.array(1)]),
    ],
)
def test_constants_that_fill_memory_are_not_evaluated(op, inputs, monkeypatch):
    asked = []

    def evaluator(model):
        asked.append(model.graph.node[0].op_type)
        raise MemoryError

    monkeypatch.setattr(shape_folding, "ReferenceEvaluator", evaluator)
    weights = {f"i{number}": each for number, each in enumerate(inputs)}
    nodes = [
        node(op, " ".join(weights), "big"),
        node("ReduceMax", "big", "max", keepdims=0),
        node("Cast", "max", "number", to=onnx.TensorProto.FLOAT),
        node("Add", "x number", "y"),
    ]
    model = make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)
    assert dx.load(model).plan("whole").explain()
    assert op not in asked
