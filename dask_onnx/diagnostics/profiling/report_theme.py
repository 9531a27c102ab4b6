"""Colours of reports of profiles: of categories of time, and of charts on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.document import Document
from bokeh.models import (
    Axis,
    CategoricalAxis,
    CustomJS,
    GlyphRenderer,
    Grid,
    InlineStyleSheet,
    Legend,
    Plot,
    Text,
)

from dask_onnx.core.formatting import printable
from dask_onnx.diagnostics.profiling.time_shares import (
    DASK,
    IDLE,
    MODEL,
    OTHER_CLIENTS,
    OTHER_TASKS,
    READING,
    SESSIONS,
    TRANSFER,
    WAITING,
    WRITING,
)

CATEGORY_COLOURS: Mapping[str, str] = {
    MODEL: "#009e73",
    SESSIONS: "#cc79a7",
    TRANSFER: "#d55e00",
    WAITING: "#e69f00",
    DASK: "#56b4e9",
    READING: "#0072b2",
    WRITING: "#7d5fb2",
    OTHER_TASKS: "#8c8c5e",
    OTHER_CLIENTS: "#7f8c9b",
    IDLE: "#b9c0c8",
}
"""Colour of each category of time: those of Okabe and Ito (2008), and greys."""
COLD, HOT = "#fdf3e7", "#e8762d"
"""Least and largest of a scale, on both of which black text can be read."""
CELL_INK = "#111111"
"""Colour of text on such a scale."""
WORKER_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"),
    *("#7d5fb2", "#8c8c5e", "#7f8c9b", "#a6761d"),
)
"""Colours of the lines of workers, repeated if there are more."""
LIGHT: Mapping[str, str] = {
    "ink": "#1b1f24",
    "faint": "#57606a",
    "line": "#d5dae0",
    "paper": "#ffffff",
}
DARK: Mapping[str, str] = {
    "ink": "#eceff1",
    "faint": "#aab2bb",
    "line": "#3a414a",
    "paper": "#16191d",
}
"""Colours of each part of a chart outside its marks, on light and on dark pages."""
INK_TAG = "ink"
"""Tag of the texts in a chart that have the colour of the page's own."""

_PAINT = """
const query = window.matchMedia("(prefers-color-scheme: dark)")
const paint = (is_dark) => {
  const {ink, faint, line, paper} = is_dark ? dark : light
  for (const each of axes) {
    each.axis_label_text_color = ink
    each.major_label_text_color = faint
    each.axis_line_color = line
    each.major_tick_line_color = line
    each.minor_tick_line_color = null
  }
  for (const each of groups) {
    each.group_text_color = ink
    each.separator_line_color = line
  }
  for (const each of grids) each.grid_line_color = line
  for (const each of plots) each.outline_line_color = line
  for (const each of legends) {
    each.label_text_color = ink
    each.background_fill_color = paper
    each.border_line_color = line
  }
  for (const each of texts) each.text_color = {value: ink}
}
const follow = () => paint(query.matches)
follow()
query.addEventListener("change", follow)
window.addEventListener("beforeprint", () => paint(false))
window.addEventListener("afterprint", follow)
"""

_TABLE_STYLE = """
:host { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
.slick-header-column { background: #f3f5f7; color: #1b1f24; font-weight: 600; }
.slick-row, .slick-row.odd { background: #ffffff; color: #1b1f24; }
.slick-row.odd { background: #f8f9fb; }
.slick-cell { border-color: #e4e8ec; }
.slick-row:hover .slick-cell { background: #e8f1fb; }
.slick-cell.selected { background: #d3e5f8; }
.bar { height: 9px; border-radius: 2px; background: #009e73; margin-top: 5px; }
@media screen and (prefers-color-scheme: dark) {
  .slick-header-column, .slick-header { background: #22272e; color: #eceff1; }
  .slick-header-column.ui-state-default, .slick-headerrow { border-color: #3a414a; }
  .slick-viewport, .bk-data-table { background: #16191d; }
  .slick-row { background: #16191d; color: #eceff1; }
  .slick-row.odd { background: #1c2026; color: #eceff1; }
  .slick-cell { border-color: #2b3138; color: #eceff1; }
  .slick-row:hover .slick-cell { background: #23344a; }
  .slick-cell.selected { background: #2a4365; }
}
"""


def paint(document: Document) -> None:
    """Let all charts of a document follow the colour scheme of the page, and print on white."""

    def found(kind: type[Any]) -> list[Any]:
        return list(document.select({"type": kind}))

    texts = [
        renderer.glyph
        for renderer in found(GlyphRenderer)
        if isinstance(renderer.glyph, Text) and INK_TAG in renderer.tags
    ]
    for plot in found(Plot):
        plot.background_fill_color = plot.border_fill_color = None
    script = CustomJS(
        args={
            "axes": found(Axis),
            "groups": found(CategoricalAxis),
            "grids": found(Grid),
            "plots": found(Plot),
            "legends": found(Legend),
            "texts": texts,
            "light": dict(LIGHT),
            "dark": dict(DARK),
        },
        code=_PAINT,
    )
    document.js_on_event("document_ready", script)


def table_style() -> InlineStyleSheet:
    """Return the style of a table on light and dark pages."""
    return InlineStyleSheet(css=_TABLE_STYLE)


def shown(name: str) -> str:
    """Return a name for a chart: on one line, and never read as mathematics in TeX."""
    found = printable(name)
    for mark in ("$$", "\\[", "\\("):
        found = found.replace(mark, f"{mark[0]}\u200a{mark[1]}")
    return found


def short_workers(names: Sequence[str]) -> dict[str, str]:
    """Return a short name for each address of a worker; they stay different."""
    found = {name: shown(name.partition("://")[2] or name) for name in names}
    return found if len({*found.values()}) == len(found) else {name: shown(name) for name in names}
