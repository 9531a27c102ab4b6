"""Drawings of stage graphs as SVG: wider boxes take longer, thicker lines carry more bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from dask_onnx.core.formatting import (
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    printable,
)
from dask_onnx.core.lettering import as_many, shorten, shorten_label, text_width
from dask_onnx.diagnostics.picture_blocks import Block, blocks_of, shown_label
from dask_onnx.diagnostics.picture_colours import colour, mix, tint
from dask_onnx.diagnostics.picture_elements import BOX_FAINT, BOX_INK, add_text, canvas
from dask_onnx.diagnostics.picture_folding import Page
from dask_onnx.diagnostics.picture_layout import into_layers, place_all, width_of
from dask_onnx.diagnostics.picture_lines import MARGIN, PILE, Drawing, draw_link, label_links, ports
from dask_onnx.diagnostics.stage_tables import StageLink
from dask_onnx.planning.stages import StageGraph

_NARROWEST, _WIDEST, _LEAST_WIDEST = 150, 400, 170
"""Widths of boxes in pixels: the least that has room for text; the width of the slowest box; and
the least width of the slowest one where many boxes are side by side."""
_SIDE_BY_SIDE = 1200
"""Pixels that the boxes of one layer may take together before they become narrower."""
_LINE_HEIGHT = 15
_LEAST_WIDTH, _LEAST_CROWDED = 660, 1040
"""Widths of a picture in pixels that its head needs; and the head of a crowded or folded one, which
has an additional sentence."""
_HEAVY, _LIGHT, _BROWN, _GREY = "#c2410c", "#fdf3e7", "#8a5a33", "#6b7280"
_MOST_LEGENDS = 16
_LEGEND_WIDTH, _LEGEND_HEIGHT = 96, 22
"""Pixels of one entry of the legend."""
_STRIPE = 6
"""Width in pixels of the stripe at the left of a box, with the colours of its stages."""
_MOST_STRIPES = 12
_MOST_SLOWEST = 12
"""Stages that are listed below a folded picture."""
_ENTRY_WIDTH = 320
"""Least width in pixels of an entry of that list."""


def to_svg(
    stages: StageGraph,
    title: str,
    *,
    worker_groups: Sequence[int] | None = None,
    measured: Sequence[float | None] | None = None,
    page: Page | None = Page(),  # noqa: B008 - frozen
) -> str:
    """Return the stage graph as an SVG document that fits light pages and dark ones.

    Where there are more stages than a page has room for, chains and then branches are folded into
    one box, and the slowest stages are listed below. The colour of the stripe at the left of a box
    is that of the stage in Dask's dashboard.

    Parameters
    ----------
    stages : StageGraph
    title : str
    worker_groups : sequence of int, optional
        Worker group of each stage, shown by the colour of its box. Without it, warmer colours
        show stages that take longer.
    measured : sequence of float or None, optional
        Seconds that each stage took, None where that is not known.
    page : Page, optional
        Room in boxes; None to draw every stage, whatever their number.
    """
    title = printable(title)  # XML has no control characters, not even escaped
    blocks, links = blocks_of(stages, worker_groups, measured, page)
    legend = [] if worker_groups is None else sorted(set(worker_groups))
    lines = 3 if measured is None else 4
    width, drawing = _arrange(blocks, links, 6 + lines * _LINE_HEIGHT + 6, legend)
    is_folded = len(blocks) < len(stages.stages)
    below = _slowest_height(stages, width) if is_folded else 0.0
    svg = canvas(width, drawing.height + below, title)
    notes = ["too many lines to order: long ones run at the right"] * bool(drawing.layers.beside)
    if is_folded:
        notes.append(f"{len(stages.stages):,} stages in {len(blocks)} boxes")
    _draw_head(svg, width, title, stages, legend, notes)
    for number, link in enumerate(links):
        draw_link(svg, drawing, number, link)
    slowest = max((block.seconds for block in blocks), default=0.0)
    for i, block in enumerate(blocks):
        heat = block.seconds / slowest if slowest else 0.0
        _draw_block(svg, drawing, i, block, _colours(block, heat), measured is not None)
    label_links(svg, drawing, links, width)
    if is_folded:
        _list_slowest(svg, stages, width, drawing.height)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _colours(block: Block, heat: float) -> tuple[str, str]:
    """Return the colours of a box and of its border."""
    if len(block.worker_groups) == 1:
        return tint(block.worker_groups[0]), colour(block.worker_groups[0])
    if block.worker_groups:
        return mix("#ffffff", _GREY, 0.25), _GREY
    return mix(_LIGHT, _HEAVY, heat * 0.55), _BROWN


def _arrange(
    blocks: Sequence[Block], links: Sequence[StageLink], box_height: float, legend: Sequence[int]
) -> tuple[float, Drawing]:
    """Return the width of the whole picture, and the positions in it."""
    lines = [(link.producer, link.consumer) for link in links]
    layers = into_layers(len(blocks), lines, [link.values for link in links])
    slowest = max((block.seconds for block in blocks), default=0.0)
    widest = min(max(_SIDE_BY_SIDE / max(layers.most_boxes, 1), _LEAST_WIDEST), _WIDEST)
    widths = [
        max(_NARROWEST, widest * (block.seconds / slowest if slowest else 1.0)) for block in blocks
    ]
    middles = place_all(layers, widths)
    right = max((middles[place] + width_of(place, widths) / 2 for place in middles), default=0.0)
    is_folded = any(block.is_folded for block in blocks)
    least = _LEAST_CROWDED if layers.beside or is_folded else _LEAST_WIDTH
    width = max(right + 2 * MARGIN, least)
    shift = (width - right) / 2
    middles = {place: middle + shift for place, middle in middles.items()}
    starts, ends = ports(layers, middles, widths)
    legend_rows = math.ceil(len(_legend_entries(legend)) / _legends_per_row(width))
    head = 92 + _LEGEND_HEIGHT * legend_rows + 12
    return width, Drawing(layers, layers.level, widths, middles, head, box_height, starts, ends)


def _draw_head(
    svg: ElementTree.Element,
    width: float,
    title: str,
    stages: StageGraph,
    legend: Sequence[int],
    notes: Sequence[str],
) -> None:
    """Draw the title, a summary, the meaning of sizes and colours, and the legend."""
    room = width - 2 * MARGIN
    add_text(svg, MARGIN, 34, shorten(title, room, 17), size=17, weight="bold")
    total = sum(edge.bytes for edge in stages.edges)
    count = len(stages.stages)
    summary = (
        f"{format_count(count, 'stage')}, {format_seconds(stages.seconds)} "
        f"predicted on one core, {format_bytes(total)} between stages"
    )
    add_text(svg, MARGIN, 55, shorten(summary, room, 12), size=12, part="faint")
    boxes = "width of a box: predicted time; its colour: worker"
    boxes = boxes if legend else "width and warmth of a box: predicted time"
    meaning = "; ".join([f"{boxes}; thickness of a line: bytes (log scale)", *notes])
    add_text(svg, MARGIN, 73, shorten(meaning, room, 11), size=11, part="faint")
    per_row = _legends_per_row(width)
    for i, (text, worker_group) in enumerate(_legend_entries(legend)):
        x, y = MARGIN + (i % per_row) * _LEGEND_WIDTH, 84 + (i // per_row) * _LEGEND_HEIGHT
        group = ElementTree.SubElement(svg, "g")
        group.set("class", "legend")
        if worker_group is not None:
            swatch = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": "14", "height": "14", "rx": "3"}
            swatch |= {"fill": tint(worker_group), "stroke": colour(worker_group)}
            ElementTree.SubElement(group, "rect", swatch)
        add_text(group, x + 20, y + 11, text, size=11)


def _legend_entries(legend: Sequence[int]) -> list[tuple[str, int | None]]:
    """Return the text and the worker group of each entry; None for the last one, of the rest."""
    entries: list[tuple[str, int | None]] = [
        (f"worker {worker_group}", worker_group) for worker_group in legend[:_MOST_LEGENDS]
    ]
    more = len(legend) - _MOST_LEGENDS
    return [*entries, (f"and {more} more", None)] if more > 0 else entries


def _legends_per_row(width: float) -> int:
    return max(int((width - 2 * MARGIN) // _LEGEND_WIDTH), 1)


def _draw_block(
    svg: ElementTree.Element,
    drawing: Drawing,
    number: int,
    block: Block,
    colours: tuple[str, str],
    is_measured: bool,
) -> None:
    middle, top = drawing.middles[number, 0], drawing.top((number, 0))
    width, height = drawing.widths[number], drawing.box_height
    left = middle - width / 2
    group = ElementTree.SubElement(svg, "g")
    group.set("class", "stages" if block.is_folded else "stage")
    ElementTree.SubElement(group, "title").text = block.tooltip
    if block.is_folded:  # two more edges, as of a pile
        for aside in (PILE, PILE / 2):
            _box(group, left + aside, top + aside, width, height, colours)
    _box(group, left, top, width, height, colours)
    _draw_stripes(group, left, top, height, block.colours)
    nodes = format_count(block.nodes, "node")
    weights = f"{format_bytes(block.parameter_bytes)} of weights"
    seconds = format_seconds(block.seconds)
    texts = [f"{seconds} predicted"]
    if block.is_folded:
        texts = [f"{len(block.stages):,} stages, {seconds}"]
    if block.measured is not None and is_measured:
        texts.append(f"{format_seconds(block.measured)} measured")
    room, middle = width - 14 - _STRIPE, middle + _STRIPE / 2
    texts.append(as_many((nodes, format_flops(block.flops), weights), room, 10))
    numbers = shorten(f"{block.numbers}: ", room / 2, 12)
    name = shorten_label(block.name, room - text_width(numbers, 12), 12)
    y = top + 6 + _LINE_HEIGHT - 3
    add_text(
        group, middle, y, numbers + name, size=12, fill=BOX_INK, weight="bold", anchor="middle"
    )
    for text in texts:
        y += _LINE_HEIGHT
        size = 10 if text is texts[-1] else 11
        shown = shorten(text, room, size)
        add_text(group, middle, y, shown, size=size, fill=BOX_FAINT, anchor="middle")


def _box(
    group: ElementTree.Element,
    x: float,
    y: float,
    width: float,
    height: float,
    colours: tuple[str, str],
) -> None:
    box = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    box |= {"rx": "7", "fill": colours[0], "stroke": colours[1], "stroke-width": "1.4"}
    ElementTree.SubElement(group, "rect", box)


def _draw_stripes(
    group: ElementTree.Element, left: float, top: float, height: float, colours: Sequence[str]
) -> None:
    """Draw a stripe for each of the first stages of a box."""
    shown = colours[:_MOST_STRIPES]
    room = height - 14
    for i, each in enumerate(shown):
        stripe = {"x": f"{left + 4:.1f}", "y": f"{top + 7 + room * i / len(shown):.1f}"}
        stripe |= {"width": str(_STRIPE), "height": f"{room / len(shown):.1f}", "fill": each}
        ElementTree.SubElement(group, "rect", stripe)


def _columns(width: float) -> int:
    return max(int((width - 2 * MARGIN) // _ENTRY_WIDTH), 1)


def _slowest_height(stages: StageGraph, width: float) -> float:
    entries = min(len(stages.stages), _MOST_SLOWEST)
    return 30 + _LINE_HEIGHT * 1.2 * math.ceil(entries / _columns(width)) + MARGIN / 2


def _list_slowest(svg: ElementTree.Element, stages: StageGraph, width: float, top: float) -> None:
    """List the stages that take longest, column by column."""
    order = sorted(range(len(stages.stages)), key=lambda i: -stages.stages[i].cost.seconds)
    order, columns, total = order[:_MOST_SLOWEST], _columns(width), stages.seconds or 1.0
    add_text(svg, MARGIN, top + 8, "stages that take longest", size=12, weight="bold")
    rows, room = math.ceil(len(order) / columns), (width - 2 * MARGIN) / columns
    for place, i in enumerate(order):
        stage = stages.stages[i]
        x = MARGIN + place // rows * room
        y = top + 8 + (place % rows + 1) * _LINE_HEIGHT * 1.2
        share = f"{format_seconds(stage.cost.seconds)}, {stage.cost.seconds / total:.0%}"
        left = room - text_width(f"{i}:   {share}", 11) - 10
        name = shorten_label(shown_label(stage.label), left, 11)
        add_text(svg, x, y, f"{i}: {name}  {share}", size=11, part="faint")
