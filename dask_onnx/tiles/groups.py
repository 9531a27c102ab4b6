"""Grouping of nodes into tasks: per pass, those that run on tiles and those on untiled values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dask_onnx.tiles.flow import Edge, Flow, Step
from dask_onnx.tiles.places import Places

_GroupKey = tuple[int, tuple[int, ...]]
"""Pass, and tiled axes."""


@dataclass(frozen=True, slots=True)
class Feed:
    """A value that a task receives from other tasks."""

    name: str
    """Name under which the nodes of the task read it; see `feed_name`."""
    value: str
    """Name of the value in the graph."""
    places: Places
    """Locations of the tiled axes in it; empty for a value that is passed untiled."""


@dataclass(frozen=True, slots=True)
class Component:
    """Nodes of a group that share no tile with the others, and so may have crops of their own."""

    number: int
    """Position among all components of the plan."""
    nodes: tuple[int, ...]
    """Indices of the nodes, ascending; empty where all targets are feeds."""
    feeds: tuple[Feed, ...]
    wanted: tuple[str, ...]
    """Values whose tiles the task returns."""
    statistics: tuple[int, ...]
    """Indices of nodes that compute a statistic of a target."""
    targets: tuple[str, ...]
    """Values of which each tile makes its own part: `wanted`, and the inputs of `statistics`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles of one pass that are cut along the same axes: one task for each tile."""

    level: int
    """Pass."""
    axes: tuple[int, ...]
    """Tiled axes."""
    components: tuple[Component, ...]

    @property
    def nodes(self) -> list[int]:
        """Indices of the nodes of all components, ascending."""
        return sorted(index for part in self.components for index in part.nodes)

    @property
    def wanted(self) -> list[str]:
        """Values whose tiles the tasks return, component by component."""
        return [value for part in self.components for value in part.wanted]

    @property
    def statistics(self) -> list[int]:
        """Indices of nodes that compute a statistic of a target, component by component."""
        return [index for part in self.components for index in part.statistics]


@dataclass(frozen=True, slots=True)
class UntiledTask:
    """Nodes that one task runs on untiled values, before the tiles of its pass."""

    level: int
    """Pass."""
    wanted: tuple[str, ...]
    """Values that the task returns."""
    nodes: tuple[int, ...]
    """Indices of the nodes, ascending."""
    feeds: tuple[Feed, ...]


def find_groups(flow: Flow, outputs: Sequence[str]) -> tuple[Group, ...]:
    """Return the groups of tiles that compute some outputs, pass by pass."""
    return tuple(_groups(flow, outputs))


def find_untiled_tasks(
    flow: Flow, outputs: Sequence[str], groups: Sequence[Group]
) -> tuple[UntiledTask, ...]:
    """Return the tasks on untiled values that some outputs and groups need, pass by pass."""
    return tuple(_untiled_tasks(flow, outputs, groups))


def feed_name(flow: Flow, step: Step, edge: Edge) -> str:
    """Return the name under which a node reads a feed.

    One part of the model may read both a tile of a value and all of it, so that the two need
    different names.
    """
    traced = flow.values.get(edge.value)
    if edge.places or traced is None:
        return edge.value
    is_unambiguous = traced.is_untiled and (step.is_untiled or not traced.places)
    return edge.value if is_unambiguous else f"{edge.value}::whole"


def _is_feed(flow: Flow, value: str, level: int) -> bool:
    """Return whether tiles of a pass receive a value instead of computing it."""
    traced = flow.values.get(value)
    if traced is None or value in flow.sources or traced.is_untiled:
        return True
    if traced.level < level and (flow.kept is None or value in flow.kept):
        return True
    return bool(flow.steps[flow.facts.producer[value]].reduced)


def kept_values(flow: Flow, outputs: Sequence[str]) -> frozenset[str]:
    """Return the values whose tiles are kept for later passes, or because they are outputs."""
    kept, _ = _kept_and_measured(flow, outputs)
    return frozenset(name for names in kept.values() for name in names)


def gathered_values(flow: Flow) -> frozenset[str]:
    """Return the values made by tiles that some task needs as a whole."""
    return frozenset(
        edge.value
        for step in flow.steps.values()
        for edge in step.edges
        if (step.is_untiled or edge.is_gathered) and not step.reduced
    )


def _groups(flow: Flow, outputs: Sequence[str]) -> Iterable[Group]:
    kept, measured = _kept_and_measured(flow, outputs)
    count = 0
    for key in sorted({*kept, *measured}):
        level, axes = key
        wanted, nodes = tuple(kept.get(key, ())), tuple(measured.get(key, ()))
        found = []
        targets = [*wanted, *(flow.steps[n].edges[0].value for n in nodes)]
        for part in _independent_targets(flow, targets, level):
            indices, feeds = _tile_nodes(flow, part, level)
            statistics = tuple(n for n in nodes if flow.steps[n].edges[0].value in part)
            returned = tuple(value for value in wanted if value in part)
            found.append(Component(count, indices, feeds, returned, statistics, part))
            count += 1
        yield Group(level, axes, tuple(found))


def _kept_and_measured(
    flow: Flow, outputs: Sequence[str]
) -> tuple[dict[_GroupKey, dict[str, None]], dict[_GroupKey, dict[int, None]]]:
    """Return for each group the values that its tiles return, and the statistics that they take.

    The inner dictionaries are ordered sets: the order of values is that of the tasks' results.
    """
    kept: dict[_GroupKey, dict[str, None]] = {}
    measured: dict[_GroupKey, dict[int, None]] = {}

    def key_of(value: str) -> _GroupKey:
        traced = flow.values[value]
        return traced.level, tuple(sorted(traced.places))

    def keep(value: str) -> None:
        traced = flow.values.get(value)
        is_tile = traced is not None and not traced.is_untiled and value not in flow.sources
        if is_tile and not flow.steps[flow.facts.producer[value]].reduced:
            kept.setdefault(key_of(value), {})[value] = None

    for output in outputs:
        keep(output)
    for step in flow.steps.values():
        for edge in step.edges:
            traced = flow.values.get(edge.value)
            if traced is None or traced.is_untiled:
                continue
            if step.reduced:
                measured.setdefault(key_of(edge.value), {})[step.node.index] = None
            elif step.is_untiled or edge.is_gathered or _is_kept(flow, step, edge.value):
                keep(edge.value)
    return kept, measured


def _is_kept(flow: Flow, step: Step, value: str) -> bool:
    """Return whether the tiles of a value are kept for a node of a later pass."""
    is_later = step.level > flow.values[value].level
    return is_later and (flow.kept is None or value in flow.kept)


def _independent_targets(flow: Flow, targets: Sequence[str], level: int) -> list[tuple[str, ...]]:
    """Return the targets in sets that share neither nodes nor tiled feeds."""
    set_of: dict[str, int] = {}
    sets: dict[int, list[str]] = {}
    for number, target in enumerate(dict.fromkeys(targets)):
        nodes, feeds = _tile_nodes(flow, [target], level)
        names = [name for index in nodes for name in flow.steps[index].node.outputs]
        touched = {*names, *(feed.value for feed in feeds if feed.places)}
        before = {set_of[name] for name in touched if name in set_of}
        sets[number] = [*(name for old in sorted(before) for name in sets.pop(old)), target]
        set_of = {name: number if old in before else old for name, old in set_of.items()}
        set_of |= dict.fromkeys(touched, number)
    return [tuple(members) for members in sets.values()]


def _tile_nodes(
    flow: Flow, targets: Sequence[str], level: int
) -> tuple[tuple[int, ...], tuple[Feed, ...]]:
    """Return the nodes that compute some values on tiles of a pass, and their feeds."""
    nodes: set[int] = set()
    feeds: dict[str, Feed] = {}
    pending = list(dict.fromkeys(targets))
    for value in pending:  # grows while it is walked
        if _is_feed(flow, value, level):
            feeds[value] = Feed(value, value, flow.places(value))
            continue
        index = flow.facts.producer[value]
        if index in nodes:
            continue
        nodes.add(index)
        step = flow.steps[index]
        for edge in step.edges:
            if edge.is_gathered or _is_feed(flow, edge.value, level):
                name = feed_name(flow, step, edge)
                feeds.setdefault(name, Feed(name, edge.value, edge.places))
            else:
                pending.append(edge.value)
    return tuple(sorted(nodes)), tuple(feeds.values())


def _untiled_tasks(
    flow: Flow, outputs: Sequence[str], groups: Sequence[Group]
) -> Iterable[UntiledTask]:
    wanted: dict[int, dict[str, None]] = {}
    for part in (part for group in groups for part in group.components):
        for feed in part.feeds:
            _want_untiled(flow, wanted, feed.value)
    for output in outputs:
        _want_untiled(flow, wanted, output)
    for step in flow.steps.values():
        for edge in step.edges:
            traced = flow.values.get(edge.value)
            if traced is None or not (traced.is_untiled and step.is_untiled):
                continue
            if step.level != traced.level or step.reduced:
                _want_untiled(flow, wanted, edge.value)
    for level in sorted(wanted):
        names = tuple(wanted[level])
        nodes, feeds = _untiled_nodes(flow, names, level)
        yield UntiledTask(level, names, nodes, feeds)


def _want_untiled(flow: Flow, wanted: dict[int, dict[str, None]], value: str) -> None:
    """Add a value to those of its pass, if a task on untiled values has to compute it."""
    traced = flow.values.get(value)
    if traced is None:
        if value not in flow.known:
            wanted.setdefault(0, {})[value] = None
    elif traced.is_untiled and not flow.steps[flow.facts.producer[value]].reduced:
        wanted.setdefault(traced.level, {})[value] = None


def _untiled_nodes(
    flow: Flow, targets: Sequence[str], level: int
) -> tuple[tuple[int, ...], tuple[Feed, ...]]:
    """Return the nodes that compute some untiled values in a pass, and their feeds."""
    nodes: set[int] = set()
    feeds: dict[str, Feed] = {}
    pending = [value for value in targets if value in flow.values]
    for value in pending:  # grows while it is walked
        index = flow.facts.producer[value]
        if index in nodes:
            continue
        nodes.add(index)
        step = flow.steps[index]
        for edge in step.edges:
            traced = flow.values[edge.value]
            producer = flow.steps.get(flow.facts.producer.get(edge.value, -1))
            is_statistic = producer is not None and bool(producer.reduced)
            if not traced.is_untiled or traced.level < level or is_statistic:
                name = feed_name(flow, step, edge)
                feeds.setdefault(name, Feed(name, edge.value, {}))
            else:
                pending.append(edge.value)
    return tuple(sorted(nodes)), tuple(feeds.values())
