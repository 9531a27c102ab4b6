"""Attention in blocks of keys, combined by rescaling, gives the softmax over all keys."""

from __future__ import annotations

import itertools

import dask
import numpy as np
import pytest
import sequence_models as models
from builders import make_model, node, run_onnx, value, weights
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.sharding.sequence_tasks import combine_blocks
from dask_onnx.sharding.strategy import Sharded

X = np.random.default_rng(0).standard_normal((2, 25, models.WIDTH)).astype(np.float32)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def partial_of(scores, values):
    highest = np.maximum(scores.max(-1, keepdims=True), np.finfo(scores.dtype).min)
    exponentials = np.exp(scores - highest)
    return highest, exponentials.sum(-1, keepdims=True), exponentials @ values


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.floats(0.1, 100), st.integers(0, 9))
def test_blocks_of_any_size_combine_to_the_softmax(sizes, spread, seed):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((2, 3, sum(sizes))) * spread
    scores[0, 0, 0] = -np.inf
    values = rng.standard_normal((2, sum(sizes), 4))
    ends = np.cumsum([0, *sizes])
    partials = [
        partial_of(scores[..., start:stop], values[:, start:stop])
        for start, stop in itertools.pairwise(ends)
    ]
    combined = combine_blocks(True, *partials)
    highest = np.where(np.isfinite(scores.max(-1, keepdims=True)), scores.max(-1, keepdims=True), 0)
    exponentials = np.exp(scores - highest)
    total = exponentials.sum(-1, keepdims=True)
    total[total == 0] = 1
    np.testing.assert_allclose(combined, exponentials / total @ values, rtol=1e-9, atol=1e-12)


def test_a_query_without_allowed_keys_gives_nan_or_zero():
    scores, values = np.full((1, 2, 3), -np.inf), np.ones((1, 3, 4))
    blocks = [partial_of(scores, values)] * 2
    assert np.isnan(combine_blocks(False, *blocks)).all()
    assert not combine_blocks(True, *blocks).any()


@pytest.mark.parametrize(
    "build",
    [
        models.encoder,
        models.decoder_by_range,
        models.decoder_by_triangle,
        models.rotary_encoder,
    ],
)
@pytest.mark.parametrize(("n", "key_blocks"), [(3, 3), (5, 2), (4, 1)])
def test_key_blocks_equal_the_whole(build, n, key_blocks):
    proto = build()
    model = dx.load(proto)
    plan = model.plan(Sharded("sequence", n, key_blocks), shapes={"x": X.shape})
    (expected,) = run_onnx(proto, {"x": X})
    np.testing.assert_allclose(model.predict(X, plan=plan), expected, rtol=1e-5, atol=1e-5)
    blocks = plan.at().segments.blocks
    assert len(blocks.attentions) == (2 if key_blocks > 1 else 0)
    # Keys and values stay in shards: no task holds all of them.
    assert bool(plan.at().segments.gathers) == (key_blocks == 1)


def test_a_task_holds_one_block_of_scores():
    model = dx.load(models.encoder())
    shapes = {"x": (1, 2048, models.WIDTH)}
    parts = model.plan(Sharded("sequence", 8, 8), shapes=shapes).at().partitioned.submodels
    partial = next(part for part in parts if part.attention is not None)
    scores = models.HEADS * 2048 * 2048 * 4
    assert partial.stage.cost.working_bytes < 4 * scores / 64 * 1.5
    whole = model.plan(Sharded("sequence", 8), shapes=shapes).at()
    assert whole.summary.memory.task_bytes > 6 * partial.stage.cost.working_bytes


def test_more_key_blocks_than_shards_are_refused():
    model = dx.load(models.encoder())
    with pytest.raises(dx.PlanError) as caught:
        model.plan(Sharded("sequence", 2, 3))
    assert caught.value.option == "key_blocks"
    assert caught.value.numbers == {"key_blocks": 3, "shards": 2}


def test_a_model_without_softmax_between_products_is_refused():
    model = dx.load(models.fused())
    with pytest.raises(dx.PlanError) as caught:
        model.plan(Sharded("sequence", 3, 3))
    assert caught.value.option == "key_blocks"


def test_scores_that_are_an_output_are_not_split_into_blocks():
    proto = models.encoder()
    model = dx.load(proto)
    plan = model.plan(Sharded("sequence", 3, 3))
    found = model.predict(X, plan=plan, outputs=["y", "asoft"])
    expected = model(X, outputs=["y", "asoft"])
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.real
def test_minilm_in_key_blocks_equals_the_whole(asset):
    model = dx.load(asset("minilm.onnx"))
    tokens = 37
    ids = np.random.default_rng(1).integers(1000, 20000, (2, tokens))
    mask = (np.arange(tokens) < np.array([[tokens], [5]])).astype(np.int64)
    pool = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    feeds = {spec.name: pool[spec.name] for spec in model.inputs}
    plan = model.plan(Sharded("sequence", 4, 4))
    result = model.predict(feeds, plan=plan)
    # The second row has blocks in which no key is allowed.
    np.testing.assert_allclose(result, model(feeds), rtol=1e-4, atol=2e-5)
    assert len(plan.at().segments.blocks.attentions) == 6


INT32 = TensorProto.INT32


def packed(inputs="x weights bias", more=(), **attributes):
    """com.microsoft.Attention, which multiplies with all its weights at once."""
    made = {
        "weights": weights(models.WIDTH, 3 * models.WIDTH) / 6,
        "bias": weights(3 * models.WIDTH) / 6,
        "wo": weights(models.WIDTH, models.WIDTH) / 6,
    }
    attention = node(
        "Attention",
        inputs,
        "a",
        "attention",
        num_heads=models.HEADS,
        domain="com.microsoft",
        **attributes,
    )
    last = node("MatMul", "a wo", "y", "last")
    return models.sequence_model([attention, last], made, more, domains=models.MICROSOFT)


@pytest.mark.parametrize(
    "proto",
    [
        packed(),
        packed("x weights bias mask", [models.padding_mask("mask")]),
        packed("x weights bias - - b", [value("b", [1, 1, "T", "T"])]),
        packed("x weights bias lengths", [value("lengths", ["N"], INT32)]),
        packed("x weights bias rows", [value("rows", ["N", "T", "T"], INT32)]),
        packed(unidirectional=1),
    ],
    ids=["plain", "padding", "bias", "lengths", "mask", "causal"],
)
def test_packed_attention_is_split_into_projections(proto):
    model = dx.load(proto)
    rng = np.random.default_rng(3)
    pool = {
        "x": X,
        "mask": (np.arange(25) < np.array([[25], [10]])).astype(np.int32),
        "lengths": np.array([25, 10], np.int32),
        "rows": np.tril(np.ones((2, 25, 25), np.int32)),
        "b": rng.standard_normal((1, 1, 25, 25)).astype(np.float32),
    }
    feeds = {spec.name: pool[spec.name] for spec in model.inputs}
    plan = model.plan(Sharded("sequence", 3), shapes={n: a.shape for n, a in feeds.items()})
    (expected,) = run_onnx(proto, feeds)
    np.testing.assert_allclose(model.predict(feeds, plan=plan), expected, rtol=1e-5, atol=1e-5)
    assert plan.at().segments.gathers == ("a.key", "a.value")


def test_packed_attention_with_cached_keys_stays_whole():
    made = {
        "weights": weights(models.WIDTH, 3 * models.WIDTH) / 6,
        "bias": weights(3 * models.WIDTH) / 6,
        "wide": weights(models.WIDTH, 64 * models.WIDTH) / 6,
        "narrow": weights(64 * models.WIDTH, models.WIDTH) / 60,
    }
    nodes = [
        node("MatMul", "x wide", "w", "widen"),
        node("Relu", "w", "r", "relu"),
        node("MatMul", "r narrow", "h", "narrow_again"),
        node(
            "Attention",
            "h weights bias - past",
            "y present",
            "attention",
            num_heads=models.HEADS,
            domain="com.microsoft",
        ),
    ]
    past = value("past", [2, "N", models.HEADS, "P", models.SIZE])
    x = value("x", ["N", "T", models.WIDTH])
    y = value("y", ["N", "T", models.WIDTH])
    proto = make_model(nodes, [x, past], [y], made, domains=models.MICROSOFT)
    feeds = {"x": X, "past": weights(2, 2, models.HEADS, 6, models.SIZE)}
    model = dx.load(proto)
    shapes = {name: array.shape for name, array in feeds.items()}
    plan = model.plan(Sharded({"x": 1}, 3), shapes=shapes)
    (expected,) = run_onnx(proto, feeds, ["y"])
    np.testing.assert_allclose(model.predict(feeds, plan=plan), expected, rtol=1e-5, atol=1e-5)
    assert "'attention' (com.microsoft.Attention)" in plan.explain()
