"""Groups of nodes that run on shards of their weights: which weights are cut together, and where
results are added or joined."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.table import classified
from dask_onnx.core.errors import PlanError
from dask_onnx.sharding.node_cuts import Step
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.tensor_walk import (
    VARIANTS,
    TensorGraph,
    Variant,
    Walked,
    is_start,
    walk_from,
)

_MOST_ROUNDS = 64
"""Walks until what is cut together has settled."""


@dataclass(frozen=True)
class Group:
    """Nodes that run once for each shard."""

    starts: tuple[int, ...]
    """Products whose weights are cut by columns."""
    steps: Mapping[int, Step | None]
    """What each node does, in the order of the graph; None for one that all shards repeat."""
    sums: tuple[str, ...]
    """Values that are the sum of what the shards make."""
    joins: Mapping[str, Layout]
    """Values that are needed whole, to how their shards lie."""
    copies: tuple[str, ...]
    """Values that every shard makes alike, and that are needed elsewhere."""
    layouts: Mapping[str, Layout] = field(repr=False)
    """Values in shards, to how these lie."""
    stops: Mapping[int, Step] = field(repr=False)
    """Nodes that need values whole, and why."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all that leaves the group."""
        return (*self.sums, *self.joins, *self.copies)


@dataclass(frozen=True, slots=True)
class Left:
    """A product with weights that is not sharded."""

    node: int
    stop: int
    """The node that prevents it."""
    reason: str
    kind: Kind


@dataclass(frozen=True)
class Groups:
    """What of a graph runs on shards."""

    groups: tuple[Group, ...]
    left: tuple[Left, ...]


def find_groups(graph: TensorGraph) -> Groups:
    """Return the groups of nodes to run on shards, in the order of the graph.

    Raises
    ------
    PlanError
        Heads of attention do not come apart into so many shards.
    """
    finder = _Finder(graph)
    walk = graph.walk()
    taken: set[int] = set()
    groups, left = [], []
    for index in sorted(graph.live):
        if index in taken or not is_start(graph, walk, index):
            continue
        found = finder.group(index, taken)
        if isinstance(found, Group):
            groups.append(found)
            taken.update(found.steps)
        else:
            _check_heads(graph, found)
            left.append(found)
    kept = tuple(each for each in left if each.node not in taken)
    return Groups(tuple(groups), kept)


def _check_heads(graph: TensorGraph, left: Left) -> None:
    """Refuse a number of shards that ends inside heads, if another number does not."""
    if left.kind != Kind.FACTORED:
        return
    fitting = []
    for shards in range(2, 2 * graph.shards + 1):
        other = graph.with_shards(shards)
        found = _Finder(other).group(left.node, ()) if shards != graph.shards else left
        if isinstance(found, Group) and _has_inner_product(other, found.starts, found.steps):
            fitting.append(str(shards))
    if fitting:
        node, by = graph.facts.nodes[left.node], graph.facts.nodes[left.stop]
        raise PlanError(
            f"n={graph.shards} does not divide the heads behind node {node.name!r} "
            f"({node.op_type}): at {by.name!r} ({by.op_type}) {left.reason}",
            f"choose n={' or '.join(fitting)}",
        )


class _Finder:
    """Finds the group of a product; walks of single products are remembered."""

    def __init__(self, graph: TensorGraph) -> None:
        self.graph, self.facts = graph, graph.facts
        self._alone: dict[tuple[int, Variant], Walked] = {}
        self._walk = graph.walk()

    def group(self, start: int, taken: Collection[int]) -> Group | Left:
        """Return the group that cutting a product's columns leads to, or why there is none."""
        first: Left | None = None
        for variant in VARIANTS:
            found = self._settled({start: variant}, taken)
            if isinstance(found, Group) and start in found.steps:
                return found
            if first is None and isinstance(found, Left):
                first = found
        assert first is not None
        return first

    def _settled(self, given: Mapping[int, Variant], taken: Collection[int]) -> Group | Left:
        """Merge and bar until nothing changes any more."""
        starts, barred = dict(given), set(taken)
        (origin,) = given
        for _ in range(_MOST_ROUNDS):
            walked = walk_from(self.graph, starts, barred)
            failed = [index for index in starts if index not in walked.steps]
            if failed:
                step = walked.stops[failed[0]]
                return Left(origin, failed[0], step.reason, step.kind)
            merged = self._merge(walked)
            if merged:
                starts.update(merged)
                continue
            wrong = self._offender(walked)
            if wrong is not None:
                barred.add(wrong)
                continue
            return self._judged(origin, walked)
        return Left(origin, origin, "what is cut with it does not settle", Kind.OPAQUE)

    def _judged(self, origin: int, walked: Walked) -> Group | Left:
        """The group, if running it on shards saves more than one product by itself."""
        joins = {
            name: layout
            for name, layout in walked.layouts.items()
            if name in self.graph.outputs or walked.readers_outside(self.facts, name)
        }
        fixed = [name for name, layout in joins.items() if not self.graph.is_movable(name, layout)]
        if fixed:
            reason = f"shards of {fixed[0]!r} are not joined where its sizes are open"
            return Left(origin, self.facts.producer[fixed[0]], reason, Kind.OPAQUE)
        if blocker := self._blocker(walked):
            return Left(origin, blocker[0], blocker[1].reason, blocker[1].kind)
        absorbed = self._absorbed(walked)
        steps = {**walked.steps, **dict.fromkeys(absorbed)}
        copies = [
            name
            for index in (*walked.steps, *absorbed)
            for name in self.facts.nodes[index].outputs
            if (index in absorbed or name in walked.replicated)
            and (
                name in self.graph.outputs
                or any(i not in steps and i in self.graph.live for i in self._readers(name))
            )
        ]
        return Group(
            tuple(sorted(walked.starts)),
            dict(sorted(steps.items())),
            tuple(name for name in walked.sums),
            joins,
            tuple(copies),
            walked.layouts,
            walked.stops,
        )

    def _readers(self, name: str) -> Iterable[int]:
        return self.facts.consumers.get(name, ())

    def _blocker(self, walked: Walked) -> tuple[int, Step] | None:
        """The node because of which shards do not pay: it needs a product whole that is made of
        whole values, and is no quantisation."""
        if walked.sums or _has_inner_product(self.graph, walked.starts, walked.steps):
            return None
        return next(((i, s) for i, s in sorted(walked.stops.items()) if not s.couples), None)

    def _merge(self, walked: Walked) -> dict[int, Variant]:
        """Products whose columns must be cut too, so that shards of an operand are made of shards;
        those of the first operand of which there are any."""
        behind = _Behind(self.graph, walked).nodes
        for index, step in sorted(walked.steps.items()):
            names = self.facts.proto.graph.node[index].input
            for place, layout in step.cuts.items():
                name = names[place]
                if name in self.graph.constants:
                    continue
                found = self._maker(name, layout, behind | set(walked.steps))
                if found:
                    return found
        return {}

    def _maker(self, name: str, layout: Layout, others: Collection[int]) -> dict[int, Variant]:
        """A product, none of `others`, that makes the shards of a value if its columns are cut."""
        for start in self._products_before(name):
            if start in others:
                continue
            for variant in VARIANTS:
                key = (start, variant)
                if key not in self._alone:
                    self._alone[key] = walk_from(self.graph, {start: variant})
                if self._alone[key].layouts.get(name) == layout:
                    return {start: variant}
        return {}

    def _products_before(self, name: str) -> Iterator[int]:
        """The nearest products with weights that a value is made by, the last first."""
        pending, seen = [name], set()
        found = []
        while pending:
            index = self.facts.producer.get(pending.pop())
            if index is None or index in seen or index not in self.graph.live:
                continue
            seen.add(index)
            if is_start(self.graph, self._walk, index):
                found.append(index)
            else:
                pending.extend(self.facts.nodes[index].reads)
        return iter(sorted(found, reverse=True))

    def _offender(self, walked: Walked) -> int | None:
        """A node that cannot run on shards: it needs what they make together; or it makes sizes
        that differ in a shard, and that are needed elsewhere."""
        behind = _Behind(self.graph, walked)
        if behind.readers:
            return min(behind.readers)
        for name in walked.lengths:
            if name in self.graph.outputs or walked.readers_outside(self.facts, name):
                return self.facts.producer[name]
        return None

    def _absorbed(self, walked: Walked) -> list[int]:
        """Nodes outside that lie between nodes of the group: every shard repeats them."""
        after = _reached(
            self.facts.successors,
            {i for n in walked.replicated for i in walked.readers_outside(self.facts, n)},
            walked.steps,
        )
        before = _reached(
            self.facts.predecessors,
            {i for s in walked.steps for i in self.facts.predecessors[s] if i not in walked.steps},
            walked.steps,
        )
        return sorted(after & before & self.graph.live)


class _Behind:
    """What needs results that only all shards together make."""

    def __init__(self, graph: TensorGraph, walked: Walked) -> None:
        facts = graph.facts
        ends = set(walked.stops)
        for name in walked.sums:
            ends.update(walked.readers_outside(facts, name))
        self.nodes = _reached(facts.successors, ends, walked.steps)
        """Nodes that do not run on shards."""
        made = {name for index in self.nodes for name in facts.nodes[index].outputs} | walked.sums
        self.readers = {i for i in walked.steps if not made.isdisjoint(facts.nodes[i].reads)}
        """Nodes that run on shards, and cannot."""


def _reached(
    after: Sequence[Sequence[int]], nodes: Iterable[int], walls: Collection[int]
) -> set[int]:
    """The nodes that edges lead to from some, these included, without entering `walls`."""
    seen = {node for node in nodes if node not in walls}
    pending = list(seen)
    while pending:
        for node in after[pending.pop()]:
            if node not in seen and node not in walls:
                seen.add(node)
                pending.append(node)
    return seen


_PRODUCTS = ("product", "layer")


def _has_inner_product(
    graph: TensorGraph, starts: Collection[int], steps: Mapping[int, Step | None]
) -> bool:
    """Whether shards multiply more than whole values with weights, as in attention."""
    families = classified()
    for index, step in steps.items():
        node = graph.facts.nodes[index]
        is_packed = node.op_type in ("Attention", "QAttention")
        family = families.get((node.domain, node.op_type), "")
        if step is not None and family in _PRODUCTS and (index not in starts or is_packed):
            return node.op_type != "RotaryEmbedding"
    return False
