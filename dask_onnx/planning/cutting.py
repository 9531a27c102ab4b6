"""What all strategies share: what they may look at, where a cut is legal, groups made stages."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dask_onnx.analysis import cuts
from dask_onnx.analysis.cost import CostTable, NodeCost, initializer_bytes, value_bytes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import NodeKernel, TensorSpec
from dask_onnx.planning.stages import Edge, Stage, StageCost, StageGraph

_LABEL_NODES = 3
"""A stage of up to so many nodes is called by all of them, a longer one by its first and last."""
_LABEL_LENGTH = 48
_LABEL_FOLDERS = 3


@dataclass(frozen=True, eq=False)
class CutInputs:
    """All that a strategy may look at."""

    facts: GraphFacts
    specs: Mapping[str, TensorSpec]
    """Every value at the shapes that the cost is wanted for."""
    declared: Mapping[str, TensorSpec]
    """Every value at the model's own, symbolic shapes: what a stage's interface says."""
    outputs: tuple[str, ...]
    costs: CostTable
    kernels: Sequence[NodeKernel]
    """What runs each node of the graph."""
    node_costs: Sequence[NodeCost]
    """Of each node, at the shapes."""
    measured: Mapping[int, float] = field(default_factory=dict)
    """Node to seconds, where they were measured rather than predicted."""

    @cached_property
    def initializer_bytes(self) -> dict[str, int]:
        return initializer_bytes(self.facts)

    def weight_bytes(self, nodes: Iterable[int]) -> int:
        """Bytes of all weights that some nodes read or carry, each counted once."""
        reads: set[str] = set()
        own = 0
        for node in nodes:
            reads.update(self.facts.nodes[node].reads)
            own += self.node_costs[node].own_bytes
        sizes = self.initializer_bytes
        return own + sum(sizes[name] for name in sizes.keys() & reads)

    def working_bytes(self, nodes: Iterable[int], leaving: Collection[str]) -> int:
        """The most bytes of activations that are alive at once while the nodes run, in depth-first
        order, as ONNX Runtime runs them.

        Parameters
        ----------
        leaving : values that live on until all of the nodes have run
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
        """The most bytes of activations of the model as one stage."""
        return self.working_bytes(self.nodes, self.outputs)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of every value."""
        return {name: value_bytes(spec) for name, spec in self.specs.items()}

    @cached_property
    def places(self) -> dict[int, int]:
        """Each node's position in the depth-first order."""
        return {node: i for i, node in enumerate(self.facts.depth_first_order(self.nodes))}

    def readers(self, value: str) -> list[int]:
        """Nodes that read a value on the way to the outputs."""
        return [node for node in self.facts.consumers.get(value, ()) if node in self.places]

    @cached_property
    def nodes(self) -> list[int]:
        """The nodes that the outputs need, in the order of the file."""
        return self.facts.ancestors(self.outputs)

    def seconds(self, node: int) -> float:
        return self._seconds[node]

    @cached_property
    def _seconds(self) -> list[float]:
        """Of every node of the graph."""
        predicted = map(self.costs.seconds, self.node_costs, (each.kernel for each in self.kernels))
        return [self.measured.get(node, each) for node, each in enumerate(predicted)]


def chains_of(cut: CutInputs) -> list[list[int]]:
    """The pieces that a cut leaves whole, in depth-first order."""
    return cuts.chains_of(cut.facts, cut.nodes, cut.outputs)


def crossing_bytes(cut: CutInputs, chains: Sequence[Sequence[int]]) -> list[int]:
    """For each border between chains i and i + 1 the bytes of the values that cross it."""
    return cuts.crossing_bytes(cut.facts, cut.specs, chains)


def _by_kernel(cut: CutInputs, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Split groups so that one kernel runs each; in an order in which they can run.

    A node's level is how often the kernel changes on the way to it, within its group. Nodes of
    one level and kernel are convex, since a path that leaves them comes back on a higher level.
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
    """Groups of nodes, in an order in which they can run, as a StageGraph with its edges.

    A node may be in several groups, each of which then makes its values for itself; those who have
    it not get them from the first.
    """
    facts = cut.facts
    inputs = tuple(cut.declared[name] for name in facts.inputs)
    # An output that no node makes is an input or an initializer, handed on by the last stage.
    loose = [name for name in cut.outputs if name not in facts.producer]
    split = _by_kernel(cut, groups)
    labels = labels if len(split) == len(groups) else None
    groups = split or [[]]
    groups_of: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        for node in group:
            groups_of.setdefault(node, []).append(i)
    stages = tuple(
        _stage(
            cut,
            groups_of,
            number,
            group,
            label=labels[number] if labels else label_of(cut, group),
            loose=loose if number == len(groups) - 1 else (),
            is_only=len(groups) == 1,
        )
        for number, group in enumerate(groups)
    )
    # An input that is an output too is handed on by a stage, but nobody has to wait for that.
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
    # A stage that is the model gives its outputs in the order in which they were asked for.
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
    """Values that a group gives to others: it is the first that makes them, and some reader or the
    caller has them not."""
    facts = cut.facts
    here_alone = {node for node in group if len(groups_of[node]) == 1}
    for node in group:
        own = groups_of[node]
        for name in facts.nodes[node].outputs if own[0] == number else ():
            readers = facts.consumers.get(name, ())
            if name in cut.outputs or (
                not here_alone.issuperset(readers)
                and any(i not in own for reader in readers for i in groups_of.get(reader, ()))
            ):
                yield name


def _spec(cut: CutInputs, name: str) -> TensorSpec:
    return cut.declared.get(name) or TensorSpec(name, None, None)


def label_of(cut: CutInputs, group: Sequence[int]) -> str:
    names = [identifier(cut.facts.nodes[index].name) for index in group]
    if len(names) > _LABEL_NODES:
        return f"{names[0]}..{names[-1]}"
    return "+".join(names)


def identifier(name: str) -> str:
    """A name as Dask's `key_split` leaves it alone: no hyphen, a letter first, not endless."""
    # Of a path the end tells most: exporters put the module's place in the model before it.
    end = ".".join(name.replace("::", ".").strip("/").split("/")[-_LABEL_FOLDERS:])
    text = re.sub(r"[^0-9A-Za-z_.]+", "_", end).strip("_.")[-_LABEL_LENGTH:].strip("_.")
    if not text:
        return "stage"
    return text if text[0].isalpha() else f"n{text}"
