"""Layout of a layered graph: layers from top to bottom, after Sugiyama, Tagawa and Toda (1981).

A line that skips layers gets a place of its own in each layer that it passes, so that it runs
beside the boxes and not behind them. Lines from one box that carry the same values share these
places; each branches off above its own end. If that still takes thousands of places, which are slow
to put in order and show little, lines that skip layers run in columns to the right of all boxes.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

Place = tuple[int, int]
"""A position in a layer: (box, 0), or (-1 - track, layer) where the lines of a track pass."""

PASS_WIDTH = 56
"""Width in pixels of a line that passes a layer: room for its label."""
_GAP = 26
"""Pixels between two places of a layer."""
_ORDER_SWEEPS = 12
"""Passes over all layers that order their places, alternately down and up."""
_MOST_PASSES = 6000
"""Places of passing lines up to which these are put in order among the boxes."""
_COLUMN = 18
"""Pixels from one column beside the boxes to the next."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Places by layer, and the paths of lines through them."""

    rows: tuple[tuple[Place, ...], ...]
    """Places of each layer, from left to right."""
    paths: tuple[tuple[Place, ...], ...]
    """Places that each line goes through: from its first box, or from the place where it branches
    off another line, to its last box."""
    beside: Mapping[Place, int] = field(default_factory=dict)
    """Column to the right of all boxes, for the places that are in none of the rows."""

    @property
    def most_boxes(self) -> int:
        """Number of boxes in the fullest layer."""
        return max(sum(box >= 0 for box, _ in row) for row in self.rows)

    @property
    def level(self) -> dict[Place, int]:
        """Layer of each place, from 0 at the top."""
        inside = {place: number for number, row in enumerate(self.rows) for place in row}
        return inside | {place: place[1] for place in self.beside}

    def branches_off(self, line: int) -> bool:
        """Return whether a line begins at another one, which carries the same values."""
        return self.paths[line][0][0] < 0


def into_layers(
    boxes: int, lines: Sequence[tuple[int, int]], carried: Sequence[Hashable]
) -> Layers:
    """Put each box in a layer below all boxes that have a line to it.

    Parameters
    ----------
    boxes : int
        Number of boxes.
    lines : sequence of (int, int)
        The box that each line comes from, and a later one that it goes to.
    carried : sequence of hashable
        Values that each line carries; lines from one box that carry the same share their places.
    """
    depth = _depths(boxes, lines)
    rows: list[list[Place]] = [[] for _ in range(max(depth, default=0) + 1)]
    for i, level in enumerate(depth):
        rows[level].append((i, 0))
    paths: list[tuple[Place, ...]] = [((first, 0), (second, 0)) for first, second in lines]
    # The lines of a track leave one box with the same values and skip at least one layer.
    tracks: defaultdict[tuple[int, Hashable], list[int]] = defaultdict(list)
    for number, (first, second) in enumerate(lines):
        if depth[second] - depth[first] > 1:
            tracks[first, carried[number]].append(number)
    ends = {number: depth[lines[number][1]] for shared in tracks.values() for number in shared}
    spans = [
        range(depth[box] + 1, max(ends[number] for number in shared))
        for (box, _), shared in tracks.items()
    ]
    columns = _columns(spans) if sum(map(len, spans)) > _MOST_PASSES else []
    beside: dict[Place, int] = {}
    for track, (span, shared) in enumerate(zip(spans, tracks.values(), strict=True)):
        levels = sorted({span[0], span[len(span) // 2], span[-1]}) if columns else span
        way = [(-1 - track, level) for level in levels]
        longest = max(shared, key=ends.__getitem__)
        for number in shared:
            paths[number] = ((-1 - track, ends[number] - 1), paths[number][-1])
        if columns:
            beside |= dict.fromkeys([*way, *(paths[each][0] for each in shared)], columns[track])
        else:
            for place in way:
                rows[place[1]].append(place)
        paths[longest] = ((lines[longest][0], 0), *way, paths[longest][-1])
    return Layers(tuple(map(tuple, rows)), tuple(paths), beside)


def _depths(boxes: int, lines: Sequence[tuple[int, int]]) -> list[int]:
    """Return the layer of each box."""
    before: defaultdict[int, list[int]] = defaultdict(list)
    for first, second in lines:
        before[second].append(first)
    depth: list[int] = []
    for i in range(boxes):
        depth.append(1 + max((depth[j] for j in before[i]), default=-1))
    return depth


def _columns(spans: Sequence[range]) -> list[int]:
    """Return a column for each span of layers: the first that is free, shorter spans first."""
    taken: defaultdict[int, int] = defaultdict(int)
    """Layer to the set of its occupied columns, as bits."""
    found = dict.fromkeys(range(len(spans)), 0)
    for track in sorted(found, key=lambda each: len(spans[each])):
        occupied = functools.reduce(operator.or_, (taken[level] for level in spans[track]))
        free = ~occupied & (occupied + 1)  # the lowest bit that is not set
        for level in spans[track]:
            taken[level] |= free
        found[track] = free.bit_length() - 1
    return list(found.values())


def place_all(layers: Layers, widths: Sequence[float]) -> dict[Place, float]:
    """Return the horizontal middle of each place, in pixels from the left edge of the leftmost one.

    Sweeps down and up order each layer by the mean position of its neighbours in other layers; then
    each place moves as near to that mean as the places beside it allow.

    Parameters
    ----------
    layers : Layers
    widths : sequence of float
        Width of each box in pixels.
    """
    up: defaultdict[Place, list[Place]] = defaultdict(list)
    down: defaultdict[Place, list[Place]] = defaultdict(list)
    for path in layers.paths:
        for first, second in itertools.pairwise(path):
            if first not in layers.beside and second not in layers.beside:
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
    right = max((middles[p] + width_of(p, widths) / 2 for p in middles), default=0.0)
    beside = right + _GAP + PASS_WIDTH / 2
    middles |= {place: beside + column * _COLUMN for place, column in layers.beside.items()}
    left = min((middles[p] - width_of(p, widths) / 2 for p in middles), default=0.0)
    return {place: middle - left for place, middle in middles.items()}


def width_of(place: Place, widths: Sequence[float]) -> float:
    """Return the width of a place in pixels."""
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
    """Move the places of a layer as near to the wished positions as order and widths allow.

    The sum of squared differences is minimal. Without the widths of the places before them, the
    positions must not decrease, so that this is isotonic regression: neighbours that would overlap
    are pooled at their mean (the pool-adjacent-violators algorithm).
    """
    offset, offsets = 0.0, []
    for i, place in enumerate(row):
        half = width_of(place, widths) / 2
        offset += half if i else 0.0
        offsets.append(offset)
        offset += half + _GAP
    groups: list[tuple[float, int]] = []
    """Sum of the wished positions of a pool, and its number of places."""
    for place, before in zip(row, offsets, strict=True):
        total, count = wished[place] - before, 1
        while groups and groups[-1][0] / groups[-1][1] >= total / count:
            more, others = groups.pop()
            total, count = total + more, count + others
        groups.append((total, count))
    found = itertools.chain.from_iterable(itertools.repeat(t / n, n) for t, n in groups)
    for place, before, free in zip(row, offsets, found, strict=True):
        middles[place] = free + before
