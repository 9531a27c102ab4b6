"""Submodels of a tensor-parallel plan, each a task, and the assembly of whole values from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dask_onnx.analysis.cost import CostTable, NodeCost, initializer_bytes, value_bytes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.planning.stage_labels import identifier
from dask_onnx.planning.stages import Stage, StageCost
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.tensor_models import NodeWork, ShardSlices, ShardWriter, Source
from dask_onnx.sharding.tensor_walk import TensorGraph


@dataclass(frozen=True, slots=True)
class Assembly:
    """Recipe for a whole value from results of submodels."""

    how: Literal["submodel", "sum", "join"]
    """"submodel": one submodel returns it; "sum": partial sums are added; "join": shards are
    concatenated."""
    submodel: int = -1
    """Index of the submodel, for "submodel"."""
    of: tuple[Assembly, ...] = ()
    """Operands in shard order, for "sum" and "join"."""
    layout: Layout | None = None
    """Layout of the shards, for "join"."""


@dataclass(frozen=True, slots=True)
class TensorSubmodel:
    """Nodes that run as one task: once, or on one shard."""

    stage: Stage
    model: OnnxModel
    """Model that `stage` belongs to: the whole model, or that of one shard."""
    sources: tuple[Source, ...]
    """Origin of each input of the stage."""
    group: int | None = None
    """Number that the shards of the same nodes share; None for nodes that run once."""
    shard: int = 0
    """Index of the shard; 0 for nodes that run once."""
    sliced_bytes: int = 0
    """Bytes of the slices of weights."""


@dataclass(frozen=True)
class TensorPartition:
    """All submodels, in execution order."""

    submodels: tuple[TensorSubmodel, ...]
    wholes: Mapping[str, Assembly]
    """Assembly of each value that a submodel or the caller needs whole, except graph inputs."""
    outputs: tuple[str, ...]
    """Wanted values."""


class SubmodelBuilder:
    """Builds submodels one after the other. Reads no weights.

    Parameters
    ----------
    outputs : sequence of str
        Wanted values.
    sizes : mapping of value to TensorSpec
        Every value at the sizes that costs are predicted for.
    node_costs : sequence of NodeCost
        Costs of all nodes at these sizes, in graph order.
    """

    def __init__(
        self,
        graph: TensorGraph,
        outputs: Sequence[str],
        sizes: Mapping[str, TensorSpec],
        costs: CostTable,
        node_costs: Sequence[NodeCost],
    ) -> None:
        self.graph, self.outputs, self.sizes = graph, tuple(outputs), sizes
        self.specs = graph.declared
        self.facts, self.costs, self.node_costs = graph.facts, costs, node_costs
        self.writer = ShardWriter(graph)
        self.submodels: list[TensorSubmodel] = []
        self.wholes: dict[str, Assembly] = {}
        self._weights = initializer_bytes(self.facts)

    def result(self) -> TensorPartition:
        """Return the submodels built so far."""
        return TensorPartition(tuple(self.submodels), self.wholes, self.outputs)

    def needed(self, nodes: Sequence[int]) -> list[str]:
        """Return the outputs of some nodes that other nodes or the caller read."""
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
        """Add nodes that run once on whole values.

        The first submodel also returns the wanted outputs that follow from weights alone.
        """
        is_first = not self.submodels
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
        number = len(self.submodels)
        self.submodels.append(TensorSubmodel(stage, self.facts.model, tuple(inputs)))
        self.wholes.update((name, Assembly("submodel", number)) for name in needed)

    def add_shard(
        self,
        works: Mapping[int, NodeWork],
        outputs: Mapping[str, ShardSlices],
        group: int,
        shard: int,
        shards: int,
    ) -> int:
        """Add nodes on one shard; returns the index of the submodel."""
        written = self.writer.write(works, outputs)
        nodes, model = list(works), written.onnx
        stage = Stage(
            f"shard_{self.label(nodes)}",
            tuple(range(model.n_nodes)),
            model.inputs,
            model.outputs,
            self._cost(nodes, list(outputs), model.parameter_bytes, shards),
        )
        self.submodels.append(
            TensorSubmodel(stage, model, written.sources, group, shard, written.sliced_bytes)
        )
        return len(self.submodels) - 1

    def label(self, nodes: Sequence[int]) -> str:
        """Return the label of some nodes on the dashboard."""
        if not nodes:
            return "constants"
        first, last = (identifier(self.facts.nodes[n].name) for n in (nodes[0], nodes[-1]))
        return first if len(nodes) == 1 else f"{first}..{last}"

    def _cost(
        self, nodes: Sequence[int], outputs: Sequence[str], weights: int, shards: int
    ) -> StageCost:
        """Return the cost of one shard."""
        return StageCost(
            flops=sum(self.node_costs[i].flops for i in nodes) // shards,
            seconds=sum(self.costs.seconds(self.node_costs[i]) for i in nodes) / shards,
            parameter_bytes=weights,
            activation_bytes=sum(value_bytes(self.sizes.get(name)) for name in outputs),
            working_bytes=max((self.node_costs[i].activation_bytes for i in nodes), default=0),
        )
