"""Where the boxes of a picture stand: layers from top to bottom, after Sugiyama, Tagawa and Toda
(1981).

A line that skips layers goes through a place of its own in each of them, so that it passes beside
the boxes and not behind them. Lines from one box that carry the same share these places; each
leaves them above its own end. Where that would still be thousands of places, which take long to
put in order and show little, lines that skip layers go down in columns to the right of all boxes.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

Place = tuple[int, int]
"""What stands in a layer: (box, 0), or (-1 - track, layer) for lines that pass."""

PASS_WIDTH = 56
"""Room for a line that passes a layer: its label."""
_GAP = 26
"""Between what stands in a layer."""
_ORDER_SWEEPS = 12
_MOST_PASSES = 6000
"""Places of lines that pass, up to which these are put in order among the boxes."""
_COLUMN = 18
"""From one column beside the boxes to the next."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What stands in which layer."""

    rows: tuple[tuple[Place, ...], ...]
    paths: tuple[tuple[Place, ...], ...]
    """The places that each line goes through, from its first box, or from where it leaves the line
    whose way it shares, to its last."""
    beside: Mapping[Place, int] = field(default_factory=dict)
    """Column to the right of all boxes of the places that stand in none of the rows."""

    @property
    def most_boxes(self) -> int:
        """How many boxes the fullest layer has."""
        return max(sum(box >= 0 for box, _ in row) for row in self.rows)

    @property
    def level(self) -> dict[Place, int]:
        """Layer of each place, from 0 at the top."""
        inside = {place: number for number, row in enumerate(self.rows) for place in row}
        return inside | {place: place[1] for place in self.beside}

    def shares_its_way(self, line: int) -> bool:
        """Whether a line begins at another one, which carries the same."""
        return self.paths[line][0][0] < 0


def into_layers(
    boxes: int, lines: Sequence[tuple[int, int]], carried: Sequence[Hashable]
) -> Layers:
    """Each box below all that have a line to it.

    Parameters
    ----------
    lines : from which box to which, a later one
    carried : what each line carries; those from one box that carry the same share their way
    """
    depth = _depths(boxes, lines)
    rows: list[list[Place]] = [[] for _ in range(max(depth, default=0) + 1)]
    for i, level in enumerate(depth):
        rows[level].append((i, 0))
    paths: list[tuple[Place, ...]] = [((first, 0), (second, 0)) for first, second in lines]
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
    """Layer of each box."""
    before: defaultdict[int, list[int]] = defaultdict(list)
    for first, second in lines:
        before[second].append(first)
    depth: list[int] = []
    for i in range(boxes):
        depth.append(1 + max((depth[j] for j in before[i]), default=-1))
    return depth


def _columns(spans: Sequence[range]) -> list[int]:
    """Column of each span of layers: the first that is free in all of them, shorter spans first."""
    taken: defaultdict[int, int] = defaultdict(int)
    """Layer to its columns that are taken, a bit for each."""
    found = dict.fromkeys(range(len(spans)), 0)
    for track in sorted(found, key=lambda each: len(spans[each])):
        crowd = functools.reduce(operator.or_, (taken[level] for level in spans[track]))
        free = ~crowd & (crowd + 1)
        for level in spans[track]:
            taken[level] |= free
        found[track] = free.bit_length() - 1
    return list(found.values())


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
