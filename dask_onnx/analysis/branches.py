"""What of a graph can run side by side: serial pieces and regions of independent branches.

A graph is read as a series: nodes that lie on every path cut it into segments, and a segment whose
nodes fall into parts that do not read each other is a region. Where parts meet again is another
segment, read in the same way. Nodes that cost next to nothing and need nothing dear (the embedding
that all branches read, arithmetic on shapes) belong to no part: each that needs them may repeat
them, which is cheaper than sending their values.

Series and parallel regions after Valdes, Tarjan and Lawler, "The recognition of series parallel
digraphs" (1982), without their insistence that nothing else occurs: what does not fall apart stays
serial.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.analysis.graph import GraphFacts

_DEEPEST = 32
"""Regions within what joins regions; deeper nesting stays serial."""


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes that run one after the other, or parts of which none reads another."""

    parts: tuple[tuple[int, ...], ...]
    """Node positions, ascending in each; one part is serial."""
    seconds: tuple[float, ...]
    """Of each part, one node after the other."""

    @property
    def is_parallel(self) -> bool:
        return len(self.parts) > 1

    @property
    def nodes(self) -> list[int]:
        return sorted(node for part in self.parts for node in part)


def find_regions(
    facts: GraphFacts,
    seconds: Mapping[int, float],
    free: Collection[int] = (),
    *,
    join_share: float = 0.0,
) -> tuple[Region, ...]:
    """The regions of some nodes, in the order in which they can run. Linear in nodes and edges,
    times the depth of the nesting.

    Parameters
    ----------
    seconds : predicted time of each of the nodes, which are there with all that they need
    free : nodes that belong to no region
    join_share : parts are taken as one where they meet, up to this share of their segment's time
    """
    bound = [node for node in sorted(seconds) if node not in free]
    return tuple(_joined(_read(facts, bound, seconds, join_share), seconds))


def needed(facts: GraphFacts, nodes: Iterable[int], free: Collection[int]) -> list[int]:
    """Some nodes with the free ones that they need; ascending."""
    found = set(nodes)
    pending = list(found)
    while pending:
        for before in facts.predecessors[pending.pop()]:
            if before in free and before not in found:
                found.add(before)
                pending.append(before)
    return sorted(found)


def free_nodes(
    facts: GraphFacts, seconds: Mapping[int, float], share: float, fixed: Collection[int] = ()
) -> frozenset[int]:
    """Nodes that any region may repeat: that need none but such, and take no more than a share of
    all seconds together; and what follows from weights alone, which is seldom read twice.

    Parameters
    ----------
    seconds : predicted time of each node that there is
    fixed : nodes that must not be repeated
    """
    budget = share * sum(seconds.values())
    free: set[int] = set()
    spent = 0.0
    for node in sorted(seconds):
        if node in fixed or not free.issuperset(facts.predecessors[node]):
            continue
        if node in facts.constant_nodes:
            free.add(node)
        elif spent + seconds[node] <= budget:
            spent += seconds[node]
            free.add(node)
    return frozenset(free)


def _read(
    facts: GraphFacts,
    members: Sequence[int],
    cost: Mapping[int, float],
    join_share: float,
    depth: int = 0,
) -> Iterator[Region]:
    segments = list(_segments(facts, members))
    for segment in segments:
        parts, rest = _parts(facts, segment, cost, join_share)
        if depth == _DEEPEST or len(segment) == 1:
            yield _region([segment], cost)
        elif len(parts) > 1:
            yield _region(parts, cost)
            yield from _read(facts, rest, cost, join_share, depth + 1)
        elif len(segments) > 1 and not rest:
            # Without the nodes around it, which edges passed by, it may fall apart further.
            yield from _read(facts, segment, cost, join_share, depth + 1)
        else:
            yield _region([segment], cost)


def _joined(regions: Iterable[Region], cost: Mapping[int, float]) -> Iterator[Region]:
    """Serial regions that follow each other as one."""
    serial: list[int] = []
    for region in regions:
        if not region.is_parallel:
            serial += region.nodes
            continue
        if serial:
            yield _region([serial], cost)
            serial = []
        yield region
    if serial:
        yield _region([serial], cost)


def _region(parts: Sequence[Sequence[int]], cost: Mapping[int, float]) -> Region:
    return Region(
        tuple(tuple(sorted(part)) for part in parts),
        tuple(sum(cost[node] for node in part) for part in parts),
    )


def _segments(facts: GraphFacts, members: Sequence[int]) -> Iterator[list[int]]:
    """Cut at the nodes that lie on every path: those that no edge passes by."""
    if not members:
        return
    inside = set(members)
    place = {node: i for i, node in enumerate(members)}
    furthest, segment = -1, list[int]()
    starts = [n for n in members if inside.isdisjoint(facts.predecessors[n])]
    for i, node in enumerate(members):
        # A later node that reads none of these is on a path of its own.
        if furthest <= i and place[starts[-1]] <= i:
            if segment:
                yield segment
            yield [node]
            segment = []
        else:
            segment.append(node)
        ends = [place[n] for n in facts.successors[node] if n in inside]
        # A path that ends here passes by all that comes after.
        furthest = max([furthest, *ends] if ends else [furthest, len(members)])
    if segment:
        yield segment


def _parts(
    facts: GraphFacts, segment: Sequence[int], cost: Mapping[int, float], join_share: float
) -> tuple[list[list[int]], list[int]]:
    """Parts of a segment that do not read each other, and the nodes behind where they meet."""
    most = join_share * sum(cost[node] for node in segment)
    leader: dict[int, int] = {}
    weight: defaultdict[int, float] = defaultdict(float)
    behind: set[int] = set()
    inside = set(segment)

    def find(node: int) -> int:
        while leader[node] != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for node in segment:
        before = [n for n in facts.predecessors[node] if n in inside]
        roots = {find(n) for n in before if n not in behind}
        total = sum(weight[root] for root in roots) + cost[node]
        if not behind.isdisjoint(before) or (len(roots) > 1 and total > most):
            behind.add(node)
            continue
        leader[node] = node
        for root in roots:
            leader[root] = node
        weight[node] = total
    parts: defaultdict[int, list[int]] = defaultdict(list)
    for node in leader:
        parts[find(node)].append(node)
    return list(parts.values()), sorted(behind)
