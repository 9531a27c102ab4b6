"""Descriptions in words of how rows are run."""

from __future__ import annotations

import numpy as np
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

from dask_onnx.analysis.batch import find_batch
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.rows import rows_in_words
from dask_onnx.modelio.onnx_model import load_onnx


def words_of(model):
    facts = GraphFacts(load_onnx(model))
    return rows_in_words(find_batch(facts, facts.outputs))


def test_proven_rows_are_cut_into_runs_and_padded():
    assert words_of(dense_model(4)) == (
        "runs of 4 rows, as the graph was exported: more are cut into such runs, and the last one "
        "is padded with copies of its last row, whose results are dropped; the graph proves that "
        "no row depends on another"
    )
    assert words_of(dense_model(1)) == (
        "runs of 1 row, as the graph was exported: more are run one after the other"
    )


@pytest.mark.parametrize(
    ("nodes", "shape", "reason"),
    [
        ([node("Softmax", "x", "y", "across", axis=0)], [4, 3], "node 'across' may mix them"),
        (
            [node("CumSum", f"{x} zero", y, f"sum_{y}") for x, y in ("xa", "ab", "bc", "cy")],
            [4, 3],
            "node 'sum_a' may mix them",
        ),
        (
            [
                node("NonZero", "x", "z", "find"),
                node("Transpose", "z", "t"),
                node("Cast", "t", "y", to=TensorProto.FLOAT),
            ],
            [4, 2],
            "node 'find' may mix them",
        ),
        (
            [node("Shape", "x", "s"), node("ConstantOfShape", "four", "y")],
            [4],
            "output 'y' does not grow with them",
        ),
    ],
)
def test_unproven_rows_are_not_cut_and_the_reason_is_given(nodes, shape, reason):
    constants = {"zero": np.array(0), "four": np.array([4])}
    words = words_of(make_model(nodes, [value("x", [4, 3])], [value("y", shape)], constants))
    assert words.startswith("exactly 4 on axis 0, as the graph was exported: nothing is cut or")
    assert words.endswith(f": {reason}")


@pytest.mark.parametrize(
    ("nodes", "shape", "words"),
    [
        (
            [node("Relu", "x", "y")],
            ["N", 3],
            "any number in a run; proven: no row depends on another",
        ),
        (
            [node("Softmax", "x", "y", "across", axis=0)],
            ["N", 3],
            "all together in one run: axis 0 of input 'x' is reduced at node 'across' (Softmax), "
            "softmax",
        ),
        ([node("Relu", "x", "y")], [], "none: every run gets the inputs unchanged"),
    ],
)
def test_an_open_number_of_rows_is_described(nodes, shape, words):
    assert words_of(make_model(nodes, [value("x", shape)], [value("y", shape)])) == words
