"""A stage graph as text and as a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from dask_onnx.planning.stages import Stage, StageGraph

_BOX = (230, 58)
_GAP = (34, 64)
_MARGIN = 30
_TITLE_HEIGHT = 56
_LABEL_CHARACTERS = 30
_HEAVY = "#c2410c"
_LIGHT = "#fdf3e7"


def format_bytes(size: float) -> str:
    """``1.5 MiB``; bytes below 1 KiB as they are."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_flops(flops: float) -> str:
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if flops < 1000 or unit == "TFLOP":
            return f"{flops:.0f} {unit}" if unit == "FLOP" else f"{flops:.1f} {unit}"
        flops /= 1000
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def format_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, s)) or 'scalar'}" for name, s in shapes.items())


@dataclass(frozen=True, slots=True)
class Link:
    """All values that go from one stage to another."""

    producer: int
    consumer: int
    values: tuple[str, ...]
    bytes: int


def links(stages: StageGraph) -> list[Link]:
    """The edges, those between the same two stages as one."""
    grouped: defaultdict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for edge in stages.edges:
        grouped[edge.producer, edge.consumer].append((edge.value, edge.bytes))
    return [
        Link(producer, consumer, tuple(v for v, _ in values), sum(b for _, b in values))
        for (producer, consumer), values in grouped.items()
    ]


def explain(
    stages: StageGraph, strategy: str, shapes: Mapping[str, tuple[int, ...]], *, is_assumed: bool
) -> str:
    """Stages with their predicted cost, and what travels between them."""
    assumed = " (open dimensions assumed)" if is_assumed else ""
    count = len(stages.stages)
    total = sum(edge.bytes for edge in stages.edges)
    lines = [
        f"strategy {strategy}: {count} {'stage' if count == 1 else 'stages'}, "
        f"{len(stages.edges)} {'edge' if len(stages.edges) == 1 else 'edges'}, "
        f"{format_bytes(total)} between stages",
        f"predicted on one core for {format_shapes(shapes)}{assumed}: "
        f"{format_seconds(stages.seconds)}",
        "",
    ]
    width = max([len(stage.label) for stage in stages.stages] + [len("stage")])
    digits = max(len(str(count - 1)), 1)
    lines.append(
        f"{'#':>{digits}}  {'stage':<{width}}  nodes  {'compute':>12}  {'time':>9}  "
        f"{'weights':>10}  {'gives':>10}"
    )
    for i, stage in enumerate(stages.stages):
        cost = stage.cost
        lines.append(
            f"{i:>{digits}}  {stage.label:<{width}}  {len(stage.nodes):>5}  "
            f"{format_flops(cost.flops):>12}  {format_seconds(cost.seconds):>9}  "
            f"{format_bytes(cost.parameter_bytes):>10}  {format_bytes(cost.activation_bytes):>10}"
        )
    if stages.edges:
        lines += ["", "edges"]
        lines += [
            f"{link.producer:>{digits}} -> {link.consumer:<{digits}}  "
            f"{format_bytes(link.bytes):>10}  {_values(link)}"
            for link in links(stages)
        ]
    return "\n".join(lines)


def _values(link: Link) -> str:
    shown = ", ".join(link.values[:3])
    return f"{shown} and {len(link.values) - 3} more" if len(link.values) > 3 else shown


def to_svg(stages: StageGraph, title: str) -> str:
    """The stage graph as an SVG document, top to bottom; warmer boxes take longer."""
    between = links(stages)
    rows = _rows(stages, between)
    width = max(len(row) for row in rows) * (_BOX[0] + _GAP[0]) - _GAP[0] + 2 * _MARGIN
    width = max(width, 560)
    height = _TITLE_HEIGHT + len(rows) * (_BOX[1] + _GAP[1]) - _GAP[1] + 2 * _MARGIN
    places = _places(rows, width)
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=str(width),
        height=str(height),
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
    for link in between:
        _draw_link(svg, link, places)
    slowest = max((stage.cost.seconds for stage in stages.stages), default=0.0)
    for i, stage in enumerate(stages.stages):
        _draw_stage(svg, stage, places[i], slowest)
    for link in between:
        _label_link(svg, link, places)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _rows(stages: StageGraph, between: list[Link]) -> list[list[int]]:
    """Stages by their distance from the inputs, each row ordered by where its inputs stand."""
    before: defaultdict[int, list[int]] = defaultdict(list)
    for link in between:
        before[link.consumer].append(link.producer)
    depth: list[int] = []
    for i in range(len(stages.stages)):
        depth.append(1 + max((depth[j] for j in before[i]), default=-1))
    rows: list[list[int]] = [[] for _ in range(max(depth, default=0) + 1)]
    for i, level in enumerate(depth):
        rows[level].append(i)
    middle: dict[int, float] = {}
    for row in rows:
        row.sort(
            key=lambda i: sum(middle[j] for j in before[i]) / len(before[i]) if before[i] else 0.0
        )
        for place, i in enumerate(row):
            middle[i] = place - (len(row) - 1) / 2
    return rows


def _places(rows: list[list[int]], width: float) -> dict[int, tuple[float, float]]:
    """The upper left corner of every box."""
    places: dict[int, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        row_width = len(row) * (_BOX[0] + _GAP[0]) - _GAP[0]
        left = (width - row_width) / 2
        top = _TITLE_HEIGHT + _MARGIN + level * (_BOX[1] + _GAP[1])
        for place, i in enumerate(row):
            places[i] = (left + place * (_BOX[0] + _GAP[0]), top)
    return places


def _ends(link: Link, places: Mapping[int, tuple[float, float]]) -> tuple[float, ...]:
    (x1, y1), (x2, y2) = places[link.producer], places[link.consumer]
    return x1 + _BOX[0] / 2, y1 + _BOX[1], x2 + _BOX[0] / 2, y2


def _draw_link(
    svg: ElementTree.Element, link: Link, places: Mapping[int, tuple[float, float]]
) -> None:
    x1, y1, x2, y2 = _ends(link, places)
    bend = _GAP[1] * 0.7
    path = ElementTree.SubElement(
        svg,
        "path",
        d=f"M{x1:.1f},{y1:.1f} C{x1:.1f},{y1 + bend:.1f} "
        f"{x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2:.1f}",
        fill="none",
        stroke="#7c8794",
    )
    path.set("stroke-width", "1.4")
    ElementTree.SubElement(
        svg,
        "path",
        d=f"M{x2 - 4:.1f},{y2 - 8:.1f} L{x2:.1f},{y2:.1f} L{x2 + 4:.1f},{y2 - 8:.1f} Z",
        fill="#7c8794",
    )


def _label_link(
    svg: ElementTree.Element, link: Link, places: Mapping[int, tuple[float, float]]
) -> None:
    x1, y1, x2, y2 = _ends(link, places)
    # Near the consumer of a fan-out and near the producer of a fan-in labels would pile up;
    # a third of the way keeps most of them apart.
    x, y = x1 + (x2 - x1) * 0.62, y1 + min((y2 - y1) * 0.62, _GAP[1] * 0.62)
    text = _text(svg, x, y + 4, format_bytes(link.bytes), size=11, fill="#333333", anchor="middle")
    text.set("stroke", "#ffffff")
    text.set("stroke-width", "4")
    text.set("paint-order", "stroke")
    ElementTree.SubElement(text, "title").text = _values(link)


def _draw_stage(
    svg: ElementTree.Element, stage: Stage, place: tuple[float, float], slowest: float
) -> None:
    x, y = place
    heat = stage.cost.seconds / slowest if slowest else 0.0
    group = ElementTree.SubElement(svg, "g")
    ElementTree.SubElement(group, "title").text = (
        f"{stage.label}\nnodes {len(stage.nodes)}\nin: {', '.join(map(str, stage.inputs))}\n"
        f"out: {', '.join(map(str, stage.outputs))}"
    )
    box = ElementTree.SubElement(
        group,
        "rect",
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        width=str(_BOX[0]),
        height=str(_BOX[1]),
        rx="7",
        fill=_mix(_LIGHT, _HEAVY, heat * 0.55),
        stroke="#8a5a33",
    )
    box.set("stroke-width", "1.2")
    middle = x + _BOX[0] / 2
    label = stage.label
    if len(label) > _LABEL_CHARACTERS:
        half = _LABEL_CHARACTERS // 2 - 1
        label = f"{label[:half]}…{label[-half:]}"
    _text(group, middle, y + 22, label, size=13, weight="bold", anchor="middle")
    nodes = f"{len(stage.nodes)} {'node' if len(stage.nodes) == 1 else 'nodes'}"
    cost = f"{format_flops(stage.cost.flops)}, {format_seconds(stage.cost.seconds)}"
    _text(group, middle, y + 40, f"{nodes}, {cost}", size=11, fill="#333333", anchor="middle")
    weights = f"{format_bytes(stage.cost.parameter_bytes)} of weights"
    _text(group, middle, y + 53, weights, size=10, fill="#555555", anchor="middle")


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
