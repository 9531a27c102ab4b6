"""A plan as HTML: what a browser would show of it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from builders import branching_model, dense_model, layers_model

import dask_onnx as dx
from dask_onnx.diagnostics.page import explain_html
from dask_onnx.planning.choice import Alternative, Verdict

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tables, texts and tags of a page; every tag must be closed in its turn."""

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
        return "\n".join(self.texts)


@pytest.fixture
def plan():
    return dx.load(layers_model([64] * 6)).plan("fused", n_stages=3)


def test_a_notebook_shows_stages_edges_a_picture_and_all_that_explain_says(plan):
    page = Page(plan._repr_html_())
    stages, edges = page.tables["stages"], page.tables["edges"]
    assert stages[0] == ["#", "stage", "nodes", "compute", "predicted", "weights", "gives"]
    assert [row[1] for row in stages[1:]] == [stage.label for stage in plan.stages]
    assert [row[3] for row in edges[1:]] == [edge.value for edge in plan.stage_graph.edges]
    assert page.tags.count("svg") == 1
    alternatives = page.tables["alternatives"]
    assert alternatives[1][0] == "fused of 3" and alternatives[1][3] == "as asked"
    assert alternatives[2][0] == "whole"
    verdict = plan.judge()
    told = plan.explain().split("\n\n")
    for paragraph in (told[0], told[-1]):
        for line in paragraph.splitlines():
            assert line in page.text or line in verdict.describe()
    assert verdict.sentence in page.text


def test_the_text_s_tables_are_not_there_twice(plan):
    html = plan._repr_html_()
    assert "#  stage" not in html and "\nedges\n" not in html
    assert html.count("<table") == 3


def test_a_verdict_stands_on_top_and_its_alternatives_in_a_table(plan):
    ways = (
        Alternative("whole", 2.0, 3e8, 1, "a worker has room for <b>1 MiB"),
        Alternative("pipeline of 3", 0.5, 1e8, 3),
    )
    verdict = Verdict(ways[1], "cut & run, since whole does not fit", ways)
    page = Page(dataclasses.replace(plan, verdict=verdict)._repr_html_())
    assert page.texts.index(verdict.sentence) < page.texts.index("stages")
    assert page.text.count(verdict.sentence) == 1
    assert page.tables["alternatives"][1:] == [
        ["whole", "2.00 s", "286.1 MiB", "refused: a worker has room for <b>1 MiB"],
        ["pipeline of 3", "500.0 ms", "95.4 MiB", "chosen"],
    ]


def test_workers_and_measured_seconds_are_columns_if_they_are_known(plan):
    html = explain_html(
        plan.stage_graph, plan.explain(), "t", worker_groups=(0, 1, 0), measured=(0.25, None, 1.5)
    )
    head, *rows = Page(html).tables["stages"]
    assert [row[head.index("worker")] for row in rows] == ["0", "1", "0"]
    assert [row[head.index("measured")] for row in rows] == ["250.0 ms", "", "1.50 s"]
    assert "250.0 ms measured" in html
    placed = Page(plan.with_placement(dx.Placement((2, 1, 0)))._repr_html_())
    assert [row[-1] for row in placed.tables["stages"]] == ["worker", "2", "1", "0"]


def test_nothing_is_fetched_and_nothing_runs(plan):
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


def test_what_the_text_says_is_escaped(plan):
    page = Page(explain_html(plan.stage_graph, "head <b>\n\nfoot <i>&amp;", "t"))
    assert not {"b", "i"} & set(page.tags)
    assert "head <b>" in page.texts and "foot <i>&amp;" in page.texts


def test_a_plan_of_hundreds_of_stages_is_cut_short():
    plan = dx.load(layers_model([8] * 100)).plan("per_node")
    assert len(plan.stages) == 301
    html = plan._repr_html_()
    page = Page(html)
    assert "svg" not in page.tags and "No picture of 301 stages here" in page.text
    assert len(page.tables["stages"]) == 1 + 50 + 1
    assert page.tables["stages"][-1] == ["and 251 more: print(plan.explain()) lists them"]
    assert page.tables["edges"][-1][0].startswith("and 250 more")
    assert len(html) < 30_000


def test_a_plan_of_one_stage_has_no_table_of_edges():
    assert list(Page(dx.load(dense_model()).plan()._repr_html_()).tables) == [
        "stages",
        "alternatives",
    ]


def test_a_name_that_ends_in_html_gets_a_whole_page(plan, tmp_path):
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


def test_tables_scroll_in_boxes_and_names_keep_a_width_that_one_can_read(plan):
    html = plan._repr_html_()
    assert Page(html).around == ["wide", "wide", "wide"]
    style = style_of(html)
    assert style[".dask-onnx-plan .wide"]["overflow-x"] == "auto"
    assert style[".dask-onnx-plan .name"]["min-width"] == "14em"


def test_a_picture_shrinks_with_the_page_but_not_below_what_one_can_read(plan):
    html = plan._repr_html_()
    assert f'style="--width: {re.search("<svg[^>]* width=.([0-9]+)", html)[1]}px"' in html
    rules = style_of(html)[".dask-onnx-plan .picture svg"]
    assert (rules["max-width"], rules["height"]) == ("100%", "auto")
    assert rules["min-width"] == "calc(0.8 * var(--width))"


def test_columns_of_the_text_scroll_and_its_sentences_wrap(plan):
    text = "head\n\nschedule\n    worker 0  000111\n\na sentence"
    html = explain_html(plan.stage_graph, text, "t")
    assert '<pre class="columns">schedule' in html and "<pre>a sentence</pre>" in html
