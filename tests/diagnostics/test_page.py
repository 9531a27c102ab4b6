"""Plans as HTML: the content, and what a browser makes of it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from builders import branching_model, dense_model, layers_model

import dask_onnx as dx
from dask_onnx.diagnostics.page import explain_html
from dask_onnx.diagnostics.sections import Note, Section, sentence
from dask_onnx.diagnostics.stage_tables import stage_table
from dask_onnx.planning.alternatives import Alternative, Verdict

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tables, texts and tags of a page; every tag must be closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.tags, self.open, self.texts = {}, [], [], []
        self.attributes, self.around = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "div":
            self.parent = dict(attributes)["class"]
        if tag == "table":
            self.rows, self.name = [], ""
            self.around.append(self.parent)
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.name or "edges"] = self.rows

    def handle_data(self, data):
        if not self.open or self.open[-1] == "style":
            return
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open[-1] == "caption":
            self.name = data
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def plan():
    return dx.load(layers_model([64] * 6)).plan("fused", n_stages=3)


def sections_of(plan, *others):
    """The least that a page needs, and some sections."""
    overview = Section("overview", (Note("an overview"),))
    stages = Section("stages", title="stages", table=stage_table(plan.stage_graph))
    return [overview, stages, *others]


def test_html_has_stages_edges_a_picture_and_every_note_of_the_plan(plan):
    page = Page(plan._repr_html_())
    stages, edges = page.tables["stages"], page.tables["edges"]
    assert stages[0] == ["#", "stage", "nodes", "compute", "predicted", "weights", "outputs"]
    assert [row[1] for row in stages[1:]] == [stage.label for stage in plan.stages]
    assert [row[3] for row in edges[1:]] == [edge.value for edge in plan.stage_graph.edges]
    assert page.tags.count("svg") == 1
    alternatives = page.tables["alternatives"]
    assert alternatives[1][0] == "fused of 3" and alternatives[1][3] == "as asked"
    assert alternatives[2][0] == "whole"
    for section in plan.sections():
        for note in section.notes:
            assert sentence(note) in page.text
            assert note.label in page.text or section.name == "verdict"
            assert all(" ".join(line.split()) in page.text for line in note.details)


def test_each_table_appears_once(plan):
    html = plan._repr_html_()
    assert html.count("<table") == 3 and set(Page(html).tables) == {
        "stages",
        "edges",
        "alternatives",
    }


def test_the_verdict_comes_first_and_its_alternatives_are_a_table(plan):
    alternatives = (
        Alternative("whole", 2.0, 3e8, 1, "a worker has room for <b>1 MiB"),
        Alternative("pipeline of 3", 0.5, 1e8, 3),
    )
    verdict = Verdict(alternatives[1], "cut & run, since whole does not fit", alternatives)
    page = Page(dataclasses.replace(plan, verdict=verdict)._repr_html_())
    assert page.texts.index(verdict.sentence) < page.texts.index("stages")
    assert page.text.count(verdict.sentence) == 1
    assert page.tables["alternatives"][1:] == [
        ["whole", "2.00 s", "286.1 MiB", "refused: a worker has room for <b>1 MiB"],
        ["pipeline of 3", "500.0 ms", "95.4 MiB", "chosen"],
    ]


def test_workers_and_measured_seconds_are_columns_if_they_are_known(plan):
    groups, seconds = (0, 1, 0), (0.25, None, 1.5)
    table = stage_table(plan.stage_graph, worker_groups=groups, measured=seconds)
    columns = {column.head: column.cells for column in table.columns}
    assert columns["worker"] == ("0", "1", "0")
    assert columns["measured"] == ("250.0 ms", "", "1.50 s")
    html = explain_html(
        plan.stage_graph, sections_of(plan), "t", worker_groups=groups, measured=seconds
    )
    assert "250.0 ms measured" in html
    placed = Page(plan.with_placement(dx.Placement((2, 1, 0)))._repr_html_())
    assert [row[-1] for row in placed.tables["stages"]] == ["worker", "2", "1", "0"]


def test_html_has_no_scripts_and_no_external_files(plan):
    page = Page(plan._repr_html_())
    assert not {"script", "link", "img", "iframe", "image", "object"} & set(page.tags)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_names_are_escaped():
    model = branching_model()
    names = ["<script>alert(1)</script>", "a&amp;b", '"><b>', "'", "</td>", "<!--"]
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    model.graph.name = "<i>model</i>"
    plan = dx.load(model).plan("per_node")
    page = Page(plan._repr_html_())
    assert not {"script", "b", "i"} & set(page.tags)
    assert [row[1] for row in page.tables["stages"][1:]] == [s.label for s in plan.stages]


def test_notes_are_escaped(plan):
    note = Note("text <b>", "label <i>", ("line &amp;",))
    page = Page(explain_html(plan.stage_graph, sections_of(plan, Section("x", (note,))), "t"))
    assert not {"b", "i"} & set(page.tags)
    assert "label <i>: text <b> line &amp;" in page.text


def test_tables_of_hundreds_of_stages_are_cut_short_and_their_picture_fits():
    plan = dx.load(layers_model([8] * 100)).plan("per_node")
    assert len(plan.stages) == 301
    html = plan._repr_html_()
    page = Page(html)
    assert page.tags.count("svg") == 1 and "301 stages in" in page.text
    assert len(page.tables["stages"]) == 1 + 50 + 1
    assert page.tables["stages"][-1] == ["and 251 more: print(plan.explain()) lists them"]
    assert page.tables["edges"][-1][0].startswith("and 250 more")
    assert len(html) < 60_000


def test_a_page_of_its_own_lists_every_stage_and_zooms(tmp_path):
    plan = dx.load(layers_model([8] * 100)).plan("per_node")
    plan.visualize(tmp_path / "plan.html")
    page = Page((tmp_path / "plan.html").read_text(encoding="utf-8"))
    assert len(page.tables["stages"]) == 1 + 301
    assert page.tags.count("svg") == 2  # the one that fits, and the one with every stage
    assert page.tags.count("script") == 1
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}


def test_a_plan_of_one_stage_has_no_table_of_edges():
    assert list(Page(dx.load(dense_model()).plan()._repr_html_()).tables) == [
        "stages",
        "alternatives",
    ]


def test_a_file_name_that_ends_in_html_gets_a_whole_document(plan, tmp_path):
    plan.visualize(tmp_path / "plan.html")
    html = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>\n<html")
    page = Page(html)
    assert page.tags[:2] == ["html", "head"] and page.tags.count("body") == 1
    assert plan._repr_html_() in html


def style_of(html):
    """Selector to its declarations."""
    rules = re.findall(
        r"([^{}]+)\{([^{}]*)\}", re.search("<style>(.*?)</style>", html, re.DOTALL)[1]
    )
    return {
        one.strip(): {
            name.strip(): value.strip()
            for name, value in (each.split(":") for each in declarations.split(";") if each.strip())
        }
        for selectors, declarations in rules
        for one in selectors.split(",")
    }


def test_no_rule_of_the_style_reaches_beyond_the_plan(plan):
    style = style_of(plan._repr_html_())
    assert style and all(re.match(r"\.dask-onnx-plan( |$)", selector) for selector in style)


def test_tables_scroll_and_names_keep_a_readable_width(plan):
    html = plan._repr_html_()
    assert Page(html).around == ["wide", "wide", "wide"]
    style = style_of(html)
    assert style[".dask-onnx-plan .wide"]["overflow"] == "auto"
    assert style[".dask-onnx-plan .name"]["min-width"] == "14em"


def test_a_picture_shrinks_with_the_page_to_a_readable_width(plan):
    html = plan._repr_html_()
    assert f'style="--width: {re.search("<svg[^>]* width=.([0-9]+)", html)[1]}px"' in html
    rules = style_of(html)[".dask-onnx-plan .picture svg"]
    assert (rules["max-width"], rules["height"]) == ("100%", "auto")
    assert rules["min-width"] == "calc(0.6 * var(--width))"


def test_details_keep_their_columns_and_scroll(plan):
    details = ("worker 0  000111", "worker 1  111000")
    sections = sections_of(plan, Section("schedule", (Note("async", "schedule", details),)))
    html = explain_html(plan.stage_graph, sections, "t")
    assert "<pre>worker 0  000111\nworker 1  111000</pre>" in html
    style = style_of(html)[".dask-onnx-plan pre"]
    assert (style["white-space"], style["overflow-x"]) == ("pre", "auto")
