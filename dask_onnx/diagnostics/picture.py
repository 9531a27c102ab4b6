"""Drawings of stage graphs as SVG: wider boxes take longer, thicker lines carry more bytes."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from dask_onnx.core.formatting import (
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    printable,
)
from dask_onnx.diagnostics.lettering import as_many, shorten, shorten_label, text_width
from dask_onnx.diagnostics.picture_colours import colour, mix, tint
from dask_onnx.diagnostics.picture_layout import Layers, Place, into_layers, place_all, width_of
from dask_onnx.diagnostics.stage_tables import StageLink, stage_links
from dask_onnx.planning.stages import Stage, StageGraph

_NARROWEST, _WIDEST, _LEAST_WIDEST = 140, 400, 260
"""Widths of boxes in pixels: the least that has room for text; the width of the slowest stage; and
the least width of the slowest stage where many boxes are side by side."""
_SIDE_BY_SIDE = 2600
"""Pixels that the boxes of one layer may take together before they become narrower."""
_LINE_HEIGHT = 15
_GAP_Y = 66
_MARGIN = 30
_LEAST_WIDTH, _LEAST_CROWDED = 660, 1040
"""Widths of a picture in pixels that its head needs; and the head of a crowded one, which has an
additional sentence."""
_THIN, _THICK = 1.0, 9.0
_THIN_BYTES, _THICK_BYTES = 2**10, 2**30
"""Bytes that are drawn as a line of `_THIN` and of `_THICK` pixels."""
_HEAVY, _LIGHT, _BROWN, _GREY = "#c2410c", "#fdf3e7", "#8a5a33", "#7c8794"
_MOST_LEGENDS = 16
_LEGEND_WIDTH, _LEGEND_HEIGHT = 96, 22
"""Pixels of one entry of the legend."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Positions and sizes of boxes and lines, in pixels."""

    layers: Layers
    level: Mapping[Place, int]
    """Layer of each place, from 0 at the top."""
    widths: Sequence[float]
    """Width of each box."""
    middles: Mapping[Place, float]
    """Horizontal middle of each place."""
    head: float
    """Height of the title, the summary and the legend."""
    box_height: float
    starts: Mapping[tuple[int, int], float]
    """Line and box to the horizontal offset, from the middle of the box, at which it leaves."""
    ends: Mapping[tuple[int, int], float]
    """The same for lines that arrive."""

    def top(self, place: Place) -> float:
        """Return the vertical position of a place's upper edge."""
        return self.head + self.level[place] * (self.box_height + _GAP_Y)

    @property
    def height(self) -> float:
        """Height of the whole picture."""
        return self.head + len(self.layers.rows) * (self.box_height + _GAP_Y) - _GAP_Y + _MARGIN


def to_svg(
    stages: StageGraph,
    title: str,
    *,
    worker_groups: Sequence[int] | None = None,
    measured: Sequence[float | None] | None = None,
) -> str:
    """Return the stage graph as an SVG document.

    Parameters
    ----------
    stages : StageGraph
    title : str
    worker_groups : sequence of int, optional
        Worker group of each stage, shown by the colour of its box. Without it, warmer colours
        show stages that take longer.
    measured : sequence of float or None, optional
        Seconds that each stage took, None where that is not known.
    """
    title = printable(title)  # XML has no control characters, not even escaped
    between = stage_links(stages)
    lines = 3 if measured is None else 4
    legend = [] if worker_groups is None else sorted(set(worker_groups))
    width, drawing = _arrange(stages, between, 6 + lines * _LINE_HEIGHT + 6, legend)
    svg = _canvas(width, drawing.height, title)
    _draw_head(svg, width, title, stages, legend, bool(drawing.layers.beside))
    for number, link in enumerate(between):
        _draw_link(svg, drawing, number, link)
    slowest = max((stage.cost.seconds for stage in stages.stages), default=0.0)
    for i, stage in enumerate(stages.stages):
        heat = stage.cost.seconds / slowest if slowest else 0.0
        fill, stroke = mix(_LIGHT, _HEAVY, heat * 0.55), _BROWN
        if worker_groups is not None:
            fill, stroke = tint(worker_groups[i]), colour(worker_groups[i])
        took = None if measured is None else measured[i]
        worker = "" if worker_groups is None else f", worker {worker_groups[i]}"
        _draw_stage(svg, drawing, i, stage, (fill, stroke), took, worker)
    _label_links(svg, drawing, between)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _arrange(
    stages: StageGraph, between: Sequence[StageLink], box_height: float, legend: Sequence[int]
) -> tuple[float, Drawing]:
    """Return the width of the whole picture, and the positions in it."""
    lines = [(link.producer, link.consumer) for link in between]
    layers = into_layers(len(stages.stages), lines, [link.values for link in between])
    slowest = max((stage.cost.seconds for stage in stages.stages), default=0.0)
    widest = min(max(_SIDE_BY_SIDE / max(layers.most_boxes, 1), _LEAST_WIDEST), _WIDEST)
    widths = [
        max(_NARROWEST, widest * (stage.cost.seconds / slowest if slowest else 1.0))
        for stage in stages.stages
    ]
    middles = place_all(layers, widths)
    right = max((middles[place] + width_of(place, widths) / 2 for place in middles), default=0.0)
    width = max(right + 2 * _MARGIN, _LEAST_CROWDED if layers.beside else _LEAST_WIDTH)
    shift = (width - right) / 2
    middles = {place: middle + shift for place, middle in middles.items()}
    starts, ends = _ports(layers, middles, widths)
    legend_rows = math.ceil(len(_legend_entries(legend)) / _legends_per_row(width))
    head = 92 + _LEGEND_HEIGHT * legend_rows + 12
    return width, Drawing(layers, layers.level, widths, middles, head, box_height, starts, ends)


def _ports(
    layers: Layers, middles: Mapping[Place, float], widths: Sequence[float]
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """Return offsets from the middle of a box at which its lines leave and arrive, spread out."""
    leaving: defaultdict[Place, list[tuple[float, int]]] = defaultdict(list)
    arriving: defaultdict[Place, list[tuple[float, int]]] = defaultdict(list)
    for number, path in enumerate(layers.paths):
        if not layers.branches_off(number):
            leaving[path[0]].append((middles[path[1]], number))
        arriving[path[-1]].append((middles[path[-2]], number))
    found: list[dict[tuple[int, int], float]] = []
    for side in (leaving, arriving):
        beside = {}
        for place, others in side.items():
            step = min(widths[place[0]] * 0.8 / len(others), 30)
            for i, (_, number) in enumerate(sorted(others)):
                beside[number, place[0]] = (i - (len(others) - 1) / 2) * step
        found.append(beside)
    return found[0], found[1]


def _canvas(width: float, height: float, title: str) -> ElementTree.Element:
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
    )
    svg.set("aria-label", title)
    # The style sheet of a page limits how far it shrinks the picture, relative to this width.
    svg.set("style", f"--width: {width:.0f}px")
    svg.set("font-family", "Helvetica, Arial, sans-serif")
    ElementTree.SubElement(svg, "rect", width="100%", height="100%", fill="#ffffff")
    return svg


def _draw_head(
    svg: ElementTree.Element,
    width: float,
    title: str,
    stages: StageGraph,
    legend: Sequence[int],
    is_crowded: bool,
) -> None:
    """Draw the title, a summary, the meaning of sizes and colours, and the legend."""
    room = width - 2 * _MARGIN
    _text(svg, _MARGIN, 34, shorten(title, room, 17), size=17, weight="bold")
    total = sum(edge.bytes for edge in stages.edges)
    count = len(stages.stages)
    summary = (
        f"{format_count(count, 'stage')}, {format_seconds(stages.seconds)} "
        f"predicted on one core, {format_bytes(total)} between stages"
    )
    _text(svg, _MARGIN, 55, shorten(summary, room, 12), size=12, fill="#555555")
    boxes = "width of a box: predicted time; its colour: worker"
    boxes = boxes if legend else "width and warmth of a box: predicted time"
    meaning = f"{boxes}; thickness of a line: bytes (log scale)"
    meaning += "; too many lines to order: long ones run at the right" * is_crowded
    _text(svg, _MARGIN, 73, shorten(meaning, room, 11), size=11, fill="#555555")
    per_row = _legends_per_row(width)
    for i, (text, worker_group) in enumerate(_legend_entries(legend)):
        x, y = _MARGIN + (i % per_row) * _LEGEND_WIDTH, 84 + (i // per_row) * _LEGEND_HEIGHT
        group = ElementTree.SubElement(svg, "g")
        group.set("class", "legend")
        if worker_group is not None:
            swatch = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": "14", "height": "14", "rx": "3"}
            swatch |= {"fill": tint(worker_group), "stroke": colour(worker_group)}
            ElementTree.SubElement(group, "rect", swatch)
        _text(group, x + 20, y + 11, text, size=11, fill="#333333")


def _legend_entries(legend: Sequence[int]) -> list[tuple[str, int | None]]:
    """Return the text and the worker group of each entry; None for the last one, of the rest."""
    entries: list[tuple[str, int | None]] = [
        (f"worker {worker_group}", worker_group) for worker_group in legend[:_MOST_LEGENDS]
    ]
    more = len(legend) - _MOST_LEGENDS
    return [*entries, (f"and {more} more", None)] if more > 0 else entries


def _legends_per_row(width: float) -> int:
    return max(int((width - 2 * _MARGIN) // _LEGEND_WIDTH), 1)


def _line(drawing: Drawing, number: int) -> list[tuple[float, float, float, float]]:
    """Return the bends of a line, each as (x, y) to (x, y); it is vertical between them."""
    path = drawing.layers.paths[number]
    bends = []
    for first, second in itertools.pairwise(path):
        x1 = drawing.middles[first] + drawing.starts.get((number, first[0]), 0.0)
        x2 = drawing.middles[second] + drawing.ends.get((number, second[0]), 0.0)
        bends.append((x1, drawing.top(first) + drawing.box_height, x2, drawing.top(second)))
    return bends


def _thickness(size: int) -> float:
    """Return the width of a line in pixels, by the logarithm of its bytes.

    The scale is the same in every picture, so that pictures can be compared.
    """
    share = math.log(max(size, 1) / _THIN_BYTES) / math.log(_THICK_BYTES / _THIN_BYTES)
    return _THIN + (_THICK - _THIN) * min(max(share, 0.0), 1.0)


def _draw_link(svg: ElementTree.Element, drawing: Drawing, number: int, link: StageLink) -> None:
    thick = _thickness(link.bytes)
    half, tall = 3 + thick, 6 + thick  # half the width and the height of the arrowhead
    bends = _line(drawing, number)
    steps: list[str] = []
    for i, (x1, y1, x2, y2) in enumerate(bends):
        y2 = y2 - tall + 1 if i == len(bends) - 1 else y2
        bend = (y2 - y1) * 0.6
        steps.append(f"{'M' if not steps else 'L'}{x1:.1f},{y1:.1f}")
        steps.append(f"C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2:.1f}")
    line = ElementTree.SubElement(svg, "path", d=" ".join(steps), fill="none", stroke=_GREY)
    line.set("stroke-width", f"{thick:.1f}")
    line.set("stroke-opacity", "0.8")
    title = ElementTree.SubElement(line, "title")
    title.text = f"{link.value_names}: {format_bytes(link.bytes)}"
    _, _, x, y = bends[-1]
    head = f"M{x - half:.1f},{y - tall:.1f} L{x:.1f},{y:.1f} L{x + half:.1f},{y - tall:.1f} Z"
    ElementTree.SubElement(svg, "path", d=head, fill=_GREY)


def _label_links(svg: ElementTree.Element, drawing: Drawing, between: Sequence[StageLink]) -> None:
    """Write the bytes on each line, as far from other labels as possible.

    Lines that branch off another one carry the same values and get no label of their own.
    """
    leaving = Counter(link.producer for link in between)
    arriving = Counter(link.consumer for link in between)
    taken: defaultdict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)
    """Grid cell of the picture to the labels in it and in the adjacent cells: x, y, width."""
    texts = [format_bytes(link.bytes) for link in between]
    patch = max((text_width(text, 11) for text in texts), default=0.0) + 4
    for number, (link, text) in enumerate(zip(between, texts, strict=True)):
        if drawing.layers.branches_off(number):
            continue
        width = text_width(text, 11)
        spots = _spots(drawing, number, leaving[link.producer] - arriving[link.consumer])
        near = [taken[int(x // patch), int(y // 15)] for x, y in spots]
        crowding = [_overlap(spot, width, who) for spot, who in zip(spots, near, strict=True)]
        x, y = spots[crowding.index(min(crowding))]
        for across, down in itertools.product((-1, 0, 1), repeat=2):
            taken[int(x // patch) + across, int(y // 15) + down].append((x, y, width))
        paper = {"x": f"{x - width / 2:.1f}", "y": f"{y - 7:.1f}", "width": f"{width:.1f}"}
        paper |= {"height": "14", "rx": "3", "fill": "#ffffff", "fill-opacity": "0.88"}
        ElementTree.SubElement(svg, "rect", paper)
        _text(svg, x, y + 4, text, size=11, fill="#333333", anchor="middle")


def _overlap(
    spot: tuple[float, float], width: float, taken: Sequence[tuple[float, float, float]]
) -> float:
    """Return the overlap of labels in square pixels, including the space around them."""
    return sum(
        max((width + other) / 2 + 4 - abs(spot[0] - x), 0) * max(15 - abs(spot[1] - y), 0)
        for x, y, other in taken
    )


def _spots(drawing: Drawing, number: int, more_leave: int) -> Sequence[tuple[float, float]]:
    """Return candidate positions of a line's label, best first.

    A line that passes a layer has a place of its own there; on any other line the label goes on its
    bend, near the end that clearly fewer lines share.
    """
    path, bends = drawing.layers.paths[number], _line(drawing, number)
    if len(path) > 2:
        places = path[1:-1] if path[1] in drawing.layers.beside else [path[len(path) // 2]]
        half = drawing.box_height / 2
        return [(drawing.middles[place], drawing.top(place) + half) for place in places]
    shares = [0.5, 0.36, 0.64, 0.22, 0.78]
    if abs(more_leave) > 2:
        shares.sort(reverse=more_leave > 0)
    return [_on_bend(bends[0], share) for share in shares]


def _on_bend(bend: tuple[float, float, float, float], share: float) -> tuple[float, float]:
    """Return the point of a curve of `_draw_link` at a share of its length parameter, 0 to 1."""
    x1, y1, x2, y2 = bend
    rest = 1 - share
    early, late = 3 * rest * rest * share, 3 * rest * share * share
    reach = (y2 - y1) * 0.6
    x = (rest**3 + early) * x1 + (late + share**3) * x2
    y = rest**3 * y1 + early * (y1 + reach) + late * (y2 - reach) + share**3 * y2
    return x, y


def _draw_stage(
    svg: ElementTree.Element,
    drawing: Drawing,
    number: int,
    stage: Stage,
    colours: tuple[str, str],
    took: float | None,
    worker: str,
) -> None:
    middle, top = drawing.middles[number, 0], drawing.top((number, 0))
    width = drawing.widths[number]
    group = ElementTree.SubElement(svg, "g")
    group.set("class", "stage")
    nodes = format_count(len(stage.nodes), "node")
    ElementTree.SubElement(group, "title").text = (
        f"{number}  {printable(stage.label)}{worker}\n{nodes}\n"
        f"in: {', '.join(map(str, stage.inputs))}\n"
        f"out: {', '.join(map(str, stage.outputs))}"
    )
    box = {"x": f"{middle - width / 2:.1f}", "y": f"{top:.1f}", "width": f"{width:.1f}"}
    box |= {"height": f"{drawing.box_height:.1f}", "rx": "7"}
    box |= {"fill": colours[0], "stroke": colours[1], "stroke-width": "1.6"}
    ElementTree.SubElement(group, "rect", box)
    seconds = format_seconds(stage.cost.seconds)
    weights = f"{format_bytes(stage.cost.parameter_bytes)} of weights"
    texts = [f"{seconds} predicted"]
    if took is not None:
        texts.append(f"{format_seconds(took)} measured")
    room = width - 14
    texts.append(as_many((nodes, format_flops(stage.cost.flops), weights), room, 10))
    name = shorten_label(printable(stage.label), room - text_width(f"{number}: ", 12), 12)
    y = top + 6 + _LINE_HEIGHT - 3
    _text(group, middle, y, f"{number}: {name}", size=12, weight="bold", anchor="middle")
    for text in texts:
        y += _LINE_HEIGHT
        size = 10 if text is texts[-1] else 11
        shown = shorten(text, room, size)
        _text(group, middle, y, shown, size=size, fill="#333333", anchor="middle")


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
