"""Numbers of rows that graphs were exported for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import dense_model, make_model, node, value, weights

from dask_onnx.analysis.batch import find_batch, input_axes
from dask_onnx.analysis.exported_batch import exported_rows
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.onnx_model import load_onnx


def pairs(number=2, **changes):
    """Return a graph that adds the halves of each row; a constant shape names their number."""
    nodes = [node("Reshape", "x halves", "h", "cut"), node("ReduceSum", "h one", "y", keepdims=0)]
    constants = {"halves": np.array([number, 2, 3]), "one": np.array([1])}
    model = make_model(nodes, [value("x", ["N", 6])], [value("y", ["N", 3])], constants)
    return replace(load_onnx(model), **changes)


def recurrent(time, batch, state=2):
    """Return an RNN over (time, batch, 2) whose initial state has `state` rows."""
    nodes = [
        node("RNN", "x w r - - h", "s", hidden_size=3),
        node("Squeeze", "s one", "y"),
    ]
    constants = {
        "w": weights(1, 3, 2),
        "r": weights(1, 3, 3),
        "h": np.zeros((1, state, 3), np.float32),
        "one": np.array([1]),
    }
    inputs, outputs = [value("x", [time, batch, 2])], [value("y", [time, batch, 3])]
    return load_onnx(make_model(nodes, inputs, outputs, constants))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_number_in_a_constant_shape_is_found_and_proven(rows):
    found = exported_rows(pairs(rows))
    assert found is not None and found.is_proven and found.is_open
    assert (found.rows, dict(found.axes)) == (rows, {"x": 0})
    assert "'cut' (Reshape)" in found.conflict
    assert input_axes(pairs(rows)) == ({"x": 0}, rows)
    facts = GraphFacts(pairs(rows))
    batch = find_batch(facts, ("y", "h"))
    assert (batch.fixed_rows, batch.output_axes) == (rows, {"y": 0, "h": 0})
    assert batch.sizes == {"y": (1, 3), "h": (1, 2, 3)}


@pytest.mark.parametrize(
    ("time", "batch", "is_open"), [("T", "N", True), (5, "N", True), (5, 2, False), ("T", 2, True)]
)
def test_a_batch_on_the_second_axis_is_found(time, batch, is_open):
    model = recurrent(time, batch)
    found = exported_rows(model)
    if (time, batch) == ("T", 2):  # any number of steps, and no open axis of rows
        assert found is None or not found.is_proven
        return
    assert found is not None and found.is_proven and found.is_open is is_open
    assert (found.rows, dict(found.axes), dict(found.output_axes)) == (2, {"x": 1}, {"y": 1})
    assert find_batch(GraphFacts(model), ("y",)).output_axes == {"y": 1}


def test_a_declared_axis_of_fixed_size_is_the_number_of_rows():
    model = replace(recurrent(5, 2), rows={"x": 1})
    assert input_axes(model) == ({"x": 1}, 2)
    assert find_batch(GraphFacts(model), ("y",)).output_axes == {"y": 1}


def test_rows_that_meet_are_not_proven_and_the_node_is_named():
    nodes = [
        node("Reshape", "x halves", "h", "cut"),
        node("ReduceSum", "h one", "s", keepdims=0),
        node("Softmax", "s", "y", "across", axis=0),
    ]
    constants = {"halves": np.array([2, 2, 3]), "one": np.array([1])}
    model = load_onnx(make_model(nodes, [value("x", ["N", 6])], [value("y", ["N", 3])], constants))
    found = exported_rows(model)
    assert found is not None and not found.is_proven
    assert (found.rows, found.mixing) == (2, ("across",))
    batch = find_batch(GraphFacts(model), ("y",))
    assert batch.blockers and batch.fixed_rows is None and batch.exported == found
    declared = replace(model, rows="independent")
    assert find_batch(GraphFacts(declared), ("y",)).fixed_rows == 2


def test_open_graphs_without_such_a_number_have_none():
    assert exported_rows(load_onnx(dense_model())) is None
    assert exported_rows(pairs(0)) is None  # the Reshape copies the number of rows
    assert exported_rows(pairs(rows="none")) is None


def test_intermediate_values_have_rows_where_these_lie():
    """Axis 0 of a transposed value is as long as the batch by chance."""
    nodes = [node("Transpose", "x", "t"), node("Relu", "t", "u"), node("Transpose", "u", "y")]
    facts = GraphFacts(load_onnx(make_model(nodes, [value("x", [3, 3])], [value("y", [3, 3])])))
    batch = find_batch(facts, ("y", "u"))
    assert (batch.fixed_rows, batch.output_axes) == (3, {"y": 0, "u": 1})
