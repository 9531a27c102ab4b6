"""Shapes and dtypes of all values, for given shapes of the inputs."""

from __future__ import annotations

import numpy as np
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import OperatorSchema, bind_symbols, infer_shapes
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import load_onnx


def facts_of(model) -> GraphFacts:
    return GraphFacts(load_onnx(model))


def test_given_shapes_replace_declared_ones():
    specs = infer_shapes(facts_of(dense_model()), {"x": (6, 8)})
    assert specs["h3"].shape == (6, 32)
    assert specs["y"].shape == (6, 4)
    assert specs["h3"].dtype == np.float32


def test_symbols_stay_without_given_shapes():
    assert infer_shapes(facts_of(dense_model()))["y"].shape == ("N", 4)


def arithmetic_model(outputs):
    """Return x (N, 3, W) -> y by a Reshape, whose target ONNX's data propagation cannot follow."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "rows"),
        node("Gather", "s two", "columns"),
        node("Div", "columns two_scalar", "half"),
        node("Mul", "half two_scalar", "whole"),
        node("Unsqueeze", "rows axis", "rows1"),
        node("Unsqueeze", "whole axis", "whole1"),
        node("Concat", "rows1 minus whole1", "target", axis=0),
        node("Reshape", "x target", "y"),
    ]
    constants = {
        "zero": np.array(0),
        "two": np.array(2),
        "two_scalar": np.array(2),
        "axis": np.array([0]),
        "minus": np.array([-1]),
    }
    return make_model(nodes, [value("x", ["N", 3, "W"])], outputs, constants)


def test_shape_arithmetic_is_evaluated():
    model = arithmetic_model([value("y", None)])
    assert infer_shapes(facts_of(model), {"x": (5, 3, 8)})["y"].shape == (5, 3, 8)


def test_graph_outputs_keep_their_shape_when_they_are_folded():
    # ONNX infers the shape of "target" while its node is there; folding turns it into a constant.
    outputs = [value("y", None), value("target", None, TensorProto.INT64)]
    specs = infer_shapes(facts_of(arithmetic_model(outputs)), {"x": (5, 3, 8)})
    assert specs["target"] == TensorSpec("target", np.dtype(np.int64), (3,))
    assert specs["y"].shape == (5, 3, 8)


def test_stale_output_shapes_are_ignored():
    model = make_model([node("Relu", "x", "y")], [value("x", ["N", 4])], [value("y", [7, 9])])
    assert infer_shapes(facts_of(model), {"x": (2, 4)})["y"].shape == (2, 4)


def test_declared_shapes_complete_what_inference_leaves_open():
    model = make_model(
        [node("Secret", "x", "y", domain="other")],
        [value("x", ["N", 4])],
        [value("y", ["N", 3])],
        domains={"other": 1},
    )
    spec = infer_shapes(facts_of(model), {"x": (2, 4)})["y"]
    assert spec.shape == (2, 3)


def test_foreign_operators_pass_on_the_dtype_of_their_schema():
    nodes = [node("Secret", "x", "h", domain="other"), node("Secret", "h", "y", domain="other")]
    model = make_model(nodes, [value("x", ["N"])], [value("y", ["N"])], domains={"other": 1})
    schemas = {("other", "Secret"): OperatorSchema((0,))}
    assert infer_shapes(facts_of(model), None, schemas)["h"].dtype == np.float32


F4 = np.dtype("f4")


@pytest.mark.parametrize(
    ("shapes", "fields"),
    [
        (
            {"a": (2, 3, 1), "b": (2, 5)},
            {"input": "a", "numbers": {"rank": 3, "expected_rank": 2}},
        ),
        (
            {"a": (2, 4), "b": (2, 5)},
            {"input": "a", "axis": 1, "numbers": {"size": 4, "expected_size": 3}},
        ),
        (
            {"a": (2, 3), "b": (4, 5)},
            {"input": "b", "axis": 0, "numbers": {"size": 4, "expected_size": 2}},
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, fields):
    inputs = (TensorSpec("a", F4, ("N", 3)), TensorSpec("b", F4, ("N", None)))
    with pytest.raises(InputError) as raised:
        bind_symbols(inputs, shapes)
    assert raised.value.fields == fields
    assert bind_symbols(inputs, {"a": (2, 3), "b": (2, 9)}) == {"N": 2}
