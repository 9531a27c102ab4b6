"""Tensor-parallel plans of graphs that compute shapes from values in shards, as tracers do."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, value, weights

import dask_onnx as dx


def assert_equal_on_shards(source, feeds, shards=2):
    model = dx.load(source)
    plan = model.plan(dx.Sharded(axis="heads", n=shards))
    whole, sharded = model.predict(feeds), model.predict(feeds, plan=plan)
    np.testing.assert_allclose(sharded, whole, rtol=1e-4, atol=1e-5)
    return plan


def masked_attention():
    """Return attention whose mask is repeated for each head, to a shape that starts with that of
    the queries."""
    nodes = [
        node("MatMul", "x W", "h"),
        node("Reshape", "h split", "q4"),
        node("Transpose", "q4", "q", perm=[0, 2, 1, 3]),
        node("Transpose", "q4", "k", perm=[0, 2, 3, 1]),
        node("MatMul", "q k", "scores"),
        node("Shape", "q", "s"),
        node("Slice", "s zero one", "n"),
        node("Concat", "n rest", "target", axis=0),
        node("Expand", "mask target", "m", "repeat"),
        node("Add", "scores m", "masked"),
        node("Softmax", "masked", "p"),
        node("MatMul", "p q", "o"),
        node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
        node("Reshape", "ot join", "oj"),
        node("MatMul", "oj V", "y"),
    ]
    constants = {
        "W": weights(8, 8),
        "V": weights(8, 8, seed=1),
        "split": np.array([0, 0, 4, 2]),
        "join": np.array([0, 0, 8]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "rest": np.array([4, 1, 5]),
    }
    inputs = [value("x", ["N", 5, 8]), value("mask", [1, 1, 1, 5])]
    return make_model(nodes, inputs, [value("y", ["N", 5, 8])], constants)


@pytest.mark.parametrize("shards", [2, 4])
def test_a_value_that_each_shard_computes_whole_is_cut_inside_it(shards):
    mask = np.where(np.arange(5) < 3, 0, -9).astype(np.float32).reshape(1, 1, 1, 5)
    assert_equal_on_shards(masked_attention(), {"x": weights(3, 5, 8), "mask": mask}, shards)


def test_a_slice_of_a_constant_in_shards_has_the_size_of_a_shard():
    nodes = [
        node("MatMul", "x W", "h"),
        node("Shape", "h", "s"),
        node("ConstantOfShape", "s", "zeros"),
        node("Slice", "zeros zero one zero", "first"),
        node("Shape", "first", "row"),
        node("Expand", "h row", "e"),
        node("ConstantOfShape", "row", "more"),
        node("Add", "e more", "a"),
        node("MatMul", "a V", "y"),
    ]
    constants = {
        "W": weights(6, 8),
        "V": weights(8, 3, seed=1),
        "zero": np.array([0]),
        "one": np.array([1]),
    }
    source = make_model(nodes, [value("x", ["N", 6])], [value("y", ["N", 3])], constants)
    plan = assert_equal_on_shards(source, {"x": weights(5, 6)})
    assert plan.sharding().groups
