"""What of a graph can run side by side: serial pieces and regions of independent branches.

A graph is read from its start to its end. While one node alone can run, it does. Where several
can, each is the start of a part: what needs nothing but the nodes of one part belongs to it, and
parts do not read each other. Where they meet, the reading goes on with the nodes that need several.
Nodes that cost next to nothing and need nothing dear (the embedding that all branches read,
arithmetic on shapes) belong to no part: each that needs them may repeat them, which is cheaper than
sending their values.

Series and parallel regions after Valdes, Tarjan and Lawler, "The recognition of series parallel
digraphs" (1982), without their insistence that nothing else occurs: what does not fall apart stays
serial. A part is what its first node dominates among the nodes that are left (Lengauer and Tarjan,
"A fast algorithm for finding dominators in a flowgraph", 1979): found as the nodes come, since each
is looked at after all that it needs.
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
"""More nodes than any waits for: nodes that are not to be read."""
_LOOKS = 16
"""How often the nodes may be looked through, in all, for where a segment ends."""


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
    """The regions of some nodes, in the order in which they can run. In time linear in nodes and
    edges (but for a heap of the nodes that can run), however deep branches are nested.

    Parameters
    ----------
    seconds : predicted time of each of the nodes, which are there with all that they need
    free : nodes that belong to no region
    join_share : parts are taken as one where they meet, up to this share of the time until the next
        node that lies on every path
    """
    return tuple(_joined(_Reading(facts, seconds, free).regions(join_share), seconds))


def needed(facts: GraphFacts, nodes: Iterable[int], free: Set[int]) -> list[int]:
    """Some nodes with the free ones that they need; ascending."""
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


class _Reading:
    """How far some nodes have been read: those left, and of them those that can run."""

    def __init__(self, facts: GraphFacts, cost: Mapping[int, float], free: Collection[int]) -> None:
        self.facts = facts
        self.cost = cost
        bound = [node for node in sorted(cost) if node not in free]
        self.left = set(bound)
        """Nodes that no region has yet."""
        self.waiting = [_NEVER] * len(facts.nodes)
        """How many of the nodes that each needs are left."""
        for node in bound:
            self.waiting[node] = len(facts.predecessors[node])
        for node in free:
            self._let_go(node)
        self.starts = [node for node in bound if not self.waiting[node]]
        """Nodes that need none of those left; ascending."""
        self.looks = _LOOKS * len(bound)
        """So many nodes may still be looked at for the end of a segment."""

    def regions(self, join_share: float) -> Iterator[list[list[int]]]:
        """The parts of one region after the other; one part is serial."""
        end, most = math.inf, 0.0
        while self.starts:
            if len(self.starts) == 1:
                parts = [self.starts]
                self.starts = sorted(self._let_go(self.starts[0]))
            else:
                if join_share:
                    end, most = self._segment(end, most, join_share)
                parts = self._parts(end, most)
            self.left.difference_update(*parts)
            yield parts

    def _let_go(self, node: int) -> list[int]:
        """A node is read: those that waited for nothing else."""
        ready, waiting = [], self.waiting
        for after in self.facts.successors[node]:
            count = waiting[after] = waiting[after] - 1
            if not count:
                ready.append(after)
        return ready

    def _segment(self, end: float, most: float, join_share: float) -> tuple[float, float]:
        """The next node that lies on every path, which no edge passes by and behind which nothing
        starts (infinite if there is none), and a share of the time until there.

        Where that was looked for too often, the last one that is known serves on.
        """
        first = self.starts[0]  # of all that are left, since the others need one
        if self.looks <= 0 and first < end:
            return end, most
        furthest, total = float(self.starts[-1]), 0.0
        for node in range(first, len(self.facts.nodes)):
            self.looks -= 1
            if node in self.left:
                if furthest <= node:
                    return node, join_share * total
                total += self.cost[node]
                # A path that ends here passes by all that comes after.
                furthest = max(furthest, self._last_reader(node))
        return math.inf, join_share * total

    def _last_reader(self, node: int) -> float:
        return next((n for n in reversed(self.facts.successors[node]) if n in self.left), math.inf)

    def _parts(self, end: float, most: float) -> list[list[int]]:
        """Parts that begin at the starts and do not read each other. They meet behind them, where
        the reading goes on, or are one where they take no more than `most` seconds together.

        Parameters
        ----------
        end : the node that ends the segment
        """
        leader: dict[int, int] = {}
        weight: dict[int, float] = {}
        taken: set[int] = set()

        def find(node: int) -> int:
            while leader[node] != node:
                leader[node] = leader[leader[node]]
                node = leader[node]
            return node

        ready, behind = self.starts, list[int]()
        while ready:  # ascending, so a heap from the start
            node = heapq.heappop(ready)
            # Most nodes before it have the same leader, which is cheaper to see than to find.
            leaders = {leader[n] for n in taken.intersection(self.facts.predecessors[node])}
            roots = set(map(find, leaders))
            total = sum(weight[root] for root in roots) + self.cost[node]
            if node >= end or (len(roots) > 1 and total > most):
                behind.append(node)
                continue
            taken.add(node)
            root = leader[node] = min(roots, default=node)
            for other in roots:
                leader[other] = root
            weight[root] = total
            for after in self._let_go(node):
                heapq.heappush(ready, after)
        self.starts = behind
        parts: defaultdict[int, list[int]] = defaultdict(list)
        for node in leader:
            parts[find(node)].append(node)
        return list(parts.values())


def _joined(
    regions: Iterable[Sequence[Sequence[int]]], cost: Mapping[int, float]
) -> Iterator[Region]:
    """Serial regions that follow each other as one."""
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
