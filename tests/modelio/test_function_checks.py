"""Functions of a model: none calls itself, and inlining them stays within limits."""

from __future__ import annotations

import time

import dask
import pytest
from builders import node, value
from modelio.damaged_models import X, Y, call, function, model_of, refusal
from onnx import TensorProto, helper

import dask_onnx as dx


def doubling(levels):
    functions = [function("f0", [node("Relu", "a", "b")])]
    for level in range(1, levels):
        inner = f"f{level - 1}"
        functions.append(function(f"f{level}", [call(inner, "a", "c"), call(inner, "c", "b")]))
    return model_of([call(f"f{levels - 1}", "x", "y")], functions=functions)


@pytest.mark.parametrize("levels", [30, 90])
def test_functions_that_double_are_refused_before_they_are_inlined(levels):
    start = time.process_time()
    error = refusal(doubling(levels))
    assert error.numbers["nodes"] == 2 ** (levels - 1)
    assert error.option == "onnx.model.max-nodes"
    assert time.process_time() - start < 2


def test_functions_that_double_a_few_times_are_inlined():
    assert len(dx.load(doubling(9)).facts.nodes) == 2**8


def test_calls_inside_bodies_count_too():
    body = helper.make_graph([call("f29", "x", "y")], "b", [], [Y])
    model = doubling(30)
    del model.graph.node[:]
    model.graph.node.append(node("If", "c", "y", then_branch=body, else_branch=body))
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    assert refusal(model).numbers["nodes"] == 2 * 2**29 + 1


def test_a_function_may_not_call_itself_through_others():
    functions = [
        function("f", [call("g")]),
        function("g", [call("h")]),
        function("h", [call("f")]),
    ]
    error = refusal(model_of([call("f", "x", "y")], functions=functions))
    assert error.node in ("f", "g", "h")
    assert "->" in error.cause


def test_a_function_may_not_call_itself_in_a_body():
    body = helper.make_graph([call("f", "a", "q")], "b", [], [value("q", None)])
    nodes = [node("If", "c", "b", then_branch=body, else_branch=body)]
    functions = [function("f", nodes, inputs=("a", "c"))]
    model = model_of(
        [call("f", "x c", "y")],
        functions=functions,
        inputs=[X, value("c", [], TensorProto.BOOL)],
    )
    assert refusal(model).node == "f"


@pytest.mark.parametrize(("length", "is_loaded"), [(100, True), (101, False), (5000, False)])
def test_chains_of_calls_are_bounded(length, is_loaded):
    functions = [function("f0", [node("Relu", "a", "b")])]
    functions += [function(f"f{i}", [call(f"f{i - 1}")]) for i in range(1, length)]
    model = model_of([call(f"f{length - 1}", "x", "y")], functions=functions)
    if is_loaded:
        assert len(dx.load(model).facts.nodes) == 1
    else:
        assert refusal(model).numbers["calls"] == length


def test_a_call_may_not_give_more_than_its_function_takes():
    functions = [function("f", [node("Relu", "a", "b")])]
    error = refusal(model_of([call("f", "x x", "y")], functions=functions))
    assert error.numbers == {"inputs": 2, "most": 1}


def test_the_limit_of_nodes_counts_the_graph_itself():
    nodes = [node("Relu", "x", "v0")] + [node("Relu", f"v{i}", f"v{i + 1}") for i in range(20)]
    model = model_of([*nodes, node("Relu", "v20", "y")])
    with dask.config.set({"onnx.model.max-nodes": 21}):
        assert refusal(model).numbers == {"nodes": 22, "most_nodes": 21}
    with dask.config.set({"onnx.model.max-nodes": 22}):
        assert dx.load(model).facts.nodes
