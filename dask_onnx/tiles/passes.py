"""Passes that save work: where a deep stack of small maps would have large ones made twice.

What a tile borrows from its neighbours is computed again for each of them. A stack of convolutions
on small maps reaches far, so that the large maps in front of it are made far around each tile too,
which costs more than the stack itself. If small and large maps are made in passes of their own,
each borrows what it needs of values that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs, value_bytes
from dask_onnx.tiles.flow import Flow, Step, Traced
from dask_onnx.tiles.groups import Component, Group
from dask_onnx.tiles.tile_plan import TilePlan

_SECONDS_PER_TASK = 6e-3
"""What a task costs besides its work: itself, and what it cuts for its neighbours."""
_BYTES_PER_SECOND = 5e8
"""At which tiles are kept and put together again: copies into fresh memory, some to other
processes."""
_WORTH_A_PASS = 0.95
"""Passes are added where they save more than the rest."""


def with_passes(plan: TilePlan, costs: CostTable | None = None) -> TilePlan:
    """Return the plan whose tiles are predicted to take the least time: as it is, or with small
    maps apart from large ones."""
    table = costs or CostTable()
    each = node_costs(plan.flow.facts, plan.flow.specs)
    best, least = plan, predicted_seconds(plan, each, table) * _WORTH_A_PASS
    for stride in _strides(plan.flow):
        other = split(plan, stride)
        seconds = predicted_seconds(other, each, table)
        if seconds < least:
            best, least = other, seconds
    return best


def split(plan: TilePlan, stride: Fraction) -> TilePlan:
    """Return the plan with maps of at least a stride in passes of their own."""
    return replace(plan, flow=split_at(plan.flow, stride), spans={})


def _strides(flow: Flow) -> list[Fraction]:
    """The strides that may set small maps apart from large ones."""
    found = {_stride(traced) for traced in flow.values.values() if traced.places}
    return sorted(stride for stride in found if stride > 1)


def _stride(traced: Traced) -> Fraction:
    return max(place.stride for place in traced.places.values())


def predicted_seconds(plan: TilePlan, each: Sequence[NodeCost], table: CostTable) -> float:
    """Return the seconds that one thread would take for all tiles."""
    seconds = 0.0
    for group in plan.groups:
        tiles = math.prod(len(plan.grids[k].tiles) for k in group.axes)
        seconds += tiles * _SECONDS_PER_TASK
        for part in group.components:
            own = sum(table.seconds(each[index]) for index in part.nodes)
            seconds += own * overlap_of(plan, group, part)
            kept = sum(value_bytes(plan.flow.specs.get(value)) for value in part.wanted)
            seconds += kept / _BYTES_PER_SECOND
    return seconds


def overlap_of(plan: TilePlan, group: Group, part: Component) -> float:
    """Return how many times each pixel is computed, from the crops of some tiles."""
    factor = 1.0
    for k in group.axes:
        grid = plan.grids[k]
        count = len(grid.tiles)
        some = list(grid.tiles) if count < 6 else [0, 1, count // 2, count - 1]
        crops = {i: plan.span(part, k, i) for i in some}
        sizes = {i: crop.stop - crop.start for i, crop in crops.items()}
        if count >= 6:
            inner = count - 3
            total = sizes[0] + sizes[1] + sizes[count // 2] * inner + sizes[count - 1]
        else:
            total = sum(sizes.values())
        factor *= total / grid.size
    return factor


def split_at(flow: Flow, stride: Fraction) -> Flow:
    """Return the flow with a new pass wherever tiles go from maps of a smaller stride to maps of at
    least `stride`, or back."""
    small = {index: _is_small(flow, step, stride) for index, step in flow.steps.items()}
    starts = {
        index
        for index, step in flow.steps.items()
        if not (step.is_once or step.reduced)
        and any(_is_border(flow, small, index, edge.value) for edge in step.edges)
    }
    return _with_levels(flow, starts)


def _is_small(flow: Flow, step: Step, stride: Fraction) -> bool:
    """Whether a node reads and makes maps of at least a stride only."""
    names = [edge.value for edge in step.edges if edge.places] + list(step.node.outputs)
    held = [flow.values[name] for name in names if name in flow.values]
    return all(_stride(traced) >= stride for traced in held if traced.places)


def _is_border(flow: Flow, small: Mapping[int, bool], index: int, value: str) -> bool:
    maker = flow.facts.producer.get(value)
    before = flow.steps.get(-1 if maker is None else maker)
    if before is None or before.is_once or before.reduced:
        return False
    return small[before.node.index] != small[index]


def _with_levels(flow: Flow, starts: Collection[int]) -> Flow:
    """Return the flow with passes counted anew, some nodes being the first of theirs."""
    values = {flow.source: flow.values[flow.source]}
    steps: dict[int, Step] = {}
    for index, step in flow.steps.items():
        level = 0
        for edge in step.edges:
            held = values.get(edge.value)
            if held is None:
                continue
            waits = not held.is_once and (step.is_once or edge.is_whole or bool(step.reduced))
            level = max(level, held.level + waits)
            if index in starts and not held.is_once and edge.value != flow.source:
                level = max(level, held.level + 1)
        steps[index] = replace(step, level=level)
        for name in step.node.outputs:
            values[name] = replace(flow.values[name], level=level)
    return replace(flow, values=values, steps=steps)
