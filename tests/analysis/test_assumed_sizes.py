"""Sizes that are assumed for open dimensions can run together."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, value, weights

import dask_onnx as dx
from dask_onnx.analysis.assumed_sizes import ASSUMED_SIZE
from dask_onnx.analysis.report import assumed_shapes

WIDTH = 8


def decoder(new="sequence", past="past", total="total"):
    """Return one layer of attention over a past of keys and new ones, under an additive mask."""
    return make_model(
        [
            node("MatMul", "x Wk", "new", "keys"),
            node("Concat", "past new", "k", "concat", axis=1),
            node("MatMul", "x Wq", "q", "queries"),
            node("Transpose", "k", "kt", "turn", perm=[0, 2, 1]),
            node("MatMul", "q kt", "s", "scores"),
            node("Unsqueeze", "mask axes", "m", "widen"),
            node("Add", "s m", "masked", "hide"),
            node("Softmax", "masked", "p", "weigh"),
            node("MatMul", "p k", "y", "mix"),
        ],
        [
            value("x", ["batch", new, WIDTH]),
            value("mask", ["batch", total]),
            value("past", ["batch", past, WIDTH]),
        ],
        [value("y", ["batch", new, WIDTH])],
        {
            "Wk": weights(WIDTH, WIDTH),
            "Wq": weights(WIDTH, WIDTH, seed=1),
            "axes": np.array([1]),
        },
    )


def runs(model, shapes):
    model({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, batch_size=None)
    return True


@pytest.mark.parametrize(
    ("new", "past", "total"),
    [
        ("sequence_length", "past_sequence_length", "total_sequence_length"),
        ("sequence_length", "past_sequence_length", "past_sequence_length + sequence_length"),
        ("sequence_length", "past_sequence_length", "past_sequence_length+sequence_length"),
        (1, "past_sequence_length", "past_sequence_length + 1"),
        ("s", "p", "attention_mask_dim_1"),
        ("dim_a", "dim_b", "dim_c"),
        ("n", "n", "2*n"),
    ],
)
def test_the_mask_of_a_decoder_is_as_long_as_past_and_new_tokens(new, past, total):
    model = dx.load(decoder(new, past, total))
    shapes = model.analysis.shapes
    assert shapes["mask"][1] == shapes["past"][1] + shapes["x"][1]
    assert runs(model, shapes)
    costs = {spec.name: spec.shape for spec in model.analysis.specs.values()}
    assert costs["s"] == (1, shapes["x"][1], shapes["mask"][1])


def test_sizes_that_the_caller_gives_determine_others():
    model = dx.load(decoder("sequence_length", "past_sequence_length", "total_sequence_length"))
    shapes, is_assumed = assumed_shapes(
        model._facts.onnx, {"x": (2, 5, WIDTH), "past": (2, 9, WIDTH)}
    )
    assert shapes == {"x": (2, 5, WIDTH), "past": (2, 9, WIDTH), "mask": (2, 14)} and is_assumed
    assert runs(model, shapes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h", ASSUMED_SIZE),
        ("h // 2", ASSUMED_SIZE // 2),
        ("floor(h/2)", ASSUMED_SIZE),
        ("h - 100", ASSUMED_SIZE),
        ("h / 0", ASSUMED_SIZE),
        ("__import__('os')", ASSUMED_SIZE),
        ("unk__1", ASSUMED_SIZE),
        ("p2o.DynamicDimension.1", ASSUMED_SIZE),
    ],
)
def test_names_that_are_no_sums_stand_for_themselves(name, expected):
    model = dx.load(
        make_model(
            [node("ReduceSum", "a", "s", "sum", keepdims=0), node("Add", "s b", "y", "add")],
            [value("a", ["N", "h"]), value("b", ["N", name])],
            [value("y", ["N", name])],
        )
    )
    assert model.analysis.shapes["b"] == (1, expected)
