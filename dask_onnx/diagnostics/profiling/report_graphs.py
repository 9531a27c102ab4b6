"""Charts of a profile beside time: stages as a graph, links as a matrix, and predictions."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import (
    Arrow,
    ColumnDataSource,
    FactorRange,
    HoverTool,
    Legend,
    LegendItem,
    Range1d,
    VeeHead,
)
from bokeh.plotting import figure

from dask_onnx.core.dashboard_internals import colour_of
from dask_onnx.core.formatting import format_bytes, format_seconds
from dask_onnx.core.lettering import shorten_label
from dask_onnx.diagnostics.picture_colours import mix
from dask_onnx.diagnostics.picture_layout import Layers, Place, into_layers, place_all
from dask_onnx.diagnostics.profiling.profile_rows import Row
from dask_onnx.diagnostics.profiling.report_theme import (
    CELL_INK,
    COLD,
    HOT,
    INK_TAG,
    short_workers,
    shown,
)
from dask_onnx.diagnostics.profiling.report_timeline import name_of
from dask_onnx.diagnostics.profiling.run_profile import RunProfile

_MOST_BOXES = 80
"""Stages that are drawn: those that took most; edges go past the others."""
_MOST_WORKERS = 40
"""Senders and receivers that are drawn: those that moved most bytes."""
_MOST_TEXTS = 8
"""Workers up to which the cells of the matrix have text."""
_MOST_STAGES = 40
"""Stages whose predictions are drawn."""
_BOX_WIDTH, _BOX_HEIGHT, _GAP, _BAND_GAP, _PADDING, _BEND = 162.0, 40.0, 54.0, 34.0, 20.0, 12.0
"""Size of a box; the distance to the next layer, and to the next band of layers; the room around
boxes; and that beside them where a line turns. All are pixels on a wide page."""
_COLUMNS = 6
"""Layers side by side."""
_LINE = "#8b96a3"
"""Colour of lines on light and dark pages."""


def stage_edges(profile: RunProfile, labels: Sequence[str]) -> list[tuple[int, int]]:
    """Return the edges among some stages, past all that are left out.

    Parameters
    ----------
    profile : RunProfile
    labels : sequence of str
        Labels of stages and names of tasks, in an order in which each edge goes forward. Edges
        that go backward, such as those of sums of sums, are dropped.

    Returns
    -------
    list of (int, int)
        Positions in `labels`.
    """
    named: dict[str, str] = {}
    first: dict[str, float] = {}
    for task in profile.tasks:
        named.setdefault(task.name, task.label)
        first[task.label] = min(first.get(task.label, task.start), task.start)
    place = {label: number for number, label in enumerate(labels)}
    before: defaultdict[str, set[str]] = defaultdict(set)
    for name, following in profile.edges:
        before[named.get(following, following)].add(named.get(name, name))
    reached: dict[str, set[str]] = {}
    for label in sorted(before, key=lambda each: first.get(each, 0.0)):
        reached[label] = set().union(
            *({each} if each in place else reached.get(each, set()) for each in before[label])
        )
    return sorted(
        (place[source], place[label])
        for label, sources in reached.items()
        if label in place
        for source in sources
        if source in place and place[source] < place[label]
    )


def stage_graph(profile: RunProfile, rows: Sequence[Row]) -> tuple[Any, str]:
    """Return stages as a graph that is coloured by time, and what is left out of it.

    Parameters
    ----------
    profile : RunProfile
    rows : sequence of dict
        Rows of the table by stage, the dearest first.
    """
    first: dict[str, float] = {}
    for task in profile.tasks:
        first[task.label] = min(first.get(task.label, task.start), task.start)
    kept = sorted(_by_label(rows)[:_MOST_BOXES], key=lambda row: first[row["stage"]])
    labels = [row["stage"] for row in kept]
    edges = stage_edges(profile, labels)
    layers = into_layers(len(kept), edges, edges)
    at, bottom = _places(layers, place_all(layers, [_BOX_HEIGHT + _PADDING] * len(kept)))
    plot = figure(
        height=int(bottom) + 50,
        sizing_mode="stretch_width",
        x_range=Range1d(-_PADDING, _COLUMNS * (_BOX_WIDTH + _GAP) - _PADDING),
        y_range=Range1d(bottom, 0.0),
        tools="pan,wheel_zoom,box_zoom,reset,save",
        active_drag="pan",
        toolbar_location="above",
    )
    plot.axis.visible = False
    plot.grid.visible = False
    for path in layers.paths:
        _draw_edge(plot, [at[place] for place in path], path)
    _draw_boxes(plot, kept, [at[number, 0] for number in range(len(kept))])
    rest = len({row["stage"] for row in rows}) - len(kept)
    more = f"The {len(kept)} that took most; {rest:,} more are in the table." if rest else ""
    if not edges and len(kept) > 1:
        more += " No task was seen to read the result of another one."
    return plot, more.strip()


def _places(
    layers: Layers, middles: Mapping[Place, float]
) -> tuple[dict[Place, tuple[float, float]], float]:
    """Return the middle of each place, and the height of all.

    Layers go from left to right, in bands like the lines of a text; the layout's own are from top
    to bottom.
    """
    at: dict[Place, tuple[float, float]] = {}
    top = _PADDING
    for first in range(0, len(layers.rows), _COLUMNS):
        band = layers.rows[first : first + _COLUMNS]
        own = [middles[place] for row in band for place in row]
        shift = top + _BOX_HEIGHT / 2 - min(own, default=0.0)
        for column, row in enumerate(band):
            x = column * (_BOX_WIDTH + _GAP) + _BOX_WIDTH / 2
            at |= {place: (x, middles[place] + shift) for place in row}
        top = shift + max(own, default=0.0) + _BOX_HEIGHT / 2 + _BAND_GAP
    level = layers.level
    for place in layers.beside:
        # Long lines of a crowded graph run along the top of their band.
        row = layers.rows[level[place]]
        x = (level[place] % _COLUMNS) * (_BOX_WIDTH + _GAP) + _BOX_WIDTH / 2
        at[place] = x, min(at[each][1] for each in row) - _BOX_HEIGHT / 2 - 8
    return at, top - _BAND_GAP + _PADDING


def _by_label(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each label: equal stages of several models may share theirs."""
    found: dict[str, Row] = {}
    for row in rows:
        known = found.setdefault(row["stage"], {**row, "seconds": 0.0, "tasks": 0})
        known["seconds"] += row["seconds"]
        known["tasks"] += row["tasks"]
    return sorted(found.values(), key=lambda row: -row["seconds"])


def _draw_edge(plot: Any, points: Sequence[tuple[float, float]], path: Sequence[Place]) -> None:
    """Draw a line through places, with an arrow at its end."""
    points = list(points)
    if path[0][0] >= 0:
        points[0] = (points[0][0] + _BOX_WIDTH / 2, points[0][1])
    points[-1] = (points[-1][0] - _BOX_WIDTH / 2, points[-1][1])
    way = [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 < x0:
            # On to the next band, through the room between them.
            between = y1 - _BOX_HEIGHT / 2 - _BAND_GAP / 2
            way += [(x0 + _BEND, y0), (x0 + _BEND, between), (x1 - _BEND, between)]
            way.append((x1 - _BEND, y1))
        way.append((x1, y1))
    xs, ys = zip(*way, strict=True)
    plot.line(xs, ys, line_color=_LINE, line_width=1.5)
    (x0, y0), (x1, y1) = way[-2:]
    head = VeeHead(size=8, fill_color=_LINE, line_color=_LINE)
    arrow = Arrow(
        end=head, x_start=x0, y_start=y0, x_end=x1, y_end=y1, line_color=_LINE, line_width=1.5
    )
    plot.add_layout(arrow)


def _draw_boxes(plot: Any, rows: Sequence[Row], at: Sequence[tuple[float, float]]) -> None:
    most = max((row["seconds"] for row in rows), default=0.0) or 1.0
    total = sum(row["seconds"] for row in rows) or 1.0
    labels = [row["stage"] for row in rows]
    source = ColumnDataSource({
        "x": [x for x, _ in at],
        "y": [y for _, y in at],
        "stripe": [x - _BOX_WIDTH / 2 + 3 for x, _ in at],
        "above": [y - 8 for _, y in at],
        "below": [y + 9 for _, y in at],
        "fill": [mix(COLD, HOT, row["seconds"] / most) for row in rows],
        "colour": [colour_of(label) for label in labels],
        "label": [shown(label) for label in labels],
        "short": [shorten_label(shown(label), _BOX_WIDTH - 24, 11) for label in labels],
        "text": [
            f"{format_seconds(row['seconds'])}, {row['seconds'] / total:.0%}" for row in rows
        ],
        "tasks": [f"{row['tasks']:,} on {row['workers']:,} workers" for row in rows],
        "run": [format_seconds(row["run"]) for row in rows],
        "waited": [format_seconds(row["waited"]) for row in rows],
        "sent": [
            f"{format_bytes(row['sent_bytes'])} in {format_seconds(row['sent_seconds'])}"
            for row in rows
        ],
        "kernel": [shown(row["kernel"]) for row in rows],
    })  # fmt: skip
    boxes = plot.rect(
        "x", "y", _BOX_WIDTH, _BOX_HEIGHT, source=source, fill_color="fill", line_color="#8a5a33"
    )
    plot.rect("stripe", "y", 6, _BOX_HEIGHT, source=source, fill_color="colour", line_color=None)
    for place, column, size in (("above", "short", "11px"), ("below", "text", "10px")):
        plot.text(
            "x", place, text=column, source=source, text_align="center", text_baseline="middle",
            text_font_size=size, text_color=CELL_INK,
        )  # fmt: skip
    tips = [
        ("stage", "@label"),
        ("tasks", "@tasks"),
        ("seconds", "@text"),
        ("in the model", "@run"),
        ("waited", "@waited"),
        ("sent", "@sent"),
        ("kernel", "@kernel"),
    ]
    plot.add_tools(HoverTool(renderers=[boxes], tooltips=tips))


def link_matrix(rows: Sequence[Row]) -> tuple[Any, str] | None:
    """Return links as a matrix of bytes and bytes per second, and what is left out of it.

    Parameters
    ----------
    rows : sequence of dict
        Rows of the table by link.

    Returns
    -------
    tuple or None
        None if nothing was transferred.
    """
    if not rows:
        return None
    moved: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        moved[row["sender"]] += row["wire_bytes"]
        moved[row["receiver"]] += row["wire_bytes"]
    kept = sorted(moved, key=lambda name: -moved[name])[:_MOST_WORKERS]
    names = short_workers(sorted(kept))
    own = [row for row in rows if row["sender"] in names and row["receiver"] in names]
    senders = [names[each] for each in names if any(row["sender"] == each for row in own)]
    receivers = [names[each] for each in names if any(row["receiver"] == each for row in own)]
    has_text = max(len(senders), len(receivers)) <= _MOST_TEXTS
    plot = figure(
        x_range=FactorRange(factors=receivers),
        y_range=FactorRange(factors=senders[::-1]),
        height=130 + (48 if has_text else 20) * max(len(senders), 2),
        width=min(220 + (150 if has_text else 24) * max(len(receivers), 2), 1100),
        x_axis_label="to",
        y_axis_label="from",
        tools="save",
        toolbar_location=None,
    )
    plot.grid.grid_line_color = None
    if not has_text:
        plot.xaxis.major_label_orientation = 1.2
    source = _link_source(own, names)
    cells = plot.rect(
        "receiver", "sender", 0.96, 0.92, source=source, fill_color="fill", line_color=None
    )
    if has_text:
        plot.text(
            "receiver", "sender", text="cell", source=source, text_align="center",
            text_baseline="middle", text_font_size="12px", text_color=CELL_INK,
        )  # fmt: skip
    tips = [
        ("link", "@sender to @receiver"),
        ("bytes", "@bytes in @transfers transfers"),
        ("busy", "@busy"),
        ("rate", "@rate"),
        ("in memory", "@plain, @ratio"),
        ("encode and decode", "@coding"),
    ]
    plot.add_tools(HoverTool(renderers=[cells], tooltips=tips))
    rest = len(moved) - len(kept)
    return plot, f"{rest:,} workers that moved less are left out." if rest else ""


def _link_source(rows: Sequence[Row], names: Mapping[str, str]) -> ColumnDataSource:
    most = max((row["wire_bytes"] for row in rows), default=0) or 1
    rates = [f"{row['bytes_per_second'] / 1e6:,.1f} MB/s" for row in rows]
    sizes = [format_bytes(row["wire_bytes"]) for row in rows]
    return ColumnDataSource({
        "sender": [names[row["sender"]] for row in rows],
        "receiver": [names[row["receiver"]] for row in rows],
        "fill": [mix(COLD, HOT, row["wire_bytes"] / most) for row in rows],
        "cell": [f"{size}\n{rate}" for size, rate in zip(sizes, rates, strict=True)],
        "bytes": sizes,
        "rate": rates,
        "transfers": [f"{row['transfers']:,}" for row in rows],
        "busy": [format_seconds(row["busy_seconds"]) for row in rows],
        "plain": [format_bytes(row["plain_bytes"]) for row in rows],
        "ratio": [
            f"packed {row['ratio']:.1f} : 1" if row["packed"] else "not packed" for row in rows
        ],
        "coding": [
            f"{format_seconds(row['encode'])} and {format_seconds(row['decode'])}" for row in rows
        ],
    })  # fmt: skip


def prediction_chart(rows: Sequence[Row]) -> tuple[Any, str] | None:
    """Return measured seconds of stages beside those predicted, and what is left out.

    Parameters
    ----------
    rows : sequence of dict
        Rows of the table by stage, the dearest first.

    Returns
    -------
    tuple or None
        None if nothing was predicted.
    """
    known = [row for row in rows if row["predicted_run"] is not None]
    if not known:
        return None
    own = known[:_MOST_STAGES]
    # Equal labels of several models are told apart by their places.
    factors = [f"{number}. {name_of(row['stage'])}" for number, row in enumerate(own, 1)]
    plot = figure(
        y_range=FactorRange(factors=factors[::-1]),
        height=100 + 26 * len(own),
        sizing_mode="stretch_width",
        x_axis_label="seconds of all runs",
        tools="save",
        toolbar_location=None,
    )
    plot.x_range.start = 0
    plot.ygrid.grid_line_color = None
    source = ColumnDataSource({
        "row": factors,
        "label": [shown(row["stage"]) for row in own],
        "measured": [row["run"] for row in own],
        "predicted": [row["predicted_run"] for row in own],
        "colour": [colour_of(row["stage"]) for row in own],
        "off": [f" {_deviation(row)}" for row in own],
        "place": [max(row["run"], row["predicted_run"]) for row in own],
        "text": [
            f"{format_seconds(row['run'])} measured, "
            f"{format_seconds(row['predicted_run'])} predicted"
            for row in own
        ],
    })  # fmt: skip
    bars = plot.hbar(
        y="row", right="measured", height=0.6, source=source, fill_color="colour", line_color=None
    )
    marks = plot.scatter(
        "predicted", "row", source=source, marker="dash", angle=1.5708, size=22,
        line_color="#d55e00", line_width=3,
    )  # fmt: skip
    texts = plot.text(
        "place", "row", text="off", source=source, text_baseline="middle",
        text_font_size="11px", x_offset=8,
    )  # fmt: skip
    texts.tags = [INK_TAG]
    plot.x_range.range_padding = 0.12
    legend = [
        LegendItem(label="measured", renderers=[bars]),
        LegendItem(label="predicted", renderers=[marks]),
    ]
    plot.add_layout(Legend(items=legend, padding=4), "right")
    tips = [("stage", "@label"), ("", "@text"), ("measured, relative to predicted", "@off")]
    plot.add_tools(HoverTool(renderers=[bars, marks], tooltips=tips))
    rest = len(known) - len(own)
    return plot, f"{rest:,} shorter stages are left out." if rest else ""


def _deviation(row: Row) -> str:
    predicted = row["predicted_run"]
    return f"{row['run'] / predicted - 1:+.0%}" if predicted else ""
