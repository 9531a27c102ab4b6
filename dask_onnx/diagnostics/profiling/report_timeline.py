"""Charts of a profile over time: tasks and transfers, shares of the time, and memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import (
    AdaptiveTicker,
    ColumnDataSource,
    CustomJSTickFormatter,
    FactorRange,
    HoverTool,
    Legend,
    LegendItem,
    NumeralTickFormatter,
    Range1d,
    Span,
)
from bokeh.plotting import figure

from dask_onnx.core.dashboard_internals import colour_of
from dask_onnx.core.formatting import format_bytes, format_seconds
from dask_onnx.core.lettering import shorten_label
from dask_onnx.diagnostics.profiling.report_theme import (
    CATEGORY_COLOURS,
    WORKER_COLOURS,
    short_workers,
    shown,
)
from dask_onnx.diagnostics.profiling.run_profile import RunProfile, TaskRecord, TransferRecord
from dask_onnx.diagnostics.profiling.time_shares import CATEGORIES, TimeShares

_MOST_TASKS, _MOST_TRANSFERS = 20_000, 10_000
"""Tasks and transfers that are drawn: those that took longest."""
_MOST_LANES = 120
"""Thread slots and links that are drawn: those that worked most."""
_MOST_LEGENDS = 14
_LANE_HEIGHT = 22
"""Pixels of a lane of the time line."""
_NAME_WIDTH = 26
"""Characters of a name beside a chart."""
TOOLS = "xpan,xwheel_zoom,xbox_zoom,reset,save"
BYTES_JS = """
const units = ["B", "KiB", "MiB", "GiB", "TiB"]
let size = tick, unit = 0
while (Math.abs(size) >= 1024 && unit < 4) { size /= 1024; unit += 1 }
return size.toFixed(unit && size < 100 ? 1 : 0) + " " + units[unit]
"""
"""Text of an axis in bytes."""


def time_range(profile: RunProfile) -> Range1d:
    """Return the range of all charts over time, which move together."""
    return Range1d(0, max(profile.wall, 1e-9), bounds=(0, max(profile.wall, 1e-9)))


def name_of(label: str) -> str:
    """Return a label as it stands beside a chart."""
    return shorten_label(shown(label), _NAME_WIDTH * 0.6, 1)


class _Lanes:
    """Lanes of the time line: the slots of each worker, and what arrives there."""

    def __init__(self, profile: RunProfile) -> None:
        workers = [
            *(worker.name for worker in profile.workers),
            *(task.worker for task in profile.tasks),
            *(transfer.receiver for transfer in profile.transfers),
        ]
        self.names = short_workers([*dict.fromkeys(workers)])
        busy: defaultdict[str, float] = defaultdict(float)
        order: dict[str, tuple[int, int]] = {}
        place = {name: number for number, name in enumerate(self.names)}
        for task in profile.tasks:
            busy[self.of_task(task)] += task.seconds
            order[self.of_task(task)] = place[task.worker], task.lane
        for transfer in profile.transfers:
            busy[self.of_transfer(transfer)] += transfer.seconds
            order[self.of_transfer(transfer)] = place[transfer.receiver], -1
        kept = sorted(busy, key=lambda lane: -busy[lane])[:_MOST_LANES]
        self.kept = sorted(kept, key=order.__getitem__)
        """Lanes that are drawn, from the top."""
        self.count = len(busy)

    def of_task(self, task: TaskRecord) -> str:
        """Return the lane of a task."""
        return f"{self.names[task.worker]}  {task.lane + 1}"

    def of_transfer(self, transfer: TransferRecord) -> str:
        """Return the lane of what arrives at a worker."""
        return f"to {self.names[transfer.receiver]}"


def time_line(profile: RunProfile, over: Range1d) -> tuple[Any, str]:
    """Return the chart of tasks and transfers over time, and what is left out of it."""
    lanes = _Lanes(profile)
    kept = {*lanes.kept}
    tasks = [task for task in profile.tasks if lanes.of_task(task) in kept]
    transfers = [each for each in profile.transfers if lanes.of_transfer(each) in kept]
    drawn = sorted(tasks, key=lambda task: -task.seconds)[:_MOST_TASKS]
    moved = sorted(transfers, key=lambda each: -each.seconds)[:_MOST_TRANSFERS]
    entries = min(len({task.label for task in drawn}), _MOST_LEGENDS) + bool(moved)
    plot = figure(
        x_range=over,
        y_range=FactorRange(factors=lanes.kept[::-1]),
        height=max(90 + _LANE_HEIGHT * len(lanes.kept), 110 + 21 * entries),
        sizing_mode="stretch_width",
        tools=TOOLS,
        active_drag="xbox_zoom",
        toolbar_location="above",
        x_axis_label="seconds since the profile began",
    )
    plot.ygrid.grid_line_color = None
    legend = [*_draw_tasks(plot, lanes, drawn), *_draw_transfers(plot, lanes, moved)]
    if legend:
        plot.add_layout(Legend(items=legend, orientation="vertical", padding=4), "right")
    return plot, _left_out(profile, len(drawn), len(moved), lanes.count - len(lanes.kept))


def _draw_tasks(plot: Any, lanes: _Lanes, tasks: Sequence[TaskRecord]) -> list[LegendItem]:
    """Draw tasks, and return the entries of the legend for those that took most."""
    groups: defaultdict[str, list[TaskRecord]] = defaultdict(list)
    for task in tasks:
        groups[task.label].append(task)
    order = sorted(groups, key=lambda label: -sum(task.seconds for task in groups[label]))
    shown_apart = [(label, groups[label]) for label in order[:_MOST_LEGENDS]]
    rest = [task for label in order[_MOST_LEGENDS:] for task in groups[label]]
    entries, renderers = [], []
    for label, own in [*shown_apart, *([("other", rest)] if rest else [])]:
        bars = plot.hbar(
            y="lane",
            left="start",
            right="stop",
            height=0.82,
            source=_task_source(lanes, own),
            fill_color="fill",
            line_color="line",
            line_width=1,
        )
        renderers.append(bars)
        entries.append(LegendItem(label=name_of(label), renderers=[bars]))
    tips = [("task", "@label"), ("", "@text"), ("key", "@key")]
    plot.add_tools(HoverTool(renderers=renderers, tooltips=tips, description="tasks"))
    return entries


def _task_source(lanes: _Lanes, tasks: Sequence[TaskRecord]) -> ColumnDataSource:
    colours = {label: colour_of(label) for label in {task.label for task in tasks}}
    fills = [colours[task.label] for task in tasks]
    return ColumnDataSource({
        "lane": [lanes.of_task(task) for task in tasks],
        "start": [task.start for task in tasks],
        "stop": [task.stop for task in tasks],
        "fill": fills,
        "line": ["#d00000" if t.error else f for t, f in zip(tasks, fills, strict=True)],
        "label": [shown(task.label) for task in tasks],
        "text": [_task_text(task) for task in tasks],
        "key": [shown(task.key) for task in tasks],
    })  # fmt: skip


def _task_text(task: TaskRecord) -> str:
    phases: dict[str, float] = defaultdict(float)
    for phase in task.phases:
        if phase.name != "stage":
            phases[phase.name] += phase.own_seconds
    parts = [format_seconds(task.seconds)]
    parts += [f"{name} {format_seconds(own)}" for name, own in phases.items() if own > 0]
    parts.append(f"waited {format_seconds(task.waited)}")
    if task.rows is not None:
        parts.append(f"{task.rows:,} rows in {task.runs:,} runs")
    parts.append(f"{format_bytes(task.input_bytes)} in, {format_bytes(task.output_bytes)} out")
    return ", ".join([*parts, *([f"ended by {shown(task.error)}"] if task.error else [])])


def _draw_transfers(
    plot: Any, lanes: _Lanes, transfers: Sequence[TransferRecord]
) -> list[LegendItem]:
    if not transfers:
        return []
    source = ColumnDataSource({
        "lane": [lanes.of_transfer(each) for each in transfers],
        "start": [each.start for each in transfers],
        "stop": [each.stop for each in transfers],
        "from": [lanes.names.get(each.sender, shown(each.sender)) for each in transfers],
        "label": [shown(each.stage) for each in transfers],
        "text": [_transfer_text(each) for each in transfers],
    })  # fmt: skip
    colour = CATEGORY_COLOURS["transfer"]
    bars = plot.hbar(
        y="lane", left="start", right="stop", height=0.5, source=source,
        fill_color=colour, fill_alpha=0.55, line_color=colour,
    )  # fmt: skip
    tips = [("result of", "@label"), ("from", "@from"), ("", "@text")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips, description="transfers"))
    return [LegendItem(label="transfer", renderers=[bars])]


def _transfer_text(each: TransferRecord) -> str:
    packed = f", packed {each.ratio:.1f} : 1" if each.is_packed else ""
    return (
        f"{format_bytes(each.wire_bytes or each.plain_bytes)} in {format_seconds(each.seconds)}, "
        f"{each.bytes_per_second / 1e6:,.1f} MB/s{packed}"
    )


def _left_out(profile: RunProfile, tasks: int, transfers: int, lanes: int) -> str:
    parts = []
    if lanes:
        parts.append(f"the {_MOST_LANES} lanes that worked most of {lanes + _MOST_LANES:,}")
    if tasks < len(profile.tasks):
        parts.append(f"the {tasks:,} longest of their tasks, of {len(profile.tasks):,} in all")
    if transfers < len(profile.transfers):
        parts.append(f"the {transfers:,} longest transfers of {len(profile.transfers):,}")
    return f"Drawn: {', '.join(parts)}." if parts else ""


def share_chart(shares: TimeShares, profile: RunProfile) -> Any:
    """Return the chart of what all slots, and those of each worker, did."""
    names = short_workers([worker.name for worker in profile.workers])
    rows = {"all": shares.seconds}
    if len(names) > 1:
        rows |= {names[name]: own for name, own in shares.by_worker.items() if name in names}
    rows = dict([*rows.items()][:_MOST_LANES])
    totals = [sum(own.values()) or 1.0 for own in rows.values()]
    plot = figure(
        y_range=FactorRange(factors=[*rows][::-1], range_padding=0.1),
        x_range=Range1d(0, 1.03),
        height=80 + 26 * max(len(rows), 3),
        sizing_mode="stretch_width",
        tools="save",
        toolbar_location=None,
    )
    plot.xaxis.formatter = NumeralTickFormatter(format="0%")
    plot.ygrid.grid_line_color = None
    left = [0.0] * len(rows)
    entries = []
    for category in CATEGORIES:
        seconds = [own.get(category, 0.0) for own in rows.values()]
        if not any(seconds):
            continue
        share = [own / total for own, total in zip(seconds, totals, strict=True)]
        right = [a + b for a, b in zip(left, share, strict=True)]
        source = ColumnDataSource({
            "row": [*rows],
            "left": left,
            "right": right,
            "category": [category] * len(rows),
            "share": [f"{each:.1%}" for each in share],
            "seconds": [format_seconds(each) for each in seconds],
        })  # fmt: skip
        bars = plot.hbar(
            y="row", left="left", right="right", height=0.75, source=source,
            fill_color=CATEGORY_COLOURS[category], line_color=None,
        )  # fmt: skip
        entries.append(LegendItem(label=category, renderers=[bars]))
        left = right
    plot.add_layout(Legend(items=entries, padding=4, spacing=1), "right")
    tips = [("", "@row: @category"), ("share", "@share"), ("slot seconds", "@seconds")]
    plot.add_tools(HoverTool(tooltips=tips))
    return plot


def memory_chart(profile: RunProfile, over: Range1d) -> Any | None:
    """Return the chart of resident memory over time beside projections and limits."""
    series: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for gauge in sorted(profile.gauges, key=lambda each: each.time):
        series[gauge.worker].append((gauge.time, gauge.memory, gauge.cpu))
    if not series:
        return None
    names = short_workers([*series])
    kept = [*series][:_MOST_LANES]
    plot = _over_time(over, "resident memory")
    plot.yaxis.ticker = AdaptiveTicker(
        base=1024, mantissas=[2**power for power in range(10)], min_interval=1
    )
    plot.yaxis.formatter = CustomJSTickFormatter(code=BYTES_JS)
    plot.y_range.start = 0
    projected: Mapping[str, int | None] = {w.name: w.projected_bytes for w in profile.workers}
    entries, lines = [], []
    for number, worker in enumerate(kept):
        colour = WORKER_COLOURS[number % len(WORKER_COLOURS)]
        times, memory, cpu = zip(*series[worker], strict=True)
        source = ColumnDataSource({
            "time": times,
            "memory": memory,
            "text": [format_bytes(each) for each in memory],
            "cpu": [f"{each:.0f}%" for each in cpu],
            "worker": [names[worker]] * len(times),
            "projected": [_bytes_or_none(projected.get(worker))] * len(times),
        })  # fmt: skip
        line = plot.line("time", "memory", source=source, color=colour, line_width=2)
        dots = plot.scatter("time", "memory", source=source, color=colour, size=5)
        lines.append(dots)
        if number < _MOST_LEGENDS:
            entries.append(LegendItem(label=names[worker], renderers=[line, dots]))
        if (height := projected.get(worker)) is not None:
            span = Span(location=height, dimension="width", line_color=colour, line_dash="dashed")
            plot.add_layout(span)
            # A span is no part of the range.
            plot.scatter([0.0], [height], size=0, color=colour)
    plot.add_layout(Legend(items=entries, padding=4, click_policy="mute"), "right")
    tips = [
        ("worker", "@worker"),
        ("memory", "@text"),
        ("projected", "@projected"),
        ("CPU", "@cpu"),
    ]
    plot.add_tools(HoverTool(renderers=lines, tooltips=tips))
    return plot


def _bytes_or_none(size: int | None) -> str:
    return "no plan" if size is None else format_bytes(size)


def _over_time(over: Range1d, label: str) -> Any:
    plot = figure(
        x_range=over,
        height=260,
        sizing_mode="stretch_width",
        tools=TOOLS,
        active_drag="xbox_zoom",
        toolbar_location="above",
        x_axis_label="seconds since the profile began",
        y_axis_label=label,
    )
    plot.min_border_left = 80
    return plot
