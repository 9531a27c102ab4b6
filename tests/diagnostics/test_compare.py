"""Differences between two plans."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import branching_model, captured_model, dense_model, layers_model, make_model, value
from converter_models import maps_of, zip_map

import dask_onnx as dx


@pytest.fixture(scope="module")
def model():
    return dx.load(layers_model([8, 8, 8]))


def cut(model, *values):
    return model.plan(dx.at_values(values))


def test_equal_plans_do_not_differ(model):
    assert cut(model, "y0", "y1").diff(cut(model, "y0", "y1")) == "no difference"
    again = dx.load(layers_model([8, 8, 8]))
    assert model.plan().diff(again.plan()) == "no difference"


def test_numbers_that_differ_are_side_by_side(model):
    lines = cut(model, "y0").diff(model.plan()).splitlines()
    rows = {line[:18].strip(): line[18:].split() for line in lines[:6]}
    assert rows["strategy"] == ["at_values", "whole"]
    assert rows["stages"] == ["2", "1"]
    assert rows["between stages"] == ["32", "B", "0", "B"]
    assert rows["weights of a stage"] == ["512", "B", "to", "1.0", "KiB", "1.5", "KiB"]
    assert "shapes" not in rows and "predicted" not in rows


def test_stages_of_both_plans_are_listed_in_short(model):
    text = cut(model, "y0", "y1").diff(cut(model, "y0", "r2"))
    assert "the same in both: 0, 1\n" not in text
    assert "the same in both: 0\n" in text
    shifted = cut(model, "y0", "y1").diff(cut(model, "r0", "y0", "y1"))
    assert "the same in both: 1 (there 2), 2 (there 3)\n" in shifted


def test_nodes_that_moved_are_named(model):
    # A cut at y1 puts up0 relu0 down0 up1 relu1 down1 into the first stage, a cut at y0 the
    # first three of them.
    text = cut(model, "y1").diff(cut(model, "y0"))
    assert (
        "    0 up0..down1: 3 of 6 nodes are in the other's 0; up1, relu1, down1 in 1\n" in text
    ), text
    assert "    1 up2..end: all 4 nodes are in the other's 1 with 3 more\n" in text


def test_many_nodes_are_named_by_the_first_three(model):
    text = cut(model, "y1").diff(cut(model, "h0"))
    assert "0 up0..down1: 5 of 6 nodes are in the other's 1 with 4 more; up0 in 0" in text
    text = cut(model, "y2").diff(cut(model, "r1"))
    assert "5 of 9 nodes are in the other's 0; down1, up2, relu2 and 1 more in 1" in text


def test_values_that_only_one_sends_are_named_with_their_bytes(model):
    text = cut(model, "y0", "y1").diff(cut(model, "y1", "r2"))
    assert "cut only in this: 1 value\n          32 B  y0\n" in text
    assert "cut only in the other: 1 value\n          32 B  r2" in text


def test_lists_of_hundreds_are_cut_short():
    model = dx.load(layers_model([8] * 40))
    lines = model.plan("per_node").diff(model.plan()).splitlines()
    assert "    and 101 more stages" in lines and "    and 100 more" in lines
    assert "    0 up0: its node is in the other's 0 with 120 more" in lines
    assert len(lines) < 60
    back = model.plan().diff(model.plan("per_node"))
    assert "1 of 121 nodes are in the other's 0; relu0 in 1; down0 in 2; up1 in 3" in back
    assert "and 117 more stages" in back


def test_worker_groups_are_compared(model):
    plan = cut(model, "y0")
    placed = plan.with_placement(dx.Placement((0, 1)))
    assert plan.diff(placed) == "workers of the stages: this any; the other 0 1"
    assert placed.diff(placed) == "no difference"
    preferred = plan.with_placement(dx.Placement((0, 1), allow_other_workers=True))
    assert [line.split() for line in placed.diff(preferred).splitlines()] == [
        ["this", "other"],
        ["other", "workers", "none", "allowed"],
    ]


def test_session_options_shapes_and_loss_are_compared(model):
    text = model.plan().diff(model.plan(aim="latency"))
    assert [line.split() for line in text.splitlines()] == [
        ["this", "other"],
        ["intra_op_num_threads", "None", "0"],
    ]
    sizes = model.plan().diff(model.plan(shapes={"x": (4, 8)}))
    assert "shapes" in sizes and "x=4x8" in sizes and "cut" not in sizes
    plan = cut(model, "y0")
    lossy = plan.with_loss("float16", np.ones((2, 8), np.float32), budget=0.5)
    assert [line.split() for line in plan.diff(lossy).splitlines()][1] == [
        "loss",
        "none",
        "float16",
    ]


def test_nodes_that_only_one_plan_runs_are_named():
    model = dx.load(branching_model())
    text = model.plan().diff(model.plan(outputs=["m"]))
    assert "nodes that only this runs: left, left_end, right and 1 more" in text
    assert "nodes that only the other runs" not in text


def test_kernels_are_compared(model):
    plan = model.plan()
    (stage,) = plan.stages
    graph = dataclasses.replace(
        plan.stage_graph, stages=(dataclasses.replace(stage, kernel="reference"),)
    )
    text = plan.diff(dataclasses.replace(plan, stage_graph=graph))
    assert "nodes run on" in text and "reference 10" in text


def test_plans_of_different_models_compare_numbers_only(model):
    other = dx.load(dense_model())
    text = model.plan().diff(other.plan())
    assert text.startswith("different models, whose stages cannot be compared: made (")
    assert "dense (" in text and "weights of a stage" in text
    assert "cut differently" not in text


@pytest.mark.parametrize("make", [lambda: layers_model([8, 8, 8]), branching_model, captured_model])
def test_a_plan_is_compared_with_that_of_an_annotated_copy(make):
    model = dx.load(make())
    plan = model.plan("per_node")
    copy = dx.load(plan.annotate())
    assert copy.token != model.token
    lines = plan.diff(copy.plan("from_annotations").with_placement(None)).splitlines()
    assert [line.split()[0] for line in lines] == ["this", "strategy"]
    text = copy.plan("whole").diff(plan)
    assert "different models" not in text and "cut only in the other" in text


def test_copies_that_differ_in_the_exporters_words_are_one_model():
    first, second = layers_model([8, 8]), layers_model([8, 8])
    second.producer_name, second.doc_string = "another exporter", "other words"
    second.graph.node[0].doc_string = "line 12"
    plans = [dx.load(each).plan() for each in (first, second)]
    assert plans[0].diff(plans[1]) == "no difference"


def test_models_that_name_their_classes_differently_are_two_models():
    plans = [
        dx.load(
            make_model(
                [zip_map("x", "z", labels)],
                [value("x", ["N", 3])],
                [maps_of("z", labels)],
                domains={"ai.onnx.ml": 1},
            )
        ).plan()
        for labels in ([0, 1, 2], [0, 1, 3])
    ]
    assert plans[0].diff(plans[0]) == "no difference"
    assert plans[0].diff(plans[1]).startswith("different models")
