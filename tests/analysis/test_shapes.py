from __future__ import annotations

import numpy as np
import pytest
from builders import dense_model, make_model, node, value

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import OperatorSchema, bind_symbols, infer_shapes
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import load_onnx


def facts_of(model) -> GraphFacts:
    return GraphFacts(load_onnx(model))


def test_given_shapes_take_the_place_of_declared_ones():
    specs = infer_shapes(facts_of(dense_model()), {"x": (6, 8)})
    assert specs["h3"].shape == (6, 32)
    assert specs["y"].shape == (6, 4)
    assert specs["h3"].dtype == np.float32


def test_symbols_stay_where_nothing_is_given():
    assert infer_shapes(facts_of(dense_model()))["y"].shape == ("N", 4)


def test_shape_arithmetic_is_worked_out():
    # A mixture that ONNX's data propagation alone gives up on: a division and a power in between.
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
    model = make_model(nodes, [value("x", ["N", 3, "W"])], [value("y", None)], constants)
    assert infer_shapes(facts_of(model), {"x": (5, 3, 8)})["y"].shape == (5, 3, 8)


def test_stale_output_shapes_are_not_believed():
    model = make_model([node("Relu", "x", "y")], [value("x", ["N", 4])], [value("y", [7, 9])])
    assert infer_shapes(facts_of(model), {"x": (2, 4)})["y"].shape == (2, 4)


def test_declared_shapes_help_where_inference_gives_up():
    model = make_model(
        [node("Secret", "x", "y", domain="other")],
        [value("x", ["N", 4])],
        [value("y", ["N", 3])],
        domains={"other": 1},
    )
    spec = infer_shapes(facts_of(model), {"x": (2, 4)})["y"]
    assert spec.shape == (2, 3)


def test_foreign_operators_pass_on_the_type_that_their_schema_says():
    nodes = [node("Secret", "x", "h", domain="other"), node("Secret", "h", "y", domain="other")]
    model = make_model(nodes, [value("x", ["N"])], [value("y", ["N"])], domains={"other": 1})
    schemas = {("other", "Secret"): OperatorSchema((0,))}
    assert infer_shapes(facts_of(model), None, schemas)["h"].dtype == np.float32


F4 = np.dtype("f4")


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"a": (2, 3, 1), "b": (2, 5)}, "rank 3"),
        ({"a": (2, 4), "b": (2, 5)}, "size 4 on axis 1"),
        ({"a": (2, 3), "b": (4, 5)}, "'N' is 2 in input 'a' and 4 in 'b'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, reason):
    inputs = (TensorSpec("a", F4, ("N", 3)), TensorSpec("b", F4, ("N", None)))
    with pytest.raises(InputError, match=reason):
        bind_symbols(inputs, shapes)
    assert bind_symbols(inputs, {"a": (2, 3), "b": (2, 9)}) == {"N": 2}
