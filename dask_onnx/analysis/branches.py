"""Decomposition of a graph into serial regions and regions of independent branches.

Nodes are visited in topological order. While a single node is ready, it joins a serial region.
Where several are ready, each starts a branch: nodes whose inputs come from one branch alone belong
to that branch, so that branches do not read each other. Nodes that need several branches end the
region, and the visit goes on with them. Cheap nodes without expensive ancestors (an embedding that
all branches read, arithmetic on shapes) are free: they belong to no branch, since repeating them in
each is cheaper than sending their values.

Series and parallel regions follow Valdes, Tarjan and Lawler, "The recognition of series parallel
digraphs" (1982), but other graphs are accepted: what does not decompose stays serial. A branch is
what its first node dominates among the remaining nodes (Lengauer and Tarjan, "A fast algorithm for
finding dominators in a flowgraph", 1979). Dominators are found during the visit, since every node
comes after its ancestors.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from dask_onnx.analysis.graph import GraphFacts

_NEVER = 1 << 60
"""Count of missing predecessors of nodes outside the visit: more than any node has."""
_LOOKS = 16
"""Number of times that each node may be examined, on average, in search of segment ends."""


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes that run one after the other, or branches that do not read each other."""

    parts: tuple[tuple[int, ...], ...]
    """Node positions of each branch, ascending; a serial region has one part."""
    seconds: tuple[float, ...]
    """Predicted seconds of each part, its nodes run one after the other."""

    @property
    def is_parallel(self) -> bool:
        """True if the region has several branches."""
        return len(self.parts) > 1

    @property
    def nodes(self) -> list[int]:
        """Node positions of all parts, ascending."""
        return sorted(node for part in self.parts for node in part)


def find_regions(
    facts: GraphFacts,
    seconds: Mapping[int, float],
    free: Collection[int] = (),
    *,
    join_share: float = 0.0,
) -> tuple[Region, ...]:
    """Return the regions of some nodes, in an order in which they can run.

    Time is linear in nodes and edges, but for a heap of the ready nodes, however deep branches are
    nested.

    Parameters
    ----------
    facts : GraphFacts
    seconds : mapping of int to float
        Predicted seconds of each node to visit, by position; all ancestors are among them.
    free : collection of int
        Nodes that belong to no region.
    join_share : float
        Branches are joined where they meet, as long as the result takes no more than this share of
        the time until the next node that lies on every path.
    """
    return tuple(_joined(_RegionFinder(facts, seconds, free).regions(join_share), seconds))


def with_free_ancestors(facts: GraphFacts, nodes: Iterable[int], free: Set[int]) -> list[int]:
    """Return nodes together with the free nodes that they need, ascending."""
    found = set(nodes)
    pending = list(found) if free else []
    while pending:
        for before in free & set(facts.predecessors[pending.pop()]):
            if before not in found:
                found.add(before)
                pending.append(before)
    return sorted(found)


def free_nodes(
    facts: GraphFacts, seconds: Mapping[int, float], share: float, fixed: Collection[int] = ()
) -> frozenset[int]:
    """Return the nodes that several branches may repeat rather than send their values.

    Free nodes have free ancestors only. Nodes that depend on initializers alone are free whatever
    they cost, since seldom more than one branch needs them.

    Parameters
    ----------
    facts : GraphFacts
    seconds : mapping of int to float
        Predicted seconds of each node, by position.
    share : float
        Largest share of all seconds that the free nodes may take together.
    fixed : collection of int
        Nodes that must not be repeated.
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


class _RegionFinder:
    """The state of a visit: the nodes that are left, and those of them that are ready.

    Parameters
    ----------
    facts : GraphFacts
    cost : mapping of int to float
        Predicted seconds of each node to visit.
    free : collection of int
        Nodes that belong to no region.
    """

    def __init__(self, facts: GraphFacts, cost: Mapping[int, float], free: Collection[int]) -> None:
        self.facts = facts
        self.cost = cost
        bound = [node for node in sorted(cost) if node not in free]
        self.left = set(bound)
        """Nodes that are in no region yet."""
        self.waiting = [_NEVER] * len(facts.nodes)
        """For each node the number of predecessors that are left."""
        for node in bound:
            self.waiting[node] = len(facts.predecessors[node])
        for node in free:
            self._release(node)
        self.ready = [node for node in bound if not self.waiting[node]]
        """Nodes without predecessors among those left, ascending."""
        self.budget = _LOOKS * len(bound)
        """Nodes that may still be examined in search of segment ends."""

    def regions(self, join_share: float) -> Iterator[list[list[int]]]:
        """Yield the parts of one region after the other; a serial region has one part."""
        end, max_seconds = math.inf, 0.0
        while self.ready:
            if len(self.ready) == 1:
                parts = [self.ready]
                self.ready = sorted(self._release(self.ready[0]))
            else:
                if join_share:
                    end, max_seconds = self._segment(end, max_seconds, join_share)
                parts = self._parts(end, max_seconds)
            self.left.difference_update(*parts)
            yield parts

    def _release(self, node: int) -> list[int]:
        """Mark a node as visited; return the nodes that become ready."""
        ready, waiting = [], self.waiting
        for after in self.facts.successors[node]:
            count = waiting[after] = waiting[after] - 1
            if not count:
                ready.append(after)
        return ready

    def _segment(self, end: float, max_seconds: float, join_share: float) -> tuple[float, float]:
        """Return the next node that lies on every path, and a share of the seconds until there.

        No edge bypasses that node, and no path starts behind it; infinity if there is none. Once
        the budget is spent, the last segment is returned again: the search stays linear.

        Parameters
        ----------
        end, max_seconds : float
            The last segment.
        join_share : float
        """
        first = self.ready[0]  # the first of all that are left: the others have an ancestor here
        if self.budget <= 0 and first < end:
            return end, max_seconds
        furthest, total = float(self.ready[-1]), 0.0
        for node in range(first, len(self.facts.nodes)):
            self.budget -= 1
            if node in self.left:
                if furthest <= node:
                    return node, join_share * total
                total += self.cost[node]
                # A path that ends here bypasses everything after it.
                furthest = max(furthest, self._last_consumer(node))
        return math.inf, join_share * total

    def _last_consumer(self, node: int) -> float:
        return next((n for n in reversed(self.facts.successors[node]) if n in self.left), math.inf)

    def _parts(self, end: float, max_seconds: float) -> list[list[int]]:
        """Return the branches that begin at the ready nodes, by union-find.

        Parameters
        ----------
        end : float
            The node that ends the segment.
        max_seconds : float
            Branches that meet are joined if they take no more together; else the node where they
            meet ends the region.
        """
        leader: dict[int, int] = {}
        seconds: dict[int, float] = {}
        visited: set[int] = set()

        def find(node: int) -> int:
            while leader[node] != node:
                leader[node] = leader[leader[node]]
                node = leader[node]
            return node

        ready, behind = self.ready, list[int]()
        while ready:  # ascending, so a heap from the start
            node = heapq.heappop(ready)
            # Most predecessors share a leader: comparing leaders is cheaper than finding each root.
            leaders = {leader[n] for n in visited.intersection(self.facts.predecessors[node])}
            roots = set(map(find, leaders))
            total = sum(seconds[root] for root in roots) + self.cost[node]
            if node >= end or (len(roots) > 1 and total > max_seconds):
                behind.append(node)
                continue
            visited.add(node)
            root = leader[node] = min(roots, default=node)
            for other in roots:
                leader[other] = root
            seconds[root] = total
            for after in self._release(node):
                heapq.heappush(ready, after)
        self.ready = behind
        parts: defaultdict[int, list[int]] = defaultdict(list)
        for node in leader:
            parts[find(node)].append(node)
        return list(parts.values())


def _joined(
    regions: Iterable[Sequence[Sequence[int]]], cost: Mapping[int, float]
) -> Iterator[Region]:
    """Yield the regions, consecutive serial ones as one."""
    for is_serial, found in itertools.groupby(regions, lambda parts: len(parts) == 1):
        if is_serial:
            yield _region([[node for (part,) in found for node in part]], cost)
        else:
            for parts in found:
                yield _region(parts, cost)


def _region(parts: Sequence[Sequence[int]], cost: Mapping[int, float]) -> Region:
    return Region(
        tuple(tuple(sorted(part)) for part in parts),
        tuple(sum(cost[node] for node in part) for part in parts),
    )
