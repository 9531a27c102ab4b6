"""Where the boxes of a picture stand: layers from top to bottom, after Sugiyama, Tagawa and Toda
(1981).

An edge that skips layers goes through a place of its own in each of them, so that it passes beside
the boxes and not behind them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Place = tuple[int, int]
"""What stands in a layer: (box, 0), or (-1 - line, layer) for a line that passes."""

PASS_WIDTH = 56
"""Room for a line that passes a layer: its label."""
_GAP = 26
"""Between what stands in a layer."""
_ORDER_SWEEPS = 12


@dataclass(frozen=True, slots=True)
class Layers:
    """What stands in which layer."""

    rows: tuple[tuple[Place, ...], ...]
    paths: tuple[tuple[Place, ...], ...]
    """The places that each line goes through, from its first box to its last."""

    @property
    def most_boxes(self) -> int:
        """How many boxes the fullest layer has."""
        return max(sum(box >= 0 for box, _ in row) for row in self.rows)

    @property
    def level(self) -> dict[Place, int]:
        """Layer of each place, from 0 at the top."""
        return {place: number for number, row in enumerate(self.rows) for place in row}


def into_layers(boxes: int, lines: Sequence[tuple[int, int]]) -> Layers:
    """Each box below all that have a line to it.

    Parameters
    ----------
    lines : from which box to which, a later one
    """
    before: defaultdict[int, list[int]] = defaultdict(list)
    for first, second in lines:
        before[second].append(first)
    depth: list[int] = []
    for i in range(boxes):
        depth.append(1 + max((depth[j] for j in before[i]), default=-1))
    rows: list[list[Place]] = [[] for _ in range(max(depth, default=0) + 1)]
    for i, level in enumerate(depth):
        rows[level].append((i, 0))
    paths = []
    for number, (first, second) in enumerate(lines):
        passes = [(-1 - number, level) for level in range(depth[first] + 1, depth[second])]
        for place in passes:
            rows[place[1]].append(place)
        paths.append(((first, 0), *passes, (second, 0)))
    return Layers(tuple(map(tuple, rows)), tuple(paths))


def place_all(layers: Layers, widths: Sequence[float]) -> dict[Place, float]:
    """Horizontal middle of each place, in pixels from the left end of what is leftmost.

    Each layer is ordered by the middle of its neighbours, down and up again; then everything stands
    as near to that middle as those beside it let it.

    Parameters
    ----------
    widths : of each box, in pixels
    """
    up: defaultdict[Place, list[Place]] = defaultdict(list)
    down: defaultdict[Place, list[Place]] = defaultdict(list)
    for path in layers.paths:
        for first, second in itertools.pairwise(path):
            up[second].append(first)
            down[first].append(second)
    both = {place: up[place] + down[place] for row in layers.rows for place in row}
    rows = [list(row) for row in layers.rows]
    middles: dict[Place, float] = {}
    for row in rows:
        _settle(row, dict.fromkeys(row, 0.0), widths, middles)
    for sweep in range(_ORDER_SWEEPS):
        neighbours, order = (up, rows) if sweep % 2 == 0 else (down, rows[::-1])
        for row in order:
            wished = {place: _mean(neighbours[place], middles, place) for place in row}
            row.sort(key=lambda place: wished[place])
            _settle(row, wished, widths, middles)
    for row in [*rows, *rows[::-1]]:
        wished = {place: _mean(both[place], middles, place) for place in row}
        _settle(row, wished, widths, middles)
    left = min((middles[p] - width_of(p, widths) / 2 for p in middles), default=0.0)
    return {place: middle - left for place, middle in middles.items()}


def width_of(place: Place, widths: Sequence[float]) -> float:
    """In pixels."""
    return widths[place[0]] if place[0] >= 0 else PASS_WIDTH


def _mean(neighbours: list[Place], middles: Mapping[Place, float], place: Place) -> float:
    if not neighbours:
        return middles[place]
    return sum(middles[other] for other in neighbours) / len(neighbours)


def _settle(
    row: Sequence[Place],
    wished: Mapping[Place, float],
    widths: Sequence[float],
    middles: dict[Place, float],
) -> None:
    """As near to where each would be as their order and widths allow, by least squares.

    Less what stands before them, the middles must not fall; neighbours that would are put together
    at their mean (isotonic regression).
    """
    offset, offsets = 0.0, []
    for i, place in enumerate(row):
        half = width_of(place, widths) / 2
        offset += half if i else 0.0
        offsets.append(offset)
        offset += half + _GAP
    groups: list[tuple[float, int]] = []
    """Sum of the wishes, and how many share them."""
    for place, before in zip(row, offsets, strict=True):
        total, count = wished[place] - before, 1
        while groups and groups[-1][0] / groups[-1][1] >= total / count:
            more, others = groups.pop()
            total, count = total + more, count + others
        groups.append((total, count))
    found = itertools.chain.from_iterable(itertools.repeat(t / n, n) for t, n in groups)
    for place, before, free in zip(row, offsets, found, strict=True):
        middles[place] = free + before
