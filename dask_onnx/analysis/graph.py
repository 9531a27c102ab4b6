"""A model's graph as plain data: nodes with their captures, edges, orders and paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from dask_onnx.analysis.learned_types import LearnedType
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.onnx_model import OnnxModel


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node of the main graph."""

    index: int
    """Position in the weightless proto, which is in topological order."""
    name: str
    """The node's name; op type and position in the file where it has none."""
    op_type: str
    """Operator, such as "Conv"."""
    domain: str
    """Domain of the operator; "" is ai.onnx."""
    inputs: tuple[str, ...]
    """Names of the inputs; "" stands for an optional input that is left out."""
    outputs: tuple[str, ...]
    """Names of the outputs, without optional ones that are left out."""
    captures: tuple[str, ...]
    """Values of this graph that the node's bodies (subgraphs) read."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all values that the node needs: given inputs and captures."""
        names = (*self.inputs, *self.captures)
        return names if all(names) else tuple(filter(None, names))


class GraphFacts:
    """Producers and consumers of the values of a model's main graph.

    Not changed after creation, but for `learned`.

    Parameters
    ----------
    model : OnnxModel

    Attributes
    ----------
    model : OnnxModel
    proto : ModelProto
        The model without weights; others read it too, so it must not be changed.
    nodes : tuple of NodeFacts
        In topological order.
    inputs, outputs : tuple of str
        Names of the graph's inputs and outputs.
    initializers : frozenset of str
        Names of dense and sparse initializers.
    producer : dict of str to int
        Value to the node that computes it; inputs and initializers are missing.
    consumers : dict of str to list of int
        Value to the nodes that read it, ascending; values that no node reads are missing.
    learned : mapping of str to LearnedType
        Types of values that runs of their nodes have shown; `analysis.shapes` reads them.
    """

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
        self.learned: Mapping[str, LearnedType] = {}

    @cached_property
    def tensors(self) -> Mapping[str, onnx.TensorProto]:
        """Dense initializers by name; of several of one name the last counts, as in ONNX Runtime.

        Large ones are external data; see `modelio.weights`.
        """
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def predecessors(self) -> list[list[int]]:
        """For each node the nodes whose outputs it reads, each once."""
        found = [dict.fromkeys(map(self.producer.get, node.reads)) for node in self.nodes]
        return [[index for index in before if index is not None] for before in found]

    @cached_property
    def successors(self) -> list[list[int]]:
        """For each node the nodes that read its outputs, ascending."""
        after: list[list[int]] = [[] for _ in self.nodes]
        for index, before in enumerate(self.predecessors):
            for other in before:
                after[other].append(index)
        return after

    def ancestors(self, values: Iterable[str]) -> list[int]:
        """Return the nodes that `values` depend on, ascending."""
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
        """Return the nodes that compute `values` from `given`, and all values that they read.

        Parameters
        ----------
        given : iterable of str
            Values that come from outside; nodes before them are left out.
        values : iterable of str
            Values to compute.

        Returns
        -------
        nodes : list of int
            Ascending.
        read : frozenset of str
            Values that the nodes read, and `values` themselves unless they are given.
        """
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
        """Nodes that a graph output depends on; the others are dead."""
        return frozenset(self.ancestors(self.outputs))

    def is_known(self, value: str) -> bool:
        """Return whether the main graph has a value of that name."""
        return value in self.producer or value in self.inputs or value in self.initializers

    def longest_path(self, weights: Sequence[float] | None = None) -> list[int]:
        """Return the nodes along the heaviest path.

        Parameters
        ----------
        weights : sequence of float, optional
            Weight of each node; 1 each by default.
        """
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
        """Largest number of chains of nodes that can run in parallel.

        A node with a single predecessor, which has no other successor, belongs to that one's chain.
        The number is that of the widest level of the graph of chains, by longest distance from the
        inputs.
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
        """Nodes that depend on initializers alone."""
        inputs = set(self.inputs)
        dependent: set[int] = set()
        for node, before in zip(self.nodes, self.predecessors, strict=True):
            if not inputs.isdisjoint(node.reads) or not dependent.isdisjoint(before):
                dependent.add(node.index)
        return frozenset(range(len(self.nodes))) - dependent

    def depth_first_order(self, nodes: Iterable[int]) -> list[int]:
        """Return a topological order of `nodes` that finishes a branch before it starts the next.

        Every interval of a topological order is convex; here it is also a chain or a few whole
        branches, so that cutting the order cuts few values. A node where branches meet comes after
        the branches beside them: between them, it would make a stage of the later branches wait for
        the earlier ones. Nodes that depend on initializers alone (a weight that is cast, for
        instance) come right before their first consumer: computed earlier, their values would cross
        every cut in between.
        """
        everything = set(nodes)
        constant = everything & self.constant_nodes
        chosen = everything - constant
        placed: set[int] = set()

        def constants_before(index: int) -> list[int]:
            """Return the constant nodes that `index` needs and are not placed, in file order."""
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
        # Stacks: the node that became ready last comes next, ties in file order.
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
