"""Shapes and dtypes of all values, for given shapes of the inputs."""

from __future__ import annotations

import numpy as np
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.input_sizes import check_static_sizes, check_symbol_sizes
from dask_onnx.analysis.shapes import OperatorSchema, infer_shapes
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
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, fields):
    inputs = (TensorSpec("a", F4, ("N", 3)), TensorSpec("b", F4, ("N", None)))
    with pytest.raises(InputError) as raised:
        check_static_sizes(inputs, shapes)
    assert raised.value.fields == fields
    check_static_sizes(inputs, {"a": (2, 3), "b": (2, 9)})


def two_of_one_symbol(op, **attributes):
    inputs = [value("a", ["N", 4]), value("b", ["N", 4])]
    return facts_of(
        make_model([node(op, "a b", "y", "n", **attributes)], inputs, [value("y", None)])
    )


@pytest.mark.parametrize(
    ("op", "attributes", "shapes"),
    [
        ("Add", {}, {"a": (3, 4), "b": (3, 4)}),
        ("Add", {}, {"a": (3, 4), "b": (1, 4)}),
        ("Concat", {"axis": 0}, {"a": (3, 4), "b": (5, 4)}),
    ],
)
def test_sizes_of_one_symbol_may_differ_where_the_graph_accepts_it(op, attributes, shapes):
    check_symbol_sizes(two_of_one_symbol(op, **attributes), shapes)


@pytest.mark.parametrize(
    ("op", "attributes"), [("Add", {}), ("Concat", {"axis": 1}), ("Max", {}), ("Pow", {})]
)
def test_sizes_of_one_symbol_that_a_node_does_not_accept_are_refused(op, attributes):
    facts = two_of_one_symbol(op, **attributes)
    with pytest.raises(InputError) as raised:
        check_symbol_sizes(facts, {"a": (3, 4), "b": (2, 4)})
    error = raised.value
    assert (error.input, error.axis) == ("b", 0)
    assert error.numbers == {"size": 2, "expected_size": 3}


def test_a_symbol_of_two_sizes_binds_no_output():
    nodes = [node("Secret", "a b", "y", domain="other")]
    inputs = [value("a", ["N", 4]), value("b", ["N", 4])]
    model = make_model(nodes, inputs, [value("y", ["N", 4])], domains={"other": 1})
    facts = facts_of(model)
    assert infer_shapes(facts, {"a": (3, 4), "b": (3, 4)})["y"].shape == (3, 4)
    assert infer_shapes(facts, {"a": (3, 4), "b": (5, 4)})["y"].shape == ("N", 4)


def test_a_declared_output_of_size_0_is_open():
    nodes = [node("NonZero", "x", "y")]
    model = make_model(nodes, [value("x", ["N"])], [value("y", [1, 0], TensorProto.INT64)])
    loaded = load_onnx(model)
    assert loaded.outputs[0].shape == (1, None)
    assert infer_shapes(GraphFacts(loaded), {"x": (4,)})["y"].shape[1] != 0
    empty = make_model([node("Relu", "x", "y")], [value("x", [0, 4])], [value("y", [0, 4])])
    assert infer_shapes(facts_of(empty))["y"].shape == (0, 4)


def test_a_node_whose_inference_raises_leaves_the_others_alone():
    nodes = [
        node("Relu", "x", "a", "before"),
        node("Reshape", "a s", "b", "bad"),
        node("Relu", "x", "y", "after"),
    ]
    model = make_model(
        nodes, [value("x", ["N", 4])], [value("y", None), value("b", None)],
        {"s": np.array([-1, -1])},
    )  # fmt: skip
    specs = infer_shapes(facts_of(model), {"x": (3, 4)})
    assert specs["a"].shape == specs["y"].shape == (3, 4)
    assert specs["b"].shape is None
