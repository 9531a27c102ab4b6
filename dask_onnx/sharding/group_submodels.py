"""Submodels for groups on shards, alternating with nodes that run once."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.sharding.tensor_groups import Group
from dask_onnx.sharding.tensor_models import ShardSlices, work_of
from dask_onnx.sharding.tensor_submodels import Assembly, SubmodelBuilder
from dask_onnx.sharding.tensor_walk import TensorGraph
from dask_onnx.sharding.weight_slices import ShardSlice

Unit = int
"""Group by its number, or a node that runs once as minus one less its position."""


def _unit(node: int) -> Unit:
    return -1 - node


def levels_of(graph: TensorGraph, groups: Sequence[Group]) -> dict[Unit, int] | None:
    """Return the number of groups before each group and each other node.

    Returns None if groups wait for one another.
    """
    unit_of = {n: g for g, group in enumerate(groups) for n in group.steps}
    members: dict[Unit, list[int]] = {}
    for node in sorted(graph.live):
        members.setdefault(unit_of.get(node, _unit(node)), []).append(node)
    before = {
        unit: {
            other
            for node in nodes
            for i in graph.facts.predecessors[node]
            if i in graph.live and (other := unit_of.get(i, _unit(i))) != unit
        }
        for unit, nodes in members.items()
    }
    after: dict[Unit, list[Unit]] = {}
    for unit, others in before.items():
        for other in others:
            after.setdefault(other, []).append(unit)
    waiting = {unit: len(others) for unit, others in before.items()}
    ready = [unit for unit, count in waiting.items() if not count]
    levels: dict[Unit, int] = {}
    while ready:
        unit = ready.pop()
        levels[unit] = max((levels[o] + (o >= 0) for o in before[unit]), default=0)
        for follower in after.get(unit, ()):
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    return levels if len(levels) == len(members) else None


def independent_groups(graph: TensorGraph, groups: Sequence[Group]) -> tuple[Group, ...]:
    """Return the groups, in order, without those that would wait for one another."""
    kept: list[Group] = []
    for group in groups:
        if levels_of(graph, [*kept, group]) is not None:
            kept.append(group)
    return tuple(kept)


def add_groups(builder: SubmodelBuilder, groups: Sequence[Group]) -> None:
    """Add the submodels of a graph: at each level nodes that run once, then groups on shards."""
    levels = levels_of(builder.graph, groups)
    assert levels is not None
    for level in range(max(levels.values(), default=0) + 1):
        builder.add_whole(sorted(-1 - u for u, at in levels.items() if at == level and u < 0))
        for number in sorted(u for u, at in levels.items() if at == level and u >= 0):
            _add_group(builder, number, groups[number])


def _add_group(builder: SubmodelBuilder, number: int, group: Group) -> None:
    shards = builder.graph.shards
    submodels = []
    for shard in range(shards):
        works = {index: work_of(step, shard, shards) for index, step in group.steps.items()}
        outputs: dict[str, ShardSlices] = {
            name: (ShardSlice(group.joins[name], shard, shards),) if name in group.joins else ()
            for name in group.outputs
        }
        submodels.append(builder.add_shard(works, outputs, number, shard, shards))
    each = tuple(Assembly("submodel", submodel) for submodel in submodels)
    for name in group.sums:
        builder.wholes[name] = Assembly("sum", of=each)
    for name, layout in group.joins.items():
        builder.wholes[name] = Assembly("join", of=each, layout=layout)
    for name in group.replicated_outputs:
        builder.wholes[name] = each[0]
