"""Rewriting of graphs exported for a fixed number of rows to a dynamic batch axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, value, weights
from frozen_models import (
    PATTERNS,
    assert_freed,
    heads,
    ints,
    lstm,
    moved_rows,
    open_pixels,
    open_tokens,
    resized,
    run,
    sequence_first,
)
from hypothesis import given, settings
from onnx import TensorProto, helper

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.batch import find_batch
from dask_onnx.analysis.exported_batch import exported_rows
from dask_onnx.analysis.freeing import Freed, free_batch
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.opener import Blocked, open_batch
from dask_onnx.modelio.onnx_model import load_onnx, with_weights

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_nodes_that_name_the_number_of_rows_are_rewritten(pattern, rows):
    freed = assert_freed(pattern(rows), 1e-6)
    assert freed.opened.rows == rows
    assert freed.model.inputs[0].shape[0] == freed.model.outputs[0].shape[0] == "rows"
    assert freed.batch.input_axes == {"x": 0}


@pytest.mark.parametrize("rows", [1, 4])
def test_nonzero_initial_state_is_repeated(rows):
    assert_freed(lstm(rows, 0.5), 1e-6)


def test_resize_with_named_axes_computes_the_number_of_rows():
    model = resized(4)
    model.opset_import[0].version = 19
    model.graph.node[0].attribute.append(helper.make_attribute("axes", [0, 1, 2, 3]))
    assert_freed(model)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_batch_axis_removed_by_squeeze_is_restored(opset):
    nodes = [
        node("Squeeze", "x", "s"),  # (1, 3, 1, 4) to (3, 4), which removes the batch axis
        node("MatMul", "s W", "m"),
        node("Unsqueeze", "m front", "y"),
    ]
    constants = {"W": weights(4, 2), "front": ints(0)}
    inputs, outputs = [value("x", [1, 3, 1, 4])], [value("y", [1, 3, 2])]
    assert_freed(make_model(nodes, inputs, outputs, constants, opset=opset))


def test_batch_axis_removed_by_gather_is_restored():
    nodes = [node("Gather", "x first", "s"), node("Relu", "s", "r"), node("Reshape", "r t", "y")]
    constants = {"first": np.array(0), "t": ints(1, 3, 4)}
    model = make_model(nodes, [value("x", [1, 3, 4])], [value("y", [1, 3, 4])], constants)
    assert_freed(model)


def test_unbounded_indices_computed_by_each_row_are_supported():
    nodes = [
        node("Reshape", "x flat", "f"),
        node(
            "Gather", "f i", "y"
        ),  # any index into the flattened single row is an index into that row
    ]
    inputs = [value("x", [1, 4, 2]), value("i", [1, 3], INT64)]
    model = make_model(nodes, inputs, [value("y", [1, 3, 2])], {"flat": ints(4, 2)})
    assert_freed(model)


def test_output_that_does_not_depend_on_rows_is_repeated():
    nodes = [node("Relu", "x", "y"), node("Neg", "c", "z"), node("Identity", "z", "also")]
    outputs = [value("y", [1, 2]), value("z", [1, 3]), value("also", [1, 3])]
    freed = assert_freed(make_model(nodes, [value("x", [1, 2])], outputs, {"c": weights(1, 3)}))
    assert freed.batch.output_axes == {"y": 0, "z": 0, "also": 0}


def test_inputs_of_another_size_have_no_rows():
    nodes = [node("Mul", "x s", "m"), node("Add", "m t", "y")]
    inputs = [value("x", [1, 4]), value("s", [1]), value("t", [4])]
    freed = assert_freed(make_model(nodes, inputs, [value("y", [1, 4])]))
    assert freed.opened.input_axes == {"x": 0}
    assert [spec.shape for spec in freed.model.inputs] == [("rows", 4), (1,), (4,)]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    ("pattern", "sizes", "changed"),
    [
        (open_tokens, (5, 8), {"apart", "fold", "unfold", "together"}),
        (open_pixels, (3, 5, 6), {"enlarge", "repeat"}),
    ],
)
def test_other_dynamic_axes_stay_dynamic(pattern, sizes, changed, rows):
    original = load_onnx(pattern(rows))
    freed = assert_freed(pattern(rows))
    assert freed.model.inputs[0].shape == ("rows", *original.inputs[0].shape[1:])
    assert set(freed.opened.changes) >= changed - ({"repeat"} if rows == 1 else set())
    x = np.random.default_rng(0).standard_normal((3 * rows, *sizes)).astype(np.float32)
    found = run(freed.model, {"x": x})["y"]
    for start in range(0, 3 * rows, rows):
        part = x[start : start + rows]
        np.testing.assert_array_equal(found[start : start + rows], run(original, {"x": part})["y"])


def test_slice_of_rows_merged_with_a_dynamic_axis_is_blocked():
    """A fixed slice of rows merged with tokens holds for one number of tokens only."""
    nodes = [
        node("Reshape", "x flat", "f"),
        node("Slice", "f zero end zero", "s", "cut"),
        node("Reshape", "s apart", "y"),
    ]
    constants = {"flat": ints(-1, 4), "zero": ints(0), "end": ints(64), "apart": ints(1, -1, 4)}
    model = make_model(nodes, [value("x", [1, "T", 4])], [value("y", [1, None, 4])], constants)
    found = open_batch(load_onnx(model))
    assert isinstance(found, Blocked)
    assert found.node == "cut"


def test_rows_on_another_axis_are_supported_if_declared():
    nodes = [
        node("Reshape", "x flat", "f"),
        node("MatMul", "f W", "m"),
        node("Reshape", "m t", "y"),
    ]
    constants = {"flat": ints(12, 4), "W": weights(4, 2), "t": ints(3, 4, 2)}
    model = make_model(nodes, [value("x", [3, 4, 4])], [value("y", [3, 4, 2])], constants)
    freed = assert_freed(model, axes={"x": 1})
    assert freed.model.inputs[0].shape == (3, "rows", 4)
    assert freed.batch.output_axes == {"y": 1}
    declared = free_batch(replace(load_onnx(model), rows={"x": 1}))
    assert isinstance(declared, Freed)


@pytest.mark.parametrize("rows", [1, 4])
def test_graph_with_a_declared_dynamic_batch_and_fixed_reshapes_is_rewritten(rows):
    model = heads(rows)
    for declared in (*model.graph.input, *model.graph.output):
        declared.type.tensor_type.shape.dim[0].dim_param = "batch"
    facts = GraphFacts(load_onnx(model))
    assert find_batch(facts, facts.outputs).fixed_rows == rows
    freed = assert_freed(model, 1e-6)
    assert freed.opened.rows == rows
    assert freed.model.inputs[0].shape[0] == "batch"


BLOCKED = [
    ([node("Softmax", "x", "y", "across", axis=0)], {}, "across", Kind.REDUCED),
    ([node("Add", "x table", "y", "table")], {"table": weights(4, 3)}, "table", Kind.LENGTH),
    (
        [node("Gather", "x reversed", "y", "reverse")],
        {"reversed": ints(3, 2, 1, 0)},
        "reverse",
        Kind.GATHERED,
    ),
    ([node("MatMul", "mix x", "y", "mix")], {"mix": weights(4, 4)}, "mix", Kind.CONTRACTED),
    ([node("CumSum", "x zero", "y", "sum")], {"zero": np.array(0)}, "sum", Kind.SCANNED),
    (
        [node("Reshape", "x turned", "a", "scramble"), node("Reshape", "a back", "y")],
        {"turned": ints(3, 4), "back": ints(4, 3)},
        "scramble",
        Kind.FACTORED,
    ),
    (
        [
            node("Concat", "x x", "xx", axis=0),
            node("Reshape", "xx pairs", "p", "pair"),
            node("ReduceSum", "p one", "y", keepdims=0),
        ],
        {"pairs": ints(4, 2, 3), "one": ints(1)},
        "pair",
        Kind.FACTORED,
    ),
    (
        [node("RandomNormalLike", "x", "r", "draw", seed=1.0), node("Add", "x r", "y")],
        {},
        "draw",
        Kind.LENGTH,
    ),
]


@pytest.mark.parametrize(("nodes", "constants", "name", "kind"), BLOCKED)
def test_nodes_that_mix_or_distinguish_rows_are_reported(nodes, constants, name, kind):
    model = make_model(nodes, [value("x", [4, 3])], [value("y", [4, 3])], constants)
    found = free_batch(load_onnx(model))
    assert isinstance(found, Blocked)
    assert (found.node, found.kind, found.rows) == (name, kind, 4)


def test_random_constant_blocks_the_rewriting():
    noise = node("RandomNormal", "", "r", "noise", shape=[1, 3], seed=1.0)
    nodes = [noise, node("Concat", "x r", "y", "join", axis=1)]
    found = open_batch(load_onnx(make_model(nodes, [value("x", [1, 3])], [value("y", [1, 6])])))
    assert isinstance(found, Blocked)
    assert found.node == "join"


def test_convolution_with_rows_as_groups_is_blocked():
    nodes = [
        node("Reshape", "x one", "a"),
        node("Reshape", "w kernels", "k"),
        node("Conv", "a k", "c", "grouped", group=4),
        node("Reshape", "c back", "y"),
    ]
    constants = {"one": ints(1, 8, 5, 5), "kernels": ints(12, 2, 1, 1), "back": ints(4, 3, 5, 5)}
    inputs = [value("x", [4, 2, 5, 5]), value("w", [4, 3, 2, 1, 1])]
    found = open_batch(load_onnx(make_model(nodes, inputs, [value("y", [4, 3, 5, 5])], constants)))
    assert isinstance(found, Blocked)
    assert (found.node, found.op_type) == ("grouped", "Conv")


def test_rows_none_blocks_the_rewriting():
    found = open_batch(replace(load_onnx(dense_model(1)), rows="none"))
    assert isinstance(found, Blocked)
    assert found.rows is None


def test_value_infos_become_dynamic():
    model = heads(4)
    inferred = onnx.shape_inference.infer_shapes(model)
    assert inferred.graph.value_info
    opened = open_batch(load_onnx(inferred))
    hints = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in opened.model.parse().graph.value_info
    }
    assert hints["a"] == ["rows", 5, 2, 4]
    assert hints["f"] == [0, 5, 4]  # rows times heads have no symbol
    onnx.checker.check_model(with_weights(opened.model), full_check=True)


def test_changes_are_listed_by_node():
    opened = open_batch(load_onnx(sequence_first(1)))
    assert list(opened.changes) == ["flatten", "Reshape_3"]


def test_exported_rows_are_proven_by_rewriting():
    exported = exported_rows(load_onnx(lstm(4)))
    assert exported.is_proven
    assert exported.rows == 4


def test_exported_rows_are_proven_if_an_output_declares_a_symbol():
    model = heads(4)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "Reshapey_dim_0"
    assert exported_rows(load_onnx(model)).is_proven


@settings(max_examples=60)
@given(moved_rows())
def test_rows_moved_by_random_chains_are_followed(model):
    assert_freed(model)
