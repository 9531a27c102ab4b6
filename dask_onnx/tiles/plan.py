"""Which tiles there are, what each needs, and in which passes they are made. Pure arithmetic.

The graph is traced once; after that a tile costs interval arithmetic only, axis by axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from dask_onnx.tiles.flow import Edge, Flow, Step
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


@dataclass(frozen=True, slots=True)
class Feed:
    """A value that the tiles of a group are given."""

    name: str
    """As the nodes of the group call it."""
    value: str
    places: Places
    """Where it is cut; empty for one that is given whole."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles of one pass that are cut along the same axes."""

    level: int
    axes: tuple[int, ...]
    wanted: tuple[str, ...]
    """Values whose tiles are kept."""
    statistics: tuple[int, ...]
    """Nodes that take a statistic of what is made here."""
    nodes: tuple[int, ...]
    """That make them, ascending; may be none, where what is wanted is given."""
    feeds: tuple[Feed, ...]

    def ends(self, flow: Flow) -> tuple[str, ...]:
        """Values of which each tile makes its own part: those kept, those of the statistics."""
        measured = (flow.steps[index].edges[0].value for index in self.statistics)
        return tuple(dict.fromkeys((*self.wanted, *measured)))


@dataclass(frozen=True, slots=True)
class Once:
    """What is made of whole values, in one task, before the tiles of its pass."""

    level: int
    wanted: tuple[str, ...]
    nodes: tuple[int, ...]
    feeds: tuple[Feed, ...]


@dataclass(frozen=True)
class TilePlan:
    """How a picture is cut, and how its tiles are computed."""

    flow: Flow
    outputs: tuple[str, ...]
    grids: Mapping[int, AxisGrid]
    lacks: Mapping[tuple[str, int], Fraction]
    """Positions that a value has less than its stride would give it on an aligned crop."""
    _spans: dict[tuple[int, int, int], Span] = field(default_factory=dict, repr=False)

    # Values.

    def places(self, value: str) -> Places:
        """Where the tiled axes lie in a value."""
        traced = self.flow.values.get(value)
        if traced is not None and traced.places:
            return traced.places
        return self._beside.get(value, {})

    @cached_property
    def _beside(self) -> dict[str, Places]:
        """Places of values that stand beside the picture, as their readers see them."""
        return {
            edge.value: edge.places
            for step in self.flow.steps.values()
            for edge in step.edges
            if edge.places
        }

    def layout(self, value: str) -> Layout:
        """The axes of a value, taken apart where tiled axes share one."""
        if value not in self._layouts:
            places = self.places(value)
            self._layouts[value] = Layout(factors_of(self.flow.shape(value), places))
        return self._layouts[value]

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {}

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
        return tuple(_groups(self))

    @cached_property
    def onces(self) -> tuple[Once, ...]:
        """All tasks on whole values, pass by pass."""
        return tuple(_onces(self))

    @property
    def passes(self) -> int:
        """Times that all tiles are gone through."""
        return 1 + max((group.level for group in self.groups), default=0)

    # Tiles.

    def span(self, number: int, k: int, tile: int) -> Span:
        """The crop that tile `tile` along axis `k` of a group is computed from."""
        key = (number, k, tile)
        if key not in self._spans:
            self._spans[key] = _find_span(self, self.groups[number], k, tile)
        return self._spans[key]

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

    def reads(self, group: Group, k: int) -> list[tuple[str, list[tuple[str, Reach]]]]:
        """For each value that a group makes, the last first, what its node reads along an axis."""
        key = (group.level, group.axes, k)
        if key not in self._reads:
            steps = [self.flow.steps[index] for index in reversed(group.nodes)]
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


# Groups.


def feed_name(flow: Flow, step: Step, edge: Edge) -> str:
    """Return what a node calls an input that it is given: a tile and the whole differ."""
    traced = flow.values.get(edge.value)
    if edge.places or traced is None:
        return edge.value
    is_plain = traced.is_once and (step.is_once or not traced.places)
    return edge.value if is_plain else f"{edge.value}::whole"


def _is_given(plan: TilePlan, value: str, level: int) -> bool:
    """Whether tiles of a pass are given a value, rather than making it."""
    flow = plan.flow
    traced = flow.values.get(value)
    if traced is None or value == flow.source or traced.is_once or traced.level < level:
        return True
    return bool(flow.steps[flow.facts.producer[value]].reduced)


def _groups(plan: TilePlan) -> Iterable[Group]:
    flow = plan.flow
    kept: dict[tuple[int, tuple[int, ...]], dict[str, None]] = {}
    measured: dict[tuple[int, tuple[int, ...]], dict[int, None]] = {}

    def key_of(value: str) -> tuple[int, tuple[int, ...]]:
        traced = flow.values[value]
        return traced.level, tuple(sorted(traced.places))

    def keep(value: str) -> None:
        traced = flow.values.get(value)
        is_tile = traced is not None and not traced.is_once and value != flow.source
        if is_tile and not flow.steps[flow.facts.producer[value]].reduced:
            kept.setdefault(key_of(value), {})[value] = None

    for output in plan.outputs:
        keep(output)
    for step in flow.steps.values():
        for edge in step.edges:
            traced = flow.values.get(edge.value)
            if traced is None or traced.is_once:
                continue
            if step.reduced:
                measured.setdefault(key_of(edge.value), {})[step.node.index] = None
            elif step.is_once or step.level > traced.level:
                keep(edge.value)
    for key in sorted({*kept, *measured}):
        level, axes = key
        wanted, nodes = tuple(kept.get(key, ())), tuple(measured.get(key, ()))
        ends = [*wanted, *(flow.steps[n].edges[0].value for n in nodes)]
        made, feeds = _made(plan, ends, level)
        yield Group(level, axes, wanted, nodes, made, feeds)


def _made(
    plan: TilePlan, ends: Sequence[str], level: int
) -> tuple[tuple[int, ...], tuple[Feed, ...]]:
    """The nodes that make some values on tiles, and what these are given."""
    flow = plan.flow
    nodes: set[int] = set()
    feeds: dict[str, Feed] = {}
    pending = list(dict.fromkeys(ends))
    for value in pending:
        if _is_given(plan, value, level):
            feeds[value] = Feed(value, value, plan.places(value))
            continue
        index = flow.facts.producer[value]
        if index in nodes:
            continue
        nodes.add(index)
        step = flow.steps[index]
        for edge in step.edges:
            if edge.is_whole or _is_given(plan, edge.value, level):
                name = feed_name(flow, step, edge)
                feeds.setdefault(name, Feed(name, edge.value, edge.places))
            else:
                pending.append(edge.value)
    return tuple(sorted(nodes)), tuple(feeds.values())


def _onces(plan: TilePlan) -> Iterable[Once]:
    flow = plan.flow
    wanted: dict[int, dict[str, None]] = {}
    for group in plan.groups:
        for feed in group.feeds:
            _want(plan, wanted, feed.value)
    for output in plan.outputs:
        _want(plan, wanted, output)
    for step in flow.steps.values():
        for edge in step.edges:
            traced = flow.values.get(edge.value)
            if traced is None or not (traced.is_once and step.is_once):
                continue
            if step.level != traced.level or step.reduced:
                _want(plan, wanted, edge.value)
    for level in sorted(wanted):
        names = tuple(wanted[level])
        nodes, feeds = _made_once(plan, names, level)
        yield Once(level, names, nodes, feeds)


def _want(plan: TilePlan, wanted: dict[int, dict[str, None]], value: str) -> None:
    """Note a value that a task on whole values has to make."""
    flow = plan.flow
    traced = flow.values.get(value)
    if traced is None:
        wanted.setdefault(0, {})[value] = None
    elif traced.is_once and not flow.steps[flow.facts.producer[value]].reduced:
        wanted.setdefault(traced.level, {})[value] = None


def _made_once(
    plan: TilePlan, ends: Sequence[str], level: int
) -> tuple[tuple[int, ...], tuple[Feed, ...]]:
    flow = plan.flow
    nodes: set[int] = set()
    feeds: dict[str, Feed] = {}
    pending = [value for value in ends if value in flow.values]
    for value in pending:
        index = flow.facts.producer[value]
        if index in nodes:
            continue
        nodes.add(index)
        step = flow.steps[index]
        for edge in step.edges:
            traced = flow.values[edge.value]
            maker = flow.steps.get(flow.facts.producer.get(edge.value, -1))
            is_statistic = maker is not None and bool(maker.reduced)
            if not traced.is_once or traced.level < level or is_statistic:
                name = feed_name(flow, step, edge)
                feeds.setdefault(name, Feed(name, edge.value, {}))
            else:
                pending.append(edge.value)
    return tuple(sorted(nodes)), tuple(feeds.values())


# Spans.


def _find_span(plan: TilePlan, group: Group, k: int, tile: int) -> Span:
    """Go back from what a tile is to give to the pixels that it needs, and align these."""
    grid = plan.grids[k]
    needs = {value: plan.tile(value, k, tile) for value in group.ends(plan.flow)}
    for value, reads in plan.reads(group, k):
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
