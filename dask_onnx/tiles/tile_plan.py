"""The tiles of an image, the crop that each needs, and the passes that compute them.

Pure arithmetic: the graph is traced once; after that a tile costs interval arithmetic, axis by
axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from dask_onnx.tiles.flow import Flow
from dask_onnx.tiles.groups import Component, Group, UntiledTask, find_groups, find_untiled_tasks
from dask_onnx.tiles.places import Interval, Layout, Places, ReceptiveField, Reflection, factors_of


class AxisGrid(NamedTuple):
    """Borders of the tiles along one axis of the image."""

    size: int
    """Pixels of the image."""
    align: int
    """Pixels of which every border but the last is a multiple."""
    borders: tuple[int, ...]
    """Borders in pixels, from 0 on; the last is `size`."""

    @property
    def tiles(self) -> range:
        """Numbers of the tiles."""
        return range(len(self.borders) - 1)


class Span(NamedTuple):
    """Crop ``[start, stop)`` of the image, along one axis, from which a tile is computed."""

    start: int
    """First pixel."""
    stop: int
    """Pixel after the last one."""


@dataclass(frozen=True)
class TilePlan:
    """Tiles of an image, and how they are computed.

    The caches below are plain dictionaries: a plan is used by the one thread that builds the graph,
    and they are bounded by values, axes and tiles of the plan.
    """

    flow: Flow
    outputs: tuple[str, ...]
    """Names of the values to compute."""
    grids: Mapping[int, AxisGrid]
    """Tiled axis to its borders."""
    deficits: Mapping[tuple[str, int], Fraction]
    """Value and tiled axis to the positions that an aligned crop lacks; see `deficits_of`."""
    spans: dict[tuple[int, int, int], Span] = field(default_factory=dict, repr=False)
    """Cache of crops, by component, tiled axis and tile."""

    # Values.

    def places(self, value: str) -> Places:
        """Return the locations of the tiled axes in a value."""
        return self.flow.places(value)

    def layout(self, value: str) -> Layout:
        """Return the axes of a value, split where tiled axes share one."""
        if value not in self._layouts:
            places = self.places(value)
            self._layouts[value] = Layout(factors_of(self.flow.shape(value), places))
        return self._layouts[value]

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {}

    def full(self, value: str) -> dict[int, int]:
        """Return the number of positions that a value has of each tiled axis, for the image."""
        return {k: place.size for k, place in self.places(value).items()}

    def chunks(self, value: str) -> tuple[tuple[int, ...], ...]:
        """Return the sizes of a value's tiles along each axis of its split layout."""
        found: list[tuple[int, ...]] = []
        for size, k in self.layout(value).flat:
            if k is None:
                found.append((size,))
            else:
                ends = [self.tile(value, k, i) for i in self.grids[k].tiles]
                found.append(tuple(stop - start for start, stop in ends))
        return tuple(found)

    def tile(self, value: str, k: int, number: int) -> Interval:
        """Return the positions of a value that belong to a tile, without those it borrows.

        Parameters
        ----------
        value : str
        k : int
            Tiled axis.
        number : int
            Number of the tile along that axis.
        """
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
        """Groups of tiles, pass by pass."""
        return find_groups(self.flow, self.outputs)

    @cached_property
    def untiled_tasks(self) -> tuple[UntiledTask, ...]:
        """Tasks on untiled values, pass by pass."""
        return find_untiled_tasks(self.flow, self.outputs, self.groups)

    @property
    def passes(self) -> int:
        """Number of passes over all tiles."""
        return 1 + max((group.level for group in self.groups), default=0)

    # Tiles.

    def span(self, part: Component, k: int, tile: int) -> Span:
        """Return the crop of the image from which a component computes a tile.

        Parameters
        ----------
        part : Component
        k : int
            Tiled axis.
        tile : int
            Number of the tile along that axis.
        """
        key = (part.number, k, tile)
        if key not in self.spans:
            self.spans[key] = _find_span(self, part, k, tile)
        return self.spans[key]

    def local(self, value: str, k: int, span: Span) -> Interval:
        """Return the positions that a value has when it is computed from a crop of the image."""
        key = (value, k, span)
        if key not in self._locals:
            place = self.places(value)[k]
            start = int(span.start / place.stride)
            if span.stop == self.grids[k].size:
                stop = place.size
            else:
                stop = int(span.stop / place.stride - self.deficits[value, k])
            self._locals[key] = start, stop
        return self._locals[key]

    @cached_property
    def _locals(self) -> dict[tuple[str, int, Span], Interval]:
        return {}

    def reads(self, part: Component, k: int) -> list[tuple[str, list[tuple[str, ReceptiveField]]]]:
        """Return what a component's nodes read along a tiled axis, in reverse order.

        Returns
        -------
        list of (value, list of (input, receptive field))
            One entry for each value that the nodes compute.
        """
        key = (part.number, k)
        if key not in self._reads:
            steps = [self.flow.steps[index] for index in reversed(part.nodes)]
            self._reads[key] = [
                (
                    name,
                    [
                        (e.value, e.receptive_fields[k])
                        for e in step.edges
                        if k in e.receptive_fields
                    ],
                )
                for step in steps
                for name in step.node.outputs
            ]
        return self._reads[key]

    @cached_property
    def _reads(self) -> dict[object, list[tuple[str, list[tuple[str, ReceptiveField]]]]]:
        return {}

    @cached_property
    def margins(self) -> dict[tuple[str, int], int]:
        """Value and tiled axis to the longest reflection that is taken of it, in positions.

        Padding by n positions reflects the n positions next to the border one, so that a crop needs
        more than n.
        """
        found: dict[tuple[str, int], int] = {}
        for step in self.flow.steps.values():
            for edge in step.edges:
                for k, receptive_field in edge.receptive_fields.items():
                    if isinstance(receptive_field, Reflection):
                        found[edge.value, k] = max(
                            found.get((edge.value, k), 0),
                            receptive_field.begin,
                            receptive_field.end,
                        )
        return found


def alignment(strides: Iterable[Fraction]) -> int:
    """Return the smallest number of pixels whose multiples are integer positions of every value.

    Parameters
    ----------
    strides : iterable of Fraction
        Pixels from one position to the next, for each value.
    """
    return math.lcm(1, *(stride.numerator for stride in strides))


def strides_of(flow: Flow, k: int) -> set[Fraction]:
    """Return the strides along a tiled axis of all values that tiles read or compute."""
    found = {traced.places[k].stride for traced in flow.values.values() if k in traced.places}
    return found | {
        edge.places[k].stride
        for step in flow.steps.values()
        for edge in step.edges
        if k in edge.places
    }


def borders_of(size: int, tile: int, align: int, flow: Flow, k: int) -> tuple[int, ...]:
    """Return the borders of tiles of about `tile` pixels, such that every value has each tile.

    Parameters
    ----------
    size : int
        Pixels of the image.
    tile : int
        Pixels of a tile; rounded down to a multiple of `align`, but at least that.
    align : int
        Pixels of which each border but the last is a multiple.
    flow : Flow
    k : int
        Tiled axis.
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


def deficits_of(flow: Flow, grids: Mapping[int, int]) -> dict[tuple[str, int], Fraction]:
    """Return for each value and tiled axis how many positions it lacks on an aligned crop.

    A crop of n pixels would give ``n / stride`` positions; an unpadded convolution, for example,
    gives fewer.

    Parameters
    ----------
    flow : Flow
        Traced for an image whose sizes along tiled axes are multiples of the alignment.
    grids : mapping of int to int
        Tiled axis to that size in pixels.
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
    """Return the crop for a tile: trace its targets back to the image, then align the interval.

    The crop grows by the alignment until it also covers what each value on the way needs.
    """
    grid = plan.grids[k]
    needs = {value: plan.tile(value, k, tile) for value in part.targets}
    for value, reads in plan.reads(part, k):
        if value not in needs:
            continue
        start, stop = needs[value]
        for source, receptive_field in reads:
            low, high = receptive_field.needed(start, stop, plan.places(source)[k].size)
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
        is_whole_image = start == 0 and stop == grid.size
        if is_whole_image or all(_covers(plan, value, k, span, needs[value]) for value in needs):
            return span
        start, stop = max(start - align, 0), min(stop + align, grid.size)


def _covers(plan: TilePlan, value: str, k: int, span: Span, need: Interval) -> bool:
    """Return whether a value computed from a crop has the positions that are needed of it."""
    start, stop = plan.local(value, k, span)
    return start <= need[0] and stop >= need[1] and stop - start > plan.margins.get((value, k), 0)
