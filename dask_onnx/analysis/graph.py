"""Use-def edges, captures, order, depth: the graph of a model as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.onnx_model import OnnxModel


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node of the main graph."""

    index: int
    """Position in the weightless proto, which is in topological order."""
    name: str
    """The node's name, or op type and position in the file where it has none."""
    op_type: str
    domain: str
    """"" is ai.onnx."""
    inputs: tuple[str, ...]
    """As written; "" stands for an optional input that is left out."""
    outputs: tuple[str, ...]
    captures: tuple[str, ...]
    """Values of this graph that the node's subgraph bodies read."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value that has to be there before the node runs."""
        names = (*self.inputs, *self.captures)
        return names if all(names) else tuple(filter(None, names))


class GraphFacts:
    """Who produces and who reads each value of a model's main graph. Frozen once made."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.proto: onnx.ModelProto = model.parse()
        graph = self.proto.graph
        self.nodes: tuple[NodeFacts, ...] = tuple(
            NodeFacts(
                index=index,
                name=node.name,
                op_type=node.op_type,
                domain=node.domain,
                inputs=tuple(node.input),
                outputs=tuple(name for name in node.output if name),
                captures=tuple(captured_names(node)),
            )
            for index, node in enumerate(graph.node)
        )
        self.inputs: tuple[str, ...] = tuple(value.name for value in graph.input)
        self.outputs: tuple[str, ...] = tuple(value.name for value in graph.output)
        self.initializers: frozenset[str] = frozenset(
            [tensor.name for tensor in graph.initializer]
            + [sparse.values.name for sparse in graph.sparse_initializer]
        )
        self.producer: dict[str, int] = {
            name: node.index for node in self.nodes for name in node.outputs
        }
        self.consumers: dict[str, list[int]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads):
                self.consumers.setdefault(name, []).append(node.index)

    @cached_property
    def predecessors(self) -> list[list[int]]:
        """For each node the nodes that it needs, each once."""
        found = [dict.fromkeys(map(self.producer.get, node.reads)) for node in self.nodes]
        return [[index for index in before if index is not None] for before in found]

    @cached_property
    def successors(self) -> list[list[int]]:
        after: list[list[int]] = [[] for _ in self.nodes]
        for index, before in enumerate(self.predecessors):
            for other in before:
                after[other].append(index)
        return after

    def ancestors(self, values: Iterable[str]) -> list[int]:
        """Indices, ascending, of the nodes that `values` need."""
        pending = [self.producer[name] for name in values if name in self.producer]
        seen = set(pending)
        while pending:
            for before in self.predecessors[pending.pop()]:
                if before not in seen:
                    seen.add(before)
                    pending.append(before)
        return sorted(seen)

    def between(
        self, given: Iterable[str], values: Iterable[str]
    ) -> tuple[list[int], frozenset[str]]:
        """Nodes, ascending, that `values` need if `given` come from outside; all that they read."""
        borders = set(given)
        pending = [name for name in values if name not in borders]
        nodes: set[int] = set()
        read = set(pending)
        while pending:
            index = self.producer.get(pending.pop())
            if index is None or index in nodes:
                continue
            nodes.add(index)
            read.update(self.nodes[index].reads)
            pending += [name for name in self.nodes[index].reads if name not in borders]
        return sorted(nodes), frozenset(read)

    @cached_property
    def live(self) -> frozenset[int]:
        """Nodes that some graph output needs; the rest is dead."""
        return frozenset(self.ancestors(self.outputs))

    def is_known(self, value: str) -> bool:
        """Whether the main graph has a value of that name."""
        return value in self.producer or value in self.inputs or value in self.initializers

    def longest_path(self, weights: Sequence[float] | None = None) -> list[int]:
        """Node indices along the heaviest path, by `weights` a node (1 each by default)."""
        if not self.nodes:
            return []
        best: list[float] = []
        via: list[int] = []
        for index, before in enumerate(self.predecessors):
            heaviest = max(before, key=lambda i: best[i], default=-1)
            weight = 1.0 if weights is None else weights[index]
            best.append(weight + (best[heaviest] if heaviest >= 0 else 0.0))
            via.append(heaviest)
        path = [max(range(len(best)), key=lambda i: best[i])]
        while via[path[-1]] >= 0:
            path.append(via[path[-1]])
        return path[::-1]

    @cached_property
    def parallel_branches(self) -> int:
        """The most nodes that can stand side by side, chains counted once.

        Nodes with one predecessor that has one successor belong to its chain; what is counted is
        the widest level of the graph of chains, by longest distance from the inputs.
        """
        live = sorted(self.live)
        after = {i: [j for j in self.successors[i] if j in self.live] for i in live}
        depth: dict[int, int] = {}
        chain_head: dict[int, int] = {}
        for i in live:
            before = self.predecessors[i]
            if len(before) == 1 and len(after[before[0]]) == 1:
                chain_head[i], depth[i] = chain_head[before[0]], depth[before[0]]
            else:
                chain_head[i] = i
                depth[i] = 1 + max((depth[j] for j in before), default=-1)
        width = Counter(depth[head] for head in set(chain_head.values()))
        return max(width.values(), default=0)

    @cached_property
    def constant_nodes(self) -> frozenset[int]:
        """Nodes that follow from initializers alone."""
        given = set(self.inputs)
        bound: set[int] = set()
        for node, before in zip(self.nodes, self.predecessors, strict=True):
            if not given.isdisjoint(node.reads) or not bound.isdisjoint(before):
                bound.add(node.index)
        return frozenset(range(len(self.nodes))) - bound

    def depth_first_order(self, nodes: Iterable[int]) -> list[int]:
        """A topological order of `nodes` that finishes a branch before it starts the next.

        An interval of it is a chain or some whole branches, so that cutting the order cuts few
        values. Any interval of any topological order is convex. A node where branches meet waits
        until the branches beside them have run: were it placed between them, a stage of the later
        ones would need it and wait for the earlier ones. What follows from weights alone (one that
        is cast, say) stands right before the first node that reads it: were it made early, it would
        have to cross every cut until then.
        """
        everything = set(nodes)
        constant = everything & self.constant_nodes
        chosen = everything - constant
        placed: set[int] = set()

        def constants_before(index: int) -> list[int]:
            """Those that `index` needs and that are not placed yet, in the order of the file."""
            if not constant:
                return []
            found: set[int] = set()
            pending = [index]
            while pending:
                for before in self.predecessors[pending.pop()]:
                    if before in constant and before not in placed and before not in found:
                        found.add(before)
                        pending.append(before)
            placed.update(found)
            return sorted(found)

        waiting = {i: len(chosen.intersection(self.predecessors[i])) for i in chosen}
        meets = {i for i, count in waiting.items() if count > 1}
        # Stacks, so that the node made ready last runs next; ties in the order of the file.
        ready = [i for i in sorted(chosen, reverse=True) if not waiting[i]]
        meeting: list[int] = []
        order = []
        while ready or meeting:
            index = ready.pop() if ready else meeting.pop()
            order += [*constants_before(index), index]
            for follower in reversed(self.successors[index]):
                if follower in chosen:
                    waiting[follower] -= 1
                    if not waiting[follower]:
                        (meeting if follower in meets else ready).append(follower)
        return [*order, *sorted(constant - placed)]
