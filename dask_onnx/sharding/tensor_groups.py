"""Groups of nodes that run on shards of their weights, up to the next addition or concatenation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.table import operator_families
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.modelio.operator_names import public_op_type
from dask_onnx.sharding.node_cuts import Step
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.tensor_walk import (
    VARIANTS,
    TensorGraph,
    Variant,
    WalkResult,
    follow_shards,
    is_start,
)

_MAX_ROUNDS = 64
"""Walks after which a group that still grows is given up."""


@dataclass(frozen=True)
class Group:
    """Nodes that run once for each shard."""

    starts: tuple[int, ...]
    """Products whose weights are cut by columns."""
    steps: Mapping[int, Step | None]
    """Effect of each node, in graph order; None for a node that every shard repeats."""
    sums: tuple[str, ...]
    """Outputs whose value is the sum of the shards' partial sums (reduce)."""
    joins: Mapping[str, Layout]
    """Outputs that are concatenated from shards (gather), to their layouts."""
    replicated_outputs: tuple[str, ...]
    """Outputs that every shard computes alike."""
    layouts: Mapping[str, Layout] = field(repr=False)
    """Layouts of all values in shards."""
    stops: Mapping[int, Step] = field(repr=False)
    """Nodes that need values whole, with the reason."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs of the group."""
        return (*self.sums, *self.joins, *self.replicated_outputs)


@dataclass(frozen=True, slots=True)
class UnshardedProduct:
    """Product with weights that is not sharded."""

    node: int
    blocker: int
    """Node that prevents it."""
    reason: str
    """Explanation, with the numbers."""
    kind: Kind
    """Kind of dependence that prevents it."""


@dataclass(frozen=True)
class Groups:
    """Groups of a graph, and the products that are in none."""

    groups: tuple[Group, ...]
    unsharded: tuple[UnshardedProduct, ...]


def find_groups(graph: TensorGraph) -> Groups:
    """Return the groups of nodes to run on shards, in graph order.

    Raises
    ------
    PlanError
        The number of shards does not divide the attention heads, and another number would.
    """
    finder = _Finder(graph)
    walk = graph.walk()
    taken: set[int] = set()
    groups, unsharded = [], []
    for index in sorted(graph.live):
        if index in taken or not is_start(graph, walk, index):
            continue
        found = finder.group(index, taken)
        if isinstance(found, Group):
            groups.append(found)
            taken.update(found.steps)
        else:
            _check_heads(graph, found)
            unsharded.append(found)
    kept = tuple(each for each in unsharded if each.node not in taken)
    return Groups(tuple(groups), kept)


def _check_heads(graph: TensorGraph, product: UnshardedProduct) -> None:
    """Raise if the number of shards ends inside heads and another number does not."""
    if product.kind != Kind.FACTORED:
        return
    fitting = []
    # Look for a number of shards to suggest, up to twice the requested one.
    for shards in range(2, 2 * graph.shards + 1):
        other = graph.with_shards(shards)
        found = _Finder(other).group(product.node, ()) if shards != graph.shards else product
        if isinstance(found, Group) and _has_inner_product(other, found.starts, found.steps):
            fitting.append(shards)
    if fitting:
        node, blocker = graph.facts.nodes[product.node], graph.facts.nodes[product.blocker]
        raise PlanError(
            f"n={graph.shards} does not divide the heads after node {node.name!r} "
            f"({node.op_type}): at {blocker.name!r} ({blocker.op_type}) {product.reason}",
            f"choose n={' or '.join(map(str, fitting))}",
            option="n",
            node=node.name,
            reason=product.reason,
            numbers={"n": graph.shards},
            suggestions=[Suggestion("n", shards) for shards in fitting],
        )


class _Finder:
    """Finds the group of a product; caches the walks of single products."""

    def __init__(self, graph: TensorGraph) -> None:
        self.graph, self.facts = graph, graph.facts
        self._alone: dict[tuple[int, Variant], WalkResult] = {}
        self._walk = graph.walk()

    def group(self, start: int, taken: Collection[int]) -> Group | UnshardedProduct:
        """Return the group that cutting a product's columns leads to, or why there is none."""
        first: UnshardedProduct | None = None
        for variant in VARIANTS:
            found = self._grow({start: variant}, taken)
            if isinstance(found, Group) and start in found.steps:
                return found
            if first is None and isinstance(found, UnshardedProduct):
                first = found
        assert first is not None
        return first

    def _grow(
        self, given: Mapping[int, Variant], taken: Collection[int]
    ) -> Group | UnshardedProduct:
        """Return the group that contains a product, or why there is none.

        Adds products that must be cut as well, and excludes nodes that cannot run on shards, until
        nothing changes.
        """
        starts, excluded = dict(given), set(taken)
        (origin,) = given
        for _ in range(_MAX_ROUNDS):
            result = follow_shards(self.graph, starts, excluded)
            failed = [index for index in starts if index not in result.steps]
            if failed:
                step = result.stops[failed[0]]
                return UnshardedProduct(origin, failed[0], step.reason, step.kind)
            merged = self._merge(result)
            if merged:
                starts.update(merged)
                continue
            excluded_node = self._node_to_exclude(result)
            if excluded_node is not None:
                excluded.add(excluded_node)
                continue
            return self._group_if_worthwhile(origin, result)
        return UnshardedProduct(
            origin, origin, "the group still grows after the maximum number of rounds", Kind.OPAQUE
        )

    def _group_if_worthwhile(self, origin: int, result: WalkResult) -> Group | UnshardedProduct:
        """Return the group, unless it saves no more than its first product alone."""
        joins = {
            name: layout
            for name, layout in result.layouts.items()
            if name in self.graph.outputs or result.readers_outside(self.facts, name)
        }
        fixed = [name for name, layout in joins.items() if not self.graph.is_movable(name, layout)]
        if fixed:
            reason = f"shards of {fixed[0]!r} cannot be concatenated while its sizes are open"
            return UnshardedProduct(origin, self.facts.producer[fixed[0]], reason, Kind.OPAQUE)
        if blocker := self._blocker(result):
            return UnshardedProduct(origin, blocker[0], blocker[1].reason, blocker[1].kind)
        replicated_nodes = self._nodes_to_replicate(result)
        steps = {**result.steps, **dict.fromkeys(replicated_nodes)}
        replicated_outputs = [
            name
            for index in (*result.steps, *replicated_nodes)
            for name in self.facts.nodes[index].outputs
            if (index in replicated_nodes or name in result.replicated)
            and (
                name in self.graph.outputs
                or any(i not in steps and i in self.graph.live for i in self._readers(name))
            )
        ]
        return Group(
            tuple(sorted(result.starts)),
            dict(sorted(steps.items())),
            tuple(name for name in result.sums),
            joins,
            tuple(replicated_outputs),
            result.layouts,
            result.stops,
        )

    def _readers(self, name: str) -> Iterable[int]:
        return self.facts.consumers.get(name, ())

    def _blocker(self, result: WalkResult) -> tuple[int, Step] | None:
        """Return the node that makes sharding useless, with the reason; None if there is none.

        It needs a product whole that the shards computed from whole values, so that the result
        would be gathered at once. Sharding is worthwhile where partial sums are added or where
        shards multiply activations; a node that only needs a quantisation statistic does not count.
        """
        if result.sums or _has_inner_product(self.graph, result.starts, result.steps):
            return None
        return next(
            ((i, s) for i, s in sorted(result.stops.items()) if not s.needs_global_statistic), None
        )

    def _merge(self, result: WalkResult) -> dict[int, Variant]:
        """Return products whose columns must be cut too, so that an operand comes in shards.

        Returns those for the first operand that has any.
        """
        downstream = _Downstream(self.graph, result).nodes
        for index, step in sorted(result.steps.items()):
            names = self.facts.proto.graph.node[index].input
            for place, layout in step.cuts.items():
                name = names[place]
                if name in self.graph.constants:
                    continue
                found = self._producing_product(name, layout, downstream | set(result.steps))
                if found:
                    return found
        return {}

    def _producing_product(
        self, name: str, layout: Layout, others: Collection[int]
    ) -> dict[int, Variant]:
        """Return a product, not one of `others`, that makes a value in shards if cut by columns."""
        for start in self._products_before(name):
            if start in others:
                continue
            for variant in VARIANTS:
                key = (start, variant)
                if key not in self._alone:
                    self._alone[key] = follow_shards(self.graph, {start: variant})
                if self._alone[key].layouts.get(name) == layout:
                    return {start: variant}
        return {}

    def _products_before(self, name: str) -> Iterator[int]:
        """Return the nearest products with weights that a value depends on, the last first."""
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

    def _node_to_exclude(self, result: WalkResult) -> int | None:
        """Return a node of the group that cannot run on shards; None if all can.

        Such a node needs what the shards compute together, or makes sizes that differ in a shard
        and are read outside.
        """
        downstream = _Downstream(self.graph, result)
        if downstream.readers:
            return min(downstream.readers)
        for name in result.lengths:
            if name in self.graph.outputs or result.readers_outside(self.facts, name):
                return self.facts.producer[name]
        return None

    def _nodes_to_replicate(self, result: WalkResult) -> list[int]:
        """Return nodes between nodes of the group: every shard repeats them."""
        after = _reached(
            self.facts.successors,
            {i for n in result.replicated for i in result.readers_outside(self.facts, n)},
            result.steps,
        )
        before = _reached(
            self.facts.predecessors,
            {i for s in result.steps for i in self.facts.predecessors[s] if i not in result.steps},
            result.steps,
        )
        return sorted(after & before & self.graph.live)


class _Downstream:
    """Nodes that depend on results of all shards together."""

    def __init__(self, graph: TensorGraph, result: WalkResult) -> None:
        facts = graph.facts
        ends = set(result.stops)
        for name in result.sums:
            ends.update(result.readers_outside(facts, name))
        self.nodes = _reached(facts.successors, ends, result.steps)
        """Nodes that do not run on shards."""
        made = {name for index in self.nodes for name in facts.nodes[index].outputs} | result.sums
        self.readers = {i for i in result.steps if not made.isdisjoint(facts.nodes[i].reads)}
        """Nodes that were to run on shards, and cannot."""


def _reached(
    after: Sequence[Sequence[int]], nodes: Iterable[int], walls: Collection[int]
) -> set[int]:
    """Return the nodes reachable from some nodes, these included, without entering `walls`."""
    seen = {node for node in nodes if node not in walls}
    pending = list(seen)
    while pending:
        for node in after[pending.pop()]:
            if node not in seen and node not in walls:
                seen.add(node)
                pending.append(node)
    return seen


_PRODUCTS = ("product", "layer")
"""Families of operators that multiply their inputs."""


def _has_inner_product(
    graph: TensorGraph, starts: Collection[int], steps: Mapping[int, Step | None]
) -> bool:
    """Return whether shards multiply activations with one another, as in attention."""
    families = operator_families()
    for index, step in steps.items():
        node = graph.facts.nodes[index]
        op_type = public_op_type(node)
        is_packed = op_type in ("Attention", "QAttention")
        family = families.get((node.domain, node.op_type), "")
        if step is not None and family in _PRODUCTS and (index not in starts or is_packed):
            return op_type != "RotaryEmbedding"
    return False
