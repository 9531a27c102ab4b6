"""Heads and columns of weights as shards, where the algebra of axes proves that they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.cost import node_costs
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.errors import PlanError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.sharding.group_parts import add_groups, independent_groups
from dask_onnx.sharding.spec_protos import TensorSharding, even_sharding, whole_sharding
from dask_onnx.sharding.tensor_explain import explain_groups
from dask_onnx.sharding.tensor_groups import Group, Groups, find_groups
from dask_onnx.sharding.tensor_parts import PartsMaker, TensorParts
from dask_onnx.sharding.tensor_walk import TensorGraph, tensor_graph

Shapes = Mapping[str, tuple[int, ...]]

_PROVEN_ROWS = 2
"""Rows at which groups are looked for: with one, an axis of rows cannot be told from one of 1."""


@dataclass(frozen=True, eq=False)
class HeadSharding:
    """What of a graph runs on shards of weights."""

    graph: TensorGraph = field(repr=False)
    found: Groups
    groups: tuple[Group, ...]
    parts: TensorParts
    specs: Mapping[str, TensorSpec] = field(repr=False)
    """Every value at the sizes that costs are predicted for."""

    @property
    def devices(self) -> int:
        """Number of shards."""
        return self.graph.shards

    def explain(self, weight_bytes: int) -> str:
        """Return it as text; see `TensorPlan.explain`."""
        return explain_groups(
            self.specs, self.graph, self.found, self.groups, self.parts, weight_bytes
        )

    def node_shardings(self) -> dict[int, list[TensorSharding]]:
        """Return how the tensors of each node lie on the shards; of those that run once only values
        that others make in shards."""
        facts, shards = self.graph.facts, self.graph.shards
        found: dict[int, list[TensorSharding]] = {}
        for group in self.groups:
            for index, step in group.steps.items():
                if step is not None:
                    node = facts.proto.graph.node[index]
                    names = (*node.input, *node.output)
                    cuts = {name: group.layouts[name] for name in names if name in group.layouts}
                    cuts |= {node.input[i]: layout for i, layout in step.cuts.items()}
                    found.setdefault(index, []).extend(
                        even_sharding(name, layout, shards) for name, layout in cuts.items()
                    )
            for name in group.joins:
                for index in facts.consumers.get(name, ()):
                    is_input = name in facts.nodes[index].inputs
                    if index not in group.steps and index in self.graph.live and is_input:
                        found.setdefault(index, []).append(whole_sharding(name, shards))
        return found


def shard_heads(
    facts: ModelFacts, shapes: Shapes | None, shards: int, outputs: tuple[str, ...]
) -> HeadSharding:
    """Return what of the nodes that some outputs need runs on shards.

    Raises
    ------
    PlanError
        Nothing can be sharded; heads do not come apart into so many shards.
    """
    graph = graph_of(facts, shapes, shards, outputs)
    found = find_groups(graph)
    if not found.groups:
        raise PlanError(*_nothing_found(graph, found))
    groups = independent_groups(graph, found.groups)
    maker = maker_of(facts, shapes, graph, outputs)
    add_groups(maker, groups)
    return HeadSharding(graph, found, groups, maker.result(), maker.sizes)


def graph_of(
    facts: ModelFacts, shapes: Shapes | None, shards: int, outputs: tuple[str, ...]
) -> TensorGraph:
    """Return the graph at sizes at which it can be told what comes apart."""
    bound, _ = assumed_shapes(facts.onnx, facts.bound_shapes(shapes))
    axes, fixed = input_axes(facts.onnx)
    sizes = {
        name: tuple(
            max(size, _PROVEN_ROWS) if axis == axes.get(name) and fixed is None else size
            for axis, size in enumerate(shape)
        )
        for name, shape in bound.items()
    }
    specs = infer_shapes(facts.graph, dict(sizes), facts.schemas)
    declared = _typed(facts, specs)
    return tensor_graph(facts.graph, specs, shards, facts.custom_axes, outputs, declared)


def maker_of(
    facts: ModelFacts, shapes: Shapes | None, graph: TensorGraph, outputs: tuple[str, ...]
) -> PartsMaker:
    """Return what makes the parts of a graph, with costs at `shapes`."""
    bound, _ = assumed_shapes(facts.onnx, facts.bound_shapes(shapes))
    sizes = infer_shapes(facts.graph, dict(bound), facts.schemas)
    each = node_costs(facts.graph, sizes)
    return PartsMaker(graph, outputs, sizes, facts.costs, each)


def _typed(facts: ModelFacts, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Specs as the model declares them, their types also from definite sizes."""
    found = dict(facts.declared)
    for name, spec in specs.items():
        own = found.get(name)
        if own is None or (own.dtype is None and own.kind is None):
            shape = None if spec.shape is None else (None,) * len(spec.shape)
            found[name] = TensorSpec(name, spec.dtype, shape, spec.kind)
    return found


def _nothing_found(graph: TensorGraph, found: Groups) -> tuple[str, str]:
    if not found.left:
        return (
            "the model has no product with weights whose columns could be cut",
            "use another strategy, such as 'pipeline'",
        )
    nodes = graph.facts.nodes
    reasons = [
        f"{nodes[each.node].name!r} ({nodes[each.node].op_type}) because of "
        f"{nodes[each.stop].name!r} ({nodes[each.stop].op_type}): {each.reason}"
        for each in found.left[:3]
    ]
    more = f"; and {len(found.left) - 3} more" if len(found.left) > 3 else ""
    return (
        f"no weights can be cut into {graph.shards} shards: {'; '.join(reasons)}{more}",
        "choose another n, or another strategy, such as 'pipeline'",
    )
