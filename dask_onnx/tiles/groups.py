"""What runs together: the tiles of a pass in groups, and what is made of whole values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dask_onnx.tiles.flow import Edge, Flow, Step
from dask_onnx.tiles.places import Places


@dataclass(frozen=True, slots=True)
class Feed:
    """A value that the tiles of a group are given."""

    name: str
    """As the nodes of the group call it."""
    value: str
    places: Places
    """Where it is cut; empty for one that is given whole."""


@dataclass(frozen=True, slots=True)
class Component:
    """Nodes of a group that share no tile with its others, and so may have crops of their own."""

    number: int
    """Among all components of the plan."""
    nodes: tuple[int, ...]
    """Ascending; none where what is wanted is given."""
    feeds: tuple[Feed, ...]
    wanted: tuple[str, ...]
    """Values whose tiles are kept."""
    statistics: tuple[int, ...]
    """Nodes that take a statistic of what is made here."""
    ends: tuple[str, ...]
    """Values of which each tile makes its own part: those kept, those of the statistics."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles of one pass that are cut along the same axes: one task for each."""

    level: int
    axes: tuple[int, ...]
    components: tuple[Component, ...]

    @property
    def nodes(self) -> list[int]:
        """That all components run, ascending."""
        return sorted(index for part in self.components for index in part.nodes)

    @property
    def wanted(self) -> list[str]:
        """Values whose tiles are kept, component by component."""
        return [value for part in self.components for value in part.wanted]

    @property
    def statistics(self) -> list[int]:
        """Nodes that take a statistic of what is made here, component by component."""
        return [index for part in self.components for index in part.statistics]


@dataclass(frozen=True, slots=True)
class Once:
    """What is made of whole values, in one task, before the tiles of its pass."""

    level: int
    wanted: tuple[str, ...]
    nodes: tuple[int, ...]
    feeds: tuple[Feed, ...]


def find_groups(flow: Flow, outputs: Sequence[str]) -> tuple[Group, ...]:
    """Return all groups of tiles that some outputs need, pass by pass."""
    return tuple(_groups(flow, outputs))


def find_onces(flow: Flow, outputs: Sequence[str], groups: Sequence[Group]) -> tuple[Once, ...]:
    """Return all tasks on whole values, pass by pass."""
    return tuple(_onces(flow, outputs, groups))


def feed_name(flow: Flow, step: Step, edge: Edge) -> str:
    """Return what a node calls an input that it is given: a tile and the whole differ."""
    traced = flow.values.get(edge.value)
    if edge.places or traced is None:
        return edge.value
    is_plain = traced.is_once and (step.is_once or not traced.places)
    return edge.value if is_plain else f"{edge.value}::whole"


def _is_given(flow: Flow, value: str, level: int) -> bool:
    """Whether tiles of a pass are given a value, rather than making it."""
    traced = flow.values.get(value)
    if traced is None or value == flow.source or traced.is_once or traced.level < level:
        return True
    return bool(flow.steps[flow.facts.producer[value]].reduced)


def _groups(flow: Flow, outputs: Sequence[str]) -> Iterable[Group]:
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

    for output in outputs:
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
    count = 0
    for key in sorted({*kept, *measured}):
        level, axes = key
        wanted, nodes = tuple(kept.get(key, ())), tuple(measured.get(key, ()))
        found = []
        for ends in _apart(flow, [*wanted, *(flow.steps[n].edges[0].value for n in nodes)], level):
            made, feeds = _made(flow, ends, level)
            own = tuple(n for n in nodes if flow.steps[n].edges[0].value in ends)
            inline = tuple(value for value in wanted if value in ends)
            found.append(Component(count, made, feeds, inline, own, ends))
            count += 1
        yield Group(level, axes, tuple(found))


def _apart(flow: Flow, ends: Sequence[str], level: int) -> list[tuple[str, ...]]:
    """Wanted values in groups that no tile is shared between on their way."""
    owner: dict[str, int] = {}
    groups: dict[int, list[str]] = {}
    for number, end in enumerate(dict.fromkeys(ends)):
        nodes, feeds = _made(flow, [end], level)
        names = [name for index in nodes for name in flow.steps[index].node.outputs]
        touched = {*names, *(feed.value for feed in feeds if feed.places)}
        before = {owner[name] for name in touched if name in owner}
        groups[number] = [*(end for old in sorted(before) for end in groups.pop(old)), end]
        owner = {name: number if old in before else old for name, old in owner.items()}
        owner |= dict.fromkeys(touched, number)
    return [tuple(group) for group in groups.values()]


def _made(flow: Flow, ends: Sequence[str], level: int) -> tuple[tuple[int, ...], tuple[Feed, ...]]:
    """The nodes that make some values on tiles, and what these are given."""
    nodes: set[int] = set()
    feeds: dict[str, Feed] = {}
    pending = list(dict.fromkeys(ends))
    for value in pending:
        if _is_given(flow, value, level):
            feeds[value] = Feed(value, value, flow.places(value))
            continue
        index = flow.facts.producer[value]
        if index in nodes:
            continue
        nodes.add(index)
        step = flow.steps[index]
        for edge in step.edges:
            if edge.is_whole or _is_given(flow, edge.value, level):
                name = feed_name(flow, step, edge)
                feeds.setdefault(name, Feed(name, edge.value, edge.places))
            else:
                pending.append(edge.value)
    return tuple(sorted(nodes)), tuple(feeds.values())


def _onces(flow: Flow, outputs: Sequence[str], groups: Sequence[Group]) -> Iterable[Once]:
    wanted: dict[int, dict[str, None]] = {}
    for part in (part for group in groups for part in group.components):
        for feed in part.feeds:
            _want(flow, wanted, feed.value)
    for output in outputs:
        _want(flow, wanted, output)
    for step in flow.steps.values():
        for edge in step.edges:
            traced = flow.values.get(edge.value)
            if traced is None or not (traced.is_once and step.is_once):
                continue
            if step.level != traced.level or step.reduced:
                _want(flow, wanted, edge.value)
    for level in sorted(wanted):
        names = tuple(wanted[level])
        nodes, feeds = _made_once(flow, names, level)
        yield Once(level, names, nodes, feeds)


def _want(flow: Flow, wanted: dict[int, dict[str, None]], value: str) -> None:
    """Note a value that a task on whole values has to make."""
    traced = flow.values.get(value)
    if traced is None:
        if value not in flow.known:
            wanted.setdefault(0, {})[value] = None
    elif traced.is_once and not flow.steps[flow.facts.producer[value]].reduced:
        wanted.setdefault(traced.level, {})[value] = None


def _made_once(
    flow: Flow, ends: Sequence[str], level: int
) -> tuple[tuple[int, ...], tuple[Feed, ...]]:
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
