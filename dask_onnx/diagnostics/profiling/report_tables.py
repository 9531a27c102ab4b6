"""Sorted tables of a report: nodes, stages and workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import (
    ColumnDataSource,
    DataTable,
    HTMLTemplateFormatter,
    NumberFormatter,
    StringFormatter,
    TableColumn,
)

from dask_onnx.core.formatting import printable
from dask_onnx.diagnostics.profiling.profile_rows import Row
from dask_onnx.diagnostics.profiling.report_theme import table_style

_MOST_ROWS = 5000
"""Rows of a table; the others are in `prof.table`."""
_ROW_HEIGHT = 26
_MOST_SHOWN = 16
"""Rows that are shown before a table scrolls."""
_BAR = (
    '<div style="display:flex;gap:6px"><div style="width:44px;text-align:right">'
    '<%= (100 * value).toFixed(1) %>%</div><div class="bar" style="width:'
    '<%= Math.min(Math.max(value, 0), 1) * 70 %>px"></div></div>'
)
"""A share as a number and a bar; its value is always a number."""
_BYTES = (
    "<% let size = value, unit = 0; while (size >= 1024 && unit < 4) { size /= 1024; unit += 1 } %>"
    '<div style="text-align:right"><%= value === value && value !== null'
    ' ? size.toFixed(unit ? 1 : 0) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][unit] : "-" %></div>'
)
"""Bytes with their unit; NaN where they are not known."""

Column = tuple[str, str, str, int]
"""Key of a row, title, kind ("text", "share", "bytes", or a format of numbers), and pixels."""
NODE_COLUMNS: Sequence[Column] = (
    ("node", "node", "text", 240),
    ("op_type", "operator", "text", 120),
    ("stage", "stage", "text", 190),
    ("seconds", "seconds", "0,0.0000", 80),
    ("share", "share", "share", 140),
    ("calls", "calls", "0,0", 60),
    ("gflops", "GFLOP/s", "0,0.0", 75),
    ("gbytes", "GB/s", "0,0.00", 65),
    ("roofline", "of the limit", "share", 140),
    ("worker", "worker", "text", 150),
)
STAGE_COLUMNS: Sequence[Column] = (
    ("stage", "stage", "text", 220),
    ("seconds", "seconds", "0,0.000", 80),
    ("tasks", "tasks", "0,0", 60),
    ("rows", "rows", "0,0", 70),
    ("runs", "runs", "0,0", 60),
    ("run", "model", "0,0.000", 75),
    ("session", "sessions", "0,0.000", 75),
    ("convert", "convert", "0,0.000", 75),
    ("waited", "waited", "0,0.000", 75),
    ("sent_seconds", "transfer", "0,0.000", 75),
    ("sent_bytes", "bytes sent", "bytes", 85),
    ("packed_ratio", "packed", "0.00", 65),
    ("workers", "workers", "0,0", 65),
    ("errors", "errors", "0,0", 60),
    ("kernel", "kernel", "text", 110),
)
STREAM_COLUMNS: Sequence[Column] = (
    ("stream", "stream", "text", 170),
    ("seconds", "seconds", "0,0.0", 75),
    ("read", "frames read", "0,0", 85),
    ("done", "done", "0,0", 65),
    ("rate", "frames/s", "0,0.0", 75),
    ("p50", "p50 seconds", "0,0.0000", 90),
    ("p99", "p99 seconds", "0,0.0000", 90),
    ("late", "late", "0,0", 55),
    ("dropped", "dropped", "0,0", 65),
    ("failed", "failed", "0,0", 60),
    ("last_error", "last error", "text", 260),
)
WORKER_COLUMNS: Sequence[Column] = (
    ("worker", "worker", "text", 190),
    ("host", "host", "text", 120),
    ("threads", "threads", "0,0", 65),
    ("seconds", "busy seconds", "0,0.000", 95),
    ("tasks", "tasks", "0,0", 60),
    ("rows", "rows", "0,0", 70),
    ("cpu", "CPU %", "0", 60),
    ("peak_bytes", "peak memory", "bytes", 95),
    ("projected_bytes", "projected", "bytes", 95),
    ("memory_limit", "limit", "bytes", 85),
    ("received_bytes", "received", "bytes", 85),
    ("sent_bytes", "sent", "bytes", 85),
    ("spill", "spill seconds", "0,0.000", 95),
    ("clock_offset", "clock offset", "0.0000", 90),
)


def node_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the table by node with rates in the units of the report."""
    return [
        {
            **row,
            "gflops": row["flops_per_second"] / 1e9,
            "gbytes": row["bytes_per_second"] / 1e9,
        }
        for row in rows
    ]


def table(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Any, str]:
    """Return a table that can be sorted, and what is left out of it.

    Names are escaped by the table itself.
    """
    kept = rows[:_MOST_ROWS]
    source = ColumnDataSource(
        {key: [_value(row[key], kind) for row in kept] for key, _, kind, _ in columns}
    )
    widget = DataTable(
        source=source,
        columns=[
            TableColumn(field=key, title=title, formatter=_formatter(kind), width=width)
            for key, title, kind, width in columns
        ],
        height=_ROW_HEIGHT * (min(max(len(kept), 1), _MOST_SHOWN) + 1) + 14,
        row_height=_ROW_HEIGHT,
        sizing_mode="stretch_width",
        autosize_mode="force_fit",
        reorderable=False,
        index_position=None,
        stylesheets=[table_style()],
    )
    rest = len(rows) - len(kept)
    return widget, f"{rest:,} more rows are left out." if rest else ""


def _value(value: Any, kind: str) -> Any:
    if kind == "text":
        return printable(str(value))
    return float("nan") if value is None else value


def _formatter(kind: str) -> Any:
    if kind == "text":
        return StringFormatter()
    if kind == "share":
        return HTMLTemplateFormatter(template=_BAR)
    if kind == "bytes":
        return HTMLTemplateFormatter(template=_BYTES)
    return NumberFormatter(format=kind, text_align="right", nan_format="-")
