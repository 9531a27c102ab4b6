"""Axis analysis of several nodes: merged axes, computed sizes, indices, bodies and traps."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from axes_models import dependence_of, fact_of, feeds_of, model_of, seeds_of
from axes_truth import Runner, claims, faults_of_rows
from builders import node, weights
from onnx import TensorProto, helper

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.onnx_model import load_onnx

N = "N"
LENGTH = [node("Shape", "x", "shape"), node("Gather", "shape zero", "length", axis=0)]
"""Nodes that compute the number of positions as a scalar."""
VECTOR = [*LENGTH, node("Unsqueeze", "length zeros", "n")]
"""Nodes that compute the same as a vector of one element."""
RANGE = [*LENGTH, node("Range", "zero length one", "rows")]
"""Nodes that compute the positions 0, 1, 2 ..."""
NUMBERS = {"zero": 0, "one": 1, "zeros": [0], "ones": [1], "four": 4, "fours": [4], "far": [2**62]}


def made(nodes: list[Any], shape: Any = (N, 4), constants: Any = None, **options: Any) -> Any:
    return model_of(nodes, shape, {**NUMBERS, **(constants or {})}, **options)


def body(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs)


def typed(name: str, rank: int | None = None, elem_type: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, elem_type, None if rank is None else [None] * rank)


# Reshape.


@pytest.mark.parametrize(
    ("shape", "target", "layout"),
    [
        ((N, 4), [-1], (0, 1, 4)),
        ((4, N), [-1], (0, 4, 1)),
        ((2, N, 3), [-1, 3], (0, 2, 1)),
        ((2, N, 3), [2, -1], (1, 1, 3)),
        ((2, N, 3), [-1], (0, 2, 3)),
        ((N, 12), [-1, 3, 4], (0, 1, 1)),
        ((N, 4), [0, 2, 2], (0, 1, 1)),
        ((N, 4), [1, -1, 4], (1, 1, 1)),
        ((N, 4), [-1, 2], (0, 1, 2)),
        ((2, N), [2, -1, 1], (1, 1, 1)),
    ],
)
def test_reshape_puts_positions_into_blocks(shape, target, layout):
    found = dependence_of(made([node("Reshape", "x t", "y")], shape, {"t": target}))
    assert found.kind == Kind.INDEPENDENT
    assert (found.axis, found.outer, found.inner) == layout


@pytest.mark.parametrize(("shape", "target"), [((N, 4), [3, -1]), ((N, 4), [2, -1, 4])])
def test_reshape_that_splits_positions_is_reported(shape, target):
    model = made([node("Reshape", "x t", "y", "split")], shape, {"t": target})
    claimed, blocked = claims(facts(model), ("y",), seeds_of(model))
    assert not claimed
    assert blocked["y"].node == "split"
    assert fact_of(model).kind == "factored"


def test_heads_merged_with_rows_are_separated_again():
    nodes = [
        node("Reshape", "x heads", "h"),
        node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t flat", "f"),
        node("Softmax", "f", "s", axis=-1),
        node("Reshape", "s apart", "a"),
        node("Transpose", "a", "b", perm=[0, 2, 1, 3]),
        node("Reshape", "b back", "y"),
    ]
    targets = {"heads": [0, 5, 2, 4], "flat": [-1, 5, 4], "apart": [-1, 2, 5, 4], "back": [0, 5, 8]}
    model = made(nodes, (N, 5, 8), targets, outputs="y f")
    assert fact_of(model).is_independent
    assert dependence_of(model, "f").inner == 2


def test_rows_in_different_blocks_are_factored():
    nodes = [
        node("Reshape", "x two", "a"),
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("Reshape", "t two", "b"),
        node("Add", "a b", "y", "sum"),
    ]
    found = fact_of(made(nodes, (N, 2, 3), {"two": [-1, 3]}))
    assert (found.kind, found.node) == ("factored", "sum")


# Computed sizes.

OF_LENGTH: dict[str, tuple[list[Any], str]] = {
    "constant expanded to the length": (
        [*VECTOR, node("Concat", "n fours", "s", axis=0), node("Expand", "row s", "y")],
        "independent",
    ),
    "zeros of that length": (
        [*VECTOR, node("Concat", "n fours", "s", axis=0), node("ConstantOfShape", "s", "y")],
        "independent",
    ),
    "constant tiled to the length": (
        [*VECTOR, node("Concat", "n ones", "s", axis=0), node("Tile", "row s", "r"),
         node("Relu", "r", "y")],
        "independent",
    ),
    "slice to the end": ([*VECTOR, node("Slice", "x zeros n zeros", "y")], "independent"),
    "reshape to the same length": (
        [*VECTOR, node("Concat", "n fours", "s", axis=0), node("Reshape", "x s", "y")],
        "independent",
    ),
    "reshape to the length, at least 1": (
        [*VECTOR, node("Max", "n ones", "m"), node("Concat", "m fours", "s", axis=0),
         node("Reshape", "x s", "y")],
        "independent",
    ),
    "expand to the length unless it is -1": (
        [*VECTOR, node("Concat", "n fours", "s", axis=0), node("Equal", "s minus", "e"),
         node("Where", "e ones s", "w"),
         node("Expand", "row w", "r"), node("Relu", "r", "y")],
        "independent",
    ),
    "reshape to a quotient of the element count": (
        [node("Shape", "x", "shape"), node("ReduceProd", "shape", "p", keepdims=1),
         node("Div", "p fours", "n"), node("Concat", "n fours", "s", axis=0),
         node("Reshape", "x s", "y")],
        "independent",
    ),
    "table sliced to the length": ([*VECTOR, node("Slice", "table zeros n zeros", "y")], "length"),
    "position numbers": ([*RANGE, node("Cast", "rows", "y", to=1)], "length"),
    "position numbers added": (
        [*RANGE, node("Cast", "rows", "r", to=1), node("Unsqueeze", "r ones", "u"),
         node("Add", "x u", "y")],
        "length",
    ),
    "division by the length": (
        [*LENGTH, node("Cast", "length", "c", to=1), node("Div", "x c", "y")], "length"
    ),
    "slice to half the length": (
        [*VECTOR, node("Div", "n two", "h"), node("Slice", "x zeros h zeros", "y")], "gathered"
    ),
    "slice to at most four": (
        [*VECTOR, node("Min", "n fours", "m"), node("Slice", "x zeros m ones", "y")], "length"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_LENGTH)
def test_kind_of_rows_with_computed_sizes(case):
    nodes, kind = OF_LENGTH[case]
    constants = {"row": weights(1, 4), "table": weights(9, 4), "two": [2], "minus": [-1]}
    found = fact_of(made(nodes, (N, 4), constants))
    assert found.kind == kind
    assert found.axis == (None if kind == "gathered" else 0)


# Indices.

BEST = node("ArgMax", "x", "best", axis=1, keepdims=0)


def own_element(width: int) -> Any:
    """Return x[i, best[i]] computed as an element of the flattened x."""
    nodes = [
        *RANGE, BEST, node("Mul", "rows width", "start"), node("Add", "start best", "i"),
        node("Reshape", "x flat", "f"), node("Gather", "f i", "y", "pick"),
    ]  # fmt: skip
    return made(nodes, (N, 4), {"width": width, "flat": [-1]})


def test_index_of_a_rows_own_element_is_distinguished_from_others():
    assert fact_of(own_element(4)).is_independent
    for width in (1, 3, 5):
        assert fact_of(own_element(width)).kind == "gathered"


def test_index_pairs_of_row_and_column_pick_from_their_own_row():
    nodes = [
        *RANGE, BEST, node("Unsqueeze", "rows ones", "r"), node("Unsqueeze", "best ones", "c"),
        node("Concat", "r c", "own", axis=1), node("Concat", "c r", "other", axis=1),
        node("GatherND", "x own", "y"), node("GatherND", "x other", "z", "turned"),
    ]  # fmt: skip
    model = made(nodes, (N, 4), outputs="y z")
    assert fact_of(model, "y").is_independent
    assert (fact_of(model, "z").kind, fact_of(model, "z").node) == ("gathered", "turned")


# Bodies.


def choice(test: str, *before: Any) -> Any:
    """Return an If that yields x or -x."""
    one, other = (
        body([node(op, "x", op)], [], [typed(op, 2)]) for op in ("Identity", "Neg")
    )  # fmt: skip
    made_if = helper.make_node("If", [test], ["y"], "if", then_branch=one, else_branch=other)
    return made([*before, made_if], (N, 4), {"yes": True, "no": [False]})


def test_if_is_as_independent_as_its_condition():
    assert fact_of(choice("yes")).is_independent
    by_length = choice("long", *LENGTH, node("Greater", "length four", "long"))
    assert (fact_of(by_length).kind, fact_of(by_length).node) == ("length", "if")
    positive = [node("ReduceMax", "x", "m", keepdims=0), node("Cast", "m", "any", to=9)]
    assert fact_of(choice("any", *positive)).kind == "gathered"


def loop(update: list[Any], count: str = "two", *before: Any) -> Any:
    """Return a Loop over a state that starts as x."""
    inner = body(
        [node("Identity", "go", "on"), *update],
        [typed("i", 0, TensorProto.INT64), typed("go", 0, TensorProto.BOOL), typed("s", 2)],
        [typed("on", 0, TensorProto.BOOL), typed("t", 2)],
    )
    rounds = helper.make_node("Loop", [count, "yes", "x"], ["y"], "loop", body=inner)
    return made([*before, rounds], (N, 4), {"two": 2, "yes": True})


def test_loop_is_as_independent_as_its_body():
    assert fact_of(loop([node("Neg", "s", "t")])).is_independent
    assert fact_of(loop([node("Softmax", "s", "t", axis=0)])).kind == "reduced"
    assert fact_of(loop([node("Neg", "s", "t")], "length", *LENGTH)).kind == "scanned"


def scan(nodes: list[Any], inputs: str, axis: int = 0, outputs: str = "y", **options: Any) -> Any:
    """Return a Scan over one axis of x, with a state "start" if `inputs` names it."""
    names = inputs.split()
    formal = ["state", "row"][-len(names) :]
    results = ["state2", "out"][-len(outputs.split()) :]
    inner = body(nodes, [typed(n) for n in formal], [typed(n, 1) for n in results])
    scanned = helper.make_node(
        "Scan", names, outputs.split(), "scan", body=inner, num_scan_inputs=1,
        scan_input_axes=[axis], **options,
    )  # fmt: skip
    return made([scanned], options.pop("shape", (N, 4)), {"start": weights(4)}, outputs="y")


def test_scan_over_rows_is_independent_without_a_state():
    assert fact_of(scan([node("Neg", "row", "out")], "x")).is_independent
    turned = scan([node("Neg", "row", "out")], "x", scan_output_axes=[-1])
    assert fact_of(turned).axis == 1
    sums = [node("Add", "state row", "state2"), node("Neg", "state2", "out")]
    assert fact_of(scan(sums, "start x", outputs="last y")).kind == "scanned"
    beside = [node("Add", "state row", "state2"), node("Neg", "row", "out")]
    assert fact_of(scan(beside, "start x", outputs="last y")).is_independent


def test_body_that_captures_all_rows_makes_them_paired():
    whole = [node("ReduceMax", "x", "m", axes=[0], keepdims=0), node("Add", "row m", "out")]
    assert fact_of(scan(whole, "x")).kind == "paired"


# Traps: graphs whose rows depend on each other, or on their index, in ways that are easy to miss.


def facts(model: onnx.ModelProto) -> GraphFacts:
    return GraphFacts(load_onnx(model))


POOLED = [node("ReduceMax", "x", "m", axes=[0], keepdims=1)]
TRAPS: dict[str, list[Any]] = {
    "indices computed from all rows": [
        *POOLED, node("ArgMax", "m", "i", axis=1), node("Gather", "table i", "t", axis=0),
        node("Squeeze", "t ones", "r"), node("Add", "x r", "y"),
    ],
    "index computed from a position and from all rows": [
        *RANGE, node("Softmax", "x", "s", axis=0), node("ArgMax", "s", "b", axis=1, keepdims=0),
        node("Mul", "rows four", "start"), node("Add", "start b", "i"),
        node("Reshape", "x flat", "f"), node("Gather", "f i", "y"),
    ],
    "position numbers next to indices of other rows": [
        *RANGE, node("ArgMax", "x", "b", axis=1), node("Unsqueeze", "rows ones", "r"),
        node("Concat", "r b", "i", axis=1), node("Gather", "x i", "y", axis=0),
    ],
    "slice bounds computed from all rows": [
        *POOLED, node("ArgMax", "m", "i", axis=1), node("Reshape", "i ones", "e"),
        node("Slice", "x zeros e ones", "p"), node("ReduceSum", "p ones", "y"),
    ],
    "second axis sliced to the length": [
        *VECTOR, node("Concat", "n n", "e", axis=0), node("Concat", "zeros zeros", "s", axis=0),
        node("Slice", "x s e", "p"), node("ReduceSum", "p ones", "y"),
    ],
    "second axis split by the length": [
        *VECTOR, node("Min", "n ones_and_more", "a"), node("Sub", "fours a", "b"),
        node("Concat", "a b", "sizes", axis=0), node("Split", "x sizes", "p q", axis=1),
        node("ReduceSum", "p ones", "y"),
    ],
    "size of another axis that depends on the length": [
        *VECTOR, node("Min", "n ones_and_more", "m"), node("Slice", "x zeros m ones", "p"),
        node("Shape", "p", "ps"), node("Gather", "ps ones", "w"), node("Cast", "w", "f", to=1),
        node("Mul", "x f", "y"),
    ],
    "expand to the length, at least 3": [
        *VECTOR, node("Max", "n ones_and_more", "m"), node("Concat", "m fours", "s", axis=0),
        node("Expand", "row s", "y"),
    ],
    "reshape by a bound of the length": [
        *VECTOR, node("Min", "n twos", "m"), node("Concat", "n m minus", "s", axis=0),
        node("Reshape", "x s", "y"),
    ],
    "repeated blocks in another order": [
        *VECTOR, node("Concat", "n ones", "r", axis=0), node("Tile", "block r", "t"),
        node("Transpose", "x", "xt"), node("Reshape", "xt column", "a"), node("Add", "a t", "b"),
        node("Reshape", "b rows_back", "c"), node("Transpose", "c", "y"),
    ],
    "squeeze of all axes of size 1": [node("Unsqueeze", "x ones", "u"), node("Squeeze", "u", "y")],
}  # fmt: skip
CONSTANTS = {
    "table": weights(8, 4), "flat": [-1], "ones_and_more": [3], "row": weights(1, 4), "twos": [2],
    "minus": [-1], "block": weights(4, 1), "column": [-1, 1], "rows_back": [4, -1],
}  # fmt: skip


@pytest.mark.parametrize("case", TRAPS)
def test_trap_is_recognised(case):
    """Pieces give other results, or do not run; and no independence is claimed."""
    model = made(TRAPS[case], (N, 4), CONSTANTS)
    seeds = seeds_of(model)
    claimed, blocked = claims(facts(model), ("y",), seeds)
    assert claimed == {} and "y" in blocked
    assert faults_of_rows(Runner(model), feeds_of(model), seeds, {"y": 0})


def test_graph_without_the_trap_is_claimed():
    for model in (own_element(4), choice("yes"), scan([node("Neg", "row", "out")], "x")):
        claimed, _ = claims(facts(model), ("y",), seeds_of(model))
        assert claimed == {"y": 0}
        assert faults_of_rows(Runner(model), feeds_of(model), seeds_of(model), claimed) == {}
