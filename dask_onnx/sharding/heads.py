"""Sharding of heads and weight columns where the axis analysis proves it exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.cost import node_costs
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.sharding.group_submodels import add_groups, independent_groups
from dask_onnx.sharding.spec_protos import TensorSharding, even_sharding, whole_sharding
from dask_onnx.sharding.tensor_explain import explain_groups
from dask_onnx.sharding.tensor_groups import Group, Groups, find_groups
from dask_onnx.sharding.tensor_submodels import SubmodelBuilder, TensorPartition
from dask_onnx.sharding.tensor_walk import TensorGraph, tensor_graph

Shapes = Mapping[str, tuple[int, ...]]

_MAX_REASONS = 3
"""Products that cannot be sharded, of which an error names the reason."""
_PROVEN_ROWS = 2
"""Rows at which groups are searched.

With one row, the axis of rows cannot be told from another axis of size 1.
"""


@dataclass(frozen=True, eq=False)
class HeadSharding:
    """Groups of a graph on shards of weights, and their submodels."""

    graph: TensorGraph = field(repr=False)
    found: Groups
    """All groups that were found."""
    groups: tuple[Group, ...]
    """Groups that run; none waits for results of another that waits for it."""
    partition: TensorPartition
    specs: Mapping[str, TensorSpec] = field(repr=False)
    """Every value at the sizes that costs are predicted for."""

    @property
    def devices(self) -> int:
        """Number of shards."""
        return self.graph.shards

    def explain(self, weight_bytes: int) -> str:
        """Return the sharding as text; see `TensorPlan.explain`."""
        return explain_groups(
            self.specs, self.graph, self.found, self.groups, self.partition, weight_bytes
        )

    def node_shardings(self) -> dict[int, list[TensorSharding]]:
        """Return the sharding of each node's tensors, by position of the node.

        Nodes that run once are listed with the values that they read whole and others write in
        shards.
        """
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
    """Return how the nodes that some outputs need run on shards of weights.

    Raises
    ------
    PlanError
        Nothing can be sharded, or the number of shards does not divide the heads.
    """
    graph = build_graph(facts, shapes, shards, outputs)
    found = find_groups(graph)
    if not found.groups:
        raise _nothing_found(graph, found)
    groups = independent_groups(graph, found.groups)
    builder = builder_of(facts, shapes, graph, outputs)
    add_groups(builder, groups)
    return HeadSharding(graph, found, groups, builder.result(), builder.sizes)


def build_graph(
    facts: ModelFacts, shapes: Shapes | None, shards: int, outputs: tuple[str, ...]
) -> TensorGraph:
    """Return the graph at sizes at which the axis analysis can tell axes apart."""
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


def builder_of(
    facts: ModelFacts, shapes: Shapes | None, graph: TensorGraph, outputs: tuple[str, ...]
) -> SubmodelBuilder:
    """Return a builder for the submodels of a graph, with costs at `shapes`."""
    bound, _ = assumed_shapes(facts.onnx, facts.bound_shapes(shapes))
    sizes = infer_shapes(facts.graph, dict(bound), facts.schemas)
    each = node_costs(facts.graph, sizes)
    return SubmodelBuilder(graph, outputs, sizes, facts.costs, each)


def _typed(facts: ModelFacts, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return the declared specs, with missing dtypes from shape inference at fixed sizes."""
    found = dict(facts.declared)
    for name, spec in specs.items():
        declared = found.get(name)
        if declared is None or (declared.dtype is None and declared.kind is None):
            shape = None if spec.shape is None else (None,) * len(spec.shape)
            found[name] = TensorSpec(name, spec.dtype, shape, spec.kind)
    return found


def _nothing_found(graph: TensorGraph, found: Groups) -> PlanError:
    """Return the error for a graph without groups."""
    other = Suggestion("strategy", "pipeline")
    if not found.unsharded:
        return PlanError(
            "the model has no product with weights whose columns could be cut",
            "use another strategy, such as 'pipeline'",
            option="axis",
            suggestions=[other],
        )
    nodes = graph.facts.nodes
    reasons = [
        f"{nodes[each.node].name!r} ({nodes[each.node].op_type}) because of "
        f"{nodes[each.blocker].name!r} ({nodes[each.blocker].op_type}): {each.reason}"
        for each in found.unsharded[:_MAX_REASONS]
    ]
    rest = len(found.unsharded) - len(reasons)
    more = f"; and {rest} more" if rest else ""
    first = found.unsharded[0]
    return PlanError(
        f"no weights can be cut into {graph.shards} shards: {'; '.join(reasons)}{more}",
        "choose another n, or another strategy, such as 'pipeline'",
        option="n",
        node=nodes[first.node].name,
        reason=first.reason,
        numbers={"n": graph.shards, "unsharded_products": len(found.unsharded)},
        suggestions=[Suggestion("n"), other],
    )
