"""Borders between chains of nodes, and the values that cross them."""

from __future__ import annotations

import pytest
from builders import branching_model, dense_model

import dask_onnx as dx
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.report import analyse
from dask_onnx.modelio.onnx_model import load_onnx


def cuts_of(model, shapes=None):
    return analyse(GraphFacts(load_onnx(model)), shapes).cuts


def test_every_border_lists_the_values_that_cross_it():
    cuts = cuts_of(branching_model(), {"x": (2, 4)})
    assert [cut.after for cut in cuts] == ["stem", "left", "left_end", "middle", "right"]
    assert [cut.names for cut in cuts] == [
        ("stem",),
        ("stem", "a"),
        ("stem", "a2"),
        ("stem", "a2", "m"),
        ("a2", "m", "c"),
    ]
    assert [cut.bytes for cut in cuts] == [32, 64, 64, 96, 96]
    assert [cut.values for cut in cuts] == [1, 2, 2, 3, 3]
    shares = [cut.share for cut in cuts]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] < 1


def test_nodes_that_fuse_into_one_kernel_have_no_border():
    cuts = cuts_of(dense_model())
    assert [cut.after for cut in cuts] == ["activate"]


def test_a_plan_can_be_cut_at_every_border_with_few_values():
    model = dx.load(branching_model())
    for cut in model.analyse({"x": (2, 4)}).cuts:
        plan = model.plan(dx.at_values([cut.names]), shapes={"x": (2, 4)})
        assert len(plan.stages) == 2
        sent = {edge.value: edge.bytes for edge in plan.stage_graph.edges}
        assert set(sent) <= set(cut.names)
        assert sum(sent.values()) == pytest.approx(cut.bytes)
