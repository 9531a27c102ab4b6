"""Small models as exporters write them for a fixed number of rows `k`."""

from __future__ import annotations

import numpy as np
import onnxruntime
from builders import make_model, node, value, weights
from hypothesis import strategies as st
from onnx import helper

from dask_onnx.analysis.freeing import Freed, differences, free_batch
from dask_onnx.modelio.onnx_model import load_onnx, with_weights


def run(model, feeds):
    """Return the outputs by name of one run in ONNX Runtime, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        with_weights(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_freed(model, tolerance=0.0, **options):
    """Assert that a model is rewritten, proven, and equal to the original at two sizes.

    `tolerance` is the largest relative difference. Returns the `Freed` model.
    """
    original = load_onnx(model)
    freed = free_batch(original, **options)
    assert isinstance(freed, Freed), str(freed)
    found = differences(original, freed, run)
    assert {each.rows for each in found} == {freed.opened.rows, 2 * freed.opened.rows + 1}
    assert max(each.relative for each in found) <= tolerance
    return freed


def ints(*numbers):
    """Return an int64 vector."""
    return np.array(numbers, np.int64)


def heads(k):
    """Return attention of two heads, batch first."""
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
    """Return a dense layer over tokens first; one row may merge with tokens or with features."""
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
    """Return a concatenation with a token that Expand repeats for each row."""
    nodes = [node("Expand", "token shape", "tokens"), node("Concat", "tokens x", "y", axis=1)]
    constants = {"token": weights(1, 1, 4), "shape": ints(k, 1, 4)}
    return make_model(nodes, [value("x", [k, 3, 4])], [value("y", [k, 4, 4])], constants)


def folded_token(k):
    """Return the same after the exporter folded the Expand."""
    constants = {"tokens": np.repeat(weights(1, 1, 4), k, 0)}
    nodes = [node("Concat", "tokens x", "y", axis=1)]
    return make_model(nodes, [value("x", [k, 3, 4])], [value("y", [k, 4, 4])], constants)


def lstm(k, state=0.0):
    """Return an LSTM with an initial state for each row."""
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
    """Return a sum of scores, a mask stored for all rows, and one computed from constants."""
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
    """Return advanced indexing as torch.onnx with dynamo exports it: each index names its row."""
    grid = np.stack(np.meshgrid(np.arange(k), [2, 0], indexing="ij"), -1)
    constants = {"grid": grid.reshape(k, 1, 2, 2).astype(np.int64)}
    nodes = [node("GatherND", "x grid", "y")]
    return make_model(nodes, [value("x", [k, 3])], [value("y", [k, 1, 2])], constants)


def written_in_place(k):
    """Return ``x[:, 1] = 7`` as ScatterND with an index for each row."""
    index = np.stack([np.arange(k), np.ones(k)], -1).astype(np.int64)
    constants = {"index": index, "seven": np.full(k, 7, np.float32)}
    nodes = [node("ScatterND", "x index seven", "y")]
    return make_model(nodes, [value("x", [k, 3])], [value("y", [k, 3])], constants)


def as_strided(k):
    """Return a Gather from a flattened tensor by the indices of each row."""
    places = np.arange(k)[:, None, None] * 6 + np.arange(6).reshape(1, 3, 2)[:, ::-1]
    constants = {"flat": ints(-1), "places": places}
    nodes = [node("Reshape", "x flat", "f"), node("Gather", "f places", "y")]
    return make_model(nodes, [value("x", [k, 2, 3])], [value("y", [k, 3, 2])], constants)


def best_place(k):
    """Return ``x[range(k), argmax]`` on a flattened tensor: an addend holds each row's offset."""
    nodes = [
        node("ArgMax", "x", "best", axis=1, keepdims=0),
        node("Add", "best starts", "place"),
        node("Reshape", "x flat", "f"),
        node("Gather", "f place", "y"),
    ]
    constants = {"starts": np.arange(k) * 4, "flat": ints(-1)}
    return make_model(nodes, [value("x", [k, 4])], [value("y", [k])], constants)


def resized(k):
    """Return a Resize whose sizes name the rows."""
    nodes = [node("Resize", "x - - sizes", "y", mode="nearest")]
    constants = {"sizes": ints(k, 2, 6, 6)}
    return make_model(nodes, [value("x", [k, 2, 3, 3])], [value("y", [k, 2, 6, 6])], constants)


def guided(k):
    """Return two batches stacked, processed and separated again, as for guided diffusion."""
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
    """Return a Slice that names all rows."""
    nodes = [node("Slice", "x start end axes", "y")]
    constants = {"start": ints(0, 1), "end": ints(k, 3), "axes": ints(0, 1)}
    return make_model(nodes, [value("x", [k, 4])], [value("y", [k, 2])], constants)


def tiled_table(k):
    """Return the sum with a table of positions where rows and tokens are merged."""
    nodes = [
        node("Reshape", "x flat", "f"),
        node("Add", "f table", "a"),
        node("Reshape", "a apart", "y"),
    ]
    constants = {"flat": ints(k * 3, 4), "table": np.tile(weights(3, 4), (k, 1))}
    constants["apart"] = ints(k, 3, 4)
    return make_model(nodes, [value("x", [k, 3, 4])], [value("y", [k, 3, 4])], constants)


def expanded_features(k):
    """Return an Expand of features whose target names the rows."""
    nodes = [node("Expand", "x shape", "e"), node("ReduceSum", "e last", "y", keepdims=0)]
    constants = {"shape": ints(k, 3, 4), "last": ints(2)}
    return make_model(nodes, [value("x", [k, 3, 1])], [value("y", [k, 3])], constants)


def scanned(k):
    """Return a Scan whose body declares the number of rows."""
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
    """Return a GridSample with a constant grid that is equal for each image."""
    grid = np.repeat(np.clip(weights(1, 2, 2, 2), -1, 1), k, 0)
    nodes = [node("GridSample", "x grid", "y")]
    return make_model(nodes, [value("x", [k, 1, 4, 4])], [value("y", [k, 1, 2, 2])], {"grid": grid})


def fused_product(k):
    """Return com.microsoft FusedMatMul over tokens before the batch."""
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
    """Return com.microsoft MultiHeadAttention with a key mask for each row."""
    attention = node("MultiHeadAttention", "x x x - keys", "y", domain="com.microsoft", num_heads=2)
    keys = np.repeat(np.array([[1, 1, 1, 0]], np.int32), k, 0)
    return make_model(
        [attention],
        [value("x", [k, 4, 8])],
        [value("y", [k, 4, 8])],
        {"keys": keys},
        domains={"com.microsoft": 1},
    )


def open_tokens(k):
    """Return attention heads of any number of tokens: shapes are computed except for the rows."""
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
    """Return an image of any size enlarged twice, plus its maximum repeated for the channels."""
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


@st.composite
def moved_rows(draw):
    """Return a random chain of nodes that move axes, exported for 1 or 3 rows."""
    rows = draw(st.sampled_from([1, 3]))
    sizes = [2, 3, 2]
    shape: list[int | None] = [None, *sizes]  # None for the number of rows
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
