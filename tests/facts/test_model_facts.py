"""Facts that are kept are those of the sizes and types that a request has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import make_model, node, value
from onnx import TensorProto
from onnx.reference.op_run import OpRun

import dask_onnx as dx
from dask_onnx.analysis.learned_types import LearnedType


class Flags(OpRun):
    op_domain = "mine"

    def _run(self, x):
        return (x > 0,)


def reshaped_model():
    """Return a model whose columns are independent at five rows, and at no other number."""
    return make_model(
        [node("Reshape", "x five", "r"), node("ReduceSum", "r first", "y")],
        [value("x", ["rows", "columns"])],
        [value("y", ["one", "columns"])],
        {"five": np.array([5, -1]), "first": np.array([0])},
    )


@pytest.mark.parametrize("order", list(itertools.permutations([5, 7, None])), ids=str)
def test_rows_are_proven_for_the_size_that_is_asked_about(order):
    facts = dx.load(reshaped_model())._facts
    found = {rows: facts.batch_at(("y",), {"x": (rows, 30)}) for rows in order}
    assert (found[5].is_proven, found[5].input_axes["x"]) == (True, 1)
    assert not found[7].is_proven
    assert not found[None].is_proven


def test_kernels_follow_the_types_that_a_run_has_shown():
    source = make_model(
        [node("Flags", "x", "flags", domain="mine"), node("ReduceMax", "flags", "y")],
        [value("x", ["rows", 4])],
        [value("y", [1, 1], TensorProto.BOOL)],
        domains={"mine": 1},
    )
    facts = dx.load(source, custom_ops=[Flags])._facts
    assert [each.kernel for each in facts.kernels] == ["custom", "onnxruntime"]
    facts.learn({"flags": LearnedType(np.dtype(bool), ((0, 0), (0, 1)))})
    assert facts.declared["flags"].dtype == np.bool_
    # ONNX Runtime reduces empty sets of bool wrongly.
    assert [each.kernel for each in facts.kernels] == ["custom", "reference"]
