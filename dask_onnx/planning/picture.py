"""A stage graph as a picture: layers from top to bottom, after Sugiyama, Tagawa and Toda (1981).

An edge that skips layers goes through a place of its own in each of them, so that it passes beside
the boxes and not behind them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from dask_onnx.planning.explain import (
    Link,
    format_bytes,
    format_flops,
    format_seconds,
    links,
    values_of,
)
from dask_onnx.planning.stages import Stage, StageGraph

_BOX_WIDTH, _BOX_HEIGHT = 264, 58
_PASS_WIDTH = 56
"""Room for an edge that passes a layer: its label."""
_GAP_X, _GAP_Y = 26, 60
_MARGIN = 30
_TITLE_HEIGHT = 56
_LABEL_CHARACTERS = 36
_ORDER_SWEEPS = 8
_HEAVY, _LIGHT, _LINE = "#c2410c", "#fdf3e7", "#7c8794"

Place = tuple[int, int]
"""What stands in a layer: (stage, 0), or (-1 - link, layer) for a link that passes."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Where everything stands, in pixels."""

    width: float
    height: float
    middles: Mapping[Place, float]
    """Horizontal middle of each place."""
    layers: Mapping[Place, int]

    def top(self, place: Place) -> float:
        layer = self.layers[place]
        return _TITLE_HEIGHT + _MARGIN + layer * (_BOX_HEIGHT + _GAP_Y)


def to_svg(stages: StageGraph, title: str) -> str:
    """The stage graph as an SVG document; warmer boxes take longer."""
    between = links(stages)
    paths, rows = _layers(stages, between)
    drawing = _arrange(rows, paths)
    svg = _canvas(drawing, title, stages)
    for link, path in zip(between, paths, strict=True):
        _draw_link(svg, drawing, path, f"{values_of(link)}: {format_bytes(link.bytes)}")
    slowest = max((stage.cost.seconds for stage in stages.stages), default=0.0)
    for i, stage in enumerate(stages.stages):
        _draw_stage(svg, stage, drawing.middles[i, 0], drawing.top((i, 0)), slowest)
    for link, path in zip(between, paths, strict=True):
        _label_link(svg, drawing, path, link)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _layers(
    stages: StageGraph, between: Sequence[Link]
) -> tuple[list[list[Place]], list[list[Place]]]:
    """For each link the places that it goes through, and for each layer the places in it."""
    before: defaultdict[int, list[int]] = defaultdict(list)
    for link in between:
        before[link.consumer].append(link.producer)
    depth: list[int] = []
    for i in range(len(stages.stages)):
        depth.append(1 + max((depth[j] for j in before[i]), default=-1))
    rows: list[list[Place]] = [[] for _ in range(max(depth, default=0) + 1)]
    for i, level in enumerate(depth):
        rows[level].append((i, 0))
    paths = []
    for number, link in enumerate(between):
        passes = [
            (-1 - number, level) for level in range(depth[link.producer] + 1, depth[link.consumer])
        ]
        for place in passes:
            rows[place[1]].append(place)
        paths.append([(link.producer, 0), *passes, (link.consumer, 0)])
    return paths, rows


def _arrange(rows: list[list[Place]], paths: list[list[Place]]) -> Drawing:
    """Order each layer by the middle of its neighbours, down and up again, then space it out."""
    up: defaultdict[Place, list[Place]] = defaultdict(list)
    down: defaultdict[Place, list[Place]] = defaultdict(list)
    for path in paths:
        for first, second in itertools.pairwise(path):
            up[second].append(first)
            down[first].append(second)
    middles: dict[Place, float] = {}
    for row in rows:
        _space(row, middles)
    for sweep in range(_ORDER_SWEEPS):
        neighbours, order = (up, rows) if sweep % 2 == 0 else (down, rows[::-1])
        for row in order:
            wished = {place: _mean(neighbours[place], middles, place) for place in row}
            row.sort(key=lambda place: wished[place])
            _space(row, middles)
    left = min(middles[row[0]] - _width(row[0]) / 2 for row in rows)
    right = max(middles[row[-1]] + _width(row[-1]) / 2 for row in rows)
    width = max(right - left + 2 * _MARGIN, 560)
    shift = (width - (right + left)) / 2
    return Drawing(
        width=width,
        height=_TITLE_HEIGHT + len(rows) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _MARGIN,
        middles={place: middle + shift for place, middle in middles.items()},
        layers={place: level for level, row in enumerate(rows) for place in row},
    )


def _mean(neighbours: list[Place], middles: Mapping[Place, float], place: Place) -> float:
    if not neighbours:
        return middles[place]
    return sum(middles[other] for other in neighbours) / len(neighbours)


def _width(place: Place) -> int:
    return _BOX_WIDTH if place[0] >= 0 else _PASS_WIDTH


def _space(row: list[Place], middles: dict[Place, float]) -> None:
    """Side by side in their order, centred on 0."""
    total = sum(map(_width, row)) + _GAP_X * (len(row) - 1)
    left = -total / 2
    for place in row:
        middles[place] = left + _width(place) / 2
        left += _width(place) + _GAP_X


def _canvas(drawing: Drawing, title: str, stages: StageGraph) -> ElementTree.Element:
    width, height = f"{drawing.width:.0f}", f"{drawing.height:.0f}"
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
    )
    svg.set("font-family", "Helvetica, Arial, sans-serif")
    ElementTree.SubElement(svg, "rect", width="100%", height="100%", fill="#ffffff")
    _text(svg, _MARGIN, 34, title, size=17, weight="bold")
    total = sum(edge.bytes for edge in stages.edges)
    count = len(stages.stages)
    summary = (
        f"{count} {'stage' if count == 1 else 'stages'}, {format_seconds(stages.seconds)} "
        f"predicted on one core, {format_bytes(total)} between stages"
    )
    _text(svg, _MARGIN, 54, summary, size=12, fill="#555555")
    return svg


def _draw_link(
    svg: ElementTree.Element, drawing: Drawing, path: Sequence[Place], title: str
) -> None:
    steps: list[str] = []
    for first, second in itertools.pairwise(path):
        x1, y1 = drawing.middles[first], drawing.top(first) + _BOX_HEIGHT
        x2, y2 = drawing.middles[second], drawing.top(second)
        bend = (y2 - y1) * 0.6
        steps.append(f"{'M' if not steps else 'L'}{x1:.1f},{y1:.1f}")
        steps.append(f"C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2:.1f}")
    line = ElementTree.SubElement(svg, "path", d=" ".join(steps), fill="none", stroke=_LINE)
    line.set("stroke-width", "1.4")
    ElementTree.SubElement(line, "title").text = title
    x, y = drawing.middles[path[-1]], drawing.top(path[-1])
    head = f"M{x - 4:.1f},{y - 8:.1f} L{x:.1f},{y:.1f} L{x + 4:.1f},{y - 8:.1f} Z"
    ElementTree.SubElement(svg, "path", d=head, fill=_LINE)


def _label_link(
    svg: ElementTree.Element, drawing: Drawing, path: Sequence[Place], link: Link
) -> None:
    """Where the edge has a place to itself, else between its two boxes."""
    if len(path) > 2:
        place = path[len(path) // 2]
        x, y = drawing.middles[place], drawing.top(place) + _BOX_HEIGHT / 2
    else:
        x = (drawing.middles[path[0]] + drawing.middles[path[1]]) / 2
        y = drawing.top(path[1]) - _GAP_Y / 2
    text = _text(svg, x, y + 4, format_bytes(link.bytes), size=11, fill="#333333", anchor="middle")
    text.set("stroke", "#ffffff")
    text.set("stroke-width", "4")
    text.set("paint-order", "stroke")


def _draw_stage(
    svg: ElementTree.Element, stage: Stage, middle: float, top: float, slowest: float
) -> None:
    heat = stage.cost.seconds / slowest if slowest else 0.0
    group = ElementTree.SubElement(svg, "g")
    group.set("class", "stage")
    ElementTree.SubElement(group, "title").text = (
        f"{stage.label}\n{len(stage.nodes)} nodes\nin: {', '.join(map(str, stage.inputs))}\n"
        f"out: {', '.join(map(str, stage.outputs))}"
    )
    box = ElementTree.SubElement(
        group,
        "rect",
        x=f"{middle - _BOX_WIDTH / 2:.1f}",
        y=f"{top:.1f}",
        width=str(_BOX_WIDTH),
        height=str(_BOX_HEIGHT),
        rx="7",
        fill=_mix(_LIGHT, _HEAVY, heat * 0.55),
        stroke="#8a5a33",
    )
    box.set("stroke-width", "1.2")
    _text(group, middle, top + 22, _shorten(stage.label), size=12, weight="bold", anchor="middle")
    nodes = f"{len(stage.nodes)} {'node' if len(stage.nodes) == 1 else 'nodes'}"
    cost = f"{format_flops(stage.cost.flops)}, {format_seconds(stage.cost.seconds)}"
    _text(group, middle, top + 39, f"{nodes}, {cost}", size=11, fill="#333333", anchor="middle")
    weights = f"{format_bytes(stage.cost.parameter_bytes)} of weights"
    _text(group, middle, top + 52, weights, size=10, fill="#555555", anchor="middle")


def _shorten(label: str) -> str:
    """The ends of the first and of the last node's name, which tell most."""
    if len(label) <= _LABEL_CHARACTERS:
        return label
    first, separator, last = label.partition("..")
    if not separator:
        return f"…{label[-_LABEL_CHARACTERS + 1 :]}"
    half = (_LABEL_CHARACTERS - 2) // 2
    return f"{_end(first, half)}..{_end(last, half)}"


def _end(name: str, length: int) -> str:
    return name if len(name) <= length else f"…{name[-length + 1 :]}"


def _mix(light: str, heavy: str, share: float) -> str:
    channels = [
        round(int(light[i : i + 2], 16) * (1 - share) + int(heavy[i : i + 2], 16) * share)
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _text(
    parent: ElementTree.Element,
    x: float,
    y: float,
    content: str,
    *,
    size: int,
    fill: str = "#111111",
    weight: str = "normal",
    anchor: str = "start",
) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, "text", x=f"{x:.1f}", y=f"{y:.1f}", fill=fill)
    element.set("font-size", str(size))
    element.set("font-weight", weight)
    element.set("text-anchor", anchor)
    element.text = content
    return element
