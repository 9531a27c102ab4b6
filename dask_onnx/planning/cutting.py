"""Common parts of all strategies: their inputs, unbreakable chains, and groups made into stages."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dask_onnx.analysis import cuts
from dask_onnx.analysis.cost import CostTable, NodeCost, initializer_bytes, value_bytes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import NodeKernel, TensorSpec
from dask_onnx.planning.stage_labels import distinct_labels, label_of_names
from dask_onnx.planning.stages import Edge, Stage, StageCost, StageGraph


@dataclass(frozen=True, eq=False)
class CutInputs:
    """Inputs of a strategy: the graph, its sizes, and what its nodes cost."""

    facts: GraphFacts
    """The graph."""
    specs: Mapping[str, TensorSpec]
    """Spec of every value at the shapes that the plan is for."""
    declared: Mapping[str, TensorSpec]
    """Spec of every value at the model's own symbolic shapes, which stages declare."""
    outputs: tuple[str, ...]
    """Names of the values that the caller asked for."""
    costs: CostTable
    """Speed of the CPU and cost of hops."""
    kernels: Sequence[NodeKernel]
    """Kernel of each node of the graph."""
    node_costs: Sequence[NodeCost]
    """Cost of each node of the graph at `specs`."""
    measured: Mapping[int, float] = field(default_factory=dict)
    """Seconds of nodes that were measured rather than predicted, by the node's position."""

    @cached_property
    def initializer_bytes(self) -> dict[str, int]:
        """Bytes of each initializer of the main graph, by its name."""
        return initializer_bytes(self.facts)

    def weight_bytes(self, nodes: Iterable[int]) -> int:
        """Return the bytes of all weights that `nodes` read or carry, each counted once."""
        reads: set[str] = set()
        own = 0
        for node in nodes:
            reads.update(self.facts.nodes[node].reads)
            own += self.node_costs[node].own_bytes
        sizes = self.initializer_bytes
        return own + sum(sizes[name] for name in sizes.keys() & reads)

    def working_bytes(self, nodes: Iterable[int], leaving: Collection[str]) -> int:
        """Return the peak bytes of activations alive at once while `nodes` run.

        Nodes run in depth-first order, as ONNX Runtime runs them.

        Parameters
        ----------
        nodes : iterable of int
            Positions of the nodes.
        leaving : collection of str
            Values that stay alive until all of the nodes have run.
        """
        members = sorted(nodes, key=self.places.__getitem__)
        last_read: dict[str, int] = {}
        for position, node in enumerate(members):
            last_read.update(dict.fromkeys(self.facts.nodes[node].reads, position))
        last_read.update(dict.fromkeys(leaving, len(members) - 1))
        change = [0] * (len(members) + 1)
        for position, node in enumerate(members):
            for name in self.facts.nodes[node].outputs:
                size = self.sizes.get(name, 0)
                change[position] += size
                change[last_read.get(name, position) + 1] -= size
        return max(itertools.accumulate(change), default=0)

    @cached_property
    def all_weights(self) -> int:
        """Bytes of the weights of all nodes that the outputs need."""
        return self.weight_bytes(self.nodes)

    @cached_property
    def all_working(self) -> int:
        """Peak bytes of activations alive at once if the model is one stage."""
        return self.working_bytes(self.nodes, self.outputs)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of every value at `specs`, by its name."""
        return {name: value_bytes(spec) for name, spec in self.specs.items()}

    @cached_property
    def places(self) -> dict[int, int]:
        """Position of each needed node in depth-first order, by its position in the graph."""
        return {node: i for i, node in enumerate(self.facts.depth_first_order(self.nodes))}

    def readers(self, value: str) -> list[int]:
        """Return the nodes that read a value and that the outputs need."""
        return [node for node in self.facts.consumers.get(value, ()) if node in self.places]

    @cached_property
    def nodes(self) -> list[int]:
        """Positions of the nodes that the outputs need, in the order of the file."""
        return self.facts.ancestors(self.outputs)

    def seconds(self, node: int) -> float:
        """Return the seconds of a node for one run: measured if they were, else predicted."""
        return self._seconds[node]

    @cached_property
    def _seconds(self) -> list[float]:
        """Seconds of every node of the graph for one run."""
        predicted = map(self.costs.seconds, self.node_costs, (each.kernel for each in self.kernels))
        return [self.measured.get(node, each) for node, each in enumerate(predicted)]


def chains_of(cut: CutInputs) -> list[list[int]]:
    """Return the chains of nodes that no cut breaks, in depth-first order."""
    return cuts.chains_of(cut.facts, cut.nodes, cut.outputs)


def crossing_bytes(cut: CutInputs, chains: Sequence[Sequence[int]]) -> list[int]:
    """Return the bytes of the values that cross the border behind each chain but the last."""
    return cuts.crossing_bytes(cut.facts, cut.specs, chains)


def _split_by_kernel(cut: CutInputs, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Split groups so that one kind of kernel runs each, in topological order.

    The level of a node is the number of changes of kernel on the longest path to it within its
    group. Nodes of one level and kernel are convex, since a path that leaves them returns on a
    higher level.
    """
    parts: list[list[int]] = []
    for group in groups:
        if len({cut.kernels[node].kernel for node in group}) == 1:
            parts.append(sorted(group))
            continue
        members = set(group)
        levels: dict[int, int] = {}
        by_level: dict[tuple[int, str], list[int]] = {}
        for node in sorted(group):
            kernel = cut.kernels[node].kernel
            levels[node] = max(
                (
                    levels[before] + (cut.kernels[before].kernel != kernel)
                    for before in cut.facts.predecessors[node]
                    if before in members
                ),
                default=0,
            )
            by_level.setdefault((levels[node], kernel), []).append(node)
        parts += [by_level[key] for key in sorted(by_level)]
    return parts


def stage_graph_of(
    cut: CutInputs, groups: Sequence[Sequence[int]], labels: Sequence[str] | None = None
) -> StageGraph:
    """Build a stage graph, with its edges, from groups of nodes.

    A node may be in several groups. Each of them then computes its values for itself, and stages
    without the node receive them from the first.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    groups : sequence of sequence of int
        Positions of the nodes of each stage, in topological order.
    labels : sequence of str, optional
        Labels of the stages; by default made of their nodes' names. Not used where a group is split
        because different kernels run its nodes.
    """
    facts = cut.facts
    inputs = tuple(cut.declared[name] for name in facts.inputs)
    # An output without a producer is an input or an initializer; the last stage passes it on.
    loose = [name for name in cut.outputs if name not in facts.producer]
    split = _split_by_kernel(cut, groups)
    if labels is None or len(split) != len(groups):
        labels = [label_of(cut, group) for group in split or [[]]]
    labels = distinct_labels(labels)
    groups = split or [[]]
    groups_of: dict[int, tuple[int, ...]] = {}
    for i, group in enumerate(groups):
        alone = (i,)  # shared by the nodes of the group, of which there may be tens of thousands
        for node in group:
            groups_of[node] = (*groups_of[node], i) if node in groups_of else alone
    stages = tuple(
        _stage(
            cut,
            groups_of,
            number,
            group,
            label=labels[number],
            loose=loose if number == len(groups) - 1 else (),
            is_only=len(groups) == 1,
        )
        for number, group in enumerate(groups)
    )
    # An input that is also an output is passed on by a stage, but no consumer waits for that.
    producers = {
        spec.name: i
        for i, stage in enumerate(stages)
        for spec in stage.outputs
        if spec.name in facts.producer
    }
    edges = tuple(
        Edge(spec.name, producers[spec.name], i, cut.sizes.get(spec.name, 0))
        for i, stage in enumerate(stages)
        for spec in stage.inputs
        if spec.name in producers and producers[spec.name] != i
    )
    used = {spec.name for stage in stages for spec in stage.inputs}
    return StageGraph(
        stages,
        edges,
        tuple(spec for spec in inputs if spec.name in used),
        tuple(_spec(cut, name) for name in cut.outputs),
    )


def _stage(
    cut: CutInputs,
    groups_of: Mapping[int, Sequence[int]],
    number: int,
    group: Sequence[int],
    *,
    label: str,
    loose: Sequence[str],
    is_only: bool,
) -> Stage:
    facts = cut.facts
    made = {name for node in group for name in facts.nodes[node].outputs}
    reads = dict.fromkeys(
        name
        for node in group
        for name in facts.nodes[node].reads
        if name not in made and name not in facts.initializers
    )
    reads.update(dict.fromkeys(name for name in loose if name in facts.inputs))
    # If one stage is the whole model, its outputs are in the order that the caller asked for.
    wanted = list(cut.outputs if is_only else (*_leaving(cut, groups_of, number, group), *loose))
    cost = sum((cut.node_costs[i] for i in group), NodeCost(0, 0, 0))
    return Stage(
        label=label,
        nodes=tuple(sorted(group)),
        inputs=tuple(_spec(cut, name) for name in reads),
        outputs=tuple(_spec(cut, name) for name in dict.fromkeys(wanted)),
        cost=StageCost(
            flops=cost.flops,
            seconds=sum(map(cut.seconds, group)),
            parameter_bytes=cut.weight_bytes(group),
            activation_bytes=sum(cut.sizes.get(name, 0) for name in wanted),
            working_bytes=cut.working_bytes(group, wanted),
        ),
        kernel=cut.kernels[group[0]].kernel if group else "onnxruntime",
    )


def _leaving(
    cut: CutInputs, groups_of: Mapping[int, Sequence[int]], number: int, group: Sequence[int]
) -> Iterator[str]:
    """Yield the values that a group must output.

    It is their first producer, and a consumer outside it, or the caller, needs them.
    """
    facts = cut.facts
    only_here = {node for node in group if len(groups_of[node]) == 1}
    for node in group:
        own = groups_of[node]
        for name in facts.nodes[node].outputs if own[0] == number else ():
            readers = facts.consumers.get(name, ())
            if name in cut.outputs or (
                not only_here.issuperset(readers)
                and any(i not in own for reader in readers for i in groups_of.get(reader, ()))
            ):
                yield name


def _spec(cut: CutInputs, name: str) -> TensorSpec:
    return cut.declared.get(name) or TensorSpec(name, None, None)


def label_of(cut: CutInputs, group: Sequence[int]) -> str:
    """Return the label of a stage, made of its nodes' names."""
    return label_of_names([cut.facts.nodes[index].name for index in group])
