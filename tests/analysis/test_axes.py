"""Rows found by `find_batch`: input and output axes, and nodes that mix or lose rows."""

from __future__ import annotations

import numpy as np
import pytest
from builders import (
    branching_model,
    make_model,
    node,
    scaled_model,
    single_row_model,
    value,
    weights,
)
from onnx import TensorProto

from dask_onnx.analysis.batch import find_batch, input_axes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.onnx_model import load_onnx


def batch_of(model, shapes=None):
    facts = GraphFacts(load_onnx(model))
    return find_batch(facts, facts.outputs, shapes)


def through(nodes, x=("N", 4), y=None, constants=None, **options):
    model = make_model(nodes, [value("x", x)], [value("y", y)], constants, **options)
    return batch_of(model, {"x": tuple(d if isinstance(d, int) else 5 for d in x)})


def test_symbolic_first_axis_carries_rows():
    batch = batch_of(branching_model())
    assert batch.input_axes == {"x": 0}
    assert batch.output_axes == {"y": 0, "m": 0}
    assert batch.sizes == {"y": (1, 12), "m": (1, 4)}
    assert batch.dependent == batch.random == ()


def test_input_without_a_batch_axis_has_no_rows():
    assert batch_of(scaled_model()).input_axes == {"x": 0, "s": None}


def test_same_symbol_on_another_axis_carries_rows():
    model = make_model(
        [node("Identity", "x", "y"), node("Identity", "state", "z")],
        [value("x", ["B", 4]), value("state", [2, "B", 8])],
        [value("y", ["B", 4]), value("z", [2, "B", 8])],
    )
    batch = batch_of(model)
    assert batch.input_axes == {"x": 0, "state": 1}
    assert batch.output_axes == {"y": 0, "z": 1}


def test_graph_exported_for_one_row_has_fixed_rows():
    model = load_onnx(single_row_model())
    assert input_axes(model) == ({"x": 0}, 1)
    assert batch_of(single_row_model()).output_axes == {"y": 0}


def test_graph_exported_for_one_row_without_a_row_in_its_output_has_no_rows():
    model = make_model(
        [node("Squeeze", "x axis", "y")],
        [value("x", [1, 4])],
        [value("y", [4])],
        {"axis": np.array([0])},
    )
    assert input_axes(load_onnx(model)) == ({"x": None}, None)


def test_rows_are_followed_through_transpose_and_reshape():
    constants = {"shape": np.array([-1, 8])}
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("Transpose", "t", "u", perm=[1, 0, 2]),
        node("Reshape", "u shape", "y"),
    ]
    batch = through(nodes, ("N", 4, 2), None, constants)
    assert batch.output_axes == {"y": 0}
    assert batch.dependent == ()


MIXING = {
    "mean over rows": ([node("ReduceMean", "x", "y", "mix", axes=[0], keepdims=1)], {}),
    "softmax over rows": ([node("Softmax", "x", "y", "mix", axis=0)], {}),
    "matrix product with its own transpose": (
        [node("Transpose", "x", "t"), node("MatMul", "x t", "y", "mix")],
        {},
    ),
    "concatenation of a constant row": (
        [node("Concat", "first x", "y", "mix", axis=0)],
        {"first": weights(1, 4)},
    ),
    "one row picked": ([node("Gather", "x zero", "y", "mix", axis=0)], {"zero": np.array(0)}),
    "cumulative sum": ([node("CumSum", "x zero", "y", "mix")], {"zero": np.array(0)}),
    "batch normalisation in training": (
        [node("BatchNormalization", "x s b m v", "y m2 v2", "mix", training_mode=1)],
        {name: np.ones(4, np.float32) for name in "sbmv"},
    ),
    "dynamic quantisation": ([node("DynamicQuantizeLinear", "x", "y scale zero", "mix")], {}),
}


@pytest.mark.parametrize("case", MIXING)
def test_nodes_that_mix_rows_are_reported(case):
    nodes, constants = MIXING[case]
    elem_type = TensorProto.UINT8 if "dynamic" in case else TensorProto.FLOAT
    model = make_model(nodes, [value("x", ["N", 4])], [value("y", None, elem_type)], constants)
    assert batch_of(model).dependent == ("mix",)


INDEPENDENT = {
    "softmax over columns": [node("Softmax", "x", "y", axis=-1)],
    "mean over columns": [node("ReduceMean", "x", "y", axes=[1])],
    "sum of two": [node("Add", "x x", "y")],
    "expand to the input's own shape": [node("Shape", "x", "s"), node("Expand", "x s", "y")],
}


@pytest.mark.parametrize("case", INDEPENDENT)
def test_nodes_with_independent_rows_are_not_reported(case):
    assert through(INDEPENDENT[case]).dependent == ()


def test_random_nodes_are_reported():
    nodes = [node("RandomNormalLike", "x", "noise", "noise"), node("Add", "x noise", "y")]
    assert through(nodes).random == ("noise",)


def test_an_output_without_rows_has_no_axis():
    batch = through([node("ReduceSum", "x", "y", "total", keepdims=0)])
    assert batch.output_axes == {"y": None}
    assert batch.dependent == ("total",)


def test_data_dependent_size_is_nan():
    model = make_model(
        [node("NonZero", "x", "t"), node("Transpose", "t", "y")],
        [value("x", ["N", 4])],
        [value("y", None, TensorProto.INT64)],
    )
    batch = batch_of(model)
    assert np.isnan(batch.sizes["y"][0])
    assert batch.sizes["y"][1] == 2


def test_rows_added_to_a_table_of_rows_depend_on_their_index():
    model = make_model(
        [node("Add", "x B", "y", "add_table")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        {"B": weights(600, 4)},
    )
    assert batch_of(model).dependent == ("add_table",)


def test_bias_keeps_rows_independent():
    model = make_model(
        [node("Add", "x b", "h"), node("Mul", "h c", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        {"b": weights(4), "c": weights(1, 4)},
    )
    batch = batch_of(model)
    assert batch.dependent == () and batch.opaque == ()


def test_unknown_operator_is_reported_as_opaque():
    model = make_model(
        [node("Mystery", "x", "h", "unknown", domain="made.up"), node("Relu", "h", "y")],
        [value("x", ["N", 4])],
        [value("y", None)],
        domains={"made.up": 1},
    )
    assert batch_of(model).opaque == ("unknown",)


def test_unused_output_of_unknown_type_does_not_make_rows_opaque():
    """Dropout's mask has no inferred type in old opsets."""
    model = make_model(
        [node("Dropout", "x", "h mask", "drop"), node("Relu", "h", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        opset=9,
    )
    assert batch_of(model).opaque == ()


def fixed_model(rows=4, reshape=True):
    """Return a dense layer exported for a fixed number of rows, which a Reshape may name too."""
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "r")]
    nodes.append(node("Reshape", "r s", "y") if reshape else node("Identity", "r", "y"))
    return make_model(
        nodes,
        [value("x", [rows, 6])],
        [value("y", [rows, 2, 3] if reshape else [rows, 6])],
        {"w": weights(6, 6), "s": np.array([rows, 2, 3])} if reshape else {"w": weights(6, 6)},
    )


@pytest.mark.parametrize("reshape", [True, False])
def test_fixed_number_of_rows_is_distinguished_from_a_matrix(reshape):
    facts = GraphFacts(load_onnx(fixed_model(reshape=reshape)))
    batch = find_batch(facts, ("y",))
    assert (batch.fixed_rows, batch.input_axes, batch.output_axes) == (4, {"x": 0}, {"y": 0})
    assert batch.sizes["y"] == ((1, 2, 3) if reshape else (1, 6))
    mixing = make_model(
        [node("Transpose", "x", "t"), node("MatMul", "x t", "y")],
        [value("x", [4, 4])],
        [value("y", [4, 4])],
    )
    assert find_batch(GraphFacts(load_onnx(mixing)), ("y",)).fixed_rows is None
