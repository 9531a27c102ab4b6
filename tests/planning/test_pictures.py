from __future__ import annotations

from xml.etree import ElementTree

from builders import branching_model

import dask_onnx as dx
from dask_onnx.planning.explain import format_bytes, format_flops, format_seconds
from dask_onnx.planning.picture import to_svg


def test_text_names_stages_edges_and_bytes():
    text = dx.load(branching_model()).plan("per_node", shapes={"x": (10, 4)}).explain()
    assert "strategy per_node: 6 stages, 7 edges" in text
    assert "x=10x4" in text
    assert "0 -> 1       160 B  stem" in text


def test_the_picture_has_a_box_a_stage_and_a_line_an_edge(tmp_path):
    plan = dx.load(branching_model()).plan("per_node")
    plan.visualize(tmp_path / "plan.svg")
    root = ElementTree.parse(tmp_path / "plan.svg").getroot()
    elements = list(root.iter())
    boxes = [e for e in elements if e.get("class") == "stage"]
    lines = [e for e in elements if e.tag.endswith("path") and e.get("fill") == "none"]
    assert len(boxes) == len(plan.stages)
    assert len(lines) == len(plan.stage_graph.edges)


def test_boxes_of_a_layer_do_not_overlap():
    root = ElementTree.fromstring(
        to_svg(dx.load(branching_model()).plan("per_node").stage_graph, "t")
    )
    space = "{http://www.w3.org/2000/svg}"
    boxes = [
        (float(r.get("y")), float(r.get("x")), float(r.get("width")))
        for g in root.iter(f"{space}g")
        for r in g.iter(f"{space}rect")
    ]
    for y, x, width in boxes:
        assert x >= 0
        assert not any(y == y2 and x < x2 < x + width for y2, x2, _ in boxes)


def test_any_label_gives_a_picture():
    model = branching_model()
    for i, name in enumerate(["<a&b>", "é" * 100, "a" * 200, '"', "x/y/z", "-"]):
        model.graph.node[i].name = name
    ElementTree.fromstring(to_svg(dx.load(model).plan("per_node").stage_graph, "<title>"))


def test_numbers_are_written_for_people():
    assert format_bytes(17) == "17 B"
    assert format_bytes(1536) == "1.5 KiB"
    assert format_flops(2.5e9) == "2.5 GFLOP"
    assert format_seconds(0.00002) == "20 us"
    assert format_seconds(0.25) == "250.0 ms"
    assert format_seconds(12) == "12.00 s"
