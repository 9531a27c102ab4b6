"""Textual explanation of a tensor-parallel plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.core.formatting import printable
from dask_onnx.core.specs import TensorSpec
from dask_onnx.sharding.tensor_groups import Group, Groups
from dask_onnx.sharding.tensor_submodels import TensorPartition, TensorSubmodel
from dask_onnx.sharding.tensor_walk import TensorGraph

_MAX_UNSHARDED = 8
"""Products that run whole, of which the reason is printed."""


Specs = Mapping[str, TensorSpec]


def explain_groups(
    specs: Specs,
    graph: TensorGraph,
    found: Groups,
    groups: Sequence[Group],
    partition: TensorPartition,
    weight_bytes: int,
) -> str:
    """Return the groups, the bytes of weights of each shard and of the values exchanged, as text.

    Parameters
    ----------
    specs : mapping of value to TensorSpec
        Every value at the sizes that bytes are computed for.
    groups : sequence of Group
        Groups of `found` that run on shards.
    weight_bytes : int
        Bytes of all weights of the model.
    """
    shards = graph.shards
    firsts = {
        submodel.group: submodel
        for submodel in partition.submodels
        if submodel.group is not None and not submodel.shard
    }
    cut = sum(submodel.sliced_bytes for submodel in firsts.values())
    lines = [
        f"{len(groups)} {'group' if len(groups) == 1 else 'groups'} of nodes on {shards} shards of "
        f"their weights; of {weight_bytes:,} bytes of weights {shards * cut:,} are cut, "
        f"{cut:,} for each shard",
    ]
    for number, group in enumerate(groups):
        lines += _group_lines(specs, graph, group, firsts[number])
    unsharded = found.unsharded
    if unsharded:
        lines.append(f"{len(unsharded)} products with weights run whole:")
    for each in unsharded[:_MAX_UNSHARDED]:
        node, blocker = graph.facts.nodes[each.node], graph.facts.nodes[each.blocker]
        lines.append(
            f"  {node.name} ({node.op_type}): {blocker.name} ({blocker.op_type}) {each.reason}"
        )
    if len(unsharded) > _MAX_UNSHARDED:
        lines.append(f"  and {len(unsharded) - _MAX_UNSHARDED} more")
    return "\n".join(map(printable, lines))


def _group_lines(
    specs: Specs, graph: TensorGraph, group: Group, first: TensorSubmodel
) -> list[str]:
    nodes = graph.facts.nodes
    starts = ", ".join(nodes[i].name for i in group.starts)
    lines = [
        f"  {first.stage.label}: {len(group.steps)} nodes, columns of {starts}; "
        f"{first.sliced_bytes:,} bytes of weights cut for each shard"
    ]
    for name in group.sums:
        producer = nodes[graph.facts.producer[name]].name
        total = graph.shards * value_bytes(specs.get(name))
        lines.append(f"    adds {name!r}, partial sums of {producer}: {total:,} bytes")
    for name, layout in group.joins.items():
        size = value_bytes(specs.get(name))
        lines.append(f"    concatenates {name!r} along axis {layout.axis}: {size:,} bytes")
    return lines
