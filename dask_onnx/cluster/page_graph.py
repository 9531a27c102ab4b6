"""Headline and live graph of the page ``/onnx``; needs Bokeh."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from bokeh.models import ColumnDataSource, Div, HoverTool, Range1d
from bokeh.plotting import figure

from dask_onnx.cluster.page_facts import PageFacts, columns_of, tasks_left, tasks_waiting
from dask_onnx.cluster.page_feed import Feed, OnnxPart
from dask_onnx.core.dashboard_internals import colour_of
from dask_onnx.core.formatting import format_seconds, printable
from dask_onnx.core.lettering import shorten_label

_BOX_WIDTH, _BOX_HEIGHT, _GAP, _ROW = 168.0, 46.0, 44.0, 62.0
"""Sizes of the graph in pixels: of a box, to the next column, and to the next box below."""
_COLUMNS = 6
"""Columns side by side; the others follow below."""
_MOST_BOXES = 90
"""Stages that are drawn: those with most work."""


class Headline(OnnxPart):
    """The cluster in one line, with the predicted end."""

    def __init__(self, feed: Feed) -> None:
        self.root = Div(sizing_mode="stretch_width", margin=(8, 12, 4, 12))

    def update(self, feed: Feed) -> None:
        """Show numbers of tasks, micro-batches, workers and failures."""
        facts, rates = feed.facts, feed.rates
        models = sorted({each.model for each in facts.stages})
        left = sum(tasks_left(each) for each in facts.stages)
        running = sum(each.states.get("processing", 0) for each in facts.stages)
        failed = sum(each.states.get("erred", 0) for each in facts.stages)
        stopped = sum(each.status != "running" for each in facts.workers)
        tiles = [
            ("model" if len(models) == 1 else "models", _names(models), ""),
            ("tasks left", f"{left:,}", ""),
            ("on workers", f"{running:,}", ""),
            ("tasks/s", f"{sum(rates.values()):,.1f}", ""),
            ("batches in flight", f"{facts.in_flight:,}", ""),
            ("predicted end", _end(facts, left), ""),
            ("workers", f"{len(facts.workers):,}", ""),
            ("not running", f"{stopped:,}", "bad" if stopped else ""),
            ("gone", f"{len(facts.gone):,}", "bad" if facts.gone else ""),
            ("failed", f"{failed:,}", "bad" if failed else ""),
        ]
        if not facts.workers:
            tiles[6] = ("workers", "none", "bad")
        self.root.text = _STYLE + "".join(
            f'<div class="tile {kind}"><small>{name}</small><b>{escape(text)}</b></div>'
            for name, text, kind in tiles
        )


_STYLE = """<style>
:host { display: block; }
.bk-clearfix { display: flex !important; flex-wrap: wrap; gap: 8px; }
.tile { border: 1px solid #dde2e7; border-radius: 6px; padding: 4px 14px; background: #f7f9fb;
  max-width: 420px; overflow-wrap: anywhere; }
.tile small { display: block; color: #57606a; font-size: 12px; }
.tile b { font-size: 17px; font-weight: 500; color: #1b1f24; }
.tile.bad b { color: #b42318; font-weight: 700; }
</style>"""


def _names(names: list[str]) -> str:
    shown = [printable(name) for name in names[:3]]
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(shown) + more if shown else "none yet"


def _end(facts: PageFacts, left: int) -> str:
    if not left:
        return "nothing to do"
    if not facts.workers or not facts.seconds_left:
        return "not known"
    clock = time.strftime("%H:%M:%S", time.localtime(facts.time + facts.seconds_left))
    return f"{clock}, in {format_seconds(facts.seconds_left)}"


class PlanGraph(OnnxPart):
    """The plans that run, as a graph with the progress of each stage."""

    def __init__(self, feed: Feed) -> None:
        self.lines = ColumnDataSource({"xs": [], "ys": [], "x": [], "y": []})
        self.boxes = ColumnDataSource({name: [] for name in _BOX_FIELDS})
        self.root = figure(
            height=200,
            sizing_mode="stretch_width",
            tools="pan,wheel_zoom,reset,save",
            active_drag="pan",
            title="Plans: how much of each stage is done",
            x_range=Range1d(0, _COLUMNS * (_BOX_WIDTH + _GAP)),
            y_range=Range1d(200, 0),
        )
        self.root.axis.visible = False
        self.root.grid.visible = False
        self.root.toolbar.logo = None
        self.root.multi_line("xs", "ys", source=self.lines, color="#8b96a3", line_width=1.5)
        self.root.scatter(
            "x", "y", source=self.lines, marker="triangle", angle=-math.pi / 2, size=8,
            color="#8b96a3",
        )  # fmt: skip
        box: dict[str, Any] = {"source": self.boxes, "line_color": None}
        self.root.rect("x", "y", _BOX_WIDTH, _BOX_HEIGHT, fill_color="#f1f3f5", **box)
        self.root.quad(
            left="left", right="done", top="top", bottom="bottom", fill_color="#bfe3d4", **box
        )
        self.root.quad(
            left="done", right="busy", top="top", bottom="bottom", fill_color="#fbd9a6", **box
        )
        self.root.quad(
            left="busy", right="bad", top="top", bottom="bottom", fill_color="#f2a59d", **box
        )
        frame = self.root.rect(
            "x", "y", _BOX_WIDTH, _BOX_HEIGHT, source=self.boxes, fill_alpha=0, line_color="edge"
        )
        self.root.rect("stripe", "y", 6, _BOX_HEIGHT, fill_color="colour", **box)
        for place, text, size in (("upper", "short", "12px"), ("lower", "text", "11px")):
            self.root.text(
                "x", place, text=text, source=self.boxes, text_align="center",
                text_baseline="middle", text_font_size=size, text_color="#111111",
            )  # fmt: skip
        tips = [
            ("stage", "@name"),
            ("model", "@model"),
            ("", "@tip"),
        ]
        self.root.add_tools(HoverTool(renderers=[frame], tooltips=tips))

    def update(self, feed: Feed) -> None:
        """Show the stages that are known."""
        rates = feed.rates
        order = sorted(
            feed.facts.stages, key=lambda each: -(tasks_left(each) + each.completed) * each.seconds
        )
        stages = {each.name: each for each in order[:_MOST_BOXES]}
        edges = [(a, b) for a, b in feed.edges if a in stages and b in stages]
        at, height = _places(columns_of(edges, sorted(stages)))
        self.lines.data = _line_data(edges, at)
        self.boxes.data = _box_data(stages, at, rates)
        bottom = max(height, 100.0)
        self.root.y_range.start = bottom
        self.root.height = int(bottom) + 40
        rest = len(feed.facts.stages) - len(stages)
        more = f" ({len(stages)} of {len(feed.facts.stages):,} stages)" if rest else ""
        self.root.title.text = f"Plans: how much of each stage is done{more}"


_BOX_FIELDS = (
    *("x", "y", "left", "done", "busy", "bad", "top", "bottom", "stripe", "upper", "lower"),
    *("short", "text", "name", "model", "tip", "colour", "edge"),
)


def _places(columns: list[list[str]]) -> tuple[dict[str, tuple[float, float]], float]:
    """Return the middle of each box, and the height of all: columns in bands, as lines of text."""
    at: dict[str, tuple[float, float]] = {}
    top = 14.0
    for first in range(0, len(columns), _COLUMNS):
        band = columns[first : first + _COLUMNS]
        most = max(map(len, band))
        for number, names in enumerate(band):
            x = 14 + number * (_BOX_WIDTH + _GAP) + _BOX_WIDTH / 2
            shift = top + (most - len(names)) * _ROW / 2 + _BOX_HEIGHT / 2
            at |= {name: (x, shift + place * _ROW) for place, name in enumerate(names)}
        top += most * _ROW + 10
    return at, top


def _line_data(
    edges: list[tuple[str, str]], at: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    xs, ys = [], []
    for source, target in edges:
        (x0, y0), (x1, y1) = at[source], at[target]
        left, right = x1 - _BOX_WIDTH / 2, x0 + _BOX_WIDTH / 2
        if left > right:
            xs.append([right, right + 12, left - 12, left])
            ys.append([y0, y0, y1, y1])
        else:
            # On to the next band, through the room between them.
            between = y1 - _BOX_HEIGHT / 2 - 11
            xs.append([right, right + 12, right + 12, left - 10, left - 10, left])
            ys.append([y0, y0, between, between, y1, y1])
    ends = {"x": [each[-1] - 4 for each in xs], "y": [each[-1] for each in ys]}
    return {"xs": xs, "ys": ys, **ends}


def _box_data(
    stages: Mapping[str, Any], at: Mapping[str, tuple[float, float]], rates: Mapping[str, float]
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in _BOX_FIELDS}
    for name, stage in stages.items():
        x, y = at[name]
        left, busy = tasks_left(stage), stage.states.get("processing", 0)
        failed = stage.states.get("erred", 0)
        total = max(left + stage.completed + failed, 1)
        start = x - _BOX_WIDTH / 2
        done = start + _BOX_WIDTH * stage.completed / total
        at_work = done + _BOX_WIDTH * busy / total
        seconds = format_seconds(stage.seconds) if stage.seconds else ""
        values = {
            "x": x,
            "y": y,
            "left": start,
            "done": done,
            "busy": at_work,
            "bad": at_work + _BOX_WIDTH * failed / total,
            "top": y - _BOX_HEIGHT / 2,
            "bottom": y + _BOX_HEIGHT / 2,
            "stripe": start + 3,
            "upper": y - 9,
            "lower": y + 10,
            "short": shorten_label(printable(name), _BOX_WIDTH - 22, 12),
            "text": f"{stage.completed:,}/{total:,}  {rates.get(name, 0.0):.1f}/s  {seconds}",
            "name": printable(name),
            "model": printable(stage.model),
            "tip": f"{busy:,} on workers, {tasks_waiting(stage):,} waiting, "
            f"{stage.completed:,} done, {failed:,} failed",
            "colour": colour_of(name),
            "edge": "#b42318" if failed else "#8b96a3",
        }
        for field, value in values.items():
            found[field].append(value)
    return found
