"""Results over the tokens of a sequence, combined from those of shards."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, run_onnx, value
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.analysis.cost import value_bytes
from dask_onnx.sharding.partial_results import Combination, combine_parts

WIDTH = 6


def rng(seed=0):
    return np.random.default_rng(seed)


def pooled(nodes, made=None, *, dtype=TensorProto.FLOAT, inputs=()):
    """Return a model whose nodes make "p" of tokens "a", and more of it."""
    weights = {"w": rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)}
    given = [value("x", ["N", "T", WIDTH]), *inputs]
    before = [node("MatMul", "x w", "a0", "tokens"), node("Tanh", "a0", "a")]
    if dtype != TensorProto.FLOAT:
        before = [before[0], node("Tanh", "a0", "at"), node("Mul", "at ten", "a1"),
                  node("Cast", "a1", "a", to=dtype)]  # fmt: skip
        weights["ten"] = np.array(10, np.float32)
    return make_model(
        [*before, *nodes], given, [value("y", None, dtype)], {**weights, **(made or {})}, opset=17
    )


def run(proto, n, **feeds):
    """Return the plan, its result, and that of ONNX Runtime."""
    given = {"x": rng().standard_normal((2, 11, WIDTH)).astype(np.float32), **feeds}
    plan = dx.load(proto).plan(dx.Sharded(dict.fromkeys(given, 1), n=n))
    found = plan.predict(given, outputs="y")
    partition = plan.at({name: array.shape for name, array in given.items()}, ("y",))
    return partition.segments, found, run_onnx(proto, given)[0]


def gathered_sizes(segments):
    return {name: value_bytes(segments.candidates.specs[name]) for name in segments.gathers}


FLOATS = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
          "ReduceSumSquare", "ReduceLogSumExp"]  # fmt: skip


@pytest.mark.parametrize("op", FLOATS)
@pytest.mark.parametrize(("axes", "keepdims"), [([1], 0), ([1, 2], 1), (None, 0)])
def test_a_reduction_over_the_tokens_gathers_no_tokens(op, axes, keepdims):
    given = {} if axes is None else {"axes": axes}
    nodes = [node(op, "a", "p", keepdims=keepdims, **given), node("Neg", "p", "y")]
    segments, found, expected = run(pooled(nodes), 3)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert set(segments.gathers) == {"p"}


def test_a_sum_of_integers_stays_exact_and_a_mean_of_integers_is_taken_whole():
    made = {"axes": np.array([1])}
    total = [node("ReduceSum", "a axes", "y")]
    segments, found, expected = run(pooled(total, made, dtype=TensorProto.INT32), 3)
    np.testing.assert_array_equal(found, expected)
    assert set(segments.gathers) == {"y"}
    mean = [node("ReduceMean", "a", "y", axes=[1])]
    segments, found, expected = run(pooled(mean, dtype=TensorProto.INT32), 3)
    np.testing.assert_array_equal(found, expected)
    assert set(segments.gathers) == {"a"}


def test_a_masked_mean_gathers_sums_only():
    nodes = [
        node("Unsqueeze", "mask two", "m"),
        node("Mul", "a m", "am"),
        node("ReduceSum", "am one", "sum", keepdims=0),
        node("ReduceSum", "m one", "count", keepdims=0),
        node("Div", "sum count", "mean"),
        node("MatMul", "mean w", "y"),
    ]
    proto = pooled(
        nodes, {"one": np.array([1]), "two": np.array([2])}, inputs=[value("mask", ["N", "T"])]
    )
    mask = (rng(3).random((2, 11)) > 0.3).astype(np.float32)
    segments, found, expected = run(proto, 4, mask=mask)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert set(gathered_sizes(segments)) <= {"sum", "count", "m"}
    assert "a" not in segments.gathers and "am" not in segments.gathers


def test_pooling_by_attention_adds_products_of_shards():
    nodes = [
        node("MatMul", "a query", "scores"),  # (N, T, 1)
        node("Softmax", "scores", "weights", axis=1),
        node("Transpose", "weights", "rows", perm=[0, 2, 1]),
        node("MatMul", "rows a", "p"),  # (N, 1, width)
        node("Neg", "p", "y"),
    ]
    query = rng(2).standard_normal((WIDTH, 1)).astype(np.float32)
    segments, found, expected = run(pooled(nodes, {"query": query}), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert "a" not in segments.gathers


def test_a_mean_may_be_added_to_the_tokens_again():
    nodes = [node("ReduceMean", "a", "p", axes=[1]), node("Sub", "a p", "y")]
    segments, found, expected = run(pooled(nodes), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert set(segments.gathers) == {"p"}
    assert segments.outputs[0][1] is not None  # still in shards


def test_the_mean_of_tokens_may_be_an_output_itself():
    nodes = [node("ReduceMean", "a", "y", axes=[1], keepdims=0)]
    segments, found, expected = run(pooled(nodes), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert segments.outputs == (("y", None),)


@pytest.mark.parametrize("index", [0, -1, 7, [0], [[4]]])
def test_one_token_is_taken_from_the_shard_that_has_it(index):
    nodes = [node("Gather", "a i", "p", axis=1), node("MatMul", "p w", "y")]
    segments, found, expected = run(pooled(nodes, {"i": np.array(index)}), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert set(segments.gathers) == {"p"}


@pytest.mark.parametrize("index", [[0, 5], [[1], [10]]])
def test_several_tokens_are_taken_from_the_whole(index):
    nodes = [node("Gather", "a i", "p", axis=1), node("MatMul", "p w", "y")]
    segments, found, expected = run(pooled(nodes, {"i": np.array(index)}), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert set(segments.gathers) == {"a"}


@pytest.mark.parametrize("how", ["mean", "sum", "max", "min", "product", "l2", "logsumexp"])
def test_parts_of_any_sizes_combine_to_the_result_of_all(how):
    whole = rng(5).standard_normal((9, 4)).astype(np.float32)
    functions = {
        "mean": np.mean,
        "sum": np.sum,
        "max": np.max,
        "min": np.min,
        "product": np.prod,
        "l2": lambda a, axis: np.sqrt(np.sum(a * a, axis=axis)),
        "logsumexp": lambda a, axis: np.log(np.sum(np.exp(a), axis=axis)),
    }
    parts = [functions[how](part, axis=0) for part in np.split(whole, [2, 3])]
    found = combine_parts(parts, Combination(how, (2, 1, 6)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, functions[how](whole, axis=0), rtol=1e-5, atol=1e-6)
