"""The parts of a plan on shards of weights, each a task, and how whole values are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dask_onnx.analysis.cost import CostTable, NodeCost, initializer_bytes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.planning.cutting import identifier
from dask_onnx.planning.stages import Stage, StageCost
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.tensor_models import NodeWork, Pieces, ShardWriter, Source
from dask_onnx.sharding.tensor_walk import TensorGraph


@dataclass(frozen=True, slots=True)
class Assembly:
    """How a whole value is made: as one part makes it, or of several parts."""

    how: Literal["part", "sum", "join"]
    part: int = -1
    """Number of the part, for "part"."""
    of: tuple[Assembly, ...] = ()
    """What is added or joined, in the order of the shards."""
    layout: Layout | None = None
    """Where shards lie that are joined."""


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Nodes that run as one task: once, or on one shard."""

    stage: Stage
    model: OnnxModel
    """What `stage` is a stage of: the whole model, or that of one shard."""
    sources: tuple[Source, ...]
    """For each input of the stage."""
    group: int | None = None
    """What the shards of the same nodes have in common; None for what runs once."""
    shard: int = 0
    sliced_bytes: int = 0
    """Bytes of the slices of weights."""


@dataclass(frozen=True)
class TensorParts:
    """All parts, in an order in which they can run."""

    parts: tuple[TensorPart, ...]
    wholes: Mapping[str, Assembly]
    """Values that another part or the caller needs whole; graph inputs are not among them."""
    outputs: tuple[str, ...]


class PartsMaker:
    """Makes parts one after the other. Reads no weights."""

    def __init__(
        self,
        graph: TensorGraph,
        outputs: Sequence[str],
        sizes: Mapping[str, TensorSpec],
        costs: CostTable,
        node_costs: Sequence[NodeCost],
    ) -> None:
        """
        Parameters
        ----------
        sizes : mapping of value to TensorSpec
            At the sizes that costs are predicted for.
        node_costs : of every node, at these sizes
        """
        self.graph, self.outputs, self.sizes = graph, tuple(outputs), sizes
        self.specs = graph.declared
        self.facts, self.costs, self.node_costs = graph.facts, costs, node_costs
        self.writer = ShardWriter(graph)
        self.parts: list[TensorPart] = []
        self.wholes: dict[str, Assembly] = {}
        self._weights = initializer_bytes(self.facts)

    def result(self) -> TensorParts:
        """The parts that were made."""
        return TensorParts(tuple(self.parts), self.wholes, self.outputs)

    def needed(self, nodes: Sequence[int]) -> list[str]:
        """Values that some nodes make and others, or the caller, read."""
        inside = set(nodes)
        return [
            name
            for node in nodes
            for name in self.facts.nodes[node].outputs
            if name in self.outputs
            or any(
                i in self.graph.live and i not in inside for i in self.facts.consumers.get(name, ())
            )
        ]

    def add_whole(self, nodes: Sequence[int]) -> None:
        """Add nodes that run once, on whole values; with the first part come wanted constants."""
        is_first = not self.parts
        needed = [name for name in self.outputs if is_first and name in self.graph.constants]
        needed += self.needed(nodes)
        if not needed:
            return
        made = {name for node in nodes for name in self.facts.nodes[node].outputs}
        reads = dict.fromkeys(name for node in nodes for name in self.facts.nodes[node].reads)
        inputs = [n for n in reads if n not in made and n not in self.graph.constants]
        within, _ = self.facts.between(inputs, needed)
        read = {name for i in within for name in self.facts.nodes[i].reads}
        weights = sum(self._weights.get(name, 0) for name in read)
        stage = Stage(
            f"whole_{self.label(nodes)}",
            tuple(within),
            tuple(self.specs[name] for name in inputs),
            tuple(self.specs[name] for name in needed),
            self._cost(nodes, needed, weights, 1),
        )
        number = len(self.parts)
        self.parts.append(TensorPart(stage, self.facts.model, tuple(inputs)))
        self.wholes.update((name, Assembly("part", number)) for name in needed)

    def add_shard(
        self,
        works: Mapping[int, NodeWork],
        outputs: Mapping[str, Pieces],
        group: int,
        shard: int,
        shards: int,
    ) -> int:
        """Add nodes on one of so many shards; returns the number of the part."""
        written = self.writer.write(works, outputs)
        nodes, model = list(works), written.onnx
        stage = Stage(
            f"shard_{self.label(nodes)}",
            tuple(range(model.n_nodes)),
            model.inputs,
            model.outputs,
            self._cost(nodes, list(outputs), model.parameter_bytes, shards),
        )
        self.parts.append(
            TensorPart(stage, model, written.sources, group, shard, written.sliced_bytes)
        )
        return len(self.parts) - 1

    def label(self, nodes: Sequence[int]) -> str:
        """What the dashboard shows of some nodes."""
        if not nodes:
            return "constants"
        first, last = (identifier(self.facts.nodes[n].name) for n in (nodes[0], nodes[-1]))
        return first if len(nodes) == 1 else f"{first}..{last}"

    def _cost(
        self, nodes: Sequence[int], outputs: Sequence[str], weights: int, shards: int
    ) -> StageCost:
        """The cost of one shard."""
        return StageCost(
            flops=sum(self.node_costs[i].flops for i in nodes) // shards,
            seconds=sum(self.costs.seconds(self.node_costs[i]) for i in nodes) / shards,
            parameter_bytes=weights,
            activation_bytes=sum(value_bytes(self.sizes, name) for name in outputs),
            working_bytes=max((self.node_costs[i].activation_bytes for i in nodes), default=0),
        )


def value_bytes(specs: Mapping[str, TensorSpec], name: str) -> int:
    """Return the bytes of a value at definite sizes; 0 if they are not known."""
    spec = specs.get(name)
    if spec is None or spec.shape is None or spec.dtype is None:
        return 0
    total = spec.dtype.itemsize
    for size in spec.shape:
        total *= size if isinstance(size, int) else 1
    return total
