"""Reports of profiles as HTML: complete, without network, with all names escaped."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from profile_builders import A, B, small_profile, task

from dask_onnx.cli import main
from dask_onnx.core.errors import InputError
from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile
from dask_onnx.diagnostics.profiling.profile_files import write_profile
from dask_onnx.diagnostics.profiling.profile_rows import rows_of
from dask_onnx.diagnostics.profiling.report_graphs import (
    link_matrix,
    prediction_chart,
    stage_edges,
    stage_graph,
)
from dask_onnx.diagnostics.profiling.report_html import html_of, write_html
from dask_onnx.diagnostics.profiling.report_parts import parts_of
from dask_onnx.diagnostics.profiling.report_theme import shown
from dask_onnx.diagnostics.profiling.report_timeline import memory_chart, time_line, time_range
from dask_onnx.diagnostics.profiling.run_profile import ErrorRecord, NodeRecord, RunProfile

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>$$x$$"
EDGES = (("first", "second"),)


class Page(HTMLParser):
    """Elements of a page, and the addresses that they load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.ids.append(found.get("id"))
        if tag != "a":
            self.loaded += [found[name] for name in ("src", "href") if name in found]


@pytest.fixture(scope="module")
def hostile():
    """Page of a profile in which every name is hostile."""
    profile = small_profile(edges=(*EDGES, ("second", HOSTILE)))
    node = NodeRecord("t", HOSTILE, A, HOSTILE, HOSTILE, 2, 0.6, 0.3, 10, 10, 0.1)
    profile = replace(
        profile,
        tasks=(*profile.tasks, task(HOSTILE, B, 8.5, 9.5, name=HOSTILE, error=HOSTILE)),
        nodes=(*profile.nodes, node),
        transfers=tuple(replace(each, stage=HOSTILE) for each in profile.transfers),
        workers=tuple(replace(each, host=HOSTILE) for each in profile.workers),
        errors=(ErrorRecord(HOSTILE, HOSTILE, B, 2, HOSTILE),),
        notes=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
    )
    return Page(html_of(profile)), html_of(profile)


def test_a_report_loads_nothing_and_has_all_its_parts(hostile):
    page, text = hostile
    assert page.loaded == []
    names = {"shares", "time", "graph", "stages", "predictions", "links", "nodes", "memory"}
    assert names | {"workers", "errors", "advice", "about"} <= set(page.ids)
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_names_are_neither_elements_nor_scripts(hostile):
    page, text = hostile
    assert "img" not in page.tags
    # Bokeh's scripts hold the name as data, with both signs escaped.
    assert "<img src=x" not in text and "alert(2)</script>" not in text


def test_names_are_never_read_as_mathematics():
    for name in ("$$x$$", r"\[x\]", r"\(x\)"):
        assert shown(name) != name and not re.search(r"\$\$|\\\[|\\\(", shown(name))
    assert shown("a\nb") == r"a\nb"


def test_a_profile_without_anything_has_a_report():
    text = html_of(RunProfile("none", 0.0, 0.0, "none", "threads"))
    assert "Profile none" in text and "Nothing stands out" in text


def test_parts_without_content_are_left_out():
    profile = small_profile(transfers=(), nodes=(), gauges=(), stages=())
    assert {"links", "nodes", "memory", "predictions"}.isdisjoint(parts_of(profile))


def test_edges_go_past_stages_that_are_left_out_and_never_backward():
    profile = small_profile(
        tasks=tuple(task(name, A, i, i + 1, name=name) for i, name in enumerate("abcd")),
        edges=(("a", "b"), ("b", "c"), ("c", "d"), ("d", "a"), ("c", "c")),
    )
    assert stage_edges(profile, ["a", "b", "c", "d"]) == [(0, 1), (1, 2), (2, 3)]
    assert stage_edges(profile, ["a", "d"]) == [(0, 1)]


def test_the_darkest_box_is_the_stage_that_took_most():
    profile = small_profile(edges=EDGES)
    profile = replace(profile, tasks=(*profile.tasks, task("second", B, 8.0, 9.0)))
    graph, left_out = stage_graph(profile, rows_of(profile, "stage"))
    boxes = next(
        each.data_source.data for each in graph.renderers if "fill" in each.data_source.data
    )
    fills = dict(zip(boxes["label"], boxes["fill"], strict=True))
    assert fills["second"] == "#e8762d" != fills["first"] and left_out == ""


def test_cells_of_links_have_bytes_and_rates():
    rows = rows_of(small_profile(), "link")
    plot, _ = link_matrix(rows)
    cells = plot.renderers[0].data_source.data
    found = dict(
        zip(cells["receiver"], zip(cells["bytes"], cells["rate"], strict=True), strict=True)
    )
    assert found["10.0.0.2:1000"] == ("7.6 MiB", "8.0 MB/s")
    assert link_matrix([]) is None


def test_stages_without_a_prediction_are_not_compared():
    plot, _ = prediction_chart(rows_of(small_profile(), "stage"))
    bars = plot.renderers[0].data_source.data
    assert bars["label"] == ["first"] and bars["predicted"] == [3.0]
    assert prediction_chart(rows_of(small_profile(stages=()), "stage")) is None


def test_the_time_line_has_a_lane_for_each_slot_and_for_what_arrives():
    profile = small_profile()
    plot, left_out = time_line(profile, time_range(profile))
    assert plot.y_range.factors == [
        "to client", "10.0.0.2:1000  1", "to 10.0.0.2:1000", "10.0.0.1:1000  1"
    ]  # fmt: skip
    drawn = sum(len(each.data_source.data["start"]) for each in plot.renderers)
    assert drawn == len(profile.tasks) + len(profile.transfers) and left_out == ""


def test_a_long_run_is_drawn_in_part_and_the_page_says_so():
    many = tuple(task("first", A, i / 1e4, (i + 1) / 1e4) for i in range(20_010))
    profile = small_profile(tasks=many, transfers=())
    plot, left_out = time_line(profile, time_range(profile))
    assert sum(len(each.data_source.data["start"]) for each in plot.renderers) == 20_000
    assert "20,010" in left_out


def test_memory_is_drawn_beside_its_projection():
    profile = small_profile()
    workers = tuple(replace(each, projected_bytes=2**21) for each in profile.workers)
    plot = memory_chart(replace(profile, workers=workers), time_range(profile))
    spans = [each.location for each in plot.center if hasattr(each, "location")]
    assert spans == [2**21, 2**21]


def test_reports_need_an_html_ending_and_bokeh(tmp_path, monkeypatch):
    finished = FinishedProfile(small_profile())
    with pytest.raises(InputError) as caught:
        finished.to_html(tmp_path / "run.txt")
    assert caught.value.option == "path"
    finished.to_html(tmp_path / "run.html")
    assert (tmp_path / "run.html").stat().st_size > 500_000
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(InputError, match="bokeh"):
        write_html(small_profile(), tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_the_command_report_writes_a_page(tmp_path):
    write_profile(small_profile(edges=EDGES), tmp_path / "run.json")
    arguments = ["report", str(tmp_path / "run.json"), "--html", str(tmp_path / "run.html")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert "Profile abc" in (tmp_path / "run.html").read_text()
    assert CliRunner().invoke(main, [*arguments, "--by", "node"]).exit_code == 2
