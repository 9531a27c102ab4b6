"""Graphs that were exported for a fixed number of rows get an open batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import dense_model, make_model, node, value, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dask_onnx import weights as weights_module
from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.batch import exported_rows, find_batch
from dask_onnx.analysis.freeing import Freed, check_freed, differences, free_batch
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.opener import Blocked, Opened, open_batch
from dask_onnx.analysis.sample_inputs import sample_inputs
from dask_onnx.errors import ModelError
from dask_onnx.onnx_model import load_onnx, with_weights

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


def ints(*numbers):
    return np.array(numbers, np.int64)


def run(model, feeds):
    """Once, by ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        with_weights(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_freed(model, tolerance=0.0, **options):
    """It opens, is proven, and gives at its own size and at another what the original gives."""
    original = load_onnx(model)
    freed = free_batch(original, **options)
    assert isinstance(freed, Freed), str(freed)
    found = differences(original, freed, run)
    assert {each.rows for each in found} == {freed.opened.rows, 2 * freed.opened.rows + 1}
    assert max(each.relative for each in found) <= tolerance
    return freed


def heads(k):
    """Attention of two heads, batch first."""
    nodes = [
        node("Reshape", "x apart", "a", "apart"),
        node("Transpose", "a", "q", perm=[0, 2, 1, 3]),
        node("Reshape", "q folded", "f", "fold"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("MatMul", "f t", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p f", "o"),
        node("Reshape", "o unfolded", "u", "unfold"),
        node("Transpose", "u", "b", perm=[0, 2, 1, 3]),
        node("Reshape", "b together", "y", "together"),
    ]
    shapes = {
        "apart": ints(k, 5, 2, 4),
        "folded": ints(k * 2, 5, 4),
        "unfolded": ints(k, 2, 5, 4),
        "together": ints(k, -1, 8),
    }
    return make_model(nodes, [value("x", [k, 5, 8])], [value("y", [k, 5, 8])], shapes)


def sequence_first(k):
    """Tokens in front: with one row, flattening may merge it with the tokens or the features."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("Reshape", "t flat", "f", "flatten"),
        node("Gemm", "f W b", "g"),
        node("Reshape", "g apart", "a"),
        node("Transpose", "a", "y", perm=[1, 0, 2]),
    ]
    constants = {"flat": ints(5 * k, 8), "apart": ints(5, k, 6), "W": weights(8, 6)}
    constants["b"] = weights(6)
    return make_model(nodes, [value("x", [k, 5, 8])], [value("y", [k, 5, 6])], constants)


def class_token(k):
    nodes = [node("Expand", "token shape", "tokens"), node("Concat", "tokens x", "y", axis=1)]
    constants = {"token": weights(1, 1, 4), "shape": ints(k, 1, 4)}
    return make_model(nodes, [value("x", [k, 3, 4])], [value("y", [k, 4, 4])], constants)


def folded_token(k):
    """The same once the exporter has folded the Expand."""
    constants = {"tokens": np.repeat(weights(1, 1, 4), k, 0)}
    nodes = [node("Concat", "tokens x", "y", axis=1)]
    return make_model(nodes, [value("x", [k, 3, 4])], [value("y", [k, 4, 4])], constants)


def lstm(k, state=0.0):
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("LSTM", "t W R B - h c", "all last", hidden_size=3),
        node("Squeeze", "last zero", "y"),
    ]
    constants = {"W": weights(1, 12, 4), "R": weights(1, 12, 3), "B": weights(1, 24)}
    constants |= {"h": np.full((1, k, 3), state, np.float32), "zero": ints(0)}
    constants["c"] = np.full((1, k, 3), state / 2, np.float32)
    return make_model(nodes, [value("x", [k, 5, 4])], [value("y", [k, 3])], constants)


def mask(k):
    """A mask written for all rows, added to scores, and one that a constant chain makes."""
    nodes = [
        node("Add", "x mask", "a"),
        node("Expand", "bias shape", "wide"),
        node("Unsqueeze", "wide one", "made"),
        node("Add", "a made", "y"),
    ]
    triangle = np.triu(np.full((1, 1, 4, 4), -9.0, np.float32), 1)
    constants = {"mask": np.repeat(triangle, k, 0), "bias": weights(1, 4, 4), "one": ints(1)}
    constants["shape"] = ints(k, 4, 4)
    return make_model(nodes, [value("x", [k, 2, 4, 4])], [value("y", [k, 2, 4, 4])], constants)


def index_grid(k):
    """Advanced indexing as dynamo exports it: each index names its row."""
    grid = np.stack(np.meshgrid(np.arange(k), [2, 0], indexing="ij"), -1)
    constants = {"grid": grid.reshape(k, 1, 2, 2).astype(np.int64)}
    nodes = [node("GatherND", "x grid", "y")]
    return make_model(nodes, [value("x", [k, 3])], [value("y", [k, 1, 2])], constants)


def written_in_place(k):
    """``x[:, 1] = 7`` as ScatterND with an index for each row."""
    index = np.stack([np.arange(k), np.ones(k)], -1).astype(np.int64)
    constants = {"index": index, "seven": np.full(k, 7, np.float32)}
    nodes = [node("ScatterND", "x index seven", "y")]
    return make_model(nodes, [value("x", [k, 3])], [value("y", [k, 3])], constants)


def as_strided(k):
    """A flat tensor and the places of each row in it."""
    places = np.arange(k)[:, None, None] * 6 + np.arange(6).reshape(1, 3, 2)[:, ::-1]
    constants = {"flat": ints(-1), "places": places}
    nodes = [node("Reshape", "x flat", "f"), node("Gather", "f places", "y")]
    return make_model(nodes, [value("x", [k, 2, 3])], [value("y", [k, 3, 2])], constants)


def best_place(k):
    """``x[range(k), argmax]`` in a flat tensor: an addend says where each row begins."""
    nodes = [
        node("ArgMax", "x", "best", axis=1, keepdims=0),
        node("Add", "best starts", "place"),
        node("Reshape", "x flat", "f"),
        node("Gather", "f place", "y"),
    ]
    constants = {"starts": np.arange(k) * 4, "flat": ints(-1)}
    return make_model(nodes, [value("x", [k, 4])], [value("y", [k])], constants)


def resized(k):
    nodes = [node("Resize", "x - - sizes", "y", mode="nearest")]
    constants = {"sizes": ints(k, 2, 6, 6)}
    return make_model(nodes, [value("x", [k, 2, 3, 3])], [value("y", [k, 2, 6, 6])], constants)


def guided(k):
    """Two passes stacked on the batch axis, and taken apart again."""
    nodes = [
        node("Expand", "null shape", "nothing"),
        node("Concat", "nothing x", "both", axis=0),
        node("MatMul", "both W", "m"),
        node("Split", "m parts", "u c", axis=0),
        node("Slice", "m zero k zero", "first"),
        node("Sub", "c u", "d"),
        node("Add", "d first", "y"),
    ]
    constants = {"null": weights(1, 4), "shape": ints(k, 4), "W": weights(4, 4)}
    constants |= {"parts": ints(k, k), "zero": ints(0), "k": ints(k)}
    return make_model(nodes, [value("x", [k, 4])], [value("y", [k, 4])], constants)


def whole_slice(k):
    nodes = [node("Slice", "x start end axes", "y")]
    constants = {"start": ints(0, 1), "end": ints(k, 3), "axes": ints(0, 1)}
    return make_model(nodes, [value("x", [k, 4])], [value("y", [k, 2])], constants)


def tiled_table(k):
    """A table of positions added where rows and tokens are one axis."""
    nodes = [
        node("Reshape", "x flat", "f"),
        node("Add", "f table", "a"),
        node("Reshape", "a apart", "y"),
    ]
    constants = {"flat": ints(k * 3, 4), "table": np.tile(weights(3, 4), (k, 1))}
    constants["apart"] = ints(k, 3, 4)
    return make_model(nodes, [value("x", [k, 3, 4])], [value("y", [k, 3, 4])], constants)


def expanded_features(k):
    nodes = [node("Expand", "x shape", "e"), node("ReduceSum", "e last", "y", keepdims=0)]
    constants = {"shape": ints(k, 3, 4), "last": ints(2)}
    return make_model(nodes, [value("x", [k, 3, 1])], [value("y", [k, 3])], constants)


def scanned(k):
    """A Scan whose body was written for so many rows."""
    body = helper.make_graph(
        [node("Add", "state step", "next"), node("Identity", "next", "out")],
        "body",
        [value("state", [k, 2]), value("step", [k, 2])],
        [value("next", [k, 2]), value("out", [k, 2])],
    )
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("ReduceSum", "x axis", "begin", keepdims=0),
        node("Scan", "begin t", "end outs", body=body, num_scan_inputs=1),
        node("Transpose", "outs", "y", perm=[1, 0, 2]),
    ]
    inputs, outputs = [value("x", [k, 3, 2])], [value("y", [k, 3, 2])]
    return make_model(nodes, inputs, outputs, {"axis": ints(1)})


def sampled(k):
    """A sampling grid that is the same for each picture."""
    grid = np.repeat(np.clip(weights(1, 2, 2, 2), -1, 1), k, 0)
    nodes = [node("GridSample", "x grid", "y")]
    return make_model(nodes, [value("x", [k, 1, 4, 4])], [value("y", [k, 1, 2, 2])], {"grid": grid})


def fused_product(k):
    """FusedMatMul of com.microsoft over tokens that stand in front of the batch."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2, 3]),
        node(
            "FusedMatMul",
            "t t",
            "y",
            domain="com.microsoft",
            transBatchA=1,
            transBatchB=1,
            transB=1,
        ),
    ]
    inputs, outputs = [value("x", [k, 5, 2, 4])], [value("y", [k, 2, 5, 5])]
    return make_model(nodes, inputs, outputs, domains={"com.microsoft": 1})


def masked_attention(k):
    """MultiHeadAttention of com.microsoft with a mask of keys for each row."""
    attention = node("MultiHeadAttention", "x x x - keys", "y", domain="com.microsoft", num_heads=2)
    keys = np.repeat(np.array([[1, 1, 1, 0]], np.int32), k, 0)
    return make_model(
        [attention],
        [value("x", [k, 4, 8])],
        [value("y", [k, 4, 8])],
        {"keys": keys},
        domains={"com.microsoft": 1},
    )


PATTERNS = [
    heads,
    sequence_first,
    class_token,
    folded_token,
    lstm,
    mask,
    index_grid,
    written_in_place,
    as_strided,
    best_place,
    resized,
    guided,
    whole_slice,
    tiled_table,
    expanded_features,
    scanned,
    sampled,
    fused_product,
    masked_attention,
]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_names_the_number_of_rows_is_rewritten(pattern, rows):
    freed = assert_freed(pattern(rows), 1e-6)
    assert freed.opened.rows == rows
    assert freed.model.inputs[0].shape[0] == freed.model.outputs[0].shape[0] == "rows"
    assert freed.batch.input_axes == {"x": 0}


@pytest.mark.parametrize("rows", [1, 4])
def test_an_initial_state_that_is_not_zero_is_repeated(rows):
    assert_freed(lstm(rows, 0.5), 1e-6)


def test_resizing_names_its_axes_with_a_number_of_rows_that_is_computed():
    model = resized(4)
    model.opset_import[0].version = 19
    model.graph.node[0].attribute.append(helper.make_attribute("axes", [0, 1, 2, 3]))
    assert_freed(model)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_batch_that_one_row_lost_by_squeezing_comes_back(opset):
    nodes = [
        node("Squeeze", "x", "s"),  # (1, 3, 1, 4) to (3, 4): the one row's axis too
        node("MatMul", "s W", "m"),
        node("Unsqueeze", "m front", "y"),
    ]
    constants = {"W": weights(4, 2), "front": ints(0)}
    inputs, outputs = [value("x", [1, 3, 1, 4])], [value("y", [1, 3, 2])]
    assert_freed(make_model(nodes, inputs, outputs, constants, opset=opset))


def test_a_batch_that_one_row_lost_by_indexing_comes_back():
    nodes = [node("Gather", "x first", "s"), node("Relu", "s", "r"), node("Reshape", "r t", "y")]
    constants = {"first": np.array(0), "t": ints(1, 3, 4)}
    model = make_model(nodes, [value("x", [1, 3, 4])], [value("y", [1, 3, 4])], constants)
    assert_freed(model)


def test_places_that_each_row_computes_need_not_be_bounded():
    nodes = [
        node("Reshape", "x flat", "f"),
        node("Gather", "f i", "y"),  # whatever the index says, it was into this row
    ]
    inputs = [value("x", [1, 4, 2]), value("i", [1, 3], INT64)]
    model = make_model(nodes, inputs, [value("y", [1, 3, 2])], {"flat": ints(4, 2)})
    assert_freed(model)


def test_an_output_that_is_the_same_for_each_row_is_repeated():
    nodes = [node("Relu", "x", "y"), node("Neg", "c", "z"), node("Identity", "z", "also")]
    outputs = [value("y", [1, 2]), value("z", [1, 3]), value("also", [1, 3])]
    freed = assert_freed(make_model(nodes, [value("x", [1, 2])], outputs, {"c": weights(1, 3)}))
    assert freed.batch.output_axes == {"y": 0, "z": 0, "also": 0}


def test_inputs_of_another_size_are_given_once():
    nodes = [node("Mul", "x s", "m"), node("Add", "m t", "y")]
    inputs = [value("x", [1, 4]), value("s", [1]), value("t", [4])]
    freed = assert_freed(make_model(nodes, inputs, [value("y", [1, 4])]))
    assert freed.opened.input_axes == {"x": 0}
    assert [spec.shape for spec in freed.model.inputs] == [("rows", 4), (1,), (4,)]


def open_tokens(k):
    """Heads of as many tokens as there are: the shapes are computed but for the number of rows."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "t"),
        node("Concat", "k t two four", "apart", axis=0),
        node("Reshape", "x apart", "a", "apart"),
        node("Transpose", "a", "h", perm=[0, 2, 1, 3]),
        node("Concat", "folded t four", "fold", axis=0),
        node("Reshape", "h fold", "f", "fold"),
        node("Concat", "k two t four", "unfold", axis=0),
        node("Reshape", "f unfold", "u", "unfold"),
        node("Transpose", "u", "b", perm=[0, 2, 1, 3]),
        node("Reshape", "b back", "y", "together"),
    ]
    constants = {"one": ints(1), "k": ints(k), "two": ints(2), "four": ints(4)}
    constants |= {"back": ints(k, -1, 8), "folded": ints(k * 2)}
    return make_model(nodes, [value("x", [k, "T", 8])], [value("y", [k, "T", 8])], constants)


def open_pixels(k):
    """A picture of any size, twice as large; and a mask of that size, repeated for the channels."""
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s two four", "pixels"),
        node("Mul", "pixels two", "larger"),
        node("Concat", "front larger", "sizes", axis=0),
        node("Resize", "x - - sizes", "r", "enlarge", mode="nearest"),
        node("ReduceMax", "r", "m", axes=[1]),
        node("Expand", "m sizes", "e", "repeat"),
        node("Add", "r e", "y"),
    ]
    constants = {"two": ints(2), "four": ints(4), "front": ints(k, 3)}
    shape = [k, 3, "H", "W"]
    return make_model(nodes, [value("x", shape)], [value("y", [k, 3, None, None])], constants)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    ("pattern", "sizes", "changed"),
    [
        (open_tokens, (5, 8), {"apart", "fold", "unfold", "together"}),
        (open_pixels, (3, 5, 6), {"enlarge", "repeat"}),
    ],
)
def test_other_open_axes_stay_open(pattern, sizes, changed, rows):
    original = load_onnx(pattern(rows))
    freed = assert_freed(pattern(rows))
    assert freed.model.inputs[0].shape == ("rows", *original.inputs[0].shape[1:])
    assert set(freed.opened.changes) >= changed - ({"repeat"} if rows == 1 else set())
    x = np.random.default_rng(0).standard_normal((3 * rows, *sizes)).astype(np.float32)
    found = run(freed.model, {"x": x})["y"]
    for start in range(0, 3 * rows, rows):
        part = x[start : start + rows]
        np.testing.assert_array_equal(found[start : start + rows], run(original, {"x": part})["y"])


def test_rows_that_are_one_with_an_open_axis_are_left():
    """Where rows were merged with tokens, a grid of indices holds for one number of tokens only."""
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


def test_rows_on_another_axis_are_opened_if_they_are_named():
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
def test_an_open_batch_that_a_graph_names_inside_becomes_open(rows):
    model = heads(rows)
    for declared in (*model.graph.input, *model.graph.output):
        declared.type.tensor_type.shape.dim[0].dim_param = "batch"
    facts = GraphFacts(load_onnx(model))
    assert find_batch(facts, facts.outputs).blockers
    freed = assert_freed(model, 1e-6)
    assert freed.opened.rows == rows
    assert freed.model.inputs[0].shape[0] == "batch"


BLOCKED = [
    ([node("Softmax", "x", "y", "across", axis=0)], {}, "across", Kind.REDUCED),
    ([node("Add", "x table", "y", "table")], {"table": weights(4, 3)}, "table", Kind.LENGTH),
    (
        [node("Gather", "x turned", "y", "turn")],
        {"turned": ints(3, 2, 1, 0)},
        "turn",
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
        Kind.OPAQUE,
    ),
]


@pytest.mark.parametrize(("nodes", "constants", "name", "kind"), BLOCKED)
def test_what_mixes_rows_or_tells_them_apart_is_named(nodes, constants, name, kind):
    model = make_model(nodes, [value("x", [4, 3])], [value("y", [4, 3])], constants)
    found = free_batch(load_onnx(model))
    assert isinstance(found, Blocked)
    assert (found.node, found.kind, found.rows) == (name, kind, 4)


def test_a_statistic_over_all_rows_of_a_run_is_in_the_way_of_one_row_too():
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z", "quantise"),
        node("DequantizeLinear", "q s z", "y"),
    ]
    model = make_model(nodes, [value("x", [1, 3])], [value("y", [1, 3])])
    found = free_batch(load_onnx(model))
    assert isinstance(found, Blocked)
    assert found.node == "quantise"


def test_noise_of_one_run_is_in_the_way():
    noise = node("RandomNormal", "", "r", "noise", shape=[1, 3], seed=1.0)
    nodes = [noise, node("Concat", "x r", "y", "join", axis=1)]
    found = open_batch(load_onnx(make_model(nodes, [value("x", [1, 3])], [value("y", [1, 6])])))
    assert isinstance(found, Blocked)
    assert found.node == "join"


def test_a_convolution_whose_groups_are_the_rows_stays_as_it_is():
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


def test_a_declaration_that_there_are_no_rows_is_believed():
    found = open_batch(replace(load_onnx(dense_model(1)), rows="none"))
    assert isinstance(found, Blocked)
    assert found.rows is None


def table_for_all_rows(rows, differ=False):
    """A constant of more than a kilobyte for each row, which leaves the proto."""
    table = np.repeat(weights(1, 600), rows, 0)
    table[-1] += differ
    return make_model(
        [node("Add", "x table", "y", "table")],
        [value("x", [rows, 600])],
        [value("y", [rows, 600])],
        {"table": table},
    )


@pytest.fixture
def no_reading(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(weights_module, "read_ranges", refuse)


def test_weights_are_left_alone_and_stay_where_they_are(tmp_path, no_reading):
    model = dense_model(4, hidden=600)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=100)
    original = load_onnx(tmp_path / "m.onnx")
    opened = open_batch(original)
    assert isinstance(opened, Opened)
    assert opened.model.blob_keys == original.blob_keys
    assert opened.model.places == original.places
    assert opened.model.source is None
    assert opened.model.token != original.token
    assert original.inputs[0].shape == (4, 8)


def test_a_large_constant_for_all_rows_is_read_only_where_that_is_wanted(tmp_path):
    onnx.save_model(table_for_all_rows(4), tmp_path / "m.onnx", save_as_external_data=True)
    original = load_onnx(tmp_path / "m.onnx")
    unread = open_batch(original)
    assert isinstance(unread, Blocked)
    assert (unread.node, unread.kind) == ("table", Kind.OPAQUE)
    freed = free_batch(original)
    assert isinstance(freed, Freed)
    assert freed.model.blob_keys == original.blob_keys
    assert max(each.relative for each in differences(original, freed, run)) == 0


def test_a_large_constant_whose_rows_differ_is_in_the_way(tmp_path):
    model = table_for_all_rows(4, differ=True)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True)
    found = free_batch(load_onnx(tmp_path / "m.onnx"))
    assert isinstance(found, Blocked)
    assert (found.node, found.kind) == ("table", Kind.LENGTH)


def test_what_is_written_down_of_values_is_opened_too():
    model = heads(4)
    inferred = onnx.shape_inference.infer_shapes(model)
    assert inferred.graph.value_info
    opened = open_batch(load_onnx(inferred))
    hints = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in opened.model.parse().graph.value_info
    }
    assert hints["a"] == ["rows", 5, 2, 4]
    assert hints["f"] == [0, 5, 4]  # rows times heads have no name
    onnx.checker.check_model(with_weights(opened.model), full_check=True)


def test_the_changes_are_told_by_node():
    opened = open_batch(load_onnx(sequence_first(1)))
    assert list(opened.changes) == ["flatten", "Reshape_3"]


def test_rows_that_only_rewriting_proves_are_cut_into_runs():
    exported = exported_rows(load_onnx(lstm(4)))
    assert exported.is_proven
    assert exported.rows == 4


def test_the_size_of_outputs_is_inferred_where_the_graph_names_it():
    model = heads(4)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "Reshapey_dim_0"
    assert exported_rows(load_onnx(model)).is_proven


def test_a_graph_that_gives_other_numbers_is_refused():
    original = load_onnx(dense_model(4))
    freed = free_batch(original)
    other = make_model(
        [node("MatMul", "x W", "y")],
        [value("x", ["rows", 8])],
        [value("y", ["rows", 4])],
        {"W": weights(8, 4)},
    )
    wrong = replace(freed, opened=replace(freed.opened, model=load_onnx(other)))
    with pytest.raises(ModelError, match="differs by"):
        check_freed(original, wrong, run)
    assert max(each.relative for each in check_freed(original, freed, run)) < 1e-6


def test_differences_count_elements_that_are_no_floats():
    model = make_model(
        [node("ArgMax", "x", "y", axis=1), node("Relu", "x", "z")],
        [value("x", [2, 5])],
        [value("y", [2, 1], INT64), value("z", [2, 5])],
    )
    original = load_onnx(model)
    freed = free_batch(original)

    def other(model, feeds):
        found = run(model, feeds)
        if model is freed.model:
            found["y"] = found["y"] + (np.arange(len(found["y"])) == 0)[:, None]
        return found

    found = {(each.output, each.rows): each for each in differences(original, freed, other)}
    assert found["y", 2].relative == pytest.approx(1 / 2)
    assert found["y", 5].relative == pytest.approx(1 / 5)
    assert found["z", 5].is_exact


def test_sample_inputs_keep_within_tables():
    nodes = [
        node("Unsqueeze", "ids one", "u"),
        node("Gather", "table u", "e"),
        node("Cast", "coded", "c", to=INT64),
        node("Gather", "small c", "f"),
        node("Equal", "kind classes", "k"),
    ]
    inputs = [value("ids", [2, 3], INT64), value("coded", [2, 3]), value("kind", [2, 1], INT64)]
    inputs += [value("mask", [2, 8], INT64), value("flag", [2, 8], BOOL), value("x", [2, 3])]
    inputs += [value("picture", [2, 50], TensorProto.UINT8), value("n", [], INT64)]
    nodes += [
        node("Identity", name, f"{name}_out") for name in ("mask", "flag", "x", "picture", "n")
    ]
    outputs = [value("e", None), value("f", None), value("k", None, BOOL)]
    outputs += [value("mask_out", [2, 8], INT64), value("flag_out", [2, 8], BOOL)]
    outputs += [value("x_out", [2, 3]), value("picture_out", [2, 50], TensorProto.UINT8)]
    outputs.append(value("n_out", [], INT64))
    constants = {"one": ints(1), "table": weights(40, 2), "small": weights(3, 2)}
    constants["classes"] = np.arange(7)
    facts = GraphFacts(load_onnx(make_model(nodes, inputs, outputs, constants)))
    shapes = {spec.name: spec.shape for spec in facts.model.inputs}
    drawn = [sample_inputs(facts, shapes, np.random.default_rng(seed)) for seed in range(30)]
    together = {name: np.stack([each[name] for each in drawn]) for name in shapes}
    for spec in facts.model.inputs:
        assert together[spec.name].dtype == spec.dtype
    assert 20 < together["ids"].max() < 40
    assert set(np.unique(together["coded"])) == {0.0, 1.0, 2.0}
    assert 3 < together["kind"].max() < 7
    assert (together["mask"][..., 0] == 1).all() and not together["mask"][..., -1].all()
    assert (np.diff(together["flag"].astype(int)) <= 0).all()
    assert together["picture"].max() > 200
    assert (together["n"] == 1).all()


@st.composite
def moved_rows(draw):
    """A chain of nodes that move axes about, as an exporter freezes it for `rows` rows."""
    rows = draw(st.sampled_from([1, 3]))
    sizes = [2, 3, 2]
    shape: list[int | None] = [None, *sizes]  # None stands for the rows
    nodes, constants, last = [], {}, "x"

    def frozen(dims):
        return [rows if dim is None else dim for dim in dims]

    for number in range(draw(st.integers(1, 6))):
        name, kind = f"v{number}", draw(st.sampled_from(["turn", "merge", "add", "join", "double"]))
        if kind == "turn":
            order = draw(st.permutations(range(len(shape))))
            nodes.append(node("Transpose", last, name, perm=list(order)))
            shape = [shape[i] for i in order]
        elif kind == "merge":
            nodes += [
                node("Reshape", f"{last} there{number}", f"m{number}"),
                node("Relu", f"m{number}", f"r{number}"),
                node("Reshape", f"r{number} back{number}", name),
            ]
            place = draw(st.integers(0, len(shape) - 2))
            full = frozen(shape)
            merged = [*full[:place], full[place] * full[place + 1], *full[place + 2 :]]
            constants |= {f"there{number}": ints(*merged), f"back{number}": ints(*full)}
        elif kind == "add":
            nodes.append(node("Add", f"{last} c{number}", name))
            plain = [1 if dim is None else dim for dim in shape]
            constant = weights(*plain, seed=number)
            if draw(st.booleans()) and None in shape:
                constant = np.repeat(constant, rows, shape.index(None))
            constants[f"c{number}"] = constant
        elif kind == "join":
            axis = draw(st.sampled_from([i for i, dim in enumerate(shape) if dim is not None]))
            plain = [1 if dim is None or i == axis else dim for i, dim in enumerate(shape)]
            constant = weights(*plain, seed=number)
            constants[f"c{number}"] = np.repeat(constant, rows, shape.index(None))
            nodes.append(node("Concat", f"{last} c{number}", name, axis=axis))
            shape = [dim + 1 if i == axis else dim for i, dim in enumerate(shape)]
        else:
            nodes.append(node("Mul", f"{last} {last}", name))
        last = name
    front = shape.index(None)
    order = [front, *(i for i in range(len(shape)) if i != front)]
    nodes.append(node("Transpose", last, "y", perm=order))
    outputs = [value("y", frozen([shape[i] for i in order]))]
    return make_model(nodes, [value("x", [rows, *sizes])], outputs, constants)


@settings(max_examples=60)
@given(moved_rows())
def test_moved_rows_are_followed_wherever_they_go(model):
    assert_freed(model)


@pytest.mark.real
def test_a_picture_classifier_for_one_picture_takes_many(asset):
    model = onnx.load(asset("cls.onnx"))
    for place, size in enumerate((1, 3, 48, 192)):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = size
    original = load_onnx(model)
    freed = free_batch(original)
    assert isinstance(freed, Freed), str(freed)
    assert max(each.relative for each in check_freed(original, freed, run)) < 1e-5
