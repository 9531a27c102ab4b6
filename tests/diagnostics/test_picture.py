"""Pictures of plans, checked by the positions of boxes, lines and texts in their SVG."""

from __future__ import annotations

import re
from dataclasses import dataclass
from unittest import mock
from xml.etree import ElementTree

import pytest
from builders import branching_model
from dask.utils import key_split
from distributed.utils import color_of
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.core.formatting import format_bytes, format_flops, format_seconds
from dask_onnx.diagnostics import picture_layout as layout
from dask_onnx.diagnostics.picture import to_svg
from dask_onnx.planning.stages import Edge, Stage, StageCost, StageGraph

SVG = "{http://www.w3.org/2000/svg}"


def made(seconds, edges=(), labels=None):
    """Return a graph of stages with these seconds.

    Edges are (producer, consumer, bytes), or with the name of a value that edges share.
    """
    stages = tuple(
        Stage(
            labels[i] if labels else f"stage_{i}",
            (i,),
            (),
            (),
            StageCost(10**9, each, 10**7, 10**6),
        )
        for i, each in enumerate(seconds)
    )
    values = [edge[3] if len(edge) > 3 else f"v{i}" for i, edge in enumerate(edges)]
    links = tuple(Edge(value, *edge[:3]) for value, edge in zip(values, edges, strict=True))
    return StageGraph(stages, links, (), ())


@dataclass
class Box:
    x: float
    y: float
    width: float
    height: float
    fill: str
    texts: list


class Picture:
    """The boxes, lines and texts of an SVG."""

    def __init__(self, svg):
        self.root = ElementTree.fromstring(svg)
        self.width, self.height = (float(self.root.get(name)) for name in ("width", "height"))
        self.boxes = [self._box(group) for group in self._groups("stage")]
        self.piles = [self._box(group) for group in self._groups("stages")]
        entries = [
            group for group in self._groups("legend") if group.find(f"{SVG}rect") is not None
        ]
        self.legend = [self._box(group) for group in entries]
        paths = list(self.root.iter(f"{SVG}path"))
        self.lines = [path for path in paths if path.get("fill") == "none"]
        self.thickness = [float(line.get("stroke-width")) for line in self.lines]

    def _groups(self, kind):
        return [group for group in self.root.iter(f"{SVG}g") if group.get("class") == kind]

    def _box(self, group):
        rect = group.find(f"{SVG}rect")
        sizes = [float(rect.get(name)) for name in ("x", "y", "width", "height")]
        return Box(*sizes, rect.get("fill"), list(group.iter(f"{SVG}text")))

    @property
    def text(self):
        return "\n".join(text.text for text in self.root.iter(f"{SVG}text"))


def width_of(text):
    """Return the width of a text at 0.6 em for each character."""
    return len(text.text) * 0.6 * float(text.get("font-size"))


def test_text_names_stages_edges_and_bytes():
    text = dx.load(branching_model()).plan("per_node", shapes={"x": (10, 4)}).explain()
    assert "strategy per_node: 6 stages, 7 edges" in text
    assert "x=10x4" in text
    assert "   0   1  160 B  stem" in text


def test_a_picture_has_a_box_for_each_stage_and_a_line_for_each_edge(tmp_path):
    plan = dx.load(branching_model()).plan("per_node")
    plan.visualize(tmp_path / "plan.svg")
    picture = Picture((tmp_path / "plan.svg").read_text())
    assert len(picture.boxes) == len(plan.stages)
    assert len(picture.lines) == len(plan.stage_graph.edges)


def test_a_stage_that_takes_longer_has_a_larger_box():
    picture = Picture(to_svg(made([0.1, 1.0, 0.5]), "t"))
    short, long, half = (box.width for box in picture.boxes)
    assert short < half < long
    assert half == pytest.approx(long / 2)
    assert "width and warmth of a box: predicted time" in picture.text


def test_worker_groups_are_colours_that_a_legend_names():
    picture = Picture(to_svg(made([1, 1, 1]), "t", worker_groups=(0, 1, 0)))
    first, second, third = (box.fill for box in picture.boxes)
    assert first == third != second
    assert [entry.fill for entry in picture.legend] == [first, second]
    assert [entry.texts[0].text for entry in picture.legend] == ["worker 0", "worker 1"]
    assert "its colour: worker" in picture.text


def test_a_plan_with_a_placement_has_a_legend(tmp_path):
    plan = dx.load(branching_model()).plan("fused", n_stages=2)
    plan.visualize(tmp_path / "any.svg")
    assert Picture((tmp_path / "any.svg").read_text()).legend == []
    plan.with_placement(dx.Placement((0, 1))).visualize(tmp_path / "kept.svg")
    assert len(Picture((tmp_path / "kept.svg").read_text()).legend) == 2


def test_without_worker_groups_slower_stages_have_warmer_colours():
    fills = [box.fill for box in Picture(to_svg(made([0.01, 1.0]), "t")).boxes]
    green = [int(fill[3:5], 16) for fill in fills]
    assert green[0] > green[1]


def test_the_legend_of_many_worker_groups_is_cut_short():
    picture = Picture(to_svg(made([1] * 40), "t", worker_groups=range(40)))
    assert "and 24 more" in picture.text
    lowest = max(entry.y + entry.height for entry in picture.legend)
    assert lowest < min(box.y for box in picture.boxes)


def test_the_width_of_a_line_is_logarithmic_in_its_bytes():
    edges = [(0, 1, 10**4), (1, 2, 10**6), (2, 3, 10**8), (3, 4, 1), (4, 5, 10**12)]
    thickness = Picture(to_svg(made([1] * 6, edges), "t")).thickness
    assert thickness[0] < thickness[1] < thickness[2]
    assert thickness[2] - thickness[1] == pytest.approx(thickness[1] - thickness[0], abs=0.11)
    assert (min(thickness), max(thickness)) == (1, 9)


def test_measured_seconds_are_shown_below_predicted_ones():
    texts = Picture(to_svg(made([0.1, 0.2]), "t", measured=[0.3, None])).boxes
    assert [text.text for text in texts[0].texts][1:3] == [
        "100.0 ms predicted",
        "300.0 ms measured",
    ]
    assert not any("measured" in text.text for text in texts[1].texts)


@pytest.mark.parametrize("measured", [None, [123.4567] * 4])
def test_text_stays_inside_its_box(measured):
    labels = ["a", "x" * 300, f"{'first' * 20}..{'last' * 20}", f"short..{'last' * 30}"]
    for seconds in ([1e-6, 1, 0.3, 0.6], [1, 1e-6, 1e-6, 0.01]):
        picture = Picture(to_svg(made(seconds, labels=labels), "t" * 500, measured=measured))
        for box in picture.boxes:
            for text in box.texts:
                middle, half = float(text.get("x")), width_of(text) / 2
                assert box.x <= middle - half and middle + half <= box.x + box.width
                bottom = float(text.get("y"))
                assert box.y < bottom - float(text.get("font-size")) and bottom < box.y + box.height
        heads = [e for e in picture.root.iter(f"{SVG}text") if e.get("text-anchor") == "start"]
        assert all(float(e.get("x")) + width_of(e) <= picture.width for e in heads)


def test_wide_characters_stay_inside_the_box():
    (box,) = Picture(to_svg(made([1], labels=["層" * 100]), "t")).boxes
    label = box.texts[0].text
    assert label.endswith("層") and len(label) * 12 < 1.2 * box.width
    assert label.count("層") * 12 < box.width


@st.composite
def graphs(draw):
    count = draw(st.integers(2, 12))
    seconds = draw(st.lists(st.floats(1e-6, 1), min_size=count, max_size=count))
    pairs = [(i, j) for j in range(count) for i in range(j)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=30))
    values = [f"v{i}.{draw(st.integers(0, 2))}" for i, _ in edges]
    sizes = {value: draw(st.integers(1, 10**10)) for value in sorted(set(values))}
    return made(seconds, [(i, j, sizes[v], v) for (i, j), v in zip(edges, values, strict=True)])


def points_of(line):
    numbers = [float(number) for number in re.findall(r"[\d.]+", line.get("d"))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@given(graphs(), st.sampled_from([0, 6000]))
def test_boxes_do_not_overlap_and_lines_pass_beside_them(stages, most_passes):
    with mock.patch.object(layout, "_MOST_PASSES", most_passes):
        picture = Picture(to_svg(stages, "t", page=None))
    for box in picture.boxes:
        assert box.x >= 0 and box.x + box.width <= picture.width
        assert box.y + box.height <= picture.height
    for i, one in enumerate(picture.boxes):
        for other in picture.boxes[:i]:
            apart = one.x + one.width < other.x or other.x + other.width < one.x
            assert one.y != other.y or apart
    begun = {}
    ways = [points_of(line) for line in picture.lines]
    for edge, points in zip(stages.edges, ways, strict=True):
        start = picture.boxes[edge.producer]
        if points[0][1] == start.y + start.height:
            assert start.x <= points[0][0] <= start.x + start.width
            begun.setdefault(edge.value, []).extend(x for x, _ in points)
    for edge, points in zip(stages.edges, ways, strict=True):
        end = picture.boxes[edge.consumer]
        assert points[0][0] in begun[edge.value]
        assert end.x <= points[-1][0] <= end.x + end.width and points[-1][1] < end.y
        for (x, top), (_, bottom) in zip(points[3::4], points[4::4], strict=False):
            crossed = [box for box in picture.boxes if top <= box.y and box.y < bottom]
            assert all(not box.x <= x <= box.x + box.width for box in crossed)


def test_lines_with_a_shared_path_have_one_label():
    edges = [(0, 1, 10, "a"), (1, 2, 20, "b"), (2, 3, 30, "c")]
    edges += [(0, 2, 7000, "a"), (0, 3, 7000, "a")]
    picture = Picture(to_svg(made([1] * 4, edges), "t"))
    assert len(picture.lines) == 5
    assert picture.text.count(format_bytes(7000)) == 1


def test_a_picture_explains_where_lines_are_that_cannot_be_ordered():
    edges = [(i, i + 1, 1000) for i in range(9)] + [(0, i, 1000) for i in range(3, 10)]
    note = "too many lines to order: long ones run at the right"
    assert note not in Picture(to_svg(made([1] * 10, edges), "t", page=None)).text
    for worker_groups in (None, range(10)):
        with mock.patch.object(layout, "_MOST_PASSES", 0):
            svg = to_svg(made([1] * 10, edges), "t", worker_groups=worker_groups, page=None)
            assert note in Picture(svg).text


def labels_of(picture):
    """Return left edge, base line and width of the label of each line."""
    texts = [e for e in picture.root.findall(f"{SVG}text") if "bytes" in (e.get("class") or "")]
    return [(float(e.get("x")), float(e.get("y")), width_of(e)) for e in texts]


def test_labels_of_lines_do_not_overlap():
    edges = [(0, i, 1000 * i) for i in range(1, 6)] + [(i, 6, 2000 * i) for i in range(1, 6)]
    labels = labels_of(Picture(to_svg(made([1] * 7, edges), "t")))
    assert len(labels) >= 5
    for i, (x, y, width) in enumerate(labels):
        for x2, y2, width2 in labels[:i]:
            assert x + width <= x2 or x2 + width2 <= x or abs(y - y2) >= 11


@given(graphs())
def test_labels_break_no_lines_and_touch_no_boxes(stages):
    picture = Picture(to_svg(stages, "t", page=None))
    for left, base, width in labels_of(picture):
        top, bottom = base - 8, base
        for line in picture.lines:
            for begin, near, far, end in curves_of(line):
                for step in range(41):
                    x, y = point_of_curve(begin, near, far, end, step / 40)
                    assert not (left < x < left + width and top < y < bottom)
        for box in picture.boxes:
            beside = left + width <= box.x or box.x + box.width <= left
            assert beside or bottom <= box.y or box.y + box.height <= top


def curves_of(line):
    """Yield the start, the two control points and the end of each curve of a line."""
    points = points_of(line)
    yield from zip(points[::4], points[1::4], points[2::4], points[3::4], strict=True)


def point_of_curve(begin, near, far, end, share):
    rest = 1 - share
    weights = rest**3, 3 * rest * rest * share, 3 * rest * share * share, share**3
    points = begin, near, far, end
    return tuple(
        sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in range(2)
    )


@pytest.mark.parametrize("count", [1, 8, 60, 300, 1061])
@pytest.mark.parametrize("shape", ["chain", "ladder", "fan"])
def test_a_picture_of_any_number_of_stages_fits_a_page(count, shape):
    edges = {
        "chain": [(i, i + 1, 1000) for i in range(count - 1)],
        "ladder": [(i, j, 1000) for i in range(count) for j in (i + 1, i + 3) if j < count],
        "fan": [(0, i, 1000) for i in range(1, count - 1)]
        + [(i, count - 1, 1000) for i in range(1, count - 1)],
    }[shape]
    labels = [f"model.{i}.m.MaxPool_{i}" for i in range(count)]
    picture = Picture(to_svg(made([0.1] * count, edges, labels), "t"))
    assert picture.width <= 1500 and picture.height <= 1150
    assert 1 <= len(picture.boxes) + len(picture.piles) <= 40
    assert bool(picture.piles) == (count > 8)
    assert ("stages that take longest" in picture.text) == (count > 8)


def test_a_picture_that_is_opened_by_itself_shrinks_to_the_window_and_follows_its_colours():
    style = ElementTree.fromstring(to_svg(made([1]), "t")).find(f"{SVG}style").text
    assert "svg:root{max-width:100%;max-height:100vh" in style
    assert "@media screen and (prefers-color-scheme:dark)" in style


def test_the_stripe_of_a_box_has_the_colour_of_the_stage_in_the_dashboard(tmp_path):
    stages = made([1, 1], labels=["Conv_0", "Relu_1"])
    root = ElementTree.fromstring(to_svg(stages, "t"))
    groups = [group for group in root.iter(f"{SVG}g") if group.get("class") == "stage"]
    stripes = [group.findall(f"{SVG}rect")[1].get("fill") for group in groups]
    assert stripes == [color_of(key_split((f"{label}-0a1b", 0))) for label in ("Conv_0", "Relu_1")]


def test_any_label_gives_valid_svg():
    model = branching_model()
    for i, name in enumerate(["<a&b>", "é" * 100, "a" * 200, '"', "x/y/z", "-"]):
        model.graph.node[i].name = name
    ElementTree.fromstring(to_svg(dx.load(model).plan("per_node").stage_graph, "<title>"))


def test_a_graph_without_stages_gives_a_picture():
    assert Picture(to_svg(made([]), "t")).boxes == []


def test_numbers_have_units():
    assert format_bytes(17) == "17 B"
    assert format_bytes(1536) == "1.5 KiB"
    assert format_flops(2.5e9) == "2.5 GFLOP"
    assert format_seconds(0.00002) == "20 us"
    assert format_seconds(0.25) == "250.0 ms"
    assert format_seconds(12) == "12.00 s"
