"""Lines of a picture, thicker for more bytes, and their labels, which cross no line."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from dask_onnx.core.formatting import format_bytes
from dask_onnx.core.lettering import text_width
from dask_onnx.diagnostics.picture_elements import add_arrowhead, add_line, add_text
from dask_onnx.diagnostics.picture_layout import Layers, Place
from dask_onnx.diagnostics.stage_tables import StageLink

GAP_Y = 54
"""Pixels between two layers."""
MARGIN = 30
PILE = 6
"""Pixels by which the lowest of the boxes that stand for several stages looks out."""
_THIN, _THICK = 1.0, 9.0
_THIN_BYTES, _THICK_BYTES = 2**10, 2**30
"""Bytes that are drawn as a line of `_THIN` and of `_THICK` pixels."""
_LABEL_SIZE, _LABEL_HEIGHT = 11, 13
_SHARES = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82, 0.1, 0.88)
"""Places of a label along its line, best first."""
_FROM_END = 11
"""Pixels from a box to the middle of a label that stands beside the end of a line."""
_STEP = 5.0
"""Pixels between the points of a line with which labels are compared."""
_CELL = 48
"""Width and height in pixels of a cell of the grid in which neighbours are looked for."""

Bend = tuple[float, float, float, float]
"""Start and end of a curve: x, y, x, y; it is vertical at both."""


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
        return self.head + self.level[place] * (self.box_height + GAP_Y)

    @property
    def height(self) -> float:
        """Height of everything above and in the boxes, with a margin below."""
        return self.head + len(self.layers.rows) * (self.box_height + GAP_Y) - GAP_Y + MARGIN


def ports(
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
            step = min(widths[place[0]] * 0.86 / len(others), 60)
            for i, (_, number) in enumerate(sorted(others)):
                beside[number, place[0]] = (i - (len(others) - 1) / 2) * step
        found.append(beside)
    return found[0], found[1]


def bends_of(drawing: Drawing, number: int) -> list[Bend]:
    """Return the bends of a line; it is vertical between them."""
    bends = []
    for first, second in itertools.pairwise(drawing.layers.paths[number]):
        x1 = drawing.middles[first] + drawing.starts.get((number, first[0]), 0.0)
        x2 = drawing.middles[second] + drawing.ends.get((number, second[0]), 0.0)
        bends.append((x1, drawing.top(first) + drawing.box_height, x2, drawing.top(second)))
    return bends


def thickness(size: int) -> float:
    """Return the width of a line in pixels, by the logarithm of its bytes.

    The scale is the same in every picture, so that pictures can be compared.
    """
    share = math.log(max(size, 1) / _THIN_BYTES) / math.log(_THICK_BYTES / _THIN_BYTES)
    return _THIN + (_THICK - _THIN) * min(max(share, 0.0), 1.0)


def draw_link(svg: ElementTree.Element, drawing: Drawing, number: int, link: StageLink) -> None:
    """Draw a line with its arrowhead, and its values as a tooltip."""
    thick = thickness(link.bytes)
    half, tall = 3 + thick, 6 + thick  # half the width and the height of the arrowhead
    bends = bends_of(drawing, number)
    steps: list[str] = []
    for i, (x1, y1, x2, y2) in enumerate(bends):
        y2 = y2 - tall + 1 if i == len(bends) - 1 else y2
        bend = (y2 - y1) * 0.6
        steps.append(f"{'M' if not steps else 'L'}{x1:.1f},{y1:.1f}")
        steps.append(f"C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2:.1f}")
    line = add_line(svg, " ".join(steps), thick)
    title = ElementTree.SubElement(line, "title")
    title.text = f"{link.value_names}: {format_bytes(link.bytes)}"
    _, _, x, y = bends[-1]
    add_arrowhead(
        svg, f"M{x - half:.1f},{y - tall:.1f} L{x:.1f},{y:.1f} L{x + half:.1f},{y - tall:.1f} Z"
    )


class _Occupied:
    """Points of lines and rectangles of labels, by the cells of a grid that they lie in."""

    def __init__(self) -> None:
        self.points: defaultdict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(
            list
        )
        self.labels: defaultdict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(
            list
        )

    def add_point(self, x: float, y: float, radius: float) -> None:
        self.points[int(x // _CELL), int(y // _CELL)].append((x, y, radius))

    def add_label(self, left: float, middle: float, width: float) -> None:
        for cell in self._cells(left, middle, width):
            self.labels[cell].append((left, middle, width))

    def is_free(self, left: float, middle: float, width: float) -> bool:
        """Return whether a label touches neither a line nor another label."""
        half = _LABEL_HEIGHT / 2
        for cell in self._cells(left, middle, width):
            for x, y, radius in self.points[cell]:
                if left - radius < x < left + width + radius and abs(y - middle) < half + radius:
                    return False
            for other, at, wide in self.labels[cell]:
                is_beside = left < other + wide + 4 and other < left + width + 4
                if is_beside and abs(at - middle) < _LABEL_HEIGHT:
                    return False
        return True

    def _cells(self, left: float, middle: float, width: float) -> Iterator[tuple[int, int]]:
        reach = _THICK + _LABEL_HEIGHT
        columns = range(int((left - reach) // _CELL), int((left + width + reach) // _CELL) + 1)
        rows = range(int((middle - reach) // _CELL), int((middle + reach) // _CELL) + 1)
        return itertools.product(columns, rows)


def label_links(
    svg: ElementTree.Element, drawing: Drawing, links: Sequence[StageLink], width: float
) -> None:
    """Write the bytes beside each line where there is room, so that no label crosses a line.

    Lines that branch off another one carry the same values and get no label of their own. The
    tooltip of a line has its bytes too, for those that find no room.

    Parameters
    ----------
    width : float
        Width of the picture in pixels.
    """
    occupied = _Occupied()
    for number, link in enumerate(links):
        radius = thickness(link.bytes) / 2 + 1.5
        for x, y in _points(drawing, number):
            occupied.add_point(x, y, radius)
    for x, y in _sides_of_boxes(drawing):
        occupied.add_point(x, y, 3)
    for number, link in enumerate(links):
        if drawing.layers.branches_off(number):
            continue
        text = format_bytes(link.bytes)
        wide = text_width(text, _LABEL_SIZE)
        aside = thickness(link.bytes) + 5  # an arrowhead has its room too
        for x, y in _spots(drawing, number):
            left = next(
                (
                    start
                    for start in (x + aside, x - aside - wide)
                    if start >= 4 and start + wide <= width - 4
                    if occupied.is_free(start, y, wide)
                ),
                None,
            )
            if left is not None:
                occupied.add_label(left, y, wide)
                add_text(svg, left, y + 4, text, size=_LABEL_SIZE, part="faint").set(
                    "class", "faint bytes"
                )
                break


def _sides_of_boxes(drawing: Drawing) -> Iterator[tuple[float, float]]:
    """Yield points of the left and the right side of each box."""
    steps = int(drawing.box_height / _STEP) + 1
    for box, width in enumerate(drawing.widths):
        middle, top = drawing.middles[box, 0], drawing.top((box, 0))
        for step, side in itertools.product(range(steps + 1), (-0.5, 0.5)):
            yield middle + side * width, top + drawing.box_height * step / steps


def _points(drawing: Drawing, number: int) -> Iterator[tuple[float, float]]:
    """Yield points of a line that are close together, those beside the boxes that it passes too."""
    bends = bends_of(drawing, number)
    for bend in bends:
        reach = math.hypot(bend[2] - bend[0], bend[3] - bend[1])
        steps = max(int(1.5 * reach / _STEP), 4)
        yield from (on_bend(bend, step / steps) for step in range(steps + 1))
    for (_, _, x, top), (_, bottom, _, _) in itertools.pairwise(bends):
        steps = max(int(abs(bottom - top) / _STEP), 1)
        yield from ((x, top + (bottom - top) * step / steps) for step in range(steps + 1))


def _spots(drawing: Drawing, number: int) -> Iterator[tuple[float, float]]:
    """Yield points of a line beside which its label may stand, best first."""
    path, bends = drawing.layers.paths[number], bends_of(drawing, number)
    half = drawing.box_height / 2
    for place in path[1:-1]:
        yield drawing.middles[place], drawing.top(place) + half
    for bend in bends:
        yield from (on_bend(bend, share) for share in _SHARES)
    # Beside the vertical ends of a line that runs far sideways.
    x1, y1, _, _ = bends[0]
    _, _, x2, y2 = bends[-1]
    yield from ((x2, y2 - _FROM_END), (x1, y1 + _FROM_END + PILE))


def on_bend(bend: Bend, share: float) -> tuple[float, float]:
    """Return the point of a curve of `draw_link` at a share of its length parameter, 0 to 1."""
    x1, y1, x2, y2 = bend
    rest = 1 - share
    early, late = 3 * rest * rest * share, 3 * rest * share * share
    reach = (y2 - y1) * 0.6
    x = (rest**3 + early) * x1 + (late + share**3) * x2
    y = rest**3 * y1 + early * (y1 + reach) + late * (y2 - reach) + share**3 * y2
    return x, y
