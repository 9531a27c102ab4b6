"""A plan on shards of weights as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dask_onnx.core.specs import TensorSpec
from dask_onnx.sharding.tensor_groups import Group, Groups
from dask_onnx.sharding.tensor_parts import TensorPart, TensorParts, value_bytes
from dask_onnx.sharding.tensor_walk import TensorGraph

_MOST_LEFT = 8
"""Products that are left whole, of which the reason is told."""


Specs = Mapping[str, TensorSpec]


def explain_groups(
    specs: Specs,
    graph: TensorGraph,
    found: Groups,
    groups: Sequence[Group],
    parts: TensorParts,
    weight_bytes: int,
) -> str:
    """Return what is sharded and what each shard has, as text.

    Parameters
    ----------
    specs : every value at the sizes that bytes are told for
    groups : those of `found` that run
    weight_bytes : int
        Of the whole model.
    """
    shards = graph.shards
    firsts = {part.group: part for part in parts.parts if part.group is not None and not part.shard}
    cut = sum(part.sliced_bytes for part in firsts.values())
    lines = [
        f"{len(groups)} {'group' if len(groups) == 1 else 'groups'} of nodes on {shards} shards of "
        f"their weights; of {weight_bytes:,} bytes of weights {shards * cut:,} are cut, "
        f"{cut:,} for each shard",
    ]
    for number, group in enumerate(groups):
        lines += _group_lines(specs, graph, group, firsts[number])
    left = found.left
    if left:
        lines.append(f"{len(left)} products with weights run whole:")
    for each in left[:_MOST_LEFT]:
        node, by = graph.facts.nodes[each.node], graph.facts.nodes[each.stop]
        lines.append(f"  {node.name} ({node.op_type}): {by.name} ({by.op_type}) {each.reason}")
    if len(left) > _MOST_LEFT:
        lines.append(f"  and {len(left) - _MOST_LEFT} more")
    return "\n".join(lines)


def _group_lines(specs: Specs, graph: TensorGraph, group: Group, first: TensorPart) -> list[str]:
    nodes = graph.facts.nodes
    starts = ", ".join(nodes[i].name for i in group.starts)
    lines = [
        f"  {first.stage.label}: {len(group.steps)} nodes, columns of {starts}; "
        f"{first.sliced_bytes:,} bytes of weights cut for each shard"
    ]
    for name in group.sums:
        maker = nodes[graph.facts.producer[name]].name
        total = graph.shards * value_bytes(specs, name)
        lines.append(f"    adds {name!r}, partial results of {maker}: {total:,} bytes")
    for name, layout in group.joins.items():
        size = value_bytes(specs, name)
        lines.append(f"    joins {name!r} along axis {layout.axis}: {size:,} bytes")
    return lines
