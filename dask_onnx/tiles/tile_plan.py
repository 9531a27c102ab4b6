"""Which tiles there are, what each needs, and in which passes they are made. Pure arithmetic.

The graph is traced once; after that a tile costs interval arithmetic only, axis by axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from dask_onnx.tiles.flow import Flow
from dask_onnx.tiles.groups import Component, Group, Once, find_groups, find_onces
from dask_onnx.tiles.places import Interval, Layout, Mirrored, Places, Reach, factors_of


class AxisGrid(NamedTuple):
    """The borders of the tiles along one axis of the picture."""

    size: int
    """Pixels of the picture."""
    align: int
    """Pixels that every border is a multiple of."""
    borders: tuple[int, ...]
    """In pixels, from 0 on; the last is `size`."""

    @property
    def tiles(self) -> range:
        """The numbers of the tiles."""
        return range(len(self.borders) - 1)


class Span(NamedTuple):
    """The pixels ``[start, stop)`` of the picture that a tile is computed as a crop of."""

    start: int
    stop: int


@dataclass(frozen=True)
class TilePlan:
    """How a picture is cut, and how its tiles are computed."""

    flow: Flow
    outputs: tuple[str, ...]
    grids: Mapping[int, AxisGrid]
    lacks: Mapping[tuple[str, int], Fraction]
    """Positions that a value has less than its stride would give it on an aligned crop."""
    spans: dict[tuple[int, int, int], Span] = field(default_factory=dict, repr=False)
    """Those found so far, by component, axis and tile."""

    # Values.

    def places(self, value: str) -> Places:
        """Where the tiled axes lie in a value."""
        return self.flow.places(value)

    def layout(self, value: str) -> Layout:
        """The axes of a value, taken apart where tiled axes share one."""
        if value not in self._layouts:
            places = self.places(value)
            self._layouts[value] = Layout(factors_of(self.flow.shape(value), places))
        return self._layouts[value]

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {}

    def full(self, value: str) -> dict[int, int]:
        """The positions that a value has of each tiled axis at the whole picture."""
        return {k: place.size for k, place in self.places(value).items()}

    def chunks(self, value: str) -> tuple[tuple[int, ...], ...]:
        """The sizes of a value's tiles, for each axis of its layout taken apart."""
        found: list[tuple[int, ...]] = []
        for size, k in self.layout(value).flat:
            if k is None:
                found.append((size,))
            else:
                ends = [self.tile(value, k, i) for i in self.grids[k].tiles]
                found.append(tuple(stop - start for start, stop in ends))
        return tuple(found)

    def tile(self, value: str, k: int, number: int) -> Interval:
        """The positions of a value that tile `number` along an axis has."""
        key = (value, k, number)
        if key not in self._tiles:
            place, grid = self.places(value)[k], self.grids[k]
            start = int(grid.borders[number] / place.stride)
            is_last = number == len(grid.tiles) - 1
            stop = place.size if is_last else int(grid.borders[number + 1] / place.stride)
            self._tiles[key] = start, stop
        return self._tiles[key]

    @cached_property
    def _tiles(self) -> dict[tuple[str, int, int], Interval]:
        return {}

    # Passes.

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups of tiles, pass by pass."""
        return find_groups(self.flow, self.outputs)

    @cached_property
    def onces(self) -> tuple[Once, ...]:
        """All tasks on whole values, pass by pass."""
        return find_onces(self.flow, self.outputs, self.groups)

    @property
    def passes(self) -> int:
        """Times that all tiles are gone through."""
        return 1 + max((group.level for group in self.groups), default=0)

    # Tiles.

    def span(self, part: Component, k: int, tile: int) -> Span:
        """The crop that a tile along an axis is computed from."""
        key = (part.number, k, tile)
        if key not in self.spans:
            self.spans[key] = _find_span(self, part, k, tile)
        return self.spans[key]

    def local(self, value: str, k: int, span: Span) -> Interval:
        """The positions of a value that are there on a crop of the picture."""
        key = (value, k, span)
        if key not in self._locals:
            place = self.places(value)[k]
            start = int(span.start / place.stride)
            if span.stop == self.grids[k].size:
                stop = place.size
            else:
                stop = int(span.stop / place.stride - self.lacks[value, k])
            self._locals[key] = start, stop
        return self._locals[key]

    @cached_property
    def _locals(self) -> dict[tuple[str, int, Span], Interval]:
        return {}

    def reads(self, part: Component, k: int) -> list[tuple[str, list[tuple[str, Reach]]]]:
        """For each value that is made, the last first, what its node reads along an axis."""
        key = (part.number, k)
        if key not in self._reads:
            steps = [self.flow.steps[index] for index in reversed(part.nodes)]
            self._reads[key] = [
                (name, [(e.value, e.reaches[k]) for e in step.edges if k in e.reaches])
                for step in steps
                for name in step.node.outputs
            ]
        return self._reads[key]

    @cached_property
    def _reads(self) -> dict[object, list[tuple[str, list[tuple[str, Reach]]]]]:
        return {}

    @cached_property
    def margins(self) -> dict[tuple[str, int], int]:
        """Positions that a crop of a value must have more than, so that it can be reflected."""
        found: dict[tuple[str, int], int] = {}
        for step in self.flow.steps.values():
            for edge in step.edges:
                for k, reach in edge.reaches.items():
                    if isinstance(reach, Mirrored):
                        found[edge.value, k] = max(
                            found.get((edge.value, k), 0), reach.begin, reach.end
                        )
        return found


def alignment(strides: Iterable[Fraction]) -> int:
    """Return the pixels whose multiples are whole positions of every value."""
    return math.lcm(1, *(stride.numerator for stride in strides))


def strides_of(flow: Flow, k: int) -> set[Fraction]:
    """Return the strides along an axis of all values that tiles read or make."""
    found = {traced.places[k].stride for traced in flow.values.values() if k in traced.places}
    return found | {
        edge.places[k].stride
        for step in flow.steps.values()
        for edge in step.edges
        if k in edge.places
    }


def borders_of(size: int, tile: int, align: int, flow: Flow, k: int) -> tuple[int, ...]:
    """Return the borders of tiles of about `tile` pixels such that no value lacks one.

    Parameters
    ----------
    size : pixels of the picture
    align : pixels that each border is a multiple of
    """
    step = max(tile // align, 1) * align
    ends = [
        place.size * place.stride
        for traced in flow.values.values()
        if (place := traced.places.get(k)) is not None
    ]
    last = min([Fraction(size), *ends])
    inner = [border for border in range(0, size, step) if border < last]
    return (*inner, size)


def lacks_of(flow: Flow, grids: Mapping[int, int]) -> dict[tuple[str, int], Fraction]:
    """Return how many positions each value has less than its stride would give it.

    Parameters
    ----------
    flow : at sizes that are multiples of the alignment
    grids : those sizes, by axis
    """
    found: dict[tuple[str, int], Fraction] = {}
    for name, traced in flow.values.items():
        for k, place in traced.places.items():
            found[name, k] = grids[k] / place.stride - place.size
    for step in flow.steps.values():
        for edge in step.edges:
            for k, place in edge.places.items():
                found.setdefault((edge.value, k), grids[k] / place.stride - place.size)
    return found


# Spans.


def _find_span(plan: TilePlan, part: Component, k: int, tile: int) -> Span:
    """Go back from what a tile is to give to the pixels that it needs, and align these."""
    grid = plan.grids[k]
    needs = {value: plan.tile(value, k, tile) for value in part.ends}
    for value, reads in plan.reads(part, k):
        if value not in needs:
            continue
        start, stop = needs[value]
        for source, reach in reads:
            low, high = reach.needed(start, stop, plan.places(source)[k].size)
            if source in needs:
                low, high = min(low, needs[source][0]), max(high, needs[source][1])
            needs[source] = low, high
    strides = {value: plan.places(value)[k].stride for value in needs}
    align = alignment(strides.values())
    first = min(needs[value][0] * strides[value] for value in needs)
    last = max(needs[value][1] * strides[value] for value in needs)
    start = max(math.floor(first / align), 0) * align
    stop = min(-(-math.ceil(last) // align) * align, grid.size)
    while True:
        span = Span(start, stop)
        is_whole = start == 0 and stop == grid.size
        if is_whole or all(_covers(plan, value, k, span, needs[value]) for value in needs):
            return span
        start, stop = max(start - align, 0), min(stop + align, grid.size)


def _covers(plan: TilePlan, value: str, k: int, span: Span, need: Interval) -> bool:
    """Whether a crop of the picture gives what is needed of a value."""
    start, stop = plan.local(value, k, span)
    return start <= need[0] and stop >= need[1] and stop - start > plan.margins.get((value, k), 0)
